"""Batches as a function of the step: nothing to checkpoint, nothing to skip.

A source is anything with `len(source)` and `source[i] -> example`, where an
example is a dict of arrays: `ArraySource`, `tfds.data_source`, a grain source.
A source with `__getitems__` is asked for all rows of a batch at once.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import functools
import itertools
from typing import Any
from typing import Protocol

import jax
import numpy as np

# Batches made ahead of the one in use: one to hand over, one in the making.
_PREFETCH_STEPS = 2

Batch = Any


class DataError(ValueError):
  """A data set that is absent, damaged or not what it claims to be."""


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


class Source(Protocol):
  """Random access to examples."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, index: int) -> Any:
    ...


class ArraySource:
  """Examples held in memory as a dict of [N, ...] arrays."""

  def __init__(self, arrays: Mapping[str, np.ndarray]):
    """Takes arrays that share their leading axis.

    Args:
      arrays: field -> [N, ...].

    Raises:
      ValueError: there is no field, or a field has another N than the first.
    """
    if not arrays:
      raise ValueError('ArraySource needs at least one field')
    self.arrays = {name: np.asarray(value) for name, value in arrays.items()}
    scalars = [name for name, value in self.arrays.items() if value.ndim == 0]
    if scalars:
      raise ValueError(f'field {scalars[0]!r} is a scalar, not [N, ...]')
    first = next(iter(self.arrays))
    self._len = len(self.arrays[first])
    for name, value in self.arrays.items():
      if len(value) != self._len:
        raise ValueError(
            f'field {name!r} holds {len(value)} examples, '
            f'but {first!r} holds {self._len}')

  def __len__(self) -> int:
    return self._len

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {name: value[index] for name, value in self.arrays.items()}

  def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the examples at `indices` [B], stacked: field -> [B, ...]."""
    rows = np.asarray(indices, dtype=np.intp)
    return {name: value[rows] for name, value in self.arrays.items()}


def take(source: Source, indices: Sequence[int]) -> Batch:
  """Returns the examples at `indices` [B] of any source, stacked: [B, ...]."""
  indices = [int(i) for i in indices]  # TFDS tests `if not keys`.
  if hasattr(source, '__getitems__'):
    examples = source.__getitems__(indices)
    if isinstance(examples, Mapping):  # Stacked already.
      return examples
  else:
    examples = [source[i] for i in indices]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def make_batches(
    source: Source, batch_size: int, *, seed: int
) -> Callable[[int], Batch]:
  """Returns batch(step), a pure function of the step.

  Each epoch is a new permutation of the source, the same on every host; the
  last partial batch of an epoch is left out.

  Args:
    source: random access to examples.
    batch_size: B, over all devices.
    seed: of the permutations, not negative.

  Returns:
    batch(step) -> examples stacked to [B, ...].

  Raises:
    ValueError: `batch_size` does not fit the source.
  """
  _check_batch_size(batch_size, len(source))
  steps_per_epoch = len(source) // batch_size

  # Two epochs: a consumer that looks back over a boundary pays once.
  @functools.lru_cache(maxsize=2)
  def order(epoch):
    return np.random.default_rng((seed, epoch)).permutation(len(source))

  def batch(step: int) -> Batch:
    epoch, index = divmod(int(step), steps_per_epoch)
    start = index * batch_size
    return take(source, order(epoch)[start:start + batch_size])

  return batch


def _check_batch_size(batch_size, num_examples):
  """Raises ValueError unless there is a whole batch."""
  if batch_size < 1:
    raise ValueError(
        f'batch_size={batch_size} is not positive; the nearest is 1')
  if batch_size > num_examples:
    raise ValueError(
        f'batch_size={batch_size} is more than the {num_examples} examples of '
        f'the source; the largest batch_size that works is {num_examples}'
        if num_examples else
        f'batch_size={batch_size}, but the source has no examples')


def prefetch(
    batch: Callable[[int], Batch], start: int, stop: int
) -> Iterator[tuple[int, Batch]]:
  """Yields (step, batch(step)) in order, made ahead on one thread.

  An exception of `batch` is raised at the step that it belongs to. The thread
  ends with the iterator, also when that is closed or dropped early.

  Args:
    batch: step -> batch.
    start: the first step.
    stop: one past the last step.
  """
  steps = iter(range(start, stop))
  executor = futures.ThreadPoolExecutor(1, thread_name_prefix='prefetch')

  def submit(num_steps):
    return [(step, executor.submit(batch, step))
            for step in itertools.islice(steps, num_steps)]

  try:
    pending = collections.deque(submit(_PREFETCH_STEPS))
    while pending:
      step, future = pending.popleft()
      ready = future.result()
      # Refill before handing over, so that the thread works meanwhile.
      pending.extend(submit(1))
      yield step, ready
  finally:
    executor.shutdown(wait=True, cancel_futures=True)
