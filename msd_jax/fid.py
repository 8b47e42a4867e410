"""Frechet Inception Distance as EDM and DMD2 report it.

Heusel et al. (2017) on the features of inception.py. Images are made and
measured in an order that neither the number of devices nor of processes
changes, and every device runs the same shapes: eight devices give the figure
of one, but for what XLA rounds otherwise in the images.
"""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import os
import re
from typing import Any
import zipfile

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
from scipy import linalg

from msd_jax import inception

# uint8 images [n, H, W, C] -> features float32 [n, F].
Extractor = Callable[[np.ndarray], np.ndarray]

PER_DEVICE = 32  # Images of a call, on each device.
_ROWS = 1000  # Of a block of distances.


@dataclasses.dataclass(frozen=True)
class Sampler:
  """What makes images, several batches at once.

  Attributes:
    generate: (labels int32 [d, n], keys [d]) -> images [d, n, H, W, C] in
      [-1, 1], a key for each batch.
    num_classes: Y.
    num_devices: d.
    batch_size: n, where as many are wanted; it does not hang on the devices,
      or the noise would.
  """

  generate: Callable[[np.ndarray, jax.Array], jax.Array]
  num_classes: int
  num_devices: int = 1
  batch_size: int = 256


class StatisticsError(ValueError):
  """Reference statistics that are absent, pickled or of other images."""


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How labels are drawn, images rounded and covariances summed."""
  balanced: bool  # Labels in turn; otherwise uniform at random.
  offset: float  # uint8 is the floor of 127.5 x + offset.
  # What the sum of outer products starts from. DMD2's starts at ones, in each
  # process; its figures are of one process.
  start: float


PROTOCOLS = {'edm': Protocol(False, 128., 0.),
             'dmd2': Protocol(True, 127.5, 1.)}


def labels_of(protocol: Protocol, num: int, num_classes: int, seed: int
              ) -> np.ndarray:
  """int32 [num]; classes in turn, or uniform at random."""
  if protocol.balanced:
    return (np.arange(num) % num_classes).astype(np.int32)
  return np.random.default_rng(seed).integers(
      num_classes, size=num, dtype=np.int32)


def to_uint8(protocol: Protocol, images: np.ndarray) -> np.ndarray:
  """[-1, 1] -> 0..255: EDM's is half a level brighter than DMD2's.

  Raises:
    ValueError: an image is not finite.
  """
  if not np.isfinite(images).all():
    raise ValueError('a sampler made images that are not finite')
  levels = np.asarray(images, np.float32) * np.float32(127.5)
  return np.clip(levels + np.float32(protocol.offset), 0, 255).astype(np.uint8)


def make_extractor(
    apply: Callable[[Any, jax.Array], jax.Array], params: Any,
    mesh: jax.sharding.Mesh, per_device: int = PER_DEVICE) -> Extractor:
  """Features on all devices of a mesh.

  Args:
    apply: (params, uint8 [n, H, W, C]) -> [n, F].
    params: of it.
    mesh: all of its axes split the images.
    per_device: n; the same for any mesh, so that all compute the same.

  Returns:
    The extractor; images of any number.
  """
  rows, whole = P(mesh.axis_names), P()
  # Every process has all features, in order.
  sharded = jax.jit(
      jax.shard_map(
          apply, mesh=mesh, in_specs=(whole, rows), out_specs=rows),
      out_shardings=NamedSharding(mesh, whole))
  params = jax.device_put(params, NamedSharding(mesh, whole))
  size = per_device * mesh.size

  def extract(images):
    features = []
    for start in range(0, len(images), size):
      part = images[start:start + size]
      padded = np.pad(
          part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1), 'edge')
      placed = jax.device_put(padded, NamedSharding(mesh, rows))
      features.append(np.asarray(sharded(params, placed))[:len(part)])
    return np.concatenate(features)

  return extract


def inception_extractor(
    path: str, mesh: jax.sharding.Mesh, per_device: int = PER_DEVICE
) -> Extractor:
  """Of a published file of the FID's Inception; see `inception.load`."""
  params, convention = inception.load(path)
  network = inception.Inception()
  return make_extractor(
      lambda params, images: network.apply(
          {'params': params}, inception.resize(images, convention)),
      params, mesh, per_device)


def statistics(
    features: np.ndarray, start: float = 0.) -> tuple[np.ndarray, np.ndarray]:
  """Mean [F] and unbiased covariance [F, F] of features [N, F], float64.

  Args:
    features: see above.
    start: see `Protocol`.

  Raises:
    ValueError: fewer than two rows, or not finite.
  """
  return statistics_of_batches([features], start)


def statistics_of_batches(
    batches: Iterable[np.ndarray], start: float = 0.
) -> tuple[np.ndarray, np.ndarray]:
  """`statistics` of features [n, F], batch by batch, in the memory of one.

  Sums are about the mean of the first batch: about zero, the square of the mean
  would drown the covariance.
  """
  num, about, total, outer = 0, 0., 0., 0.
  for features in batches:
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
      raise ValueError('a covariance needs finite rows')
    if not num:
      about = features.mean(0)
    features = features - about[None]
    num += len(features)
    total = total + features.sum(0)
    outer = outer + features.T @ features
  if num < 2:
    raise ValueError(f'a covariance needs 2 or more rows, not {num}')
  outer = outer - np.outer(total, total) / num
  return about + total / num, (outer + start) / (num - 1)


def frechet(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray,
    other_covariance: np.ndarray) -> float:
  """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau 1982).

  S1 S2 is not symmetric, but has the eigenvalues of the symmetric positive
  semi-definite R S2 R with R = S1^(1/2): the trace needs no general square root
  and stays real when a covariance is singular.
  """
  values, vectors = linalg.eigh(covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))[None]) @ vectors.T
  product = linalg.eigvalsh(root @ other_covariance @ root)
  trace = np.trace(covariance) + np.trace(other_covariance)
  trace -= 2 * np.sqrt(np.maximum(product, 0)).sum()
  return float(max(np.square(mean - other_mean).sum() + trace, 0))


def precision_recall(
    real: np.ndarray, made: np.ndarray, neighbours: int = 3
) -> tuple[float, float]:
  """How many made images lie among the real ones, and the reverse.

  Kynkaanniemi et al. (2019), equations 1 and 2: within the distance of a
  point's k-th neighbour in its own set. On Inception features, where that
  paper has VGG's.

  Args:
    real: features [N, F].
    made: features [M, F].
    neighbours: k.
  """
  share = lambda points, among: float(np.mean(_covered(
      points, among, _radii(among, neighbours))))
  return share(made, real), share(real, made)


def _distances(points, others):
  """Blocks of rows of the distances [N, M], in order."""
  # Imported late: two seconds that the FID alone need not wait.
  from sklearn.metrics import pairwise
  for i in range(0, len(points), _ROWS):
    yield pairwise.euclidean_distances(points[i:i + _ROWS], others)


def _radii(points, neighbours):
  if len(points) <= neighbours:
    raise ValueError(f'{neighbours} neighbours among {len(points)} points')
  # A point is its own first neighbour.
  return np.concatenate([
      np.partition(block, neighbours, axis=1)[:, neighbours]
      for block in _distances(points, points)])


def _covered(points, among, radii):
  return np.concatenate(
      [(block <= radii[None]).any(1) for block in _distances(points, among)])


# Reference statistics.


def read_reference(
    path: str, resolution: int | None = None, num_features: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """(mu [F], sigma [F, F]) of a .npz file such as EDM's.

  Args:
    path: of the file.
    resolution: of the images that are measured. Files of `write_reference`
      say theirs; of others the name does, as 'imagenet-64x64.npz'.
    num_features: F of the network that measures.

  Raises:
    StatisticsError: it is absent, pickled, of another resolution or another
      network, or has other arrays.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (OSError, EOFError, zipfile.BadZipFile) as error:
    raise StatisticsError(f'{path}: cannot be read: {error}') from error
  except (AttributeError, TypeError, ValueError) as error:
    raise StatisticsError(
        f'{path}: not an .npz of plain arrays; pickled statistics are '
        'refused') from error
  mean, covariance = (arrays.get(name) for name in ('mu', 'sigma'))
  if mean is None or covariance is None or mean.ndim != 1 or (
      covariance.shape != (len(mean), len(mean))):
    raise StatisticsError(
        f'{path}: needs mu [F] and sigma [F, F], has '
        f'{ {name: array.shape for name, array in arrays.items()} }')
  if num_features and len(mean) != num_features:
    raise StatisticsError(
        f'{path}: statistics of {len(mean)} features, but the network that '
        f'measures has {num_features}')
  named = re.search(r'(\d+)x\1', os.path.basename(path))
  found = int(arrays.get('resolution', named[1] if named else 0))
  if resolution and found and found != resolution:
    raise StatisticsError(
        f'{path}: statistics of images of {found}x{found}, but those to '
        f'measure are {resolution}x{resolution}')
  return mean.astype(np.float64), covariance.astype(np.float64)


def write_reference(
    path: str, batches: Iterable[np.ndarray], extract: Extractor) -> None:
  """Statistics of uint8 images [n, H, W, C], batch by batch, to .npz.

  The file is there whole or not at all; where it can not be, OSError is raised
  before the first batch.
  """
  num = resolution = 0

  def features():
    nonlocal num, resolution
    for images in batches:
      num, resolution = num + len(images), images.shape[1]
      yield extract(images)

  partial = f'{path}.partial'
  with open(partial, 'wb') as file:
    mean, covariance = statistics_of_batches(features())
    np.savez(
        file, mu=mean, sigma=covariance, resolution=resolution, num=num)
  os.replace(partial, path)


# Measurement.


def features_of_samples(
    sampler: Sampler, extract: Extractor, protocol: Protocol, *, num: int,
    seed: int) -> np.ndarray:
  """Features [num, F] of the images that a seed makes.

  Args:
    sampler: see Sampler.
    extract: see Extractor.
    protocol: one of PROTOCOLS.
    num: N; published figures have 50,000.
    seed: of labels and noise.
  """
  batch_size = min(sampler.batch_size, num)
  labels = labels_of(protocol, num, sampler.num_classes, seed)
  key, features = jax.random.key(seed), []
  at_once = sampler.num_devices * batch_size
  for start in range(0, num, at_once):
    rows = np.minimum(start + np.arange(at_once), num - 1)
    rows = rows.reshape(sampler.num_devices, batch_size)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        key, start // batch_size + np.arange(sampler.num_devices))
    images = np.asarray(sampler.generate(labels[rows], keys))
    images = images.reshape(-1, *images.shape[2:])[:num - start]
    # One batch at a time: on some CPUs a feature hangs on its row's place.
    for i in range(0, len(images), batch_size):
      features.append(extract(to_uint8(protocol, images[i:i + batch_size])))
  return np.concatenate(features)


def measure(
    sampler: Sampler, extract: Extractor,
    reference: tuple[np.ndarray, np.ndarray], *, protocol: str, num: int,
    seeds: Iterable[int], real_features: np.ndarray | None = None,
) -> dict[str, Any]:
  """The FID over seeds, with all that a reader needs to compare it.

  Args:
    sampler, extract, num: see `features_of_samples`.
    reference: (mu, sigma) of the real images.
    protocol: 'edm' or 'dmd2'.
    seeds: one set of `num` images each; EDM reports the least of three.
    real_features: [M, F]; with them precision and recall of the first seed.

  Returns:
    fid_mean, fid_least, fid_spread (deviation, N - 1), fid_by_seed, and the
    settings; precision and recall where asked for.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(
        f'protocol={protocol!r} is not known; there are {sorted(PROTOCOLS)}')
  seeds, values, figures = list(seeds), [], {}
  for seed in seeds:
    features = features_of_samples(
        sampler, extract, PROTOCOLS[protocol], num=num, seed=seed)
    values.append(frechet(
        *statistics(features, PROTOCOLS[protocol].start), *reference))
    if real_features is not None and not figures:
      precision, recall = precision_recall(real_features, features)
      figures = {'precision': precision, 'recall': recall}
  spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.
  return {
      'fid_mean': float(np.mean(values)), 'fid_least': min(values),
      'fid_spread': spread, 'fid_by_seed': values, 'seeds': seeds,
      'num': num, 'protocol': protocol,
      **dataclasses.asdict(PROTOCOLS[protocol]), **figures}
