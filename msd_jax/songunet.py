"""DDPM++ and NCSN++, the U-Nets of EDM's CIFAR-10, FFHQ and AFHQ networks.

Song et al., 'Score-Based Generative Modeling through SDEs' (2021), with the
settings of Karras et al., 'Elucidating the Design Space of Diffusion-Based
Generative Models' (2022), table 7. As in unet.py the tree of parameters
carries the names of EDM's released networks.

Beside ADM: labels join the noise level before the two layers that map it, the
embedding is added rather than scales and shifts, sums of two branches are
divided by sqrt(2), attention has one head and, in the decoder, stands in the
last block of a level alone.
"""

import math
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from msd_jax import layers

_SUM_SCALE = .5 ** .5  # Keeps the variance of a sum of two branches.
_EPSILON = 1e-6  # Of the norms.
_FOURIER_SCALE = 16.  # Deviation of the frequencies of NCSN++.
_NEARLY_ZERO = 1e-5  # Gain of the weights that end a branch, at birth.


class SongUNet(nn.Module):
  """F(x; c_noise, label) of the EDM preconditioning; by default DDPM++.

  Attributes:
    resolution, channels: of the images.
    num_classes: Y; 0 is a network without labels.
    augment_dim: of EDM's augmentation labels, which are absent when sampling.
    residual_encoder: the image itself also goes down, beside the encoder.
    resample_filter: taps of the filter along each axis.
    fourier: random frequencies of the noise level rather than regular ones.
      They are a leaf, 'map_noise', that gets no gradient.
    channel_mult_noise: channels of that embedding, in model_channels.
    dtype: of convolutions; parameters, norms, attention and the embedding are
      float32.
    remat: keeps the inputs of branches and attentions alone for the gradient,
      and computes the rest again.
  """
  resolution: int
  channels: int
  num_classes: int
  model_channels: int = 128
  channel_mult: tuple[int, ...] = (2, 2, 2)
  channel_mult_emb: int = 4
  num_blocks: int = 4
  attention_resolutions: tuple[int, ...] = (16,)
  dropout: float = 0.13
  augment_dim: int = 0
  residual_encoder: bool = False
  resample_filter: tuple[int, ...] = layers.BOX
  fourier: bool = False
  channel_mult_noise: int = 1
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
      self, x: jax.Array, c_noise: jax.Array, labels: jax.Array,
      deterministic: bool = True, augment_labels: jax.Array | None = None,
      encode: bool = False,
  ) -> jax.Array:
    """Applies the network.

    Args:
      x: noisy images times c_in, [B, H, W, C].
      c_noise: ln(sigma) / 4, [B].
      labels: int32 [B]; -1 is 'no class'.
      deterministic: False applies dropout, with the key named 'dropout'.
      augment_labels: [B, augment_dim], of images that were augmented.
      encode: only the encoder, up to the decoder's first block.

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
      return jnp.zeros(x.shape)

    emb = self._embed(params, c_noise, labels, augment_labels)
    x = x.astype(self.dtype)
    aux, x = x, layers.conv3x3(params['enc'][self._name('conv')], x)
    skips = [x]
    for i, block in enumerate(encoder):
      x = self._apply(block, params['enc'], x, emb, key, i)
      if block.resample and self.residual_encoder:
        side = params['enc'][_side_name(block)]
        aux = x = (x + self._side_down(side, aux)) * _SUM_SCALE
      skips.append(x)
    if encode:
      return x.astype(jnp.float32)
    for i, block in enumerate(decoder, start=len(encoder)):
      if block.skip_channels:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = self._apply(block, params['dec'], x, emb, key, i)
    x = nn.silu(layers.group_norm(
        params['dec'][self._name('aux_norm')], x, epsilon=_EPSILON))
    x = layers.conv3x3(params['dec'][self._name('aux_conv')], x)
    return x.astype(jnp.float32)

  def _name(self, part):
    return f'{self.resolution}x{self.resolution}_{part}'

  def blocks(self) -> tuple[list[layers.Block], list[layers.Block]]:
    """The blocks of the encoder and of the decoder, in order."""
    levels = []
    for level, mult in enumerate(self.channel_mult):
      size = self.resolution >> level
      levels.append((f'{size}x{size}', self.model_channels * mult,
                     int(size in self.attention_resolutions)))
    encoder = layers.encoder_blocks(
        levels, self.num_blocks, self.model_channels)
    skips = [self.model_channels] + [block.out_channels for block in encoder]
    return encoder, _decoder_blocks(levels, self.num_blocks, skips)

  def _parameters(self, encoder, decoder):
    noise = self.model_channels * self.channel_mult_noise
    emb = self.model_channels * self.channel_mult_emb
    xavier = layers.xavier_leaves
    enc = {b.name: _block_leaves(b, emb) for b in encoder}
    enc[self._name('conv')] = xavier(
        self.channels, self.model_channels, (3, 3))
    dec = {b.name: _block_leaves(b, emb) for b in decoder}
    width = decoder[-1].out_channels
    dec[self._name('aux_norm')] = layers.norm_leaves(width)
    dec[self._name('aux_conv')] = xavier(
        width, self.channels, (3, 3), _NEARLY_ZERO)
    leaves = {
        'map_layer0': xavier(noise, emb), 'map_layer1': xavier(emb, emb),
        'enc': enc, 'dec': dec}
    if self.num_classes:
      leaves['map_label'] = xavier(self.num_classes, noise)
    if self.augment_dim:
      leaves['map_augment'] = {
          'kernel': xavier(self.augment_dim, noise)['kernel']}
    if self.residual_encoder:
      channels = self.channels
      for block in encoder:
        if block.resample:
          enc[_side_name(block)] = xavier(
              channels, block.out_channels, (3, 3))
          channels = block.out_channels
    params = {name: self.param(name, layers.draw, tree)
              for name, tree in leaves.items()}
    if self.fourier:
      params['map_noise'] = self.param('map_noise', lambda key: {
          'freqs': _FOURIER_SCALE * jax.random.normal(key, (noise // 2,))})
    return params

  def _embed(self, params, c_noise, labels, augment_labels):
    """Of the noise level and the class: [B], [B] -> [B, E], through a SiLU."""
    half = self.model_channels * self.channel_mult_noise // 2
    if self.fourier:
      frequencies = 2 * math.pi * jax.lax.stop_gradient(
          params['map_noise']['freqs'])
    else:
      frequencies = 10000. ** (-jnp.arange(half) / (half - 1))
    angles = c_noise.astype(jnp.float32)[:, None] * frequencies[None]
    emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    if self.num_classes:
      one_hot = jax.nn.one_hot(labels, self.num_classes)
      emb += layers.dense(
          params['map_label'], one_hot * self.num_classes ** .5)
    if augment_labels is not None:
      chex.assert_shape(augment_labels, (emb.shape[0], self.augment_dim))
      emb += augment_labels @ params['map_augment']['kernel']
    emb = nn.silu(layers.dense(params['map_layer0'], emb))
    return nn.silu(layers.dense(params['map_layer1'], emb))

  def _side_down(self, params, x):
    """A 3x3 convolution, then the filter at every second pixel.

    The image is padded once for both, as in EDM's fused layer.
    """
    margin = len(self.resample_filter) // 2 - 1
    padding = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    bare = {'kernel': params['kernel'], 'bias': jnp.zeros_like(params['bias'])}
    x = layers.conv3x3(bare, jnp.pad(x, padding))
    for axis in (1, 2):
      x = layers.every_second(x, self.resample_filter, axis)
    return x + params['bias'].astype(x.dtype)[None, None, None]

  def _apply(self, block, params, x, emb, key, index):
    """x [B, H, W, in_channels] -> [B, H', W', out_channels]."""
    key = None if key is None else jax.random.fold_in(key, index)
    params = params[block.name]
    resample = lambda x: layers.resample(
        block.resample, x, self.resample_filter)
    shortcut = resample(x)
    if 'skip' in params:
      shortcut = layers.dense(params['skip'], shortcut)
    branch, attention = (
        layers.remat(f, self.remat) for f in (
            lambda *args: _branch(*args, resample, self.dropout),
            lambda *args: layers.attention(*args, block.num_heads, _EPSILON)))
    x = (shortcut + branch(params, x, emb, key)) * _SUM_SCALE
    if block.num_heads:
      x = x + attention(params, x)
      x = x * _SUM_SCALE
    return x


class NCSNpp(SongUNet):
  """NCSN++: a residual encoder, a smoother filter, random frequencies."""
  residual_encoder: bool = True
  resample_filter: tuple[int, ...] = (1, 3, 3, 1)
  fourier: bool = True
  channel_mult_noise: int = 2


def _branch(params, x, emb, key, resample, dropout):
  norm = lambda name, x: layers.group_norm(params[name], x, epsilon=_EPSILON)
  x = layers.conv3x3(params['conv0'], resample(nn.silu(norm('norm0', x))))
  shift = layers.dense(params['affine'], emb).astype(x.dtype)
  x = nn.silu(norm('norm1', x + shift[:, None, None]))
  return layers.conv3x3(params['conv1'], layers.dropout(key, x, dropout))


def _side_name(block):
  return block.name.replace('_down', '_aux_residual')


def _decoder_blocks(levels, num_blocks, skips):
  skips = list(skips)
  name, width, _ = levels[-1]
  blocks = [layers.Block(f'{name}_in0', width, width, num_heads=1),
            layers.Block(f'{name}_in1', width, width)]
  for i, (name, channels, num_heads) in enumerate(reversed(levels)):
    if i:
      blocks.append(layers.Block(f'{name}_up', width, width, 'up'))
    for j in range(num_blocks + 1):
      skip = skips.pop()
      blocks.append(layers.Block(
          f'{name}_block{j}', width + skip, channels,
          num_heads=num_heads if j == num_blocks else 0, skip_channels=skip))
      width = channels
  return blocks


def _block_leaves(block, emb_channels):
  c_in, c_out = block.in_channels, block.out_channels
  xavier = layers.xavier_leaves
  leaves = {
      'norm0': layers.norm_leaves(c_in),
      'conv0': xavier(c_in, c_out, (3, 3)),
      'affine': xavier(emb_channels, c_out),
      'norm1': layers.norm_leaves(c_out),
      'conv1': xavier(c_out, c_out, (3, 3), _NEARLY_ZERO),
  }
  if c_in != c_out or block.resample:
    leaves['skip'] = xavier(c_in, c_out, (1, 1))
  if block.num_heads:
    leaves['norm2'] = layers.norm_leaves(c_out)
    leaves['qkv'] = xavier(c_out, 3 * c_out, (1, 1), .2 ** .5)
    leaves['proj'] = xavier(c_out, c_out, (1, 1), _NEARLY_ZERO)
  return leaves
