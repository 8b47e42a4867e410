"""Labelled images and points; each bad file one clear error.

`digits` and `toy2d` need nothing but the installation; the others read files,
a format each (formats/). What fits memory is held there whole.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import ml_collections
import numpy as np

from core_jax import data as core_data
from core_jax import idx
from msd_jax import toy2d
from msd_jax.formats import cifar10
from msd_jax.formats import dmd2_lmdb
from msd_jax.formats import edm_zip
from msd_jax.formats import folder
from msd_jax.formats import records
from msd_jax.formats import source
from msd_jax.formats import tfds

DataError = source.DataError
check_labels = source.check_labels

FASHION_PATH = '/usr/share/datasets/fashion-mnist'  # Where Debian puts it.
FASHION_CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt',
    'Sneaker', 'Bag', 'Ankle boot')
_FASHION_SIDE = 28
_FASHION_PADDED = 32  # Halves evenly through a U-Net.

_TOY_TRAIN, _TOY_TEST = 200_000, 50_000
_MOST_BYTES = 2 << 30  # Of images that are held in memory.


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A labelled data set.

  Attributes:
    train, test: sources with 'image' (uint8 [N, H, W, C] in 0..255, or
      float32 [N, 2] for points) and 'label' (int32 [N] in 0..num_classes-1):
      arrays, or above 2 GiB labelled sources that read the files.
    num_classes: number of labels.
    shape: of one example: (H, W, C) or (2,).
    class_names: a name for each label.
  """
  train: core_data.Source
  test: core_data.Source
  num_classes: int
  shape: tuple[int, ...]
  class_names: tuple[str, ...]


def load(config: ml_collections.ConfigDict) -> Dataset:
  """Loads the data set that a config names.

  The data and its split are the same for every seed, so that runs with
  different seeds are compared on equal terms.

  Args:
    config: has `dataset` ('digits', 'toy2d', 'fashion', 'folder', 'cifar10',
      'edm_zip', 'dmd2_lmdb', 'array_record' or 'tfds') and `data_path` ('' for
      the default place; see the loaders below).

  Raises:
    DataError: the name is unknown, or the data are absent or damaged.
  """
  if config.dataset not in _LOADERS:
    raise DataError(
        f'config.dataset={config.dataset!r} is unknown; '
        f'there are: {", ".join(sorted(_LOADERS))}')
  dataset = _LOADERS[config.dataset](config.data_path)
  promised = config.get('declared')
  if promised:
    for field, found, wanted in (
        ('shape', dataset.shape, tuple(promised.shape)),
        ('num_classes', dataset.num_classes, promised.num_classes),
        ('num_train', len(dataset.train), promised.num_train)):
      if found != wanted:
        raise DataError(
            f'{config.data_path or config.dataset} has {field}={found}, '
            f'declared.{field} is {wanted}')
  return dataset


def declared(config: ml_collections.ConfigDict) -> Dataset | None:
  """The data set that `config.declared` promises, all zeros, or None.

  For plans, which need shapes and no files.
  """
  promised = config.get('declared')
  if not promised:
    return None
  zeros = _Zeros(promised.num_train, promised.shape, promised.num_classes)
  return Dataset(
      zeros, zeros, num_classes=promised.num_classes, shape=promised.shape,
      class_names=tuple(f'class {i}' for i in range(promised.num_classes)))


class _Zeros:
  """Black images, of each class in turn."""

  def __init__(self, num, shape, num_classes):
    self.labels = np.arange(num, dtype=np.int32) % num_classes
    self._shape = shape

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return {'image': np.zeros(self._shape, np.uint8),
            'label': self.labels[index]}


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
  if path.startswith(tfds.PREFIX):
    name = path.removeprefix(tfds.PREFIX)
    splits = {split: tfds.read(name, split) for split in ('train', 'test')}
  else:
    splits = idx.read_folder(path or FASHION_PATH)
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


def _load_folder(path: str) -> Dataset:
  """Image files in `path`/{train,test}/CLASS/, all of one size and mode."""
  splits, class_names = folder.read(path)
  return _make_dataset(splits, class_names, path)


def _load_cifar10(path: str) -> Dataset:
  """CIFAR-10's python or binary batches, all in the folder `path`."""
  return _make_dataset(cifar10.read(path), cifar10.CLASSES, path)


def _load_sources(
    name: str, open_source: Callable[[str, str], Any]
) -> Callable[[str], Dataset]:
  """A loader of 'TRAIN,TEST', or of 'TRAIN' alone.

  Without TEST the training images stand in for the test images: distances of
  'real' images are then 0, not a floor.

  Args:
    name: of the data set.
    open_source: (path, split) -> labelled source.
  """

  def load_path(path):
    if not path:
      raise DataError(
          f'dataset {name!r} needs --config.data_path=TRAIN, or TRAIN,TEST')
    train_path, _, test_path = path.partition(',')
    train = open_source(train_path, 'train')
    # TFDS keeps both splits under one name.
    test = train if not test_path and name != 'tfds' else open_source(
        test_path or train_path, 'test')
    if test.shape != train.shape or test.num_classes > train.num_classes:
      raise DataError(
          f'{path}: images of {train.shape} with {train.num_classes} classes '
          f'to train, of {test.shape} with {test.num_classes} to test')
    held = {id(one): source.in_memory(one, _MOST_BYTES)
            for one in (train, test)}
    return Dataset(
        held[id(train)], held[id(test)], num_classes=train.num_classes,
        shape=train.shape,
        class_names=tuple(f'class {i}' for i in range(train.num_classes)))

  return load_path


_LOADERS = {
    'digits': _load_digits,
    'fashion': _load_fashion,
    'folder': _load_folder,
    'toy2d': _load_toy2d,
    'cifar10': _load_cifar10,
} | {
    name: _load_sources(name, open_source) for name, open_source in (
        ('edm_zip', lambda path, split: edm_zip.ZipSource(path)),
        ('dmd2_lmdb', lambda path, split: dmd2_lmdb.LmdbSource(path)),
        ('array_record', lambda path, split: records.RecordSource(path)),
        ('tfds', tfds.TfdsSource))}
