"""Partitions of the classes over K students (MSD, sec. 4.1): the router.

A router is int32 [Y]: the student of every label. It is saved with the
students' params, and is all that inference needs to choose one. Conditions
that are no classes, such as embeddings of prompts, have `fit_quadrants` and
`quadrant` instead.
"""

from collections.abc import Sequence
import json
from typing import Any

import chex
import numpy as np

KINDS = ('consecutive', 'random', 'kmeans', 'kmeans:FILE', 'quadrants:FILE',
         'table:FILE')
_MAX_ITERATIONS = 100


def consecutive(num_classes: int, num_students: int) -> np.ndarray:
  """Class y goes to floor(y K / Y): neighbours in the list stay together."""
  check_numbers(num_classes, num_students)
  return (np.arange(num_classes) * num_students // num_classes).astype(np.int32)


def shuffled(num_classes: int, num_students: int, seed: int) -> np.ndarray:
  """Parts of the same sizes, with classes drawn at random."""
  router = consecutive(num_classes, num_students)
  return np.random.default_rng(seed).permutation(router)


def balanced_kmeans(
    embeddings: np.ndarray, num_students: int, seed: int, num_starts: int = 8
) -> np.ndarray:
  """Parts of the sizes of `consecutive` that lie close together.

  K-means whose assignment is the cheapest one with parts of those sizes, found
  exactly; of several starts, the one of the least sum of squared distances.

  Args:
    embeddings: of the classes, [Y, E].
    num_students: K.
    seed: of the starts.
    num_starts: see above.

  Returns:
    The router; students are in the order of their first class.
  """
  embeddings = np.asarray(embeddings, np.float64)
  chex.assert_rank(embeddings, 2)
  if not np.isfinite(embeddings).all():
    raise ValueError('the embeddings of the classes are not finite')
  places = consecutive(len(embeddings), num_students)
  starts = [_lloyd(embeddings, places, seed * num_starts + i)
            for i in range(num_starts)]
  parts, _ = min(starts, key=lambda start: start[1])
  _, first = np.unique(parts, return_index=True)
  rank = np.argsort(np.argsort(first))
  return rank[parts].astype(np.int32)


def _lloyd(embeddings, places, seed):
  """One start: the part of each row, and the sum of squared distances."""
  # Imported late: two seconds that other partitions need not wait.
  from scipy import optimize
  from scipy.spatial import distance
  from sklearn import cluster
  num_parts = places.max() + 1
  centres, _ = cluster.kmeans_plusplus(
      embeddings, num_parts, random_state=seed % 2**32)
  parts = None
  for _ in range(_MAX_ITERATIONS):
    costs = distance.cdist(embeddings, centres, 'sqeuclidean')[:, places]
    rows, columns = optimize.linear_sum_assignment(costs)
    if parts is not None and (parts == places[columns]).all():
      break
    parts = places[columns]
    centres = np.stack(
        [embeddings[parts == k].mean(0) for k in range(num_parts)])
  return parts, costs[rows, columns].sum()


def from_groups(
    groups: Sequence[Sequence[int]], num_classes: int, num_students: int
) -> np.ndarray:
  """Classes of every student, listed -> router.

  Raises:
    ValueError: there are not K groups, or a class is missing, repeated or
      unknown.
  """
  if len(groups) != num_students or not all(len(group) for group in groups):
    raise ValueError(
        f'partition has {sum(len(g) > 0 for g in groups)} groups of classes, '
        f'but num_students={num_students}')
  classes = np.concatenate([np.asarray(group) for group in groups])
  if not np.issubdtype(classes.dtype, np.integer):
    raise ValueError(f'partition: classes are integers, not {classes.dtype}')
  unknown = classes[(classes < 0) | (classes >= num_classes)]
  if unknown.size:
    raise ValueError(
        f'partition names class {unknown[0]}; the data has classes 0 to '
        f'{num_classes - 1}')
  counts = np.bincount(classes, minlength=num_classes)
  for wrong, what in ((counts == 0, 'misses'), (counts > 1, 'repeats')):
    if wrong.any():
      raise ValueError(
          f'partition {what} {wrong.sum()} of {num_classes} classes, the first '
          f'is {np.flatnonzero(wrong)[0]}: each needs exactly one student')
  router = np.empty(num_classes, np.int32)
  for k, group in enumerate(groups):
    router[np.asarray(group)] = k
  return router


def read_groups(path: str) -> list[list[int]]:
  """A JSON file of lists: the classes of each student.

  Raises:
    ValueError: it is something else.
  """
  try:
    with open(path, encoding='utf-8') as file:
      groups = json.load(file)
  except (OSError, ValueError) as error:
    raise ValueError(f'partition=table:{path}: {error}') from error
  if not isinstance(groups, list) or not all(
      isinstance(group, list) and all(type(c) is int for c in group)
      for group in groups):
    raise ValueError(
        f'partition=table:{path}: not a JSON list of lists of classes, one '
        'list per student, such as [[0, 2], [1, 3]]')
  return groups


def read_embeddings(path: str, num_classes: int) -> np.ndarray:
  """A .npy file of embeddings of the classes, such as of their names [Y, E].

  Raises:
    ValueError: it is something else, or of other classes.
  """
  try:
    embeddings = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f'partition: {path} is no .npy file: {error}') from error
  shape = getattr(embeddings, 'shape', None)
  if shape is None or len(shape) != 2 or shape[0] != num_classes or (
      not np.issubdtype(embeddings.dtype, np.floating)):
    raise ValueError(
        f'partition: {path} is no array of floats with a row for each of the '
        f'{num_classes} classes')
  return embeddings


def make_router(
    kind: str,
    num_classes: int,
    num_students: int,
    seed: int,
    embeddings: np.ndarray | None = None,
) -> np.ndarray:
  """The router that config.partition names; see `balance`.

  Args:
    kind: one of KINDS.
    num_classes: Y.
    num_students: K; one student needs no partition, whatever the kind.
    seed: of 'random' and 'kmeans'.
    embeddings: of the classes [Y, E], for 'kmeans': see `class_embeddings`.

  Raises:
    ValueError: an unknown kind, more students than classes, no embeddings, a
      file that is none of embeddings, quadrants for other than four students,
      or a table that misses or repeats a class.
  """
  check_numbers(num_classes, num_students)
  name, _, path = kind.partition(':')
  if (f'{name}:FILE' if path else name) not in KINDS:
    raise ValueError(
        f'partition={kind!r} is not known; there are {", ".join(KINDS)}')
  if num_students == 1:
    return consecutive(num_classes, 1)
  if kind == 'consecutive':
    router = consecutive(num_classes, num_students)
  elif kind == 'random':
    router = shuffled(num_classes, num_students, seed)
  elif name == 'kmeans' and path:
    router = balanced_kmeans(
        read_embeddings(path, num_classes), num_students, seed)
  elif name == 'quadrants':
    if num_students != 4:
      raise ValueError(
          f'partition={kind!r} has four parts, but num_students={num_students}')
    embeddings = read_embeddings(path, num_classes)
    router = quadrant(fit_quadrants(embeddings), embeddings)
  elif kind == 'kmeans':
    if embeddings is None or len(embeddings) != num_classes:
      raise ValueError(
          f"partition='kmeans' needs the teacher's embeddings of the "
          f'{num_classes} classes')
    router = balanced_kmeans(embeddings, num_students, seed)
  else:
    router = from_groups(read_groups(path), num_classes, num_students)
  return router


def class_embeddings(params: Any) -> np.ndarray:
  """What a network learnt about its classes: [Y, E], from its params."""
  return np.asarray(params['map_label']['kernel'])


def balance(router: np.ndarray) -> str:
  """For people: the sizes of the parts, and the largest by the mean."""
  sizes = np.bincount(router)
  return (f'{len(sizes)} parts of {", ".join(map(str, sizes))}; the largest is '
          f'{sizes.max() / sizes.mean():.2f} of the mean')


def check_numbers(num_classes: int, num_students: int) -> None:
  """Raises ValueError unless every student can have a class."""
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


def fit_quadrants(embeddings: np.ndarray) -> dict[str, np.ndarray]:
  """Four parts of equal size along two principal axes (K = 4).

  The first axis is cut at its median, and each half at its own median of the
  second axis: cut at one median for both, quadrants need not be equal. MSD
  cuts embeddings of text into quadrants and names neither axes nor sizes.

  Args:
    embeddings: of the conditions, such as means over tokens [N, E], N >= 4,
      E >= 2.

  Returns:
    Arrays that `quadrant` reads, to be saved with the students.

  Raises:
    ValueError: they are not finite, or too many are equal to be cut so.
  """
  embeddings = np.asarray(embeddings, np.float64)
  chex.assert_rank(embeddings, 2)
  num, width = embeddings.shape
  if num < 4 or width < 2 or not np.isfinite(embeddings).all():
    raise ValueError(
        'quadrants need 4 or more finite embeddings of 2 or more numbers, not '
        f'{embeddings.shape}')
  mean = embeddings.mean(0)
  _, _, axes = np.linalg.svd(embeddings - mean[None], full_matrices=False)
  axes = axes[:2]
  # Signs as numerical libraries leave them are not ours to keep.
  largest = np.abs(axes).argmax(1)
  axes = axes * np.sign(axes[np.arange(2), largest])[:, None]
  x, y = ((embeddings - mean[None]) @ axes.T).T
  first = np.median(x)
  halves = [y[(x > first) == right] for right in (False, True)]
  second = [np.median(half) if half.size else np.nan for half in halves]
  quadrants = {'mean': mean, 'axes': axes, 'first_cut': first,
               'second_cuts': np.asarray(second)}
  if len(np.unique(quadrant(quadrants, embeddings))) < 4:
    raise ValueError(
        'too many embeddings are equal: no median cuts them into four parts')
  return quadrants


def quadrant(
    quadrants: dict[str, np.ndarray], embeddings: np.ndarray) -> np.ndarray:
  """The student int32 [N], 0 to 3, of embeddings [N, E], seen before or not."""
  centred = np.asarray(embeddings, np.float64) - quadrants['mean'][None]
  x, y = (centred @ quadrants['axes'].T).T
  right = (x > quadrants['first_cut']).astype(np.int32)
  return 2 * right + (y > quadrants['second_cuts'][right])
