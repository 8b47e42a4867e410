"""Files of torch, and other pickles, as data: nothing in them is run.

A pickle is a program for a small machine that may call whatever it names. The
reader here knows a fixed list of names, and each stands for something of ours
that only holds data; any other name is refused before it is looked up, so a
file with code of its own ends in an `UnsafeFileError` and has done nothing.
Torch itself is not needed.

Three containers of tensors: torch's zip archives (`torch.save` since 1.6, and
TorchScript), its older streams, and plain pickles of modules as EDM's
networks are, classes of `torch_utils.persistence` with their source inside,
which stays unread.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import io
import math
import pickle
import re
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGE_DTYPES = {
    'FloatStorage': np.float32, 'DoubleStorage': np.float64,
    'HalfStorage': np.float16, 'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64, 'IntStorage': np.int32, 'ShortStorage': np.int16,
    'CharStorage': np.int8, 'ByteStorage': np.uint8, 'BoolStorage': np.bool_}
_NUMPY_DTYPE = re.compile(r'[biuf][1248]')


class FileError(ValueError):
  """A file that is absent, damaged or not what it should be."""


class UnsafeFileError(FileError):
  """A pickle that names something beyond tensors and plain containers."""


def read(path: str, encoding: str = 'ASCII') -> Any:
  """Reads a pickle, or what `torch.save` or TorchScript wrote.

  Args:
    path: of the file.
    encoding: of strings that Python 2 pickled; 'bytes' leaves them bytes.

  Returns:
    What the file holds; tensors are `Tensor`s, modules `Object`s, arrays of
    numpy `Array`s.

  Raises:
    UnsafeFileError: it names something else.
    FileError: it cannot be read.
  """
  try:
    if zipfile.is_zipfile(path):
      return _read_archive(path)
    with open(path, 'rb') as file:
      return _read_stream(file, encoding)
  except FileError as error:
    raise type(error)(f'{path}: {error}') from None
  except OSError as error:
    raise FileError(f'{path}: cannot be read: {error}') from error
  # A damaged pickle makes the machine raise whatever it meets.
  except Exception as error:
    raise FileError(
        f'{path}: damaged, or no file of torch: '
        f'{type(error).__name__}: {error}') from error


def state_dict(value: Any) -> dict[str, np.ndarray]:
  """Name -> array of a module, of a state dict or of nested ones.

  Raises:
    FileError: a storage is cut short, or modules hold one another.
  """
  found = {}
  try:
    _collect(value, '', found)
  except FileError:
    raise
  except RecursionError:
    raise FileError('its modules hold one another') from None
  except Exception as error:  # Storages are read here; zipfile raises much.
    raise FileError(f'a storage is damaged: {error}') from error
  return found


def _collect(value, prefix, found):
  if isinstance(value, Tensor):
    found[prefix[:-1]] = value.array()
  elif isinstance(value, Object):
    _collect(value.members(), prefix, found)
  elif isinstance(value, Mapping):
    for name, member in value.items():
      _collect(member, f'{prefix}{name}.', found)


# What names in a pickle stand for.


class _Inert:
  """Its state is set once, by a pickle, and to nothing but data."""

  def __setstate__(self, state):
    raise UnsafeFileError(f'sets the state of a {type(self).__name__}')


@dataclasses.dataclass
class _Storage(_Inert):
  dtype: Any
  numel: int
  read: Callable[[], bytes]

  def values(self):
    data = self.read()
    if len(data) != self.numel * np.dtype(self.dtype).itemsize:
      raise FileError(
          f'cut short: a storage of {self.numel} {np.dtype(self.dtype)} has '
          f'{len(data)} bytes')
    return np.frombuffer(data, self.dtype)


@dataclasses.dataclass
class Tensor(_Inert):
  """A view of a storage, not yet read."""
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self) -> np.ndarray:
    """Its values, contiguous.

    Raises:
      FileError: the view reaches beyond its storage.
    """
    values = self.storage.values()
    numbers = (self.offset, *self.shape, *self.strides)
    if len(self.shape) != len(self.strides) or min(numbers) < 0:
      raise FileError(
          f'a tensor has the shape {self.shape}, the strides {self.strides}')
    if 0 in self.shape:
      return np.zeros(self.shape, self.storage.dtype)
    last = self.offset + sum(
        (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
    # Strides of 0 would make a few bytes fill the memory.
    if max(last, math.prod(self.shape) - 1) >= len(values):
      raise FileError(
          f'a tensor {self.shape} reaches beyond its {len(values)} values')
    strides = [s * values.itemsize for s in self.strides]
    return np.lib.stride_tricks.as_strided(
        values[self.offset:], self.shape, strides).copy()


class Object:
  """An object of a class that is not looked up: its state alone."""

  def __init__(self, class_name: str = ''):
    self.class_name = class_name
    self.state = {}

  def __setstate__(self, state):
    self.state = state

  def members(self) -> dict[str, Any]:
    """Parameters, buffers and submodules, by name."""
    if not isinstance(self.state, Mapping):
      return {}
    if '_parameters' not in self.state:  # TorchScript: plain attributes.
      return {name: value for name, value in self.state.items()
              if isinstance(value, (Tensor, Object))}
    passing = self.state.get('_non_persistent_buffers_set', ())
    return {
        name: value
        for kind in ('_parameters', '_buffers', '_modules')
        for name, value in self.state.get(kind, {}).items()
        if name not in passing}


class _Dict(dict):
  """OrderedDict, EasyDict: items alone."""

  def __setstate__(self, state):
    pass


class _Dtype:
  """numpy.dtype, of plain numbers."""

  def __init__(self, name, align=False, copy=False):
    del align, copy
    self.name, self.order = _text(name), '<'

  def __setstate__(self, state):
    self.order = _text(state[1])

  def numpy(self):
    if not _NUMPY_DTYPE.fullmatch(self.name) or self.order not in '<>|=':
      raise UnsafeFileError(f'holds an array of {self.name!r}')
    return np.dtype(self.order + self.name)


class Array:
  """numpy.ndarray; `value` is the array."""

  def __init__(self):
    self.value = None

  def __setstate__(self, state):
    _, shape, dtype, fortran, data = state
    if isinstance(data, str):  # A string of Python 2 under another encoding.
      data = data.encode('latin1')
    self.value = np.frombuffer(data, dtype.numpy()).reshape(
        shape, order='F' if fortran else 'C')


@dataclasses.dataclass(frozen=True)
class _Call(_Inert):
  """A function of ours, or an inert name, that a pickle may call."""
  function: Callable[..., Any]

  def __call__(self, *args):
    return self.function(*args)


@dataclasses.dataclass(frozen=True)
class _StorageType(_Inert):
  dtype: Any


def _text(value):
  return value.decode('latin1') if isinstance(value, bytes) else value


def _rebuild_tensor(storage, offset, shape, strides, *unused):
  if not isinstance(storage, _Storage):
    raise UnsafeFileError('makes a tensor of something else than a storage')
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _persistent(meta):
  """torch_utils.persistence: a class with its source, which stays unread."""
  made = Object(str(meta['class_name']))
  made.state = meta['state']
  return made


_same = _Call(lambda value, *unused: value)
_NAMES = {
    'collections.OrderedDict': _Dict,
    'dnnlib.util.EasyDict': _Dict,
    'builtins.set': set,
    '__builtin__.set': set,
    'torch._utils._rebuild_tensor_v2': _Call(_rebuild_tensor),
    'torch._utils._rebuild_parameter': _same,
    'torch._utils._rebuild_parameter_with_state': _same,
    'torch.storage._load_from_bytes': _Call(
        lambda data: _read_legacy(io.BytesIO(data))),
    'torch.device': _Call(lambda *args: args),
    'torch.Size': _Call(tuple),
    'torch_utils.persistence._reconstruct_persistent_obj': _Call(_persistent),
    'torch.jit._pickle.restore_type_tag': _same,
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _Call(lambda *args: None),
} | {
    f'torch.jit._pickle.build_{kind}list': _same
    for kind in ('int', 'double', 'bool', 'tensor')
} | {
    f'torch.{name}': _StorageType(dtype)
    for name, dtype in _STORAGE_DTYPES.items()
} | {
    f'torch.{name}': _Call(lambda *args: None)
    for name in ('float16', 'bfloat16', 'float32', 'float64', 'uint8', 'int64')
} | {
    f'numpy.{core}.multiarray.{name}': _Call(function)
    for core in ('core', '_core')
    for name, function in (
        ('_reconstruct', lambda *args: Array()),
        ('scalar', lambda dtype, data: np.frombuffer(
            data.encode('latin1') if isinstance(data, str) else data,
            dtype.numpy())[0]))}
# Layers and containers of torch, of which the state alone is kept.
_MODULES = re.compile(r'torch\.nn\.modules\.[a-z]+\.[A-Z]\w*')


class _Reader(pickle.Unpickler):
  """A pickle's machine that knows the names above and no others."""

  def __init__(self, file, storage=None, encoding='ASCII', script=False):
    super().__init__(file, encoding=encoding)
    self._storage = storage
    self._script = script  # TorchScript names its own classes.

  def find_class(self, module, name):
    full = f'{module}.{name}'
    if full in _NAMES:
      return _NAMES[full]
    if _MODULES.fullmatch(full) or (
        self._script and module.split('.')[0] == '__torch__'):
      return Object
    raise UnsafeFileError(
        f'names {full}, which is neither a tensor nor a plain container; '
        'nothing of it was run')

  def persistent_load(self, pid):
    kind, storage_type, key, _, numel, *view = pid
    if (self._storage is None or kind != 'storage' or any(view)
        or not isinstance(storage_type, _StorageType)):
      raise UnsafeFileError('refers to something else than a storage')
    return self._storage(storage_type.dtype, str(key), int(numel))


# The three containers.


def _read_archive(path: str) -> Any:
  """A zip of one folder: data.pkl, and data/KEY for every storage."""
  archive = zipfile.ZipFile(path)  # Stays open: storages are read late.
  names = {name.partition('/')[2]: name for name in archive.namelist()}
  if 'data.pkl' not in names:
    raise FileError('a zip archive, but without data.pkl: not of torch')
  if 'byteorder' in names and archive.read(names['byteorder']) != b'little':
    raise FileError('written on a big-endian machine')
  storages = {}

  def storage(dtype, key, numel):
    if f'data/{key}' not in names:
      raise FileError(f'cut short: no storage data/{key}')
    read_bytes = lambda: archive.read(names[f'data/{key}'])
    return storages.setdefault(key, _Storage(dtype, numel, read_bytes))

  pickled = io.BytesIO(archive.read(names['data.pkl']))
  return _Reader(pickled, storage, script='constants.pkl' in names).load()


def _read_stream(file, encoding):
  """A plain pickle, or torch's stream, which begins with a number."""
  first = _Reader(file, encoding=encoding).load()
  if first != _LEGACY_MAGIC:
    return first
  file.seek(0)
  return _read_legacy(file)


def _read_legacy(file: Any) -> Any:
  """Five pickles (magic, version, system, value, keys), then the storages."""
  storages = {}

  def storage(dtype, key, numel):
    return storages.setdefault(key, _Storage(dtype, numel, lambda: b''))

  magic, _, system = (_Reader(file).load() for _ in range(3))
  if magic != _LEGACY_MAGIC:
    raise FileError("not a stream of torch: it lacks torch's number")
  if not system.get('little_endian', True):
    raise FileError('written on a big-endian machine')
  value = _Reader(file, storage).load()
  for key in _Reader(file).load():
    one = storages[str(key)]
    numel = int.from_bytes(file.read(8), 'little')
    data = file.read(numel * np.dtype(one.dtype).itemsize)
    one.read = lambda data=data: data
  return value
