"""Weights that others published, and their networks in our params.

EDM's `.pkl`, DMD2's `pytorch_model.bin` and `pytorch_model_1.bin`, and
safetensors hold tensors of the same names, which differ from ours as torch
differs from JAX: 'enc.64x64_block0.conv0.weight' [O, I, H, W] is
params['enc']['64x64_block0']['conv0']['kernel'] [H, W, I, O].
"""

from collections.abc import Mapping
import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors
import safetensors.numpy

from msd_jax import networks
from msd_jax import songunet
from msd_jax import torch_files
from msd_jax import unet

Tensors = dict[str, np.ndarray]

_AXES = {  # Of ours, in the order of torch's.
    'kernel': {2: (1, 0), 4: (3, 2, 0, 1)}}
_TORCH_NAMES = {'kernel': 'weight', 'scale': 'weight'}
_LEVEL = re.compile(r'enc\.(\d+)x\1_')
_FILTER = '.resample_filter'  # A constant that torch's networks carry along.
PREFIX = 'model.'  # Of the network within EDM's preconditioning.
GUIDANCE = {'real': 'real_unet.', 'fake': 'fake_unet.'}  # DMD2's.
_HEAD = 'cls_pred_branch.'
LEVELS = 'karras_sigmas'  # A constant of DMD2's guidance file.
# DMD2's head by its place in a torch.nn.Sequential -> by name.
_HEAD_LAYERS = {
    '0': 'conv0', '1': 'norm0', '3': 'conv1', '4': 'norm1', '6': 'out'}


class MismatchError(ValueError):
  """A checkpoint of another architecture."""


def read_tensors(path: str) -> Tensors:
  """Name -> array of a .safetensors, .pkl, .bin, .pt or .pth file.

  Of EDM's pickles: of the averaged network, 'ema'.

  Raises:
    torch_files.FileError: it is damaged, or a pickle with code.
  """
  if path.endswith('.safetensors'):
    return _read_safetensors(path)
  value = torch_files.read(path)
  if isinstance(value, Mapping) and 'ema' in value:
    value = value['ema']
  try:
    tensors = torch_files.state_dict(value)
  except torch_files.FileError as error:
    raise torch_files.FileError(f'{path}: {error}') from error
  if not tensors:
    raise torch_files.FileError(f'{path}: no tensors in it')
  return tensors


def _read_safetensors(path):
  try:
    return safetensors.numpy.load_file(path)
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise torch_files.FileError(
        f'{path}: not a readable safetensors file: {error}') from error


def write_safetensors(
    tensors: Tensors, path: str, metadata: Mapping[str, str] | None = None
) -> None:
  """The inverse of reading one."""
  safetensors.numpy.save_file(
      {name: np.ascontiguousarray(a) for name, a in tensors.items()}, path,
      metadata=metadata and dict(metadata))


def read_metadata(path: str) -> dict[str, str]:
  """Of a .safetensors file, without its tensors.

  Raises:
    torch_files.FileError: it is damaged.
  """
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      return file.metadata() or {}
  except (OSError, safetensors.SafetensorError) as error:
    raise torch_files.FileError(
        f'{path}: not a readable safetensors file: {error}') from error


def read_network(
    path: str, module: nn.Module | None = None) -> tuple[nn.Module, Any]:
  """(module, params) of a file of one network.

  Args:
    path: see `read_tensors`.
    module: that it must be of; None takes what the shapes say.

  Raises:
    torch_files.FileError: it is damaged, or a pickle with code.
    MismatchError: it is of another architecture.
  """
  tensors = read_tensors(path)
  try:
    module = infer_network(tensors) if module is None else module
    return module, to_params(tensors, module)
  except MismatchError as error:
    raise MismatchError(f'{path}: {error}') from error


def abstract_params(module: nn.Module) -> Any:
  """Shapes of a network's params; nothing is computed."""
  return jax.eval_shape(
      lambda key: networks.init_params(
          module, key, networks.example_shape(module)), jax.random.key(0))


def to_params(tensors: Tensors, module: nn.Module) -> Any:
  """Tensors of a network, with or without 'model.' -> the module's params.

  Raises:
    MismatchError: they are of another architecture, with the first keys and
      shapes that differ.
  """
  tensors = _inner(tensors)
  template = abstract_params(module)
  expected = {_torch_name(path): _torch_shape(path, leaf.shape)
              for path, leaf in jax.tree.leaves_with_path(template)}
  constants = {name for name in tensors if name.endswith(_FILTER)}
  _check(expected, {name: a.shape for name, a in tensors.items()
                    if name not in constants})
  # A filter of other taps is another network, though all shapes agree.
  filters = _filters(module)
  for name in sorted(constants):
    if name not in filters or not np.array_equal(
        tensors[name].astype(np.float32), filters[name]):
      raise MismatchError(f'{name} is not the filter of this network')
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: _from_torch(path, tensors[_torch_name(path)]),
      template)


def to_tensors(params: Any, module: nn.Module, prefix: str = PREFIX
               ) -> Tensors:
  """The inverse of `to_params`, with the filters that torch's networks have."""
  tensors = {_torch_name(path): _to_torch(path, np.asarray(leaf))
             for path, leaf in jax.tree.leaves_with_path(params)}
  return {prefix + name: array
          for name, array in (tensors | _filters(module)).items()}


def split_guidance(tensors: Tensors) -> dict[str, Tensors]:
  """DMD2's guidance file: 'real', 'fake' and, where there is one, 'head'."""
  parts = {name: _under(tensors, prefix)
           for name, prefix in {**GUIDANCE, 'head': _HEAD}.items()}
  return {name: part for name, part in parts.items() if part}


def head_to_params(tensors: Tensors) -> dict[str, dict[str, np.ndarray]]:
  """DMD2's discriminator head: '0.weight' ... -> {'conv0': {'kernel'} ...}.

  conv0 4x4 stride 2, norm0, conv1 4x4, norm1, out 1x1.

  Raises:
    MismatchError: the layers are others.
  """
  shapes = {name: array.shape for name, array in tensors.items()}
  channels = (*shapes.get('0.bias', ()), 0)[0]
  kernel = (channels, channels, 4, 4)
  weights = {'0': kernel, '1': (channels,), '3': kernel, '4': (channels,),
             '6': (1, channels, 1, 1)}
  _check({f'{i}.weight': shape for i, shape in weights.items()}
         | {f'{i}.bias': shape[:1] for i, shape in weights.items()}, shapes)
  params = {}
  for name, array in tensors.items():
    index, kind = name.split('.')
    params.setdefault(_HEAD_LAYERS[index], {})
    leaf = kind if kind == 'bias' else (
        'scale' if array.ndim == 1 else 'kernel')
    params[_HEAD_LAYERS[index]][leaf] = _transposed(leaf, array, back=False)
  return params


def head_to_tensors(params: Mapping[str, Mapping[str, Any]]) -> Tensors:
  """The inverse of `head_to_params`, under DMD2's prefix."""
  index = {name: i for i, name in _HEAD_LAYERS.items()}
  return {
      f'{_HEAD}{index[layer]}.{_TORCH_NAMES.get(leaf, leaf)}':
          _transposed(leaf, np.asarray(array), back=True)
      for layer, leaves in params.items() for leaf, array in leaves.items()}


def infer_network(tensors: Tensors) -> nn.Module:
  """The network whose names and shapes these are.

  What no shape says is EDM's: 64 channels in a head of ADM, no dropout.

  Raises:
    MismatchError: they are of none that we have.
  """
  tensors = _inner(tensors)
  shape = {name: array.shape for name, array in tensors.items()}
  sizes = sorted(
      {int(found[1]) for found in map(_LEVEL.match, shape) if found},
      reverse=True)
  song = any(name.endswith('_aux_norm.weight') for name in shape)
  try:
    if not sizes:
      raise KeyError('enc.*')
    return (_infer_song if song else _infer_adm)(tensors, shape, sizes)
  except KeyError as error:
    raise MismatchError(
        f'no network of EDM: no tensor {error}; the first of the '
        f'{len(tensors)} is {next(iter(tensors), None)!r}') from error


def _common(shape, sizes, width):
  """What both kinds of network have."""
  level = lambda size: f'enc.{size}x{size}'
  return dict(
      resolution=sizes[0],
      channels=shape[f'{level(sizes[0])}_conv.weight'][1],
      model_channels=width,
      channel_mult=tuple(
          shape[f'{level(size)}_block0.conv0.weight'][0] // width
          for size in sizes),
      channel_mult_emb=shape['map_layer0.weight'][0] // width,
      num_blocks=sum(
          name.startswith(f'{level(sizes[0])}_block')
          and name.endswith('.conv0.weight') for name in shape),
      attention_resolutions=tuple(
          size for size in sizes
          if f'{level(size)}_block0.qkv.weight' in shape),
      dropout=0.)


def _infer_adm(tensors, shape, sizes):
  del tensors
  width = shape['map_layer0.weight'][1]
  return unet.ADM(
      num_classes=shape['map_label.weight'][1],
      **_common(shape, sizes, width))


def _infer_song(tensors, shape, sizes):
  width = shape[f'enc.{sizes[0]}x{sizes[0]}_conv.weight'][0]
  settings = dict(
      _common(shape, sizes, width),
      num_classes=shape.get('map_label.weight', (0, 0))[1],
      augment_dim=shape.get('map_augment.weight', (0, 0))[1],
      residual_encoder=any('_aux_residual.' in name for name in shape),
      fourier='map_noise.freqs' in shape,
      channel_mult_noise=shape['map_layer0.weight'][1] // width)
  side = settings['residual_encoder'] or settings['fourier']
  kind = songunet.NCSNpp if side else songunet.SongUNet
  filters = [a for name, a in tensors.items() if name.endswith(_FILTER)]
  if filters:
    row = filters[0][0, 0, 0]
    settings['resample_filter'] = tuple(
        int(tap) for tap in np.rint(row / row.min()))
  return kind(**settings)


def _under(tensors, prefix):
  return {name.removeprefix(prefix): array for name, array in tensors.items()
          if name.startswith(prefix)}


def _inner(tensors):
  """Without 'module.' of data parallel runs and 'model.' of EDM."""
  for prefix in ('module.', PREFIX):
    if all(name.startswith(prefix) for name in tensors):
      tensors = _under(tensors, prefix)
  return tensors


def _check(expected, found):
  """Both name -> shape; raises MismatchError at the first that differ."""
  differ = [f'no {name} {_size(expected[name])}'
            for name in sorted(set(expected) - set(found))[:2]]
  differ += [f'{name} {_size(found[name])} is unknown'
             for name in sorted(set(found) - set(expected))[:2]]
  differ += [
      f'{name} is {_size(found[name])}, not {_size(expected[name])}'
      for name in sorted(set(found) & set(expected))
      if found[name] != expected[name]][:2]
  if differ:
    raise MismatchError(
        f'a checkpoint of another architecture: {"; ".join(differ)}')


def _size(shape):
  return '' if shape is None else str(list(shape))


def _torch_name(path):
  *layers, leaf = (entry.key for entry in path)
  return '.'.join([*layers, _TORCH_NAMES.get(leaf, leaf)])


def _torch_shape(path, shape):
  axes = _AXES.get(path[-1].key, {}).get(len(shape))
  return tuple(shape[i] for i in axes) if axes else tuple(shape)


def _from_torch(path, array):
  """float32, which holds float16 and bfloat16 exactly."""
  return _transposed(path[-1].key, array.astype(np.float32), back=False)


def _to_torch(path, array):
  return _transposed(path[-1].key, array, back=True)


def _transposed(leaf, array, *, back):
  """Ours to torch's axes (back), or torch's to ours."""
  axes = _AXES.get(leaf, {}).get(array.ndim)
  if not axes:
    return array
  return np.ascontiguousarray(
      array.transpose(axes if back else np.argsort(axes)))


def _filters(module):
  """The constants of a network's resampling layers: name -> [1, 1, n, n]."""
  if not hasattr(module, 'blocks'):
    return {}
  taps = np.asarray(getattr(module, 'resample_filter', (1, 1)), np.float32)
  both = np.outer(taps, taps)
  both = (both / both.sum())[None, None]
  side = getattr(module, 'residual_encoder', False)
  names = []
  for part, blocks in zip(('enc', 'dec'), module.blocks(), strict=True):
    for block in blocks:
      if block.resample:
        names += [f'{part}.{block.name}.{layer}' for layer in ('conv0', 'skip')]
      if block.resample == 'down' and side:
        names.append(f'{part}.{block.name}'.replace('_down', '_aux_residual'))
  return {name + _FILTER: both for name in names}
