"""What the U-Nets are made of: pure functions of a tree of parameters.

Only so can `jax.checkpoint` wrap a part of a block without a lifted transform.
Norms and attention are float32, convolutions and matrix products of the dtype
of their input.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from msd_jax import conv

BOX = (1, 1)  # The filter of a plain mean, and of plain repetition.


@dataclasses.dataclass(frozen=True)
class Block:
  """What a residual block is, before it has parameters."""
  name: str
  in_channels: int
  out_channels: int
  resample: str = ''  # '', 'down' or 'up'.
  num_heads: int = 0  # 0: no attention.
  skip_channels: int = 0  # Of in_channels, those that the encoder hands over.


def encoder_blocks(
    levels: Sequence[tuple[str, int, int]], num_blocks: int, width: int
) -> list[Block]:
  """Of a U-Net, in order: num_blocks at each level, after halving its size.

  Args:
    levels: (name, channels, heads of the attention or 0), the largest first.
    num_blocks: of a level.
    width: channels that enter.
  """
  blocks = []
  for i, (name, channels, num_heads) in enumerate(levels):
    if i:
      blocks.append(Block(f'{name}_down', width, width, 'down'))
    for j in range(num_blocks):
      blocks.append(Block(
          f'{name}_block{j}', width, channels, num_heads=num_heads))
      width = channels
  return blocks


# Parameters: their shapes first, then all that belong together in one draw,
# which compiles a hundred times faster than one draw for each.


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A parameter that begins uniform in [mean - bound, mean + bound]."""
  shape: tuple[int, ...]
  bound: float = 0.
  mean: float = 0.

  @property
  def num_drawn(self):
    return math.prod(self.shape) if self.bound else 0


def draw(key: jax.Array, leaves: Any) -> Any:
  """A tree of Leaf -> the same tree of float32 arrays."""
  flat, treedef = jax.tree.flatten(leaves)
  ends = list(itertools.accumulate(leaf.num_drawn for leaf in flat))
  uniform = jax.random.uniform(key, (ends[-1],), minval=-1.)
  return treedef.unflatten([
      leaf.bound * uniform[end - leaf.num_drawn:end].reshape(leaf.shape)
      if leaf.bound else jnp.full(leaf.shape, leaf.mean, jnp.float32)
      for leaf, end in zip(flat, ends, strict=True)])


def dense_leaves(
    fan_in: int, fan_out: int, kernel: tuple[int, ...] = (),
    zero: bool = False) -> dict[str, Leaf]:
  """Weights and biases lie within 1 / sqrt(fan_in), or at 0."""
  bound = 0. if zero else (fan_in * math.prod(kernel)) ** -.5
  return {'kernel': Leaf((*kernel, fan_in, fan_out), bound),
          'bias': Leaf((fan_out,), bound)}


def xavier_leaves(
    fan_in: int, fan_out: int, kernel: tuple[int, ...] = (),
    gain: float = 1.) -> dict[str, Leaf]:
  """Weights lie within gain sqrt(6 / (fan_in + fan_out)), biases at 0."""
  bound = gain * (6 / (fan_in + fan_out) / math.prod(kernel)) ** .5
  return {'kernel': Leaf((*kernel, fan_in, fan_out), bound),
          'bias': Leaf((fan_out,))}


def norm_leaves(channels: int) -> dict[str, Leaf]:
  return {'scale': Leaf((channels,), mean=1.), 'bias': Leaf((channels,))}


# Application.


def positional_embedding(c_noise: jax.Array, num_channels: int) -> jax.Array:
  """[B] -> [B, num_channels]: cosines, then sines (EDM's ADM)."""
  half = num_channels // 2
  frequencies = 10000. ** (-jnp.arange(half) / half)
  angles = c_noise[:, None] * frequencies[None, :]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


def remat(
    branch: Callable[..., jax.Array], wanted: bool
) -> Callable[..., jax.Array]:
  """A branch that is computed again for its gradient, if that is wanted.

  The residual sum stays outside: within, every reader of the sum would compute
  it again.
  """
  return jax.checkpoint(branch) if wanted else branch


def resample(
    kind: str, x: jax.Array, taps: tuple[int, ...] = BOX) -> jax.Array:
  """Halves ('down') or doubles ('up') [B, H, W, C]; '' leaves it as it is.

  Args:
    kind: see above.
    x: images, of even height and width.
    taps: of the low-pass filter along each axis, symmetric, of an even number.
      (1, 1) takes the mean of each 2x2 square, or repeats each pixel.
  """
  b, h, w, c = x.shape
  if kind and taps != BOX:
    filtered = _filtered_down if kind == 'down' else _filtered_up
    return filtered(filtered(x, taps, 1), taps, 2)
  if kind == 'down':
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
  if kind == 'up':
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)
  return x


def _filtered_down(x, taps, axis):
  """Every second value of the filtered x, whose rim is padded with 0."""
  margin = len(taps) // 2 - 1
  return every_second(_pad(x, axis, margin), taps, axis)


def _filtered_up(x, taps, axis):
  """The transpose of _filtered_down, times 2."""
  margin = len(taps) // 2
  x = _pad(x, axis, margin, interior=1)
  size = x.shape[axis] - len(taps) + 1
  return 2 / sum(taps) * sum(
      tap * jax.lax.slice_in_dim(x, k, k + size, axis=axis)
      for k, tap in enumerate(taps))


def every_second(x: jax.Array, taps: tuple[int, ...], axis: int) -> jax.Array:
  """Filters along an axis where the filter fits, at stride 2."""
  size = x.shape[axis] - len(taps) + 1
  return 1 / sum(taps) * sum(
      tap * jax.lax.slice_in_dim(x, k, k + size, 2, axis)
      for k, tap in enumerate(taps))


def _pad(x, axis, margin, interior=0):
  config = [(0, 0, 0)] * x.ndim
  config[axis] = (margin, margin, interior)
  return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def dropout(key: jax.Array | None, x: jax.Array, rate: float) -> jax.Array:
  """Zeroes a part of x and scales the rest; no key, no dropout."""
  if key is None:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0)


def dense(params: Any, x: jax.Array) -> jax.Array:
  """Along the last axis; a 1x1 convolution of an image."""
  kernel = params['kernel'].astype(x.dtype)
  y = x @ kernel.reshape(kernel.shape[-2:])
  return y + jnp.expand_dims(
      params['bias'].astype(x.dtype), tuple(range(x.ndim - 1)))


def conv3x3(params: Any, x: jax.Array) -> jax.Array:
  y = conv.conv3x3(x, params['kernel'].astype(x.dtype))
  return y + params['bias'].astype(x.dtype)[None, None, None]


def group_norm(
    params: Any, x: jax.Array, scale: jax.Array | None = None,
    shift: jax.Array | None = None, epsilon: float = 1e-5) -> jax.Array:
  """Group normalisation of [B, H, W, C], then (1 + scale) x + shift [B, C]."""
  # x is read twice. Without the barrier, XLA for CPU computes it again, with
  # the residual additions that made it, inside each reader.
  x = jax.lax.optimization_barrier(x)
  mean, variance = _group_moments(x.astype(jnp.float32))
  gain = jax.lax.rsqrt(variance + epsilon) * params['scale'][None]
  bias = jnp.broadcast_to(params['bias'][None], gain.shape)
  if scale is not None:
    gain = gain * (1 + scale.astype(jnp.float32))
    bias = bias * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)
  # As one array they stay in memory. XLA for CPU would compute them again for
  # each pixel, which takes six times as long as all else here.
  mean, gain, bias = jax.lax.optimization_barrier(jnp.stack([mean, gain, bias]))
  y = (x - mean[:, None, None]) * gain[:, None, None] + bias[:, None, None]
  return y.astype(x.dtype)


def num_groups(channels: int) -> int:
  """Of a norm: 32, or fewer of 4 channels each.

  Raises:
    ValueError: the channels do not divide into them.
  """
  groups = min(32, channels // 4)
  if not groups or channels % groups:
    raise ValueError(f'{channels} channels do not divide into the groups of a '
                     'norm; multiples of 32 always do')
  return groups


def _group_moments(x):
  """Mean and variance of each channel's group: [B, H, W, C] -> 2 x [B, C].

  Sums by channel, folded to groups afterwards, are one pass over memory in the
  layout that x has. They are taken about one of the channel's own values, or
  E[x^2] - E[x]^2 would lose the digits of a channel far from 0.
  """
  b, _, _, c = x.shape
  groups = num_groups(c)
  origin = jax.lax.stop_gradient(x[:, :1, :1])
  centred = x - origin
  mean = centred.mean((1, 2))
  variance = jnp.square(centred).mean((1, 2)) - jnp.square(mean)
  mean = (mean + origin[:, 0, 0]).reshape(b, groups, -1)
  group_mean = mean.mean(-1, keepdims=True)
  group_variance = (variance.reshape(mean.shape) +
                    jnp.square(mean - group_mean)).mean(-1, keepdims=True)
  expand = lambda m: jnp.broadcast_to(m, mean.shape).reshape(b, c)
  return expand(group_mean), expand(group_variance)


def attention(
    params: Any, x: jax.Array, num_heads: int,
    epsilon: float = 1e-5) -> jax.Array:
  """Self-attention over the pixels of [B, H, W, C], in float32."""
  b, h, w, c = x.shape
  head = c // num_heads
  normed = group_norm(params['norm2'], x, epsilon=epsilon)
  normed = normed.reshape(b, h * w, c)
  q, k, v = _queries_keys_values(params['qkv'], normed, num_heads)
  logits = jnp.einsum('nqd,nkd->nqk', q, k / head ** .5)
  mixed = jax.nn.softmax(logits, axis=-1) @ v
  mixed = mixed.reshape(b, num_heads, h * w, head).swapaxes(1, 2)
  return dense(params['proj'], mixed.astype(x.dtype).reshape(b, h, w, c))


def _queries_keys_values(params, x, num_heads):
  """[B, N, C] -> 3 x [B heads, N, C / heads], float32.

  EDM's output channels run over (head, channel, {q, k, v}), the last fastest.
  Three strided columns of the kernel are cheaper than of the images.
  """
  b, n, c = x.shape
  kernel = params['kernel'].reshape(c, c, 3)
  bias = params['bias'].reshape(c, 3)
  heads_first = lambda y: y.astype(jnp.float32).reshape(
      b, n, num_heads, -1).swapaxes(1, 2).reshape(b * num_heads, n, -1)
  # Without the barrier XLA for CPU multiplies in the order that x has, at a
  # tenth of the speed.
  return jax.lax.optimization_barrier([
      heads_first(dense({'kernel': kernel[..., i], 'bias': bias[:, i]}, x))
      for i in range(3)])
