"""Partitions: their sizes, what lies together, and what is refused."""

import itertools
import json

import numpy as np
import pytest

from msd_jax import partition


def points(num=12, parts=3, seed=0):
  """Unequal clumps in the plane [num, 2], rows in a random order."""
  generator = np.random.default_rng(seed)
  centres = 10 * generator.standard_normal((parts, 2))
  rows = centres[np.arange(num) % parts] + generator.standard_normal((num, 2))
  return generator.permutation(rows)


def cost(embeddings, router):
  return sum(
      ((part - part.mean(0)) ** 2).sum()
      for part in (embeddings[router == k] for k in range(router.max() + 1)))


def test_balanced_kmeans_finds_the_best_of_all_partitions():
  embeddings = np.random.default_rng(0).standard_normal((8, 2))
  best = min(
      cost(embeddings, np.isin(np.arange(8), half).astype(int))
      for half in itertools.combinations(range(8), 4))
  router = partition.balanced_kmeans(embeddings, 2, seed=0, num_starts=16)
  np.testing.assert_allclose(cost(embeddings, router), best)


@pytest.mark.parametrize('num_classes, num_students', [(12, 3), (10, 4)])
def test_balanced_kmeans_has_the_sizes_of_consecutive(
    num_classes, num_students):
  embeddings = points(num_classes, num_students)
  router = partition.balanced_kmeans(embeddings, num_students, seed=1)
  expected = partition.consecutive(num_classes, num_students)
  np.testing.assert_array_equal(
      np.sort(np.bincount(router)), np.sort(np.bincount(expected)))
  # Students are named in the order of their first class, for every seed.
  assert router[0] == 0
  again = partition.balanced_kmeans(embeddings, num_students, seed=2)
  assert cost(embeddings, again) < cost(
      embeddings, partition.shuffled(num_classes, num_students, 0))


def test_clumps_of_equal_size_are_found():
  embeddings = points(30, 3)
  router = partition.balanced_kmeans(embeddings, 3, seed=0)
  for k in range(3):
    own = embeddings[router == k]
    assert len(own) == 10
    others = embeddings[router != k]
    reach = np.linalg.norm(own - own.mean(0), axis=1).max()
    assert np.linalg.norm(others - own.mean(0), axis=1).min() > reach


def test_a_table_is_read_and_its_balance_told(tmp_path):
  path = tmp_path / 'table.json'
  path.write_text(json.dumps([[4, 0], [1, 2, 3]]))
  router = partition.make_router(f'table:{path}', 5, 2, 0)
  np.testing.assert_array_equal(router, [0, 1, 1, 1, 0])
  assert partition.balance(router) == (
      '2 parts of 2, 3; the largest is 1.20 of the mean')


@pytest.mark.parametrize('table, message', [
    ([[0, 1], [2, 3]], r'misses 1 of 5 classes, the first is 4'),
    ([[0, 1], [2, 3, 4, 1]], r'repeats 1 of 5 classes, the first is 1'),
    ([[0, 1], [2, 3, 4, 5]], r'names class 5; the data has classes 0 to 4'),
    ([[0, 1, 2, 3, 4]], r'has 1 groups of classes, but num_students=2'),
    ([[0, 1, 2, 3, 4], []], r'has 1 groups of classes, but num_students=2'),
    ([[0, 1], [2, 3.5]], r'not a JSON list of lists of classes'),
    ([0, 1, 0, 1, 0], r'not a JSON list of lists of classes')])
def test_a_table_that_is_no_partition_is_refused(table, message, tmp_path):
  path = tmp_path / 'table.json'
  path.write_text(json.dumps(table))
  with pytest.raises(ValueError, match=message):
    partition.make_router(f'table:{path}', 5, 2, 0)


def test_what_a_kind_needs_is_said():
  with pytest.raises(ValueError, match="teacher's embeddings of the 5 classes"):
    partition.make_router('kmeans', 5, 2, 0)
  for kind, num_students in itertools.product(
      ('alphabetical', 'random:7', 'table', 'quadrants'), (1, 2)):
    with pytest.raises(ValueError, match='there are consecutive, random, km'):
      partition.make_router(kind, 5, num_students, 0)
  for kind in ('table', 'kmeans'):
    with pytest.raises(ValueError, match='No such file'):
      partition.make_router(f'{kind}:nowhere', 5, 2, 0)
  params = {'map_label': {'kernel': points(5)}}
  router = partition.make_router(
      'kmeans', 5, 2, 0, partition.class_embeddings(params))
  assert sorted(np.bincount(router)) == [2, 3]


def test_quadrants_are_equal_and_follow_the_widest_axes():
  generator = np.random.default_rng(0)
  # Skewed and dependent, so that two global medians would not balance.
  x = generator.exponential(size=400)
  y = .3 * generator.standard_normal(400) + .2 * x
  rotation, _ = np.linalg.qr(generator.standard_normal((6, 6)))
  embeddings = np.stack([x, y], 1) @ rotation[:2] + 5
  quadrants = partition.fit_quadrants(embeddings)
  students = partition.quadrant(quadrants, embeddings)
  np.testing.assert_array_equal(np.bincount(students), 4 * [100])
  # The first axis is that of x: its halves are those of the median of x.
  halves = students >= 2
  assert max((halves == (x > np.median(x))).mean(),
             (halves != (x > np.median(x))).mean()) > .95
  unseen = embeddings[:10] + 1e-9
  np.testing.assert_array_equal(
      partition.quadrant(quadrants, unseen), students[:10])


def test_embeddings_of_the_classes_may_come_from_a_file(tmp_path):
  path = str(tmp_path / 'names.npy')
  np.save(path, points(12, 4))
  router = partition.make_router(f'quadrants:{path}', 12, 4, seed=0)
  np.testing.assert_array_equal(np.bincount(router), [3, 3, 3, 3])
  np.testing.assert_array_equal(
      partition.make_router(f'kmeans:{path}', 12, 3, seed=5),
      partition.balanced_kmeans(points(12, 4), 3, seed=5))


@pytest.mark.parametrize('array, num_students, message', [
    (np.zeros((12, 2)), 4, 'too many embeddings are equal'),
    (np.full((12, 2), np.nan), 4, '4 or more finite embeddings'),
    (points(12)[:, :1], 4, r'of 2 or more numbers, not \(12, 1\)'),
    (points(11), 4, 'a row for each of the 12 classes'),
    (np.arange(12), 4, 'a row for each of the 12 classes'),
    (np.array([{}] * 12), 4, 'is no .npy file'),
    (points(12), 3, 'four parts, but num_students=3')])
def test_a_file_that_has_no_quadrants_is_refused(
    array, num_students, message, tmp_path):
  path = str(tmp_path / 'names.npy')
  np.save(path, array)
  with pytest.raises(ValueError, match=message):
    partition.make_router(f'quadrants:{path}', 12, num_students, seed=0)
