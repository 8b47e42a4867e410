"""How far samples are from real data: distances, their floors, accuracies.

Statistics are numpy in float64; only features and samples come from JAX. A
distance means little without its floor, the same figure for two draws of one
law at the same number of samples, so every function here reports both.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import chex
from clu import metrics
import jax
import jax.numpy as jnp
import numpy as np

from core_jax import data as core_data
from msd_jax import fid
from msd_jax import pixels
from msd_jax import toy2d
from msd_jax.formats import source as source_lib

# (labels int32 [n], key) -> images [n, H, W, C] in [-1, 1], or points [n, 2].
Sampler = Callable[[np.ndarray, jax.Array], jax.Array]
# images [n, H, W, C] in [-1, 1] -> logits [n, Y], features [n, F].
Classify = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Squared Frechet distance of the Gaussians fitted to two sets of features.

  On finite sets the value is biased upward, by about 1/N for a given law and
  more with more features: compare figures of equal N only, and read each beside
  the floor of that N.

  Args:
    a: [N, F].
    b: [M, F].

  Returns:
    The distance, at least 0.

  Raises:
    ValueError: a set has fewer than two rows, the numbers of features differ,
      or a feature is not finite.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  chex.assert_rank([a, b], 2)
  if a.shape[1] != b.shape[1]:
    raise ValueError(f'{a.shape[1]} features against {b.shape[1]}')
  if min(a.shape[0], b.shape[0]) < 2:
    raise ValueError(
        'a covariance needs at least 2 rows of features; the sets have '
        f'{a.shape[0]} and {b.shape[0]}')
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise ValueError('some features are not finite')
  return fid.frechet(*fid.statistics(a), *fid.statistics(b))


def histogram_l1(
    a: np.ndarray, b: np.ndarray, bins: int = 128, extent: float = toy2d.LIMIT
) -> float:
  """Total l1 distance of two normalised histograms over [-extent, extent]^2.

  The sum of |p - q| over cells, twice the total variation: 0 for equal
  histograms, 2 for disjoint ones. The mean over cells is this divided by
  bins^2. What lies outside the square is one more cell: no mass is lost.

  Args:
    a: [N, 2].
    b: [M, 2].
    bins: cells along each axis.
    extent: half the side of the square.

  Returns:
    The distance, in 0..2.
  """
  return _l1(_histogram(a, bins, extent), _histogram(b, bins, extent))


def _histogram(points, bins, extent):
  """Counts [bins^2 + 1] of points [N, 2]; the last cell is 'outside'."""
  points = np.asarray(points, np.float64)
  chex.assert_shape(points, (None, 2))
  edges = np.linspace(-extent, extent, bins + 1)
  counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=(edges, edges))
  return np.append(counts.ravel(), points.shape[0] - counts.sum())


def _l1(a, b):
  return float(np.abs(a / a.sum() - b / b.sum()).sum())


def predict(
    apply: Callable[..., tuple[jax.Array, jax.Array]],
    params: Any,
    images: np.ndarray,
    batch_size: int = 512,
) -> tuple[np.ndarray, np.ndarray]:
  """The classifier's outputs on a whole set, in batches of one shape.

  Args:
    apply: `Classifier(...).apply`; compiled once for a batch size.
    params: the classifier's parameters.
    images: [N, H, W, C] in [-1, 1].
    batch_size: images in a call.

  Returns:
    logits [N, Y] and features [N, F], float64.
  """
  images = np.asarray(images, np.float32)
  chex.assert_rank(images, 4)
  outs = [
      _forward(apply, params, images[rows])
      for rows in _batches(len(images), batch_size)]
  logits, features = (np.concatenate(x) for x in zip(*outs, strict=True))
  n = len(images)
  return logits[:n].astype(np.float64), features[:n].astype(np.float64)


@functools.partial(jax.jit, static_argnames='apply')
def _forward(apply, params, images):
  return apply({'params': params}, images)


def _batches(n, batch_size):
  """Indices of rows 0..n-1 in slices of one size; the last repeats row n-1."""
  size = min(batch_size, n)
  return [
      np.minimum(np.arange(start, start + size), n - 1)
      for start in range(0, n, size)]


_MOST_EXAMPLES = 100_000  # Of a split; more take hours and change little.
_CHUNK = 4096  # Images that are in memory at once, of those that are read.


def rows(source: core_data.Source) -> np.ndarray:
  """Indices of the examples that are measured: all, or evenly spaced."""
  num = min(len(source), _MOST_EXAMPLES)
  return np.arange(num) * len(source) // num


def _read(source, rows):
  return np.asarray(core_data.take(source, rows)['image'])


def _features_of_source(source, classify):
  """Labels [N] and features [N, F] of its measured examples."""
  chosen = rows(source)
  chunks = [
      classify(pixels.to_unit_range(
          _read(source, chosen[start:start + _CHUNK])))[1]
      for start in range(0, len(chosen), _CHUNK)]
  return source_lib.labels_of(source)[chosen], np.concatenate(chunks)


def evaluate_images(
    samplers: Mapping[str, Sampler],
    dataset: Any,
    classify: Classify,
    key: jax.Array,
    *,
    num_sets: int,
    partitions: Mapping[str, np.ndarray],
    beside: Sequence[str] = ('teacher',),
    batch_size: int = 512,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Frechet distances of samples to the real training images, with floors.

  Each sampler makes `num_sets` sets with the labels of the test images. A set
  is as large as the test set, so the fair floor is the distance of the real
  test images to the training images: at equal numbers the bias is equal.
  Samples are rounded to the 256 levels of real images before features are
  taken. All samplers get the same keys.

  Args:
    samplers: by name; names begin the names of the figures.
    dataset: `train` and `test`, labelled sources of 'image', uint8
      [H, W, C]; of each, `rows`. Training images are never all in memory.
    classify: images to logits and features, such as `predict` with its first
      two arguments bound.
    key: typed PRNG key.
    num_sets: S, sets for each sampler.
    partitions: for names of samplers, the router int32 [Y], the student of each
      label; their figures are also given for each student's classes.
    beside: samplers that are measured on the same classes as each partition.
    batch_size: labels in a call of a sampler.

  Returns:
    figures, all floats:
      floor_frechet, real_accuracy: of the test images.
      <name>_frechet, <name>_frechet_spread: mean and deviation (N - 1) over
        sets; the spread of a single set is 0.
      <name>_frechet_pooled: of all sets together; less biased, so not to be
        read beside the floor.
      <name>_accuracy: how often the classifier finds the label.
      <name>_partition<k>_frechet: mean over sets on the classes of student k,
        against the training images of these classes.
      <name>_partition<k>_frechet_pooled: of all sets together.
      <name>_partition<k>_floor_frechet: of the test images of these classes.
      <name>_partition<k>_<other>_frechet: of each sampler in `beside`.
      A partition with fewer than two test images has no figures.
    samples: 'real' and, by name, the first set of each sampler, uint8
      [N, H, W, C] in the order of the test labels.

  Raises:
    ValueError: a sampler made images that are not finite.
  """
  train_labels, train_features = _features_of_source(dataset.train, classify)
  chosen = rows(dataset.test)
  labels = np.asarray(source_lib.labels_of(dataset.test)[chosen], np.int32)
  samples = {'real': _read(dataset.test, chosen)}
  logits, test_features = classify(pixels.to_unit_range(samples['real']))
  features = {'floor': test_features[None]}  # [S, N, F]
  figures = {'real_accuracy': _accuracy(logits, labels)}
  for name, sampler in samplers.items():
    sets = _draw(name, sampler, labels, key, num_sets, batch_size)
    samples[name] = sets[0]
    logits, flat = classify(
        pixels.to_unit_range(sets.reshape(-1, *sets.shape[2:])))
    features[name] = flat.reshape(num_sets, len(labels), -1)
    figures[f'{name}_accuracy'] = _accuracy(logits, np.tile(labels, num_sets))
  for name, sets in features.items():
    figures |= _distances(name, sets, train_features)
  for name, router in partitions.items():
    figures |= _partition_figures(
        name, np.asarray(router), features, labels, train_features,
        train_labels, beside)
  return figures, samples


def _distances(name, sets, real):
  """Figures of sampler `name`, features [S, N, F], against `real` [M, F]."""
  values = [frechet_distance(one, real) for one in sets]
  figures = {f'{name}_frechet': float(np.mean(values))}
  if name != 'floor':
    spread = np.std(values, ddof=1) if len(sets) > 1 else 0.0
    figures[f'{name}_frechet_spread'] = float(spread)
    figures[f'{name}_frechet_pooled'] = frechet_distance(
        sets.reshape(-1, sets.shape[-1]), real)
  return figures


def _partition_figures(
    name, router, features, labels, train_features, train_labels, beside):
  """Figures of sampler `name` on the classes of each student of `router`."""
  figures = {}
  others = [x for x in ('floor', *beside) if x in features and x != name]
  for k in range(router.max() + 1):
    real = train_features[router[train_labels] == k]
    own = {x: features[x][:, router[labels] == k] for x in (name, *others)}
    if min(len(real), own[name].shape[1]) < 2:
      continue
    means = {
        x: float(np.mean([frechet_distance(one, real) for one in sets]))
        for x, sets in own.items()}
    prefix = f'{name}_partition{k}'
    figures[f'{prefix}_frechet'] = means[name]
    figures[f'{prefix}_frechet_pooled'] = frechet_distance(
        own[name].reshape(-1, real.shape[-1]), real)
    for other in others:
      figures[f'{prefix}_{other}_frechet'] = means[other]
  return figures


def _draw(name, sampler, labels, key, num_sets, batch_size):
  """num_sets sets of samples with these labels, uint8 [S, N, H, W, C]."""
  sets = []
  for s in range(num_sets):
    set_key = jax.random.fold_in(key, s)
    images = np.concatenate([
        sampler(labels[rows], jax.random.fold_in(set_key, i))
        for i, rows in enumerate(_batches(len(labels), batch_size))])
    if not np.isfinite(images).all():
      raise ValueError(f'sampler {name!r} made images that are not finite')
    sets.append(pixels.to_uint8(images[:len(labels)]))
  return np.stack(sets)


def _accuracy(logits, labels):
  metric = metrics.Accuracy.from_model_output(
      logits=jnp.asarray(logits), labels=jnp.asarray(labels, jnp.int32))
  return float(metric.compute())


def evaluate_points(
    samplers: Mapping[str, Sampler],
    num_classes: int,
    key: jax.Array,
    *,
    num_samples: int,
    bins: int = 128,
    extent: float = toy2d.LIMIT,
    batch_size: int = 1 << 13,  # activations that fit a cache
) -> dict[str, float]:
  """Total l1 distance of samples in the plane to the teacher's samples.

  All sets are independent and of one size; each has every class equally often
  (to within one). Batches are counted as they come: memory is one batch.

  Args:
    samplers: by name; 'teacher' must be among them.
    num_classes: Y.
    key: typed PRNG key.
    num_samples: N, points in each set.
    bins: cells along each axis of the histogram.
    extent: half the side of the square that it covers.
    batch_size: labels in a call of a sampler.

  Returns:
    <name>_l1 for each sampler but the teacher, against a set of the teacher;
    floor_l1 of another set of the teacher against it. See `histogram_l1`.
  """
  reference_key, floor_key, key = jax.random.split(key, 3)
  labels = np.arange(num_samples, dtype=np.int32) % num_classes

  def count(name, key):
    counts = np.zeros(bins**2 + 1)
    for i, rows in enumerate(_batches(num_samples, batch_size)):
      points = samplers[name](labels[rows], jax.random.fold_in(key, i))
      kept = min(len(rows), num_samples - i * len(rows))
      counts += _histogram(points[:kept], bins, extent)
    return counts

  reference = count('teacher', reference_key)
  figures = {'floor_l1': _l1(count('teacher', floor_key), reference)}
  for name in samplers:
    if name != 'teacher':
      figures[f'{name}_l1'] = _l1(count(name, key), reference)
  return figures
