"""GPT-2 and Llama as pure functions over a tree of params.

Letters: B rows, T tokens of a row, S tokens that they may look at, L layers,
D width, H query heads, K heads of keys and values, A channels of a head, F
channels of the MLP, V vocabulary. The tree, made by `weights.py`:

  embedding [V, D]
  positions [C, D]             learned positions, GPT-2 only
  head [V, D]                  where it is not the embedding itself
  norm {scale [D], bias [D]}
  layers, every leaf with a leading axis L:
    attention_norm, mlp_norm   as norm
    qkv {kernel [D, (H + 2 K) A], bias}     queries, keys, values
    out {kernel [H A, D], bias}
    up {kernel [D, F], bias}                Llama [D, 2 F]: gate, then up
    down {kernel [F, D], bias}

Biases are GPT-2's; a norm without one is RMSNorm.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

VOCABULARY_CHUNK = 1024  # logits of so many words at a time
BLOCK = 64  # queries that look at the same keys, see Blocks
# TPUs and GPUs would round the factors of a product to fewer bits.
float32_products = jax.default_matmul_precision('float32')
HIDDEN = -1e30  # added to scores of keys out of sight; exp gives exactly 0


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a model; `rope_base` and `gated` are what families differ in.

  Attributes:
    context: most positions that the model knows.
    rope_base: of rotary positions; None where positions are learned.
    gated: SwiGLU in the MLP; otherwise GELU by tanh.
  """

  vocabulary: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_width: int
  mlp_width: int
  context: int
  norm_eps: float
  rope_base: float | None
  gated: bool


class Cache(NamedTuple):
  """Keys and values of all layers, [L, B, S, K, A] each."""

  keys: jax.Array
  values: jax.Array


class Blocks(NamedTuple):
  """Who sees whom where tokens see few of those before them.

  BLOCK queries after another look at `before` and at themselves: what they
  have to be given grows with T and not with its square.
  """

  before: jax.Array  # int32 [B, T / BLOCK, M], places of keys
  visible: jax.Array  # bool [B, T / BLOCK, BLOCK, M + BLOCK]


def empty_cache(config: Config, num_rows: int, length: int) -> Cache:
  """Zeros for `num_rows` rows of `length` tokens."""
  shape = (config.num_layers, num_rows, length, config.num_kv_heads,
           config.head_width)
  return Cache(jnp.zeros(shape), jnp.zeros(shape))


def causal(tokens: jax.Array) -> jax.Array:
  """tokens [B, T] -> bool [B, T, T]: each sees itself and those before it."""
  length = tokens.shape[1]
  return jnp.broadcast_to(
      jnp.tril(jnp.ones((length, length), bool)), (len(tokens), length, length))


@float32_products
def hidden(
    params: Any,
    config: Config,
    tokens: jax.Array,
    positions: jax.Array,
    visible: jax.Array | Blocks,
    cache: Cache | None = None,
    start: jax.Array | int = 0,
) -> tuple[jax.Array, Cache | None]:
  """The last layer, normed: what the head turns into logits.

  Args:
    params: as at the top of this file.
    config: of the model.
    tokens: int32 [B, T].
    positions: int32 [B, T], each under `config.context`.
    visible: bool [B, T, S], which keys a token sees, S = T without a cache;
      or Blocks, without a cache.
    cache: of S tokens, into which these T are written.
    start: where in the cache they go.

  Returns:
    [B, T, D] and the cache with these tokens in it.
  """
  chex.assert_rank([tokens, positions], 2)
  x = params['embedding'][tokens]
  if 'positions' in params:
    x += params['positions'][positions]
  rotate, look = rotation(config, positions), mixer(visible)

  def layer(x, inputs):
    p, past = inputs
    y, past = attention(
        p, config, norm(p['attention_norm'], config, x), rotate, look, past,
        start)
    x = x + y
    return x + mlp(p, config, norm(p['mlp_norm'], config, x)), past

  x, cache = jax.lax.scan(layer, x, (params['layers'], cache))
  return norm(params['norm'], config, x), cache


def dense(p: Any, x: jax.Array) -> jax.Array:
  """x [..., I] -> [..., O]."""
  y = x @ p['kernel']
  return y + _last(p['bias'], y) if 'bias' in p else y


def norm(p: Any, config: Config, x: jax.Array) -> jax.Array:
  """LayerNorm where there is a bias, RMSNorm where there is none."""
  if 'bias' in p:
    x = x - x.mean(-1, keepdims=True)
  variance = jnp.mean(jnp.square(x), -1, keepdims=True)
  x = x * jax.lax.rsqrt(variance + config.norm_eps) * _last(p['scale'], x)
  return x + _last(p['bias'], x) if 'bias' in p else x


def _last(vector, x):
  return jnp.expand_dims(vector, range(x.ndim - 1))


def rotation(
    config: Config, positions: jax.Array
) -> Callable[[jax.Array], jax.Array]:
  """Rotary positions: turns [B, T, heads, A]; nothing where there are none.

  Channel i turns together with i + A / 2, as in the published safetensors.
  """
  if config.rope_base is None:
    return lambda x: x
  half = config.head_width // 2
  frequencies = config.rope_base ** (-jnp.arange(half) / half)
  angles = positions[:, :, None, None] * frequencies[None, None, None, :]
  cos, sin = jnp.cos(angles), jnp.sin(angles)

  def rotate(x):
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

  return rotate


def attention(
    p: Any,
    config: Config,
    x: jax.Array,
    rotate: Callable[[jax.Array], jax.Array],
    look: Callable[..., jax.Array],
    past: Cache | None,
    start: jax.Array | int,
) -> tuple[jax.Array, Cache | None]:
  """x [B, T, D] -> [B, T, D], and this layer's cache; `look` of `mixer`."""
  num_rows, length = x.shape[:2]
  heads, kv, width = config.num_heads, config.num_kv_heads, config.head_width
  q, k, v = jnp.split(
      dense(p['qkv'], x), [heads * width, (heads + kv) * width], axis=-1)
  q = rotate(q.reshape(num_rows, length, heads, width)) * width ** -0.5
  k = rotate(k.reshape(num_rows, length, kv, width))
  v = v.reshape(num_rows, length, kv, width)
  if past is not None:
    k, v = past = Cache(*(
        jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
        for old, new in zip(past, (k, v), strict=True)))
  return dense(p['out'], look(q, k, v)), past


def mixer(visible: jax.Array | Blocks) -> Callable[..., jax.Array]:
  """(q, k, v) -> values mixed, for who sees whom; see `mix`."""
  if not isinstance(visible, Blocks):
    return functools.partial(mix, bias=jnp.where(visible, 0., HIDDEN))
  bias = jnp.where(visible.visible, 0., HIDDEN)

  def look(q, k, v):
    num_rows, length = q.shape[:2]
    # One gather is faster than two.
    both = jnp.concatenate([k, v], axis=2).reshape(num_rows, length, -1)
    before = jax.vmap(lambda row, places: row[places])(both, visible.before)
    own = both.reshape(num_rows, -1, BLOCK, both.shape[-1])
    keys = jnp.concatenate([before, own], axis=2)
    k, v = jnp.split(
        keys.reshape(-1, keys.shape[2], 2 * k.shape[2], k.shape[3]), 2, axis=2)
    mixed = mix(q.reshape(-1, BLOCK, *q.shape[2:]), k, v,
                bias.reshape(-1, BLOCK, keys.shape[2]))
    return mixed.reshape(num_rows, length, -1)

  return look


def mix(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array
) -> jax.Array:
  """Values by the softmax of scaled products of queries and keys.

  q [B, T, H, A], k and v [B, S, K, A], bias [B, T, S] -> [B, T, H A]. Queries
  of the heads that share keys are rows of one product: XLA's product over more
  than one row axis takes twice as long on CPU.
  """
  num_rows, length, heads, width = q.shape
  kv = k.shape[2]
  # [B, K, heads that share keys, T, A]
  q = q.reshape(num_rows, length, kv, -1, width).transpose(0, 2, 3, 1, 4)
  scores = q.reshape(num_rows, kv, -1, width) @ k.transpose(0, 2, 3, 1)
  scores = scores.reshape(num_rows, kv, heads // kv, length, -1)
  scores += bias[:, None, None]
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  mixed = weights.reshape(num_rows, kv, -1, k.shape[1]) @ (
      v.transpose(0, 2, 1, 3))
  mixed = mixed.reshape(q.shape) / weights.sum(-1, keepdims=True)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(num_rows, length, -1)


def mlp(p: Any, config: Config, x: jax.Array) -> jax.Array:
  """x [B, T, D] -> [B, T, D]."""
  h = dense(p['up'], x)
  if config.gated:
    gate, h = jnp.split(h, 2, axis=-1)
    h = jax.nn.silu(gate) * h
  else:
    h = jax.nn.gelu(h, approximate=True)
  return dense(p['down'], h)


def head(params: Any) -> jax.Array:
  """The output embedding [V, D]."""
  return params.get('head', params['embedding'])


@float32_products
def logits(params: Any, x: jax.Array) -> jax.Array:
  """x [..., D] -> [..., V]; for few x, as they are large."""
  return x @ head(params).T


@float32_products
def log_normalizer(
    params: Any, x: jax.Array, chunk: int = VOCABULARY_CHUNK
) -> jax.Array:
  """x [N, D] -> log sum exp of their logits, [N], in nats.

  The logits are never there all at once: `chunk` words at a time.
  """
  words = head(params)
  chunk = min(chunk, len(words))
  num_chunks, rest = divmod(len(words), chunk)

  def add(total, words):
    return jnp.logaddexp(total, jax.nn.logsumexp(x @ words.T, axis=-1))

  def body(i, total):
    return add(
        total, jax.lax.dynamic_slice_in_dim(words, i * chunk, chunk))

  total = jax.lax.fori_loop(
      0, num_chunks, body, jnp.full(len(x), -jnp.inf))
  return add(total, words[-rest:]) if rest else total


def shapes(config: Config) -> Any:
  """The tree of params of a model, shapes for leaves; the head is tied."""
  c, layers = config, config.num_layers
  heads = c.num_heads * c.head_width
  bias = c.rope_base is None

  def linear(inputs, outputs):
    kernel = {'kernel': (layers, inputs, outputs)}
    return kernel | ({'bias': (layers, outputs)} if bias else {})

  def norm(*axes):
    scale = {'scale': (*axes, c.width)}
    return scale | ({'bias': (*axes, c.width)} if bias else {})

  tree = {
      'embedding': (c.vocabulary, c.width),
      'norm': norm(),
      'layers': {
          'attention_norm': norm(layers),
          'qkv': linear(
              c.width, heads + 2 * c.num_kv_heads * c.head_width),
          'out': linear(heads, c.width),
          'mlp_norm': norm(layers),
          'up': linear(c.width, c.mlp_width * (2 if c.gated else 1)),
          'down': linear(c.mlp_width, c.width)}}
  return tree | ({'positions': (c.context, c.width)} if bias else {})
