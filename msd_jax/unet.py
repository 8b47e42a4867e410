"""The ADM U-Net of diffusion models, as EDM uses it for ImageNet-64.

Dhariwal and Nichol, 'Diffusion Models Beat GANs on Image Synthesis' (2021),
with the settings of Karras et al., 'Elucidating the Design Space of
Diffusion-Based Generative Models' (2022), table 7. The tree of parameters
carries the names of EDM's released networks, so that converting them is a
renaming: 'model.enc.64x64_block0.conv0.weight' is
params['enc']['64x64_block0']['conv0']['kernel'].

The network is a list of blocks, and a block is a pure function of its
parameters (layers.py); `ADM` is the linen face of both.
"""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from msd_jax import layers

Params = dict[str, Any]


class ADM(nn.Module):
  """F(x; c_noise, label) of the EDM preconditioning.

  A new network is 0 everywhere: each residual branch and the output begin at
  0. `dtype` is that of convolutions and matrix products of images; parameters,
  norms, attention and the embedding of noise and class are float32. `remat`
  keeps the inputs of branches and attentions alone for the gradient, and
  computes the rest again.
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
  remat: bool = False

  @nn.compact
  def __call__(
      self, x: jax.Array, c_noise: jax.Array, labels: jax.Array,
      deterministic: bool = True, encode: bool = False) -> jax.Array:
    """Applies the network.

    Args:
      x: noisy images times c_in, [B, H, W, C].
      c_noise: ln(sigma) / 4, [B].
      labels: int32 [B]; -1 is 'no class'.
      deterministic: False applies dropout, with the key named 'dropout'.
      encode: only the encoder, up to the decoder's first block: what DMD2's
        discriminator sees.

    Returns:
      [B, H, W, C], float32; of the encoder, [B, h, w, channels].
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

    emb = _embed(params, c_noise, labels, self.model_channels)
    x = layers.conv3x3(params['enc'][self._first], x.astype(self.dtype))
    skips = [x]
    for i, block in enumerate(encoder):
      x = self._apply(block, params['enc'], x, emb, key, i)
      skips.append(x)
    if encode:
      return x.astype(jnp.float32)
    for i, block in enumerate(decoder, start=len(encoder)):
      if block.skip_channels:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = self._apply(block, params['dec'], x, emb, key, i)
    x = nn.silu(layers.group_norm(params['out_norm'], x))
    return layers.conv3x3(params['out_conv'], x).astype(jnp.float32)

  @property
  def _first(self):
    return f'{self.resolution}x{self.resolution}_conv'

  def blocks(self) -> tuple[list[layers.Block], list[layers.Block]]:
    """The blocks of the encoder and of the decoder, in order."""
    levels = []
    for level, mult in enumerate(self.channel_mult):
      size = self.resolution >> level
      levels.append((f'{size}x{size}', self.model_channels * mult,
                     self._heads(self.model_channels * mult) if
                     size in self.attention_resolutions else 0))
    encoder = layers.encoder_blocks(levels, self.num_blocks, levels[0][1])
    skips = [levels[0][1]] + [block.out_channels for block in encoder]
    return encoder, _decoder_blocks(
        levels, self.num_blocks, self._heads(levels[-1][1]), skips)

  def _heads(self, channels):
    return max(1, channels // self.channels_per_head)

  def _parameters(self, encoder, decoder):
    width = self.model_channels * self.channel_mult[0]
    emb = self.model_channels * self.channel_mult_emb
    blocks = lambda names: {b.name: _block_leaves(b, emb) for b in names}
    param = lambda name, leaves: self.param(name, layers.draw, leaves)
    return {
        'map_layer0': param(
            'map_layer0', layers.dense_leaves(self.model_channels, emb)),
        'map_layer1': param('map_layer1', layers.dense_leaves(emb, emb)),
        'map_label': self.param('map_label', lambda key: {
            'kernel': jax.random.normal(key, (self.num_classes, emb))}),
        'enc': param('enc', blocks(encoder) | {
            self._first: layers.dense_leaves(self.channels, width, (3, 3))}),
        'dec': param('dec', blocks(decoder)),
        'out_norm': param('out_norm', layers.norm_leaves(width)),
        'out_conv': param('out_conv', layers.dense_leaves(
            width, self.channels, (3, 3), zero=True)),
    }

  def _apply(self, block, params, x, emb, key, index):
    key = None if key is None else jax.random.fold_in(key, index)
    return _apply_block(
        block, params[block.name], x, emb, key, self.dropout, self.remat)


def _decoder_blocks(levels, num_blocks, middle_heads, skips):
  skips = list(skips)
  name, width, _ = levels[-1]
  blocks = [layers.Block(f'{name}_in0', width, width, num_heads=middle_heads),
            layers.Block(f'{name}_in1', width, width)]
  for i, (name, channels, heads) in enumerate(reversed(levels)):
    if i:
      blocks.append(layers.Block(f'{name}_up', width, width, 'up'))
    for j in range(num_blocks + 1):
      skip = skips.pop()
      blocks.append(layers.Block(
          f'{name}_block{j}', width + skip, channels, num_heads=heads,
          skip_channels=skip))
      width = channels
  return blocks


def _block_leaves(block, emb_channels):
  c_in, c_out = block.in_channels, block.out_channels
  leaves = {
      'norm0': layers.norm_leaves(c_in),
      'conv0': layers.dense_leaves(c_in, c_out, (3, 3)),
      'affine': layers.dense_leaves(emb_channels, 2 * c_out),
      'norm1': layers.norm_leaves(c_out),
      'conv1': layers.dense_leaves(c_out, c_out, (3, 3), zero=True),
  }
  if c_in != c_out:
    leaves['skip'] = layers.dense_leaves(c_in, c_out, (1, 1))
  if block.num_heads:
    leaves['norm2'] = layers.norm_leaves(c_out)
    leaves['qkv'] = layers.dense_leaves(c_out, 3 * c_out, (1, 1))
    leaves['proj'] = layers.dense_leaves(c_out, c_out, (1, 1), zero=True)
  return leaves


# Application.


def _embed(params, c_noise, labels, channels):
  """Of the noise level and the class: [B], [B] -> [B, E], through a SiLU."""
  emb = layers.positional_embedding(c_noise.astype(jnp.float32), channels)
  emb = nn.silu(layers.dense(params['map_layer0'], emb))
  emb = layers.dense(params['map_layer1'], emb)
  kernel = params['map_label']['kernel']
  return nn.silu(emb + jax.nn.one_hot(labels, len(kernel)) @ kernel)


def _apply_block(block, params, x, emb, key, dropout, remat):
  """x [B, H, W, in_channels], emb [B, E] -> [B, H', W', out_channels]."""
  branch, attention = (
      layers.remat(f, remat) for f in (
          lambda *args: _branch(*args, block.resample, dropout),
          lambda *args: layers.attention(*args, block.num_heads)))
  shortcut = layers.resample(block.resample, x)
  if 'skip' in params:
    shortcut = layers.dense(params['skip'], shortcut)
  x = shortcut + branch(params, x, emb, key)
  if block.num_heads:
    x = x + attention(params, x)
  return x


def _branch(params, x, emb, key, resample, dropout):
  x = layers.resample(resample, nn.silu(layers.group_norm(params['norm0'], x)))
  x = layers.conv3x3(params['conv0'], x)
  scale, shift = jnp.split(layers.dense(params['affine'], emb), 2, axis=-1)
  x = nn.silu(layers.group_norm(params['norm1'], x, scale, shift))
  return layers.conv3x3(params['conv1'], layers.dropout(key, x, dropout))
