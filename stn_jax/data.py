"""Data sets in three parts: to train weights, to tune, to test."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import pathlib

import ml_collections
import numpy as np

from core_jax import cifar10
from core_jax import data as core_data
from core_jax import idx
from core_jax import text

Arrays = Mapping[str, np.ndarray]

FASHION_PATH = '/usr/share/datasets/fashion-mnist'  # Where Debian puts it.
_CIFAR_IMAGES = 10_000  # In each of its files.
_COPIED_WORDS = 20  # Such a stretch of two texts is the same by no chance.
_HASH_BASE = np.uint64(6364136223846793005)

DataError = core_data.DataError


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What a run trains, tunes and tests on.

  Attributes:
    parts: 'train', 'valid', 'test' -> fields [N, ...]: 'image' float32 in
      [0, 1] and 'label' int32, or 'x' and 'y', or for text 'tokens' [N].
    batches: (part, batch_size) -> batch(step), fields [B, ...].
    whole: (part, batch_size) -> the part once through, as a list of batches
      with a 'weight' [B], 0 where a row fills up the last one.
    num_classes: of labels, or words.
  """
  parts: Mapping[str, Arrays]
  batches: Callable[[str, int], Callable[[int], Arrays]]
  whole: Callable[[str, int], list[Arrays]]
  num_classes: int = 0


def load(config: ml_collections.ConfigDict) -> Dataset:
  """The data set that a config names.

  Raises:
    DataError: the name is unknown, or the data are absent, damaged or split
      so that validation says nothing.
  """
  if config.dataset not in _LOADERS:
    raise DataError(
        f'config.dataset={config.dataset!r} is unknown; there are '
        f'{", ".join(sorted(_LOADERS))}')
  return _LOADERS[config.dataset](config)


def _examples(parts: Mapping[str, Arrays], num_classes: int, seed: int):
  """A data set of independent examples, checked."""
  check_parts(parts)
  sources = {name: core_data.ArraySource(part) for name, part in parts.items()}
  # One stream for each part: the same order whatever the other parts do.
  streams = {name: (seed * len(parts)) + i for i, name in enumerate(parts)}

  def batches(part, batch_size):
    if len(sources[part]) < batch_size:
      raise DataError(
          f'the {part} set has {len(sources[part])} examples, fewer than '
          f'batch_size={batch_size}')
    return core_data.make_batches(
        sources[part], batch_size, seed=streams[part])

  def whole(part, batch_size):
    arrays = parts[part]
    size = len(next(iter(arrays.values())))
    found = []
    for start in range(0, size, batch_size):
      rows = np.arange(start, start + batch_size)
      weight = (rows < size).astype(np.float32)
      found.append({name: x[np.minimum(rows, size - 1)]
                    for name, x in arrays.items()} | {'weight': weight})
    return found

  return Dataset(parts, batches, whole, num_classes)


def check_parts(parts: Mapping[str, Arrays]) -> None:
  """Raises DataError for an empty part, or a validation set of train's."""
  for name, part in parts.items():
    if not len(next(iter(part.values()))):
      raise DataError(
          f'the {name} set is empty'
          + (': hyperparameters need examples that the weights have not seen; '
             'raise valid_examples' if name == 'valid' else ''))
  first = next(iter(parts['train']))
  # Hashes: the bytes themselves would be the training set once more.
  seen = {hash(row.tobytes()) for row in parts['train'][first]}
  valid = parts['valid'][first]
  shared = sum(hash(row.tobytes()) in seen for row in valid)
  if shared > len(valid) // 2:
    raise DataError(
        f'{shared} of {len(valid)} validation examples are training examples: '
        'tuning on them drives every regulariser to nothing. Hold out others')


def _split(images, labels, num_valid, seed, num_train=0):
  """Holds `num_valid` of the examples out; keeps `num_train`, 0 for all."""
  order = np.random.default_rng(seed).permutation(len(images))
  if not 0 <= num_valid < len(images):
    raise DataError(
        f'valid_examples={num_valid}, but there are {len(images)} examples')
  if not 0 <= num_train <= len(images) - num_valid:
    raise DataError(
        f'train_examples={num_train}, but {len(images) - num_valid} are left '
        'without those of validation; 0 takes them all')
  held, rest = order[:num_valid], order[num_valid:]
  rest = rest[:num_train or len(rest)]
  pick = lambda rows: {'image': images[rows], 'label': labels[rows]}
  return {'train': pick(rest), 'valid': pick(held)}


def _load_digits(config):
  """scikit-learn's 8x8 digits; every fifth of a class to test."""
  from sklearn import datasets  # Imported late: it takes a second.
  digits = datasets.load_digits()
  images = (digits.images / 16).astype(np.float32)[..., None]
  labels = digits.target.astype(np.int32)
  test = np.zeros(len(images), bool)
  for label in range(10):
    test[np.flatnonzero(labels == label)[4::5]] = True
  parts = _split(images[~test], labels[~test], config.valid_examples, 0,
                 config.train_examples)
  parts['test'] = {'image': images[test], 'label': labels[test]}
  return _examples(parts, 10, config.seed)


def _load_fashion(config):
  """Fashion-MNIST from IDX files; validation held out of train."""
  folder = config.data_path or FASHION_PATH
  read = {
      split: _checked(*arrays, (28, 28, 1), f'{folder} ({split})')
      for split, arrays in idx.read_folder(folder).items()}
  parts = _split(*read['train'], config.valid_examples, 0,
                 config.train_examples)
  parts['test'] = dict(zip(('image', 'label'), read['test'], strict=True))
  return _examples(parts, 10, config.seed)


def _checked(images, labels, shape, where):
  """uint8 images and labels of ten classes -> float32 in [0, 1] and int32."""
  if len(images) != len(labels):
    raise DataError(f'{where}: {len(images)} images, but {len(labels)} labels')
  if images.shape[1:] != shape:
    raise DataError(f'{where}: images are {images.shape[1:]}, not {shape}')
  labels = core_data.check_labels(labels, 10, where)
  return images.astype(np.float32) / 255, labels


def _load_cifar10(config):
  """CIFAR-10's binary batches; the last of train's five to validation."""
  folder = pathlib.Path(config.data_path)
  read = [_read_cifar10(folder / f'{name}.bin') for name in (
      *(f'data_batch_{i}' for i in range(1, 6)), 'test_batch')]
  pack = lambda several: dict(zip(('image', 'label'), (
      np.concatenate(x) for x in zip(*several, strict=True)), strict=True))
  return _examples(
      {'train': pack(read[:4]), 'valid': pack(read[4:5]),
       'test': pack(read[5:])}, 10, config.seed)


def _read_cifar10(path):
  try:
    pixels, labels = cifar10.read_binary(path)
  except DataError as e:
    raise DataError(
        f'{e}: give the folder cifar-10-batches-bin by '
        '--config.data_path=FOLDER') from e
  if len(labels) != _CIFAR_IMAGES:
    raise DataError(
        f'{path} has {len(labels)} images; {_CIFAR_IMAGES:,} were expected')
  return _checked(cifar10.as_images(pixels), labels, cifar10.SHAPE, path)


def regression(repeats: int = 1, seed: int = 0) -> Dataset:
  """The linear regression whose optima are known: 30 rows, 20 features.

  Validation and test are the same 500 rows: what is asked is whether the
  optimum on them is found.

  Args:
    repeats: how often a training row occurs in an epoch.
    seed: of the order of batches.
  """
  rng = np.random.default_rng(0)
  w = rng.standard_normal(20)
  x = {'train': rng.standard_normal((30, 20)),
       'valid': rng.standard_normal((500, 20))}
  y = {name: x[name] @ w + 3 * rng.standard_normal(len(x[name]))
       for name in x}
  parts = {name: {'x': x[name].astype(np.float32),
                  'y': y[name].astype(np.float32)} for name in x}
  parts['train'] = {name: np.tile(a, (repeats, *(1,) * (a.ndim - 1)))
                    for name, a in parts['train'].items()}
  parts['test'] = parts['valid']
  return _examples(parts, 0, seed)


def _windows(tokens, batch_size, length):
  """The windows of all streams, in order: list of (tokens, targets, weight).

  The last one is filled up by repetition, with weight 0 there.
  """
  rows = text.streams(tokens, batch_size, 1)
  found = []
  for start in range(0, rows.shape[1] - 1, length):
    index = np.arange(start, start + length)
    weight = np.broadcast_to(index + 1 < rows.shape[1], (batch_size, length))
    index = np.minimum(index, rows.shape[1] - 2)
    found.append({
        'tokens': rows[:, index], 'targets': rows[:, index + 1],
        'weight': weight.astype(np.float32)})
  return found


def language(
    texts: Mapping[str, list[str]], length: int
) -> Dataset:
  """Text as streams of windows of `length` words, each with its next word.

  A window of step i + 1 follows that of step i; the last, short one of an
  epoch is left out in training.
  """
  ids, words = text.encode(texts)
  for name, tokens in ids.items():
    if not len(tokens):
      raise DataError(f'the {name} text is empty')
  _check_texts(ids['train'], ids['valid'])

  def batches(part, batch_size):
    try:
      text.streams(ids[part], batch_size, length)
    except text.TextError as e:
      raise DataError(f'{part}: {e}') from e
    windows = [w for w in _windows(ids[part], batch_size, length)
               if w['weight'].all()]
    return lambda step: {
        name: x for name, x in windows[step % len(windows)].items()
        if name != 'weight'}

  return Dataset(
      {name: {'tokens': tokens} for name, tokens in ids.items()}, batches,
      lambda part, batch_size: _windows(ids[part], batch_size, length),
      len(words))


def _check_texts(train, valid):
  """Raises DataError where most of the validation text is in the other."""
  length = min(_COPIED_WORDS, len(train), len(valid))
  stretches = _hashes(valid, length)[::length]
  shared = int(np.isin(stretches, _hashes(train, length)).sum())
  if shared > len(stretches) // 2:
    raise DataError(
        f'{shared} of {len(stretches)} stretches of the validation text are '
        'in the training text: tuning on it drives every regulariser to '
        'nothing. Hold another text out')


def _hashes(tokens, length):
  """A number for each `length` words in a row: ids [N] -> uint64 [N - L + 1].
  """
  words, num = tokens.astype(np.uint64), len(tokens) - length + 1
  found = np.zeros(num, np.uint64)
  for i in range(length):
    found = found * _HASH_BASE + words[i:i + num] + np.uint64(1)
  return found


def _load_brown(config):
  return language(text.read_brown(config.data_path), config.window_tokens)


def _load_ptb(config):
  return language(text.read_ptb(config.data_path), config.window_tokens)


_SPLIT = ('train_examples', 'valid_examples')
_IMAGES = ('normalise', 'flip')
# Data set -> what it is of, and the fields of a config that it needs.
DATASETS = {
    'brown': ('language', ('data_path', 'window_tokens')),
    'cifar10': ('images', ('data_path', *_IMAGES)),
    'digits': ('images', (*_SPLIT, *_IMAGES)),
    'fashion': ('images', ('data_path', *_SPLIT, *_IMAGES)),
    'ptb': ('language', ('data_path', 'window_tokens')),
    'ridge': ('regression', ('repeats',))}

_LOADERS = {
    'brown': _load_brown,
    'cifar10': _load_cifar10,
    'digits': _load_digits,
    'fashion': _load_fashion,
    'ptb': _load_ptb,
    'ridge': lambda config: regression(config.repeats, config.seed),
}
