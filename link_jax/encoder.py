"""BERT and RoBERTa as classifiers, pure functions over a tree of params.

Letters as in lm.py, N labels. The tree:

  embedding [V, D], positions [C, D], segments [S, D]
  embedding_norm {scale [D], bias [D]}
  layers, every leaf with a leading axis L:
    qkv {kernel [D, 3 D], bias}, out {kernel [D, D], bias}, attention_norm
    up {kernel [D, F], bias}, down {kernel [F, D], bias}, mlp_norm
  pool {kernel [D, D], bias}, classify {kernel [D, N], bias}
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from link_jax import lm


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a classifier.

  Attributes:
    first_position: where the positions of a text begin in the table:
      RoBERTa leaves those before out.
  """
  vocabulary: int
  num_layers: int
  width: int
  num_heads: int
  mlp_width: int
  positions: int
  segments: int
  num_labels: int
  norm_eps: float
  first_position: int

  @property
  def context(self) -> int:
    return self.positions - self.first_position


@lm.float32_products
def logits(params: Any, config: Config, tokens: jax.Array,
           segments: jax.Array, present: jax.Array) -> jax.Array:
  """Of the labels, [B, N].

  Args:
    params: as at the top of this file.
    config: of the model.
    tokens: int32 [B, T], the first of them the one that is classified.
    segments: int32 [B, T], 0 for a pair's first text, 1 for its second.
    present: bool [B, T], False for padding.
  """
  chex.assert_equal_shape([tokens, segments, present])
  places = config.first_position + jnp.arange(tokens.shape[1])
  x = lm.norm(params['embedding_norm'], config,
              params['embedding'][tokens] + params['segments'][segments]
              + params['positions'][places][None])
  bias = jnp.where(present, 0., lm.HIDDEN)[:, None, :]

  def layer(x, p):
    y = lm.dense(p['out'], attention(p, config, x, bias))
    x = lm.norm(p['attention_norm'], config, x + y)
    y = lm.dense(p['down'], jax.nn.gelu(lm.dense(p['up'], x),
                                        approximate=False))
    return lm.norm(p['mlp_norm'], config, x + y), None

  x, _ = jax.lax.scan(layer, x, params['layers'])
  pooled = jnp.tanh(lm.dense(params['pool'], x[:, 0]))
  return lm.dense(params['classify'], pooled)


def attention(p: Any, config: Config, x: jax.Array, bias: jax.Array
              ) -> jax.Array:
  """Every token sees all that are present: x [B, T, D] -> [B, T, D]."""
  heads = (*x.shape[:2], config.num_heads, config.width // config.num_heads)
  q, k, v = (part.reshape(heads) for part in jnp.split(
      lm.dense(p['qkv'], x), 3, axis=-1))
  return lm.mix(q * heads[-1] ** -0.5, k, v, bias)


def shapes(config: Config) -> Any:
  """The tree of params, shapes for leaves."""
  c, layers = config, config.num_layers

  def linear(inputs, outputs, *axes):
    return {'kernel': (*axes, inputs, outputs), 'bias': (*axes, outputs)}

  def norm(*axes):
    return {'scale': (*axes, c.width), 'bias': (*axes, c.width)}

  return {
      'embedding': (c.vocabulary, c.width),
      'positions': (c.positions, c.width),
      'segments': (c.segments, c.width),
      'embedding_norm': norm(),
      'layers': {
          'qkv': linear(c.width, 3 * c.width, layers),
          'out': linear(c.width, c.width, layers),
          'attention_norm': norm(layers),
          'up': linear(c.width, c.mlp_width, layers),
          'down': linear(c.mlp_width, c.width, layers),
          'mlp_norm': norm(layers)},
      'pool': linear(c.width, c.width),
      'classify': linear(c.width, c.num_labels)}
