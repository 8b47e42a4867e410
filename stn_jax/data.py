"""Data sets in three parts: to train weights, to tune, to test."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import gzip
import pathlib
import zlib

import ml_collections
import numpy as np

from core_jax import data as core_data
from core_jax import text

Arrays = Mapping[str, np.ndarray]

FASHION_PATH = '/usr/share/datasets/fashion-mnist'  # Where Debian puts it.
_CIFAR_IMAGES = 10_000  # In each of its files.
_IDX_HEADER = {3: 16, 1: 8}  # Bytes, by number of dimensions.


class DataError(ValueError):
  """A data set that is absent, damaged or split so that nothing is learnt."""


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
  folder = pathlib.Path(config.data_path or FASHION_PATH)
  if not folder.is_dir():
    raise DataError(
        f'no folder {str(folder)!r} with Fashion-MNIST: on Debian `apt-get '
        'install dataset-fashion-mnist`, or name a folder with its four IDX '
        'files by --config.data_path=FOLDER')
  read = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images = _read_idx(folder / f'{prefix}-images-idx3-ubyte.gz', 3)
    labels = _read_idx(folder / f'{prefix}-labels-idx1-ubyte.gz', 1)
    images = images.reshape(-1, 28, 28, 1).astype(np.float32) / 255
    read[split] = images, labels.astype(np.int32)
  parts = _split(*read['train'], config.valid_examples, 0,
                 config.train_examples)
  parts['test'] = dict(zip(('image', 'label'), read['test'], strict=True))
  return _examples(parts, 10, config.seed)


def _read_idx(path, num_dims):
  """The bytes of a gzipped IDX file after its header."""
  try:
    content = gzip.decompress(path.read_bytes())
  except (OSError, EOFError, zlib.error) as e:
    raise DataError(f'{path}: cannot be read: {e}') from e
  if content[:4] != bytes([0, 0, 8, num_dims]):
    raise DataError(f'{path}: not an IDX file of {num_dims}-D bytes')
  dims = np.frombuffer(content[4:_IDX_HEADER[num_dims]], '>u4')
  values = np.frombuffer(content[_IDX_HEADER[num_dims]:], np.uint8)
  if values.size != np.prod(dims):
    raise DataError(f'{path}: {values.size} values, its header says {dims}')
  return values


def _load_cifar10(config):
  """CIFAR-10's binary batches; the last of train's five to validation."""
  folder = pathlib.Path(config.data_path)
  files = [*(f'data_batch_{i}.bin' for i in range(1, 6)), 'test_batch.bin']
  arrays = []
  for name in files:
    try:
      content = np.frombuffer((folder / name).read_bytes(), np.uint8)
    except OSError as e:
      raise DataError(
          f'{folder / name} cannot be read ({e}): give the folder '
          'cifar-10-batches-bin by --config.data_path=FOLDER') from e
    if content.size != _CIFAR_IMAGES * 3073:
      raise DataError(
          f'{folder / name} has {content.size / 3073:.1f} images; '
          f'{_CIFAR_IMAGES:,} were expected')
    arrays.append(content.reshape(_CIFAR_IMAGES, 3073))
  rows = np.concatenate(arrays)
  images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  images = (images / np.float32(255)).astype(np.float32)
  labels = rows[:, 0].astype(np.int32)
  n = _CIFAR_IMAGES
  cut = {'train': slice(0, 4 * n), 'valid': slice(4 * n, 5 * n),
         'test': slice(5 * n, 6 * n)}
  return _examples(
      {name: {'image': images[s], 'label': labels[s]}
       for name, s in cut.items()}, 10, config.seed)


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


def streams(tokens: np.ndarray, batch_size: int) -> np.ndarray:
  """Cuts ids [N] into rows that follow one another, [B, N // B]."""
  length = len(tokens) // batch_size
  return tokens[:length * batch_size].reshape(batch_size, length)


def _windows(tokens, batch_size, length):
  """The windows of all streams, in order: list of (tokens, targets, weight).

  The last one is filled up by repetition, with weight 0 there.
  """
  rows = streams(tokens, batch_size)
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
  if len(ids['valid']) == len(ids['train']) and np.array_equal(
      ids['valid'], ids['train']):
    raise DataError('the validation text is the training text')
  for name, tokens in ids.items():
    if not len(tokens):
      raise DataError(f'the {name} text is empty')

  def batches(part, batch_size):
    windows = [w for w in _windows(ids[part], batch_size, length)
               if w['weight'].all()]
    if not windows:
      raise DataError(
          f'{part}: {len(ids[part])} words are too few for {batch_size} '
          f'streams of {length}')
    return lambda step: {
        name: x for name, x in windows[step % len(windows)].items()
        if name != 'weight'}

  return Dataset(
      {name: {'tokens': tokens} for name, tokens in ids.items()}, batches,
      lambda part, batch_size: _windows(ids[part], batch_size, length),
      len(words))


def _load_brown(config):
  return language(text.read_brown(config.data_path), config.window_tokens)


def _load_ptb(config):
  return language(text.read_ptb(config.data_path), config.window_tokens)


_LOADERS = {
    'brown': _load_brown,
    'cifar10': _load_cifar10,
    'digits': _load_digits,
    'fashion': _load_fashion,
    'ptb': _load_ptb,
    'ridge': lambda config: regression(config.repeats, config.seed),
}
