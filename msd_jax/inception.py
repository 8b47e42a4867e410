"""The Inception network of the FID, from its published files.

TensorFlow's Inception-v3 of 2015-12-05 (Szegedy et al. 2016), not the one of
torchvision: averages leave the padding out, and the last block pools maxima.
Two files hold it, both read as data (torch_files.py): the TorchScript archive
or pickle of StyleGAN, which EDM and DMD2 use, with the graph's own names, and
the state dict of pytorch-fid. They also resize otherwise: see `resize`.
"""

from collections.abc import Mapping
import re
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from msd_jax import torch_files

SIZE = 299
NUM_FEATURES = 2048
_EPSILON = 1e-3  # Of the batch norms.
_PRECISION = jax.lax.Precision.HIGHEST


class InceptionError(ValueError):
  """A file with other tensors than those of the network."""


# The network. A branch is a list of convolutions (name, channels, height,
# width), of pools 'average' and 'max', and last perhaps of a tuple of branches
# whose outputs are joined. Stride 2 goes without padding, stride 1 with it.


def _a(pool):
  return 1, [
      [('conv', 64, 1, 1)],
      [('tower_conv', 48, 1, 1), ('tower_conv_1', 64, 5, 5)],
      [('tower_1_conv', 64, 1, 1), ('tower_1_conv_1', 96, 3, 3),
       ('tower_1_conv_2', 96, 3, 3)],
      ['average', ('tower_2_conv', pool, 1, 1)]]


def _c(width):
  return 1, [
      [('conv', 192, 1, 1)],
      [('tower_conv', width, 1, 1), ('tower_conv_1', width, 1, 7),
       ('tower_conv_2', 192, 7, 1)],
      [('tower_1_conv', width, 1, 1), ('tower_1_conv_1', width, 7, 1),
       ('tower_1_conv_2', width, 1, 7), ('tower_1_conv_3', width, 7, 1),
       ('tower_1_conv_4', 192, 1, 7)],
      ['average', ('tower_2_conv', 192, 1, 1)]]


def _e(pool):
  return 1, [
      [('conv', 320, 1, 1)],
      [('tower_conv', 384, 1, 1),
       ([('tower_mixed_conv', 384, 1, 3)],
        [('tower_mixed_conv_1', 384, 3, 1)])],
      [('tower_1_conv', 448, 1, 1), ('tower_1_conv_1', 384, 3, 3),
       ([('tower_1_mixed_conv', 384, 1, 3)],
        [('tower_1_mixed_conv_1', 384, 3, 1)])],
      [pool, ('tower_2_conv', 192, 1, 1)]]


# The last convolution of a branch, or its pool, has the stride of the block.
_BLOCKS = {
    'mixed': _a(32), 'mixed_1': _a(64), 'mixed_2': _a(64),
    'mixed_3': (2, [
        [('conv', 384, 3, 3)],
        [('tower_conv', 64, 1, 1), ('tower_conv_1', 96, 3, 3),
         ('tower_conv_2', 96, 3, 3)],
        ['max']]),
    'mixed_4': _c(128), 'mixed_5': _c(160), 'mixed_6': _c(160),
    'mixed_7': _c(192),
    'mixed_8': (2, [
        [('tower_conv', 192, 1, 1), ('tower_conv_1', 320, 3, 3)],
        [('tower_1_conv', 192, 1, 1), ('tower_1_conv_1', 192, 1, 7),
         ('tower_1_conv_2', 192, 7, 1), ('tower_1_conv_3', 192, 3, 3)],
        ['max']]),
    'mixed_9': _e('average'), 'mixed_10': _e('max')}


class _Conv(nn.Module):
  """Convolution, batch norm with fixed statistics as scale and bias, ReLU."""
  channels: int
  size: tuple[int, int]
  stride: int = 1
  padding: str = 'SAME'

  @nn.compact
  def __call__(self, x):
    shape = (*self.size, x.shape[-1], self.channels)
    kernel = self.param('kernel', nn.initializers.lecun_uniform(), shape)
    scale = self.param('scale', nn.initializers.ones, (self.channels,))
    bias = self.param('bias', nn.initializers.zeros, (self.channels,))
    x = jax.lax.conv_general_dilated(
        x, kernel, (self.stride, self.stride), self.padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=_PRECISION)
    return nn.relu(x * scale[None, None, None] + bias[None, None, None])


class Inception(nn.Module):
  """Images -> the 2,048 features before the classes."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, 299, 299, 3] in [-1, 1] -> float32 [B, NUM_FEATURES]."""
    chex.assert_shape(x, (None, SIZE, SIZE, 3))
    x = _Conv(32, (3, 3), 2, 'VALID', name='conv')(x)
    x = _Conv(32, (3, 3), 1, 'VALID', name='conv_1')(x)
    x = _Conv(64, (3, 3), name='conv_2')(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = _Conv(80, (1, 1), name='conv_3')(x)
    x = _Conv(192, (3, 3), 1, 'VALID', name='conv_4')(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    for name, (stride, branches) in _BLOCKS.items():
      x = jnp.concatenate(
          [self._branch(name, stride, branch, x) for branch in branches], -1)
    return x.mean((1, 2))

  def _branch(self, block, stride, branch, x):
    for i, step in enumerate(branch):
      last = stride if i == len(branch) - 1 else 1
      padding = 'SAME' if last == 1 else 'VALID'
      if step == 'average':
        x = nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)
      elif step == 'max':
        x = nn.max_pool(x, (3, 3), (last, last), padding)
      elif isinstance(step[0], list):
        x = jnp.concatenate(
            [self._branch(block, stride, part, x) for part in step], -1)
      else:
        name, channels, height, width = step
        x = _Conv(channels, (height, width), last, padding,
                  name=f'{block}.{name}')(x)
    return x


def resize(images: jax.Array, convention: str) -> jax.Array:
  """Bilinear, without a filter, to what the network takes.

  Args:
    images: uint8 or float [B, H, W, C] in 0..255, C = 3, or 1 for grey.
    convention: 'tensorflow', pixel i at i H / 299 and (x - 128) / 128, as
      StyleGAN's file; or 'torch', with centres of pixels aligned and
      x / 127.5 - 1, as pytorch-fid.

  Returns:
    float32 [B, 299, 299, 3].
  """
  _, h, w, c = images.shape
  x = images.astype(jnp.float32)
  if c == 1:
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
  x = jnp.einsum('ph,bhwc->bpwc', _weights(h, convention), x,
                 precision=_PRECISION)
  x = jnp.einsum('qw,bpwc->bpqc', _weights(w, convention), x,
                 precision=_PRECISION)
  return (x - 128) / 128 if convention == 'tensorflow' else x / 127.5 - 1


def _weights(size, convention):
  """Of each old pixel in each new one: [299, size]."""
  at = np.arange(SIZE, dtype=np.float64)
  if convention == 'tensorflow':
    at = at * size / SIZE
  elif convention == 'torch':
    at = np.maximum((at + .5) * size / SIZE - .5, 0)
  else:
    raise ValueError(
        f'convention={convention!r} is neither tensorflow nor torch')
  low = np.floor(at).astype(int)
  weights = np.zeros((SIZE, size))
  rows = np.arange(SIZE)
  weights[rows, np.minimum(low, size - 1)] += 1 - (at - low)
  weights[rows, np.minimum(low + 1, size - 1)] += at - low
  return weights.astype(np.float32)


# Its files.


def load(path: str) -> tuple[dict[str, Any], str]:
  """(params of `Inception`, the convention of `resize`) of a published file.

  Raises:
    torch_files.FileError: it is damaged, or a pickle with code.
    InceptionError: it holds another network.
  """
  try:
    tensors = torch_files.state_dict(torch_files.read(path))
    if any(name.startswith('Mixed_') for name in tensors):
      return _to_params(_renamed(tensors)), 'torch'
    return _to_params(_flattened(tensors)), 'tensorflow'
  except InceptionError as error:
    raise InceptionError(f'{path}: {error}') from error


# Of pytorch-fid's names, the block's letter and what is in its branches.
_MIXED = {
    '5b': 'mixed', '5c': 'mixed_1', '5d': 'mixed_2', '6a': 'mixed_3',
    '6b': 'mixed_4', '6c': 'mixed_5', '6d': 'mixed_6', '6e': 'mixed_7',
    '7a': 'mixed_8', '7b': 'mixed_9', '7c': 'mixed_10'}
_STEM = {
    'Conv2d_1a_3x3': 'conv', 'Conv2d_2a_3x3': 'conv_1',
    'Conv2d_2b_3x3': 'conv_2', 'Conv2d_3b_1x1': 'conv_3',
    'Conv2d_4a_3x3': 'conv_4'}
_TAILS = {'2a': 'mixed_conv', '2b': 'mixed_conv_1', '3a': 'mixed_conv',
          '3b': 'mixed_conv_1'}
_BRANCHES = {  # By block, the tower of each of pytorch-fid's branches.
    '5': {'1x1': '', '5x5': 'tower', '3x3dbl': 'tower_1', 'pool': 'tower_2'},
    '6a': {'3x3': '', '3x3dbl': 'tower'},
    '6': {'1x1': '', '7x7': 'tower', '7x7dbl': 'tower_1', 'pool': 'tower_2'},
    '7a': {'3x3': 'tower', '7x7x3': 'tower_1'},
    '7': {'1x1': '', '3x3': 'tower', '3x3dbl': 'tower_1', 'pool': 'tower_2'}}
_BATCH_NORM = {'conv.weight': 'weight', 'bn.weight': 'gamma',
               'bn.bias': 'beta', 'bn.running_mean': 'mean',
               'bn.running_var': 'var'}


def _renamed(tensors):
  """pytorch-fid's names -> those of the graph: layer -> tensors."""
  layers = {}
  for name, array in tensors.items():
    found = re.fullmatch(r'(.+?)\.(conv\.weight|bn\.\w+)', name)
    if not found or found[2] not in _BATCH_NORM:
      continue  # The classes, and counts of batches.
    layers.setdefault(_layer(found[1]), {})[_BATCH_NORM[found[2]]] = array
  return layers


def _layer(name):
  """'Mixed_6b.branch7x7_2' -> 'mixed_4.tower_conv_1'."""
  if name in _STEM:
    return _STEM[name]
  found = re.fullmatch(
      r'Mixed_(\d\w)\.branch_?(\d?\w*?)(?:_(\d)([ab]?))?', name)
  if not found or found[1] not in _MIXED:
    return name
  block, branch, index, letter = found.groups()
  tower = _BRANCHES.get(block, _BRANCHES[block[0]]).get(branch, '?')
  if letter:
    conv = _TAILS[index + letter]
  else:
    conv = 'conv' if index in (None, '1') else f'conv_{int(index) - 1}'
  return f'{_MIXED[block]}.{f"{tower}_" * bool(tower)}{conv}'


def _flattened(tensors):
  """'layers.mixed.tower.conv.weight' -> 'mixed.tower_conv': {'weight'}."""
  layers = {}
  for name, array in tensors.items():
    if name.startswith('layers.'):
      layer, _, kind = name.removeprefix('layers.').rpartition('.')
      block, dot, rest = layer.partition('.')
      layers.setdefault(block + dot + rest.replace('.', '_'), {})[kind] = array
  return layers


def _to_params(layers: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
  """Tensors of torch by layer -> params, their statistics folded."""
  template = jax.eval_shape(
      Inception().init, jax.random.key(0),
      jnp.zeros((1, SIZE, SIZE, 3)))['params']
  params, differ = {}, []
  for layer, leaves in template.items():
    own = layers.get(layer, {})
    missing = {'weight', 'beta', 'mean', 'var'} - set(own)
    if missing:
      differ.append(f'no {layer}.{min(missing)}')
      continue
    kernel = np.asarray(own['weight'], np.float32)
    wanted = tuple(leaves['kernel'].shape[i] for i in (3, 2, 0, 1))
    if kernel.shape != wanted:
      differ.append(f'{layer}.weight is {kernel.shape}, not {wanted}')
      continue
    mean, var, beta = (
        np.asarray(own[name], np.float64) for name in ('mean', 'var', 'beta'))
    scale = own.get('gamma', 1.) / np.sqrt(var + _EPSILON)
    params[layer] = {
        'kernel': np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)),
        'scale': scale.astype(np.float32),
        'bias': (beta - mean * scale).astype(np.float32)}
  if differ:
    raise InceptionError(
        f'not the Inception of the FID: {"; ".join(differ[:3])}')
  return params
