"""The ADM U-Net of diffusion models, as EDM uses it for ImageNet-64.

Dhariwal and Nichol, 'Diffusion Models Beat GANs on Image Synthesis' (2021),
with the settings of Karras et al., 'Elucidating the Design Space of
Diffusion-Based Generative Models' (2022), table 7. The tree of parameters
carries the names of EDM's released networks, so that converting them is a
renaming: 'model.enc.64x64_block0.conv0.weight' is
params['enc']['64x64_block0']['conv0']['kernel'].

The network is a list of `Block`s, and a block is a pure function of its
parameters: only so can `jax.checkpoint` wrap a part of it without a lifted
transform. `ADM` is the linen face of both.
"""

import dataclasses
import itertools
import math
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from msd_jax import conv

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Block:
  """What a residual block is, before it has parameters."""
  name: str
  in_channels: int
  out_channels: int
  resample: str = ''  # '', 'down' or 'up'.
  num_heads: int = 0  # 0: no attention.
  skip_channels: int = 0  # Of in_channels, those that the encoder hands over.


class ADM(nn.Module):
  """F(x; c_noise, label) of the EDM preconditioning.

  A new network is 0 everywhere: each residual branch and the output begin at
  0. `dtype` is that of convolutions and matrix products; parameters, norms and
  attention are float32.
  """
  resolution: int
  channels: int
  num_classes: int
  model_channels: int = 192
  channel_mult: tuple[int, ...] = (1, 2, 3, 4)
  channel_mult_emb: int = 4
  num_blocks: int = 3
  attention_resolutions: tuple[int, ...] = (32, 16, 8)
  channels_per_head: int = 64
  dropout: float = 0.10
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
      self, x: jax.Array, c_noise: jax.Array, labels: jax.Array,
      deterministic: bool = True) -> jax.Array:
    """Applies the network.

    Args:
      x: noisy images times c_in, [B, H, W, C].
      c_noise: ln(sigma) / 4, [B].
      labels: int32 [B]; -1 is 'no class'.
      deterministic: False applies dropout, with the key named 'dropout'.

    Returns:
      [B, H, W, C], float32.
    """
    size = (self.resolution, self.resolution, self.channels)
    chex.assert_shape(x, (None, *size))
    chex.assert_shape([c_noise, labels], (x.shape[0],))
    key = None if deterministic or not self.dropout else self.make_rng(
        'dropout')
    encoder, decoder = self.blocks()
    params = self._parameters(encoder, decoder)
    if self.is_initializing():
      return jnp.zeros(x.shape)  # As a new network gives.

    emb = _embed(params, c_noise, labels, self.model_channels, self.dtype)
    x = _conv3x3(params['enc'][self._first], x.astype(self.dtype))
    skips = [x]
    for i, block in enumerate(encoder):
      x = self._apply(block, params['enc'], x, emb, key, i)
      skips.append(x)
    for i, block in enumerate(decoder, start=len(encoder)):
      if block.skip_channels:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = self._apply(block, params['dec'], x, emb, key, i)
    x = nn.silu(_group_norm(params['out_norm'], x))
    return _conv3x3(params['out_conv'], x).astype(jnp.float32)

  @property
  def _first(self):
    return f'{self.resolution}x{self.resolution}_conv'

  def blocks(self) -> tuple[list[Block], list[Block]]:
    """The blocks of the encoder and of the decoder, in order."""
    levels = []
    for level, mult in enumerate(self.channel_mult):
      size = self.resolution >> level
      levels.append((f'{size}x{size}', self.model_channels * mult,
                     size in self.attention_resolutions))
    encoder = _encoder_blocks(levels, self.num_blocks, self.channels_per_head)
    skips = [levels[0][1]] + [block.out_channels for block in encoder]
    return encoder, _decoder_blocks(
        levels, self.num_blocks, self.channels_per_head, skips)

  def _parameters(self, encoder, decoder):
    width = self.model_channels * self.channel_mult[0]
    emb = self.model_channels * self.channel_mult_emb
    blocks = lambda names: {b.name: _block_leaves(b, emb) for b in names}
    param = lambda name, leaves: self.param(name, _draw, leaves)
    return {
        'map_layer0': param(
            'map_layer0', _dense_leaves(self.model_channels, emb)),
        'map_layer1': param('map_layer1', _dense_leaves(emb, emb)),
        'map_label': self.param('map_label', lambda key: {
            'kernel': jax.random.normal(key, (self.num_classes, emb))}),
        'enc': param('enc', blocks(encoder) | {
            self._first: _dense_leaves(self.channels, width, (3, 3))}),
        'dec': param('dec', blocks(decoder)),
        'out_norm': param('out_norm', _norm_leaves(width)),
        'out_conv': param('out_conv', _dense_leaves(
            width, self.channels, (3, 3), zero=True)),
    }

  def _apply(self, block, params, x, emb, key, index):
    key = None if key is None else jax.random.fold_in(key, index)
    return _apply_block(block, params[block.name], x, emb, key, self.dropout)


def _encoder_blocks(levels, num_blocks, channels_per_head):
  blocks = []
  width = levels[0][1]
  for i, (name, channels, attention) in enumerate(levels):
    heads = attention * max(1, channels // channels_per_head)
    if i:
      blocks.append(Block(f'{name}_down', width, width, 'down'))
    for j in range(num_blocks):
      blocks.append(
          Block(f'{name}_block{j}', width, channels, num_heads=heads))
      width = channels
  return blocks


def _decoder_blocks(levels, num_blocks, channels_per_head, skips):
  skips = list(skips)
  name, width, _ = levels[-1]
  heads = max(1, width // channels_per_head)
  blocks = [Block(f'{name}_in0', width, width, num_heads=heads),
            Block(f'{name}_in1', width, width)]
  for i, (name, channels, attention) in enumerate(reversed(levels)):
    heads = attention * max(1, channels // channels_per_head)
    if i:
      blocks.append(Block(f'{name}_up', width, width, 'up'))
    for j in range(num_blocks + 1):
      skip = skips.pop()
      blocks.append(Block(f'{name}_block{j}', width + skip, channels,
                          num_heads=heads, skip_channels=skip))
      width = channels
  return blocks


# Parameters: their shapes first, then all that belong together in one draw,
# which compiles a hundred times faster than one draw for each.


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """A parameter that begins uniform in [mean - bound, mean + bound]."""
  shape: tuple[int, ...]
  bound: float = 0.
  mean: float = 0.

  @property
  def num_drawn(self):
    return math.prod(self.shape) if self.bound else 0


def _draw(key, leaves):
  """A tree of _Leaf -> the same tree of float32 arrays."""
  flat, treedef = jax.tree.flatten(leaves)
  ends = list(itertools.accumulate(leaf.num_drawn for leaf in flat))
  uniform = jax.random.uniform(key, (ends[-1],), minval=-1.)
  return treedef.unflatten([
      leaf.bound * uniform[end - leaf.num_drawn:end].reshape(leaf.shape)
      if leaf.bound else jnp.full(leaf.shape, leaf.mean, jnp.float32)
      for leaf, end in zip(flat, ends, strict=True)])


def _dense_leaves(fan_in, fan_out, kernel=(), zero=False):
  """Weights and biases lie within 1 / sqrt(fan_in), or at 0."""
  bound = 0. if zero else (fan_in * math.prod(kernel)) ** -.5
  return {'kernel': _Leaf((*kernel, fan_in, fan_out), bound),
          'bias': _Leaf((fan_out,), bound)}


def _norm_leaves(channels):
  return {'scale': _Leaf((channels,), mean=1.), 'bias': _Leaf((channels,))}


def _block_leaves(block, emb_channels):
  c_in, c_out = block.in_channels, block.out_channels
  leaves = {
      'norm0': _norm_leaves(c_in),
      'conv0': _dense_leaves(c_in, c_out, (3, 3)),
      'affine': _dense_leaves(emb_channels, 2 * c_out),
      'norm1': _norm_leaves(c_out),
      'conv1': _dense_leaves(c_out, c_out, (3, 3), zero=True),
  }
  if c_in != c_out:
    leaves['skip'] = _dense_leaves(c_in, c_out, (1, 1))
  if block.num_heads:
    leaves['norm2'] = _norm_leaves(c_out)
    leaves['qkv'] = _dense_leaves(c_out, 3 * c_out, (1, 1))
    leaves['proj'] = _dense_leaves(c_out, c_out, (1, 1), zero=True)
  return leaves


# Application.


def _embed(params, c_noise, labels, channels, dtype):
  """Of the noise level and the class: [B], [B] -> [B, E], through a SiLU."""
  frequencies = 10000. ** (-jnp.arange(channels // 2) / (channels // 2))
  angles = c_noise.astype(jnp.float32)[:, None] * frequencies[None]
  emb = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
  emb = nn.silu(_dense(params['map_layer0'], emb.astype(dtype)))
  emb = _dense(params['map_layer1'], emb)
  kernel = params['map_label']['kernel'].astype(dtype)
  return nn.silu(emb + jax.nn.one_hot(labels, len(kernel), dtype=dtype)
                 @ kernel)


def _apply_block(block, params, x, emb, key, dropout):
  """x [B, H, W, in_channels], emb [B, E] -> [B, H', W', out_channels]."""
  shortcut = _resample(block.resample, x)
  if 'skip' in params:
    shortcut = _dense(params['skip'], shortcut)
  x = shortcut + _branch(params, x, emb, key, block.resample, dropout)
  if block.num_heads:
    x = x + _attention(params, x, block.num_heads)
  return x


def _branch(params, x, emb, key, resample, dropout):
  x = _resample(resample, nn.silu(_group_norm(params['norm0'], x)))
  x = _conv3x3(params['conv0'], x)
  scale, shift = jnp.split(_dense(params['affine'], emb), 2, axis=-1)
  x = nn.silu(_group_norm(params['norm1'], x, scale, shift))
  if key is not None:
    keep = jax.random.bernoulli(key, 1 - dropout, x.shape)
    x = jnp.where(keep, x / (1 - dropout), 0)
  return _conv3x3(params['conv1'], x)


def _resample(kind, x):
  """Mean of each 2x2 square ('down'), or each pixel four times ('up')."""
  b, h, w, c = x.shape
  if kind == 'down':
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
  if kind == 'up':
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)
  return x


def _dense(params, x):
  """Along the last axis; a 1x1 convolution of an image."""
  kernel = params['kernel'].astype(x.dtype)
  y = x @ kernel.reshape(kernel.shape[-2:])
  return y + jnp.expand_dims(
      params['bias'].astype(x.dtype), tuple(range(x.ndim - 1)))


def _conv3x3(params, x):
  y = conv.conv3x3(x, params['kernel'].astype(x.dtype))
  return y + params['bias'].astype(x.dtype)[None, None, None]


def _group_norm(params, x, scale=None, shift=None, epsilon=1e-5):
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
  y = (x - mean[:, None, None]) * gain[:, None, None] + bias[:, None, None]
  return y.astype(x.dtype)


def _group_moments(x):
  """Mean and variance of each channel's group: [B, H, W, C] -> 2 x [B, C].

  Sums by channel, folded to groups afterwards, are one pass over memory in the
  layout that x has. They are taken about one of the channel's own values, or
  E[x^2] - E[x]^2 would lose the digits of a channel far from 0.
  """
  b, _, _, c = x.shape
  num_groups = min(32, c // 4)
  if c % num_groups:
    raise ValueError(f'{c} channels do not divide into {num_groups} groups.')
  origin = jax.lax.stop_gradient(x[:, :1, :1])
  centred = x - origin
  mean = centred.mean((1, 2))
  variance = jnp.square(centred).mean((1, 2)) - jnp.square(mean)
  mean = (mean + origin[:, 0, 0]).reshape(b, num_groups, -1)
  group_mean = mean.mean(-1, keepdims=True)
  group_variance = (variance.reshape(mean.shape) +
                    jnp.square(mean - group_mean)).mean(-1, keepdims=True)
  expand = lambda m: jnp.broadcast_to(m, mean.shape).reshape(b, c)
  return expand(group_mean), expand(group_variance)


def _attention(params, x, num_heads):
  """Self-attention over the pixels of [B, H, W, C], in float32."""
  b, h, w, c = x.shape
  head = c // num_heads
  normed = _group_norm(params['norm2'], x).reshape(b, h * w, c)
  q, k, v = _queries_keys_values(params['qkv'], normed, num_heads)
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k / head ** .5)
  weights = jax.nn.softmax(logits, axis=-1)
  mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, v).astype(x.dtype)
  return _dense(params['proj'], mixed.reshape(b, h, w, c))


def _queries_keys_values(params, x, num_heads):
  """[B, N, C] -> 3 x [B, N, heads, C / heads], float32.

  EDM's output channels run over (head, channel, {q, k, v}), the last fastest.
  Three strided columns of the kernel are cheaper than of the images.
  """
  b, n, c = x.shape
  kernel = params['kernel'].reshape(c, c, 3)
  bias = params['bias'].reshape(c, 3)
  return [
      _dense({'kernel': kernel[..., i], 'bias': bias[:, i]}, x)
      .astype(jnp.float32).reshape(b, n, num_heads, -1) for i in range(3)]
