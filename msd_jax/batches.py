"""Batches with an axis of students: each from its part, or all from the same.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from core_jax import data as data_lib
from core_jax import keys
from msd_jax.formats import source as source_lib

Batch = dict[str, np.ndarray]


def parts_of(
    source: data_lib.Source, router: np.ndarray) -> list[data_lib.Source]:
  """MSD's filter F(D, V_k): the examples of each student's classes.

  Raises:
    DataError: a student's classes have no example.
  """
  return [source_lib.of_classes(source, np.flatnonzero(router == k))
          for k in range(router.max() + 1)]


def of_students(
    sources: Sequence[data_lib.Source],
    batch_size: int,
    *,
    seed: int,
    field: str,
    rounds: int | None = None,
) -> Callable[[int], Batch]:
  """batch(step) of K sources: leaves [B, K, ...], or [B, K, rounds, ...].

  Args:
    sources: of each student; its order is its own.
    batch_size: B, over all devices.
    seed: of the orders.
    field: of the config that has the batch size, for messages.
    rounds: updates within a step, each with a batch of its own; None is one,
      without an axis.

  Raises:
    ValueError: a source has fewer examples than a batch.
  """
  few = [(len(one), k) for k, one in enumerate(sources) if
         len(one) < batch_size]
  if few:
    raise ValueError(
        f'{field}={batch_size}, but student {few[0][1]} has only {few[0][0]} '
        'examples of its classes: lower the batch size, or give every student '
        'all classes')
  made = [
      data_lib.make_batches(
          one, batch_size, seed=keys.number(seed, f'student {k}'))
      for k, one in enumerate(sources)]

  def batch(step: int) -> Batch:
    rows = [_stack([one(step * (rounds or 1) + i)
                    for i in range(rounds or 1)]) for one in made]
    rows = _stack(rows)  # [B, K, rounds, ...]
    return rows if rounds else jax.tree.map(lambda x: x[:, :, 0], rows)

  return batch


def _stack(trees):
  """Trees of [B, ...] -> one of [B, n, ...]."""
  return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *trees)


def brightness(
    source: data_lib.Source, router: np.ndarray, most: int = 4096
) -> np.ndarray:
  """Of each student's real images: mean and deviation of their means, [K, 2].

  The deviation is at least 1/255, half a grey level: that of one image is 0.

  Args:
    source: labelled images, uint8 or in [-1, 1].
    router: int32 [Y].
    most: examples of a student that are looked at, evenly spaced: archives
      are in the order of classes.
  """
  found = []
  for part in parts_of(source, router):
    rows = np.linspace(0, len(part) - 1, min(most, len(part))).astype(int)
    images: Any = data_lib.take(part, rows)['image']
    scale = 127.5 if images.dtype == np.uint8 else 1.
    means = images.reshape(len(images), -1).mean(1, dtype=np.float64) / scale
    found.append((means.mean() - (images.dtype == np.uint8),
                  max(means.std(), 1 / 255)))
  return np.asarray(found, np.float32)
