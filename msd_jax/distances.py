"""Distances of images for regression: L2, a classifier's features, LPIPS."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from msd_jax import losses
from msd_jax import published
from msd_jax import torch_files

KINDS = ('l2', 'features', 'lpips')
SIZE = 224  # of the images that DMD gives to LPIPS, in pixels

# VGG-16: the convolutions of each part, by their place in torchvision's list,
# and their channels; a part but the first begins with a max pool.
_PARTS = (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256),
          ((17, 19, 21), 512), ((24, 26, 28), 512))
# Images in [-1, 1] -> the scale of ImageNet's mean and deviation.
_SHIFT = np.array([-.030, -.088, -.188], np.float32)
_SCALE = np.array([.458, .448, .450], np.float32)


def of_features(apply: Any, params: Any) -> losses.Distance:
  """Square distance of a classifier's features.

  Args:
    apply: `Classifier(...).apply`: images to (logits, features).
    params: of the classifier.
  """

  def distance(x, y):
    features = lambda images: apply({'params': params}, images)[1]
    return losses.square_distance(features(x), features(y))

  return distance


def lpips(params: Any, size: int = SIZE) -> losses.Distance:
  """LPIPS with VGG-16 (Zhang et al. 2018, eq. 1), as DMD uses it.

  Both images are resized to `size` (bilinear), as in DMD; grey ones become
  three equal channels.

  Args:
    params: see `read_lpips`.
    size: in pixels; 0 leaves them as they are.
  """

  def distance(x, y):
    chex.assert_equal_shape([x, y])
    total = jnp.zeros(x.shape[0])
    pairs = zip(_vgg(params, x, size), _vgg(params, y, size), strict=True)
    for weight, (a, b) in zip(params['linear'], pairs, strict=True):
      square = jnp.square(_unit(a) - _unit(b))
      total += jnp.mean(square @ weight, axis=(1, 2))
    return total

  return distance


def _unit(x):
  """Channels of [B, H, W, C] to length 1."""
  return x / (jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-20) + 1e-10)


def _vgg(params, images, size):
  """The last features of each part, after their ReLU: 5 x [B, h, w, C]."""
  b, *_, channels = images.shape
  x = jnp.broadcast_to(images, (*images.shape[:3], 3)) if (
      channels == 1) else images
  if size:
    x = jax.image.resize(x, (b, size, size, 3), 'bilinear')
  x = (x - _SHIFT[None, None, None]) / _SCALE[None, None, None]
  found = []
  for part, layers in enumerate(params['vgg']):
    if part:
      x = _max_pool(x)
    for layer in layers:
      x = jax.lax.conv_general_dilated(
          x, layer['kernel'], (1, 1), 'SAME',
          dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      x = jax.nn.relu(x + layer['bias'][None, None, None])
    found.append(x)
  return found


def _max_pool(x):
  b, h, w, c = x.shape
  x = x[:, :h // 2 * 2, :w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def read_lpips(vgg_path: str, linear_path: str) -> Any:
  """Params of `lpips` from published files, nothing in which is run.

  Args:
    vgg_path: torchvision's VGG-16, 'features.0.weight' ...
    linear_path: the linear layers of LPIPS for VGG, 'lin0.model.1.weight' ...

  Raises:
    torch_files.FileError: a file is absent or damaged.
    published.MismatchError: a tensor is missing or of another shape.
  """
  for field, path in (
      ('lpips_vgg_path', vgg_path), ('lpips_linear_path', linear_path)):
    if not path:
      raise torch_files.FileError(
          f"distance 'lpips' needs {field}: a file of published weights")
  vgg, linear = map(published.read_tensors, (vgg_path, linear_path))
  parts, channels = [], 3
  for places, width in _PARTS:
    part = []
    for place in places:
      name = f'features.{place}'
      kernel = _tensor(
          vgg, f'{name}.weight', (width, channels, 3, 3), vgg_path)
      part.append({
          'kernel': kernel.transpose(2, 3, 1, 0),
          'bias': _tensor(vgg, f'{name}.bias', (width,), vgg_path)})
      channels = width
    parts.append(part)
  weights = [
      _tensor(linear, f'lin{i}.model.1.weight', (1, width, 1, 1), linear_path)
      .reshape(width) for i, (_, width) in enumerate(_PARTS)]
  return {'vgg': parts, 'linear': weights}


def _tensor(tensors, name, shape, path):
  found = tensors[name].shape if name in tensors else 'absent'
  if found != shape:
    raise published.MismatchError(f'{path}: {name} is {found}, not {shape}')
  return np.ascontiguousarray(tensors[name], np.float32)
