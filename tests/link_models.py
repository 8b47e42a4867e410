"""Tiny models of two families, written as transformers writes them."""

import pathlib

import jax
import jax.numpy as jnp
import tokenizers
import torch
import transformers

from core_jax import mesh as mesh_lib
from link_jax import lm
from link_jax import lm_score
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


def save(path: pathlib.Path, family: str) -> torch.nn.Module:
  """Makes a folder of the model, which is returned; a Llama's has shards."""
  tokenizer = byte_level_bpe()
  model = torch_model(family, tokenizer.get_vocab_size())
  model.save_pretrained(
      path, max_shard_size='40KB' if family == 'llama' else '1GB')
  tokenizer.save(str(path / 'tokenizer.json'))
  return model


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
