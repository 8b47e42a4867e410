"""Regularisers as functions of sampled hyperparameters, one per example.

All run on the device inside the step. Images are [B, H, W, C] with values in
[0, 1]; rates and strengths are [B], so that each example feels its own
perturbed hyperparameter. None of them needs a gradient by its strength.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision have it.


def _per_example(values, x):
  """[B] -> [B, 1, ...] beside x [B, ...]."""
  return values.reshape(values.shape[0], *(1,) * (x.ndim - 1))


def dropout(
    key: jax.Array, x: jax.Array, rate: jax.Array,
    shared_axes: Sequence[int] = (),
) -> jax.Array:
  """Zeroes entries of x [B, ...] with probability rate [B], scales the rest.

  Args:
    key: of the mask.
    x: any floats.
    rate: in [0, 1).
    shared_axes: axes of x along which one mask holds: the spatial ones for
      channel dropout, time for variational dropout.
  """
  chex.assert_shape(rate, (x.shape[0],))
  shape = [1 if axis in {a % x.ndim for a in shared_axes} else size
           for axis, size in enumerate(x.shape)]
  keep = 1 - _per_example(rate, x)
  # Not in x's bits: of bfloat16's, few are below a small rate.
  mask = jax.random.uniform(key, shape) < keep
  return jnp.where(mask, x / keep.astype(x.dtype), 0)


def dropconnect_mask(
    key: jax.Array, shape: Sequence[int], rate: jax.Array
) -> jax.Array:
  """A mask for a weight, 0 or 1 / (1 - rate); `rate` [] is the batch's."""
  chex.assert_rank(rate, 0)
  return (jax.random.uniform(key, shape) < 1 - rate) / (1 - rate)


def word_mask(
    key: jax.Array, tokens: jax.Array, vocabulary_size: int, rate: jax.Array
) -> jax.Array:
  """Embedding dropout: whole words of the table, for tokens [B, T].

  Returns:
    [B, T, 1], to be multiplied by what the table gives; `rate` [].
  """
  table = dropconnect_mask(key, (vocabulary_size,), rate)
  return table[tokens][..., None]


def activation_penalty(h: jax.Array, alpha: jax.Array) -> jax.Array:
  """AR: alpha times the mean square of activations [B, ...] -> [B]."""
  axes = tuple(range(1, h.ndim))
  return alpha * jnp.mean(jnp.square(h), axes)


def temporal_activation_penalty(h: jax.Array, beta: jax.Array) -> jax.Array:
  """TAR: beta times the mean square of changes over time, [B, T, H] -> [B]."""
  return activation_penalty(h[:, 1:] - h[:, :-1], beta)


def projected_jacobian(f, x: jax.Array, key: jax.Array) -> jax.Array:
  """J^T v of each example's df/dx, for a random v ~ N(0, I); as x.

  The mean of its square is the Jacobian's, E ||J^T v||^2 = ||J||_F^2; where f
  gives one number an example, v is 1 and it is exact. Delta-STN needs this
  vector among the outputs and the square in the loss, so that what is
  linearised is what the loss is quadratic in.

  Args:
    f: x [B, ...] -> [B, ...], each example by itself.
    x: inputs.
    key: of the projection.
  """
  y, pullback = jax.vjp(f, x)
  single = y.size == y.shape[0]
  v = jnp.ones_like(y) if single else jax.random.normal(key, y.shape)
  return pullback(v)[0]


def squared_norm(x: jax.Array) -> jax.Array:
  """||x||^2 of each example: [B, ...] -> [B]."""
  return jnp.sum(jnp.square(x), tuple(range(1, x.ndim)))


def input_scale(key: jax.Array, x: jax.Array, s: jax.Array) -> jax.Array:
  """x times a draw from U[1 / (1 + s), 1 + s], one an example."""
  factor = _uniform(key, 1 / (1 + s), 1 + s)
  return x * _per_example(factor, x)


def _uniform(key, low, high):
  return low + (high - low) * jax.random.uniform(key, low.shape)


def _factor(key, strength):
  """U[1 - strength, 1 + strength], not below 0."""
  return _uniform(key, jnp.maximum(0.0, 1 - strength), 1 + strength)


def _grey(images):
  if images.shape[-1] == 1:
    return images
  weights = jnp.asarray(_GREY).reshape(1, 1, 1, 3)
  return jnp.sum(images * weights, axis=-1, keepdims=True)


def brightness(key: jax.Array, images: jax.Array, b: jax.Array) -> jax.Array:
  """Images times U[1 - b, 1 + b]."""
  return jnp.clip(images * _per_example(_factor(key, b), images), 0, 1)


def contrast(key: jax.Array, images: jax.Array, c: jax.Array) -> jax.Array:
  """The distance to the image's mean grey times U[1 - c, 1 + c]."""
  mean = jnp.mean(_grey(images), axis=(1, 2, 3), keepdims=True)
  factor = _per_example(_factor(key, c), images)
  return jnp.clip(mean + factor * (images - mean), 0, 1)


def saturation(key: jax.Array, images: jax.Array, s: jax.Array) -> jax.Array:
  """The distance to each pixel's grey times U[1 - s, 1 + s]."""
  grey = _grey(images)
  factor = _per_example(_factor(key, s), images)
  return jnp.clip(grey + factor * (images - grey), 0, 1)


def hue(key: jax.Array, images: jax.Array, h: jax.Array) -> jax.Array:
  """RGB images with their hue turned by U[-h, h] of the full circle."""
  turn = _per_example(_uniform(key, -h, h), images[..., 0])
  high, low = jnp.max(images, -1), jnp.min(images, -1)
  spread = high - low
  safe = jnp.where(spread > 0, spread, 1)
  r, g, b = jnp.moveaxis(images, -1, 0)
  angle = jnp.where(
      high == r, (g - b) / safe,
      jnp.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe)) / 6
  # HSV back to RGB: each channel is a trapezium of the angle.
  offsets = jnp.asarray([5.0, 3.0, 1.0]).reshape((1,) * angle.ndim + (3,))
  phase = (offsets + 6 * (angle + turn)[..., None]) % 6
  ramp = jnp.clip(jnp.minimum(phase, 4 - phase), 0, 1)
  return high[..., None] - spread[..., None] * ramp


def affine(
    key: jax.Array, images: jax.Array, *, degrees: jax.Array,
    translate: jax.Array, scale: jax.Array, shear: jax.Array,
) -> jax.Array:
  """Rotated, moved, zoomed and sheared images, bilinear, 0 outside.

  Args:
    key: of the draws.
    images: [B, H, W, C].
    degrees: [B], rotation by U[-degrees, degrees].
    translate: [B], each axis by U[-translate, translate] of the side.
    scale: [B], zoom by U[1 - scale, 1 + scale].
    shear: [B], along the rows by U[-shear, shear] degrees.
  """
  keys = jax.random.split(key, 5)
  angle = jnp.deg2rad(_uniform(keys[0], -degrees, degrees))
  lean = jnp.tan(jnp.deg2rad(_uniform(keys[1], -shear, shear)))
  zoom = _factor(keys[2], scale)
  shift = jnp.stack(
      [_uniform(k, -translate, translate) for k in keys[3:]], -1)
  turn = jnp.stack([
      jnp.stack([jnp.cos(angle), -jnp.sin(angle)], -1),
      jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)], -2)
  skew = jnp.stack([
      jnp.stack([jnp.ones_like(lean), lean], -1),
      jnp.stack([jnp.zeros_like(lean), jnp.ones_like(lean)], -1)], -2)
  matrix = jnp.einsum('bij,bjk->bik', turn, skew) * zoom[:, None, None]
  return jax.vmap(_warp)(images, jnp.linalg.inv(matrix), shift)


def _warp(image, inverse, shift):
  """Looks every pixel up where the inverse map [2, 2] sends it."""
  height, width = image.shape[:2]
  centre = np.array([(height - 1) / 2, (width - 1) / 2], np.float32)
  grid = np.stack(np.meshgrid(
      np.arange(height), np.arange(width), indexing='ij'), -1)
  target = (grid - centre).astype(np.float32).reshape(-1, 2)
  side = np.array([[height, width]], np.float32)
  source = (target - shift[None] * side) @ inverse.T + centre[None]
  coordinates = list(source.T)
  channels = [
      jax.scipy.ndimage.map_coordinates(
          image[..., c], coordinates, order=1, mode='constant')
      for c in range(image.shape[-1])]
  return jnp.stack(channels, -1).reshape(image.shape)


def cutout(
    key: jax.Array, images: jax.Array, holes: jax.Array, length: jax.Array,
    max_holes: int,
) -> jax.Array:
  """Zero squares: holes [B] of side length [B], whole numbers as floats.

  Centres are uniform over all pixels; a square is cut at the border.
  """
  batch_size, height, width, _ = images.shape
  centres = [
      jax.random.randint(k, (batch_size, max_holes), 0, size)
      for k, size in zip(
          jax.random.split(key), (height, width), strict=True)]
  rows, columns = (
      covered(centre, length, size)
      for centre, size in zip(centres, (height, width), strict=True))
  active = jnp.arange(max_holes)[None] < holes[:, None]
  squares = (rows[..., :, None] & columns[..., None, :]
             & active[..., None, None])
  return jnp.where(jnp.any(squares, 1)[..., None], 0, images)


def covered(centre: jax.Array, length: jax.Array, size: int) -> jax.Array:
  """Which of `size` pixels a square covers: [B, M] and [B] -> [B, M, size].

  From floor(c - L / 2) to floor(c + L / 2), the end left out, cut to the
  image.
  """
  half = length[:, None] / 2
  low = jnp.floor(jnp.clip(centre - half, 0, size))[..., None]
  high = jnp.floor(jnp.clip(centre + half, 0, size))[..., None]
  pixels = jnp.arange(size)[None, None]
  return (low <= pixels) & (pixels < high)
