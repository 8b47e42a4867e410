"""IDX files, the format of MNIST and Fashion-MNIST."""

import gzip
import math
import os
import zlib

import numpy as np

from core_jax import data

_UINT8 = 0x08
_GZIP_MAGIC = b'\x1f\x8b'


def read_folder(
    folder: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads the four files of (Fashion-)MNIST: split -> (images, labels)."""
  if not os.path.isdir(folder):
    raise data.DataError(
        f'no folder {folder!r} with Fashion-MNIST: on Debian '
        '`apt-get install dataset-fashion-mnist`, or name a folder that holds '
        'its four IDX files with --config.data_path=FOLDER')
  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images = read_idx(_path(folder, f'{prefix}-images-idx3-ubyte'), 3)
    labels = read_idx(_path(folder, f'{prefix}-labels-idx1-ubyte'), 1)
    splits[split] = images[..., None], labels
  return splits


def _path(folder, name):
  """Returns the path of an IDX file, compressed or not."""
  for candidate in (f'{name}.gz', name):
    path = os.path.join(folder, candidate)
    if os.path.isfile(path):
      return path
  raise data.DataError(f'no file {name}.gz in {folder!r}')


def read_idx(path: str, num_dims: int) -> np.ndarray:
  """Reads one IDX file of bytes, gzipped or plain.

  The format: two zero bytes, the type (8 is uint8), the number of dimensions,
  each dimension as a big-endian uint32, then the values in C order.

  Args:
    path: of the file.
    num_dims: that it must have.

  Returns:
    uint8 array.

  Raises:
    DataError: the file is foreign, truncated, or has bytes left over.
  """
  try:
    with open(path, 'rb') as file:
      is_gzip = file.read(2) == _GZIP_MAGIC
    with (gzip.open if is_gzip else open)(path, 'rb') as file:
      header = file.read(4 + 4 * num_dims)
      magic = bytes([0, 0, _UINT8, num_dims])
      if header[:4] != magic:
        raise data.DataError(
            f'{path}: not an IDX file of {num_dims}-dimensional uint8: it '
            f'begins with {header[:4].hex() or "nothing"}, not {magic.hex()}')
      if len(header) < 4 + 4 * num_dims:
        raise data.DataError(f'{path}: truncated within its header')
      dims = tuple(int(dim) for dim in np.frombuffer(header[4:], '>u4'))
      values = file.read()
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise data.DataError(
        f'{path}: truncated or damaged gzip: {error}') from error
  except OSError as error:
    raise data.DataError(f'{path}: cannot be read: {error}') from error
  if len(values) != math.prod(dims):
    raise data.DataError(
        f'{path}: its header says {dims}, {math.prod(dims)} values, but '
        f'{len(values)} follow')
  return np.frombuffer(values, np.uint8).reshape(dims)
