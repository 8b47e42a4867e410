"""DMD2's discriminator: a head on the features of a denoiser's encoder.

Of 8x8 features it is the one of DMD2's released weights, and its params have
the tree of `published.head_to_params`: a convolution 4x4 at stride 2, one 4x4
without padding, each with a group norm and SiLU, then a linear layer. Larger
features are halved more often, smaller ones not at all; features without
pixels pass linear layers instead.
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from msd_jax import layers

_SIDE = 4  # Of the features that the last convolution takes whole.


def init(key: jax.Array, feature_shape: tuple[int, ...]) -> Any:
  """Params for features of this shape, (H, W, C) or (C,), without the batch.

  Raises:
    ValueError: features that are not square, cannot be halved to 4x4, or have
      channels that make no groups.
  """
  channels = feature_shape[-1]
  try:
    layers.num_groups(channels)
  except ValueError as error:
    raise ValueError(
        f"the discriminator's features: {error}. Choose another width of the "
        'network that it reads') from error
  leaves = {}
  for i, kernel in enumerate(_kernels(feature_shape)):
    leaves[f'conv{i}'] = layers.dense_leaves(channels, channels, kernel)
    leaves[f'norm{i}'] = layers.norm_leaves(channels)
  leaves['out'] = layers.dense_leaves(
      channels, 1, (1, 1) if len(feature_shape) == 3 else ())
  return layers.draw(key, leaves)


def _kernels(feature_shape):
  """Of the convolutions, in order; the last one leaves one pixel."""
  if len(feature_shape) == 1:
    return [(), ()]
  height, width, _ = side_shape = feature_shape
  kernels = []
  while height > _SIDE and height % 2 == 0:
    kernels.append((_SIDE, _SIDE))
    height //= 2
  if height > _SIDE or side_shape[0] != width:
    raise ValueError(
        f'the discriminator takes square features of 1 to 4 pixels, or twice '
        f'as many any number of times, not {side_shape}')
  return [*kernels, (height, height)]


def logits(params: Any, features: jax.Array) -> jax.Array:
  """Features [B, H, W, C] or [B, C] -> logits [B]; high means real.

  All is float32, as in DMD2.
  """
  x = features.astype(jnp.float32)
  num = sum(name.startswith('conv') for name in params)
  for i in range(num):
    kernel = params[f'conv{i}']
    if x.ndim == 4:
      x = _halve(kernel, x) if i < num - 1 else _take_whole(kernel, x)
    else:
      x = layers.dense(kernel, x)
    x = nn.silu(_norm(params[f'norm{i}'], x))
  x = layers.dense(params['out'], x)
  return x.reshape(x.shape[0])


def _halve(params, x):
  """4x4 at stride 2, padded by 1: [B, 2h, 2w, C] -> [B, h, w, D].

  As one matrix product over the 16 pixels under the kernel: XLA for CPU runs
  a convolution slowly inside loops (see conv.py).
  """
  b, height, width, c = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  pixels = [x[:, i:i + height - 1:2, j:j + width - 1:2]
            for i in range(_SIDE) for j in range(_SIDE)]
  return _product(params, jnp.concatenate(pixels, axis=-1))


def _take_whole(params, x):
  """A kernel as large as the image: [B, h, h, C] -> [B, 1, 1, D]."""
  chex.assert_shape(x, (None, *params['kernel'].shape[:3]))
  return _product(params, x.reshape(x.shape[0], 1, 1, -1))


def _product(params, x):
  kernel = params['kernel']
  y = x @ kernel.reshape(-1, kernel.shape[-1])
  return y + params['bias'][None, None, None]


def _norm(params, x):
  if x.ndim == 4:
    return layers.group_norm(params, x)
  pixels = x[:, None, None]
  return layers.group_norm(params, pixels)[:, 0, 0]
