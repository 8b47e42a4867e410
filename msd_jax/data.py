"""Labelled images and points, whole in memory; each bad file one clear error.

`digits` and `toy2d` need nothing but the installation; `fashion` reads
Fashion-MNIST from IDX files or TFDS; `folder` reads a tree of image files.
"""

from collections.abc import Sequence
import dataclasses
import gzip
import math
import os
import zlib

import ml_collections
import numpy as np
import PIL.Image

from core_jax import data as core_data
from msd_jax import toy2d

FASHION_PATH = '/usr/share/datasets/fashion-mnist'  # Where Debian puts it.
FASHION_CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt',
    'Sneaker', 'Bag', 'Ankle boot')
_FASHION_SIDE = 28
_FASHION_PADDED = 32  # Halves evenly through a U-Net.

_TOY_TRAIN, _TOY_TEST = 200_000, 50_000
_IDX_UINT8 = 0x08
_GZIP_MAGIC = b'\x1f\x8b'
_TFDS_PREFIX = 'tfds:'
_TFDS_CHUNK = 1000  # Examples decoded at once.


class DataError(ValueError):
  """A data set that is absent, damaged or not what it claims to be."""


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A labelled data set.

  Attributes:
    train, test: sources with 'image' (uint8 [N, H, W, C] in 0..255, or
      float32 [N, 2] for points) and 'label' (int32 [N] in 0..num_classes-1).
    num_classes: number of labels.
    shape: of one example: (H, W, C) or (2,).
    class_names: a name for each label.
  """
  train: core_data.ArraySource
  test: core_data.ArraySource
  num_classes: int
  shape: tuple[int, ...]
  class_names: tuple[str, ...]


def load(config: ml_collections.ConfigDict) -> Dataset:
  """Loads the data set that a config names.

  The data and its split are the same for every seed, so that runs with
  different seeds are compared on equal terms.

  Args:
    config: has `dataset` ('digits', 'fashion', 'folder' or 'toy2d') and
      `data_path` ('' for the default place).

  Raises:
    DataError: the name is unknown, or the data are absent or damaged.
  """
  if config.dataset not in _LOADERS:
    raise DataError(
        f'config.dataset={config.dataset!r} is unknown; '
        f'there are: {", ".join(sorted(_LOADERS))}')
  return _LOADERS[config.dataset](config.data_path)


def check_labels(
    labels: np.ndarray, num_classes: int, where: str
) -> np.ndarray:
  """Returns labels [N] as int32, or raises DataError at the first bad one."""
  labels = np.asarray(labels)
  bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if bad.size:
    raise DataError(
        f'{where}: label {labels[bad[0]]} at index {bad[0]} is out of range; '
        f'{num_classes} classes have labels 0..{num_classes - 1}')
  return labels.astype(np.int32)


def _make_dataset(splits, class_names, where) -> Dataset:
  """Checks {'train', 'test'} -> (images, labels) and packs them up."""
  sources = {}
  for split, (images, labels) in splits.items():
    place = f'{where} ({split})'
    if len(images) != len(labels):
      raise DataError(
          f'{place}: {len(images)} images, but {len(labels)} labels')
    if not len(images):
      raise DataError(f'{place}: no images')
    labels = check_labels(labels, len(class_names), place)
    sources[split] = core_data.ArraySource({'image': images, 'label': labels})
  return Dataset(
      **sources, num_classes=len(class_names), shape=images.shape[1:],
      class_names=tuple(class_names))


def _load_digits(path: str) -> Dataset:
  """scikit-learn's 8x8 digits: 1,797, of which 1,442 train and 355 test.

  Within each class, in the order of the file, every fifth goes to test.
  """
  _refuse_path('digits', path)
  # Imported late: a second that the other data sets need not wait.
  from sklearn import datasets
  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  is_test = np.zeros(len(images), bool)
  for label in range(10):
    is_test[np.flatnonzero(digits.target == label)[4::5]] = True
  splits = {'train': (images[~is_test], digits.target[~is_test]),
            'test': (images[is_test], digits.target[is_test])}
  return _make_dataset(splits, [str(i) for i in range(10)], 'digits')


def _load_toy2d(path: str) -> Dataset:
  """Points of `toy2d.py`, drawn afresh with fixed seeds."""
  _refuse_path('toy2d', path)
  splits = {'train': toy2d.sample(0, _TOY_TRAIN),
            'test': toy2d.sample(1, _TOY_TEST)}
  names = [f'class {i}' for i in range(toy2d.NUM_CLASSES)]
  return _make_dataset(splits, names, 'toy2d')


def _refuse_path(name, path):
  """Raises DataError if a path was given to a data set that reads none."""
  if path:
    raise DataError(
        f'dataset {name!r} reads no files; config.data_path must be empty, '
        f'not {path!r}')


def _load_fashion(path: str) -> Dataset:
  """Fashion-MNIST, 60,000 + 10,000, with black padding from 28 to 32."""
  if path.startswith(_TFDS_PREFIX):
    name = path.removeprefix(_TFDS_PREFIX)
    splits = {split: _read_tfds(name, split) for split in ('train', 'test')}
  else:
    splits = _read_idx_folder(path or FASHION_PATH)
  margin = (_FASHION_PADDED - _FASHION_SIDE) // 2
  for split, (images, labels) in splits.items():
    wanted = (_FASHION_SIDE, _FASHION_SIDE, 1)
    if images.shape[1:] != wanted:
      raise DataError(
          f'{path or FASHION_PATH} ({split}): images are {images.shape[1:]}, '
          f'not {wanted}')
    padding = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    splits[split] = np.pad(images, padding), labels
  return _make_dataset(splits, FASHION_CLASSES, path or FASHION_PATH)


def _read_idx_folder(folder):
  """Reads the four files of (Fashion-)MNIST: split -> (images, labels)."""
  if not os.path.isdir(folder):
    raise DataError(
        f'no folder {folder!r} with Fashion-MNIST: on Debian '
        '`apt-get install dataset-fashion-mnist`, or name a folder that holds '
        'its four IDX files with --config.data_path=FOLDER, or a prepared '
        'TFDS data set with --config.data_path=tfds:fashion_mnist')
  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images = read_idx(_idx_path(folder, f'{prefix}-images-idx3-ubyte'), 3)
    labels = read_idx(_idx_path(folder, f'{prefix}-labels-idx1-ubyte'), 1)
    splits[split] = images[..., None], labels
  return splits


def _idx_path(folder, name):
  """Returns the path of an IDX file, compressed or not."""
  for candidate in (f'{name}.gz', name):
    path = os.path.join(folder, candidate)
    if os.path.isfile(path):
      return path
  raise DataError(f'no file {name}.gz in {folder!r}')


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
      magic = bytes([0, 0, _IDX_UINT8, num_dims])
      if header[:4] != magic:
        raise DataError(
            f'{path}: not an IDX file of {num_dims}-dimensional uint8: it '
            f'begins with {header[:4].hex() or "nothing"}, not {magic.hex()}')
      if len(header) < 4 + 4 * num_dims:
        raise DataError(f'{path}: truncated within its header')
      dims = tuple(int(dim) for dim in np.frombuffer(header[4:], '>u4'))
      values = file.read()
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise DataError(f'{path}: truncated or damaged gzip: {error}') from error
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error}') from error
  if len(values) != math.prod(dims):
    raise DataError(
        f'{path}: its header says {dims}, {math.prod(dims)} values, but '
        f'{len(values)} follow')
  return np.frombuffer(values, np.uint8).reshape(dims)


def _read_tfds(name, split):
  """Reads a split that TFDS has prepared, by name or by folder, whole."""
  # Imported late, for it takes seconds; it must not download, for that hangs.
  try:
    import tensorflow_datasets as tfds
    if os.path.isdir(name):
      source = tfds.builder_from_directory(name).as_data_source(split)
    else:
      source = tfds.data_source(name, split=split, download=False)
  except (ImportError, KeyError, NotImplementedError, OSError,
          ValueError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise DataError(
        f'TFDS has no array_record files of {name!r} ({split}): {reason} To '
        'prepare them, install the extra [prepare] and run `tfds build '
        f'{name} --file_format=array_record`') from error
  chunks = [
      core_data.take(source, range(i, min(i + _TFDS_CHUNK, len(source))))
      for i in range(0, len(source), _TFDS_CHUNK)]
  missing = {'image', 'label'} - set(chunks[0] if chunks else ())
  if missing:
    raise DataError(f'TFDS {name!r} ({split}) has no {sorted(missing)}')
  return tuple(np.concatenate([chunk[field] for chunk in chunks])
               for field in ('image', 'label'))


def _load_folder(path: str) -> Dataset:
  """Image files in `path`/{train,test}/CLASS/, all of one size and mode."""
  if not path:
    raise DataError(
        "dataset 'folder' needs --config.data_path=FOLDER, which holds "
        'train/CLASS/ and test/CLASS/ with image files')
  names = {split: _subfolders(os.path.join(path, split))
           for split in ('train', 'test')}
  if names['train'] != names['test']:
    differ = sorted(set(names['train']) ^ set(names['test']))
    raise DataError(
        f'{path}: train and test must have the same classes; '
        f'in one only: {", ".join(differ)}')
  # Both splits take their size and mode from the first image of train.
  files = {split: [_files(os.path.join(path, split, name)) for name in names]
           for split, names in names.items()}
  first = read_image(files['train'][0][0])
  splits = {split: _read_classes(classes, first)
            for split, classes in files.items()}
  return _make_dataset(splits, names['train'], path)


def _read_classes(classes: Sequence[Sequence[str]], first: np.ndarray):
  """Reads files by class: uint8 [N, *first.shape] and labels [N]."""
  files = [file for files in classes for file in files]
  labels = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
  images = np.empty((len(files), *first.shape), np.uint8)
  for i, file in enumerate(files):
    image = read_image(file)
    if image.shape != first.shape:
      raise DataError(
          f'{file}: its shape is {image.shape}, but that of the first image '
          f'is {first.shape}')
    images[i] = image
  return images, labels


def read_image(path: str) -> np.ndarray:
  """Reads a greyscale or RGB file as uint8 [H, W, C], C = 1 or 3."""
  try:
    # Loading alone passes over checksums, and verifying spends the object.
    with PIL.Image.open(path) as image:
      image.verify()
    with PIL.Image.open(path) as image:
      mode = image.mode
      pixels = np.asarray(image)
  # Pillow's decoders raise what they like on damaged files.
  except (OSError, SyntaxError, ValueError, EOFError, zlib.error,
          PIL.Image.DecompressionBombError) as error:
    raise DataError(f'{path}: not a readable image: {error}') from error
  if mode not in ('L', 'RGB'):
    raise DataError(f'{path}: its mode is {mode}, not L (grey) or RGB')
  return pixels if mode == 'RGB' else pixels[..., None]


def _subfolders(folder):
  """Returns the sorted names of folders in a folder, or raises DataError."""
  if not os.path.isdir(folder):
    raise DataError(f'no folder {folder!r}')
  with os.scandir(folder) as entries:
    names = sorted(e.name for e in entries
                   if e.is_dir() and not e.name.startswith('.'))
  if not names:
    raise DataError(f'{folder}: no folders, one per class, in it')
  return names


def _files(folder):
  """Returns the sorted paths of the files in a folder of one class."""
  with os.scandir(folder) as entries:
    paths = sorted(e.path for e in entries
                   if e.is_file() and not e.name.startswith('.'))
  if not paths:
    raise DataError(f'{folder}: no image files in it')
  return paths


_LOADERS = {
    'digits': _load_digits,
    'fashion': _load_fashion,
    'folder': _load_folder,
    'toy2d': _load_toy2d,
}
