"""A residual MLP for points and for images of few pixels."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from msd_jax import layers

# The truncated normal of linen's default takes seconds to compile per shape.
dense = functools.partial(
    nn.Dense, kernel_init=nn.initializers.lecun_uniform())


class ResidualMLP(nn.Module):
  """Blocks h + Dense(silu(scale * Dense(norm(h)) + shift)) over all pixels.

  Scale and shift come from the noise level and the class. The last kernel is
  zero at birth, as in EDM's networks: a fresh denoiser gives c_skip x.

  Attributes:
    shape: of one example, (H, W, C) or (D,).
    num_classes: Y; label -1 is 'no class'.
    width: of the hidden layers; the embedding has half of it, at least 32.
    depth: number of blocks.
    pixel_skip: also adds gain * x to the output, a gain for every pixel from
      noise level and class, zero at birth. For images of more pixels than
      `width`: their noise, which F predicts, does not fit the hidden layers.
    noise_scale: c_noise is multiplied by it before the embedding, whose
      frequencies are made for numbers larger than ln(sigma) / 4.
  """

  shape: tuple[int, ...]
  num_classes: int
  width: int = 256
  depth: int = 4
  pixel_skip: bool = False
  noise_scale: float = 16.

  @nn.compact
  def __call__(
      self,
      x: jax.Array,
      c_noise: jax.Array,
      labels: jax.Array,
      deterministic: bool = True,
      encode: bool = False,
  ) -> jax.Array:
    """x [B, *shape], c_noise [B], labels int32 [B] -> F [B, *shape].

    `encode` stops after half of the blocks: [B, width], what a discriminator
    sees.
    """
    del deterministic  # It has no dropout.
    chex.assert_shape(x, (None, *self.shape))
    size = max(32, self.width // 2)
    emb = dense(size, name='map_noise')(
        layers.positional_embedding(c_noise * self.noise_scale, size))
    one_hot = jax.nn.one_hot(labels, self.num_classes)
    emb += nn.Dense(
        size, use_bias=False, name='map_label',
        kernel_init=nn.initializers.normal(1.))(one_hot)
    emb = nn.silu(emb)
    pixels = x.reshape(x.shape[0], -1)
    h = dense(self.width, name='in')(pixels)
    for i in range((self.depth + 1) // 2 if encode else self.depth):
      h = h + self._block(h, emb, i)
    if encode:
      return h
    h = nn.silu(nn.LayerNorm(name='out_norm')(h))
    out = nn.Dense(
        math.prod(self.shape), kernel_init=nn.initializers.zeros,
        name='out')(h)
    if self.pixel_skip:
      out += pixels * nn.Dense(
          math.prod(self.shape), kernel_init=nn.initializers.zeros,
          name='gain')(emb)
    return out.reshape(x.shape)

  def _block(self, h, emb, i):
    scale, shift = jnp.split(
        dense(2 * self.width, name=f'affine{i}')(emb), 2, axis=1)
    y = dense(self.width, name=f'dense{i}_0')(
        nn.LayerNorm(name=f'norm{i}')(h))
    y = nn.silu(y * (scale + 1) + shift)
    return dense(self.width, name=f'dense{i}_1')(y)
