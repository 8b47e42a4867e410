"""Tests of core_jax/data.py."""

import threading

import jax
import numpy as np
import pytest

from core_jax import data


def _source(num=20):
  rows = np.arange(num, dtype=np.int32)
  return data.ArraySource({'image': np.stack([rows, -rows], 1), 'label': rows})


class _Listed:
  """A source whose `__getitems__` gives a list of examples, as TFDS's does."""

  def __init__(self, source):
    self._source = source

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    return self._source[index]

  def __getitems__(self, indices):
    return [self._source[i] for i in indices] if indices else []


def _prefetch_threads():
  return [t for t in threading.enumerate() if t.name.startswith('prefetch')]


def test_array_source_gives_one_example_and_many():
  source = _source()
  assert len(source) == 20
  np.testing.assert_array_equal(source[3]['image'], [3, -3])
  many = source.__getitems__([5, 1])
  np.testing.assert_array_equal(many['image'], [[5, -5], [1, -1]])
  np.testing.assert_array_equal(many['label'], [5, 1])


def test_array_source_names_the_field_whose_length_differs():
  with pytest.raises(ValueError, match="'label' holds 3 .* 'image' holds 4"):
    data.ArraySource({'image': np.zeros((4, 2)), 'label': np.zeros(3)})
  with pytest.raises(ValueError, match="'label' is a scalar"):
    data.ArraySource({'label': np.zeros(())})
  with pytest.raises(ValueError, match='at least one field'):
    data.ArraySource({})


def test_an_epoch_shows_each_example_at_most_once_and_drops_the_rest():
  batch = data.make_batches(_source(20), 6, seed=0)
  epochs = [np.concatenate([batch(3 * epoch + i)['label'] for i in range(3)])
            for epoch in range(2)]
  for rows in epochs:
    assert len(set(rows.tolist())) == 18
  assert not np.array_equal(*epochs)


def test_a_batch_depends_on_the_step_and_seed_alone():
  forwards = data.make_batches(_source(), 6, seed=1)
  backwards = data.make_batches(_source(), 6, seed=1)
  expected = [forwards(step)['label'] for step in range(9)]
  for step in reversed(range(9)):
    np.testing.assert_array_equal(backwards(step)['label'], expected[step])
  np.testing.assert_array_equal(backwards(np.int32(4))['label'], expected[4])
  other = data.make_batches(_source(), 6, seed=2)
  assert not np.array_equal(other(0)['label'], expected[0])


def _as_grain(source):
  return pytest.importorskip('grain').MapDataset.source(source)


@pytest.mark.parametrize('wrap', [_Listed, _as_grain, list])
def test_every_random_access_source_gives_the_same_batches(wrap):
  expected = data.make_batches(_source(), 6, seed=3)
  batch = data.make_batches(wrap(_source()), 6, seed=3)
  for step in (0, 4):
    jax.tree.map(np.testing.assert_array_equal, batch(step), expected(step))


def test_a_batch_size_that_cannot_work_is_refused():
  with pytest.raises(ValueError, match='batch_size=21 .* works is 20'):
    data.make_batches(_source(20), 21, seed=0)
  with pytest.raises(ValueError, match='batch_size=0 .* nearest is 1'):
    data.make_batches(_source(20), 0, seed=0)
  with pytest.raises(ValueError, match='no examples'):
    data.make_batches([], 1, seed=0)


def test_prefetch_yields_the_same_batches_in_order():
  batch = data.make_batches(_source(), 6, seed=5)
  steps = []
  for step, got in data.prefetch(batch, 2, 11):
    jax.tree.map(np.testing.assert_array_equal, got, batch(step))
    steps.append(step)
  assert steps == list(range(2, 11))
  assert not _prefetch_threads()
  assert not list(data.prefetch(batch, 3, 3))


def test_prefetch_stays_two_steps_ahead_and_stops_when_closed():
  made = []
  steps = data.prefetch(lambda step: made.append(step) or step, 0, 1000)
  assert next(steps) == (0, 0)
  assert next(steps) == (1, 1)
  steps.close()
  # Steps 2 and 3 may have been made while step 1 was in use.
  assert made in ([0, 1], [0, 1, 2], [0, 1, 2, 3])
  assert not _prefetch_threads()


def test_prefetch_raises_at_the_step_that_failed():
  def batch(step):
    if step == 2:
      raise OSError('disk gone')
    return step

  seen = []
  with pytest.raises(OSError, match='disk gone'):
    for step, _ in data.prefetch(batch, 0, 5):
      seen.append(step)
  assert seen == [0, 1]
  assert not _prefetch_threads()
