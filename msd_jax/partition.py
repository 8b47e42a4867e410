"""Partitions of the classes over K students (MSD, sec. 4.1): the router.

A router is int32 [Y]: the student of every label. It is saved with the
students' params, and is all that inference needs to choose one.
"""

import numpy as np


def consecutive(num_classes: int, num_students: int) -> np.ndarray:
  """Class y goes to floor(y K / Y): neighbours in the list stay together."""
  _check(num_classes, num_students)
  return (np.arange(num_classes) * num_students // num_classes).astype(np.int32)


def shuffled(num_classes: int, num_students: int, seed: int) -> np.ndarray:
  """Parts of the same sizes, with classes drawn at random."""
  router = consecutive(num_classes, num_students)
  return np.random.default_rng(seed).permutation(router)


def make_router(
    kind: str, num_classes: int, num_students: int, seed: int
) -> np.ndarray:
  """The router that config.partition names.

  Raises:
    ValueError: an unknown kind, or more students than classes.
  """
  if kind == 'consecutive':
    return consecutive(num_classes, num_students)
  if kind == 'random':
    return shuffled(num_classes, num_students, seed)
  raise ValueError(
      f"partition={kind!r} is not known; there are 'consecutive' and 'random'")


def _check(num_classes, num_students):
  if not 1 <= num_students <= num_classes:
    raise ValueError(
        f'num_students={num_students} must be between 1 and the {num_classes} '
        'classes of the data: a student without a class has nothing to learn')


def members(router: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Router [Y] -> classes int32 [K, V] of every student, sizes int32 [K].

  Rows shorter than the longest, V, repeat their first class at the end; a
  draw of an index below the size never meets the repetition.
  """
  parts = [np.flatnonzero(router == k) for k in range(router.max() + 1)]
  sizes = np.array([len(part) for part in parts], np.int32)
  classes = np.full((len(parts), sizes.max()), 0, np.int32)
  for row, part in zip(classes, parts, strict=True):
    row[:] = part[0]
    row[:len(part)] = part
  return classes, sizes
