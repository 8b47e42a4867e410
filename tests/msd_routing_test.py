"""Routing against brute force; partitions."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest

import msd_jax
from msd_jax import networks
from msd_jax import partition
from msd_jax import routing


def linear_student(params, noise, labels):
  return params['a'] * noise + params['b'] * labels[:, None]


PARAMS = {'a': jnp.array([1., 2., 3.]), 'b': jnp.array([10., 20., 30.])}


@pytest.mark.parametrize('block_size', [1, 4, 7, 64])
@pytest.mark.parametrize('students', [
    [0, 1, 2, 0, 1, 2, 2, 2, 2, 0, 1], [1] * 11, [2, 0] * 5 + [0],
    list(np.random.default_rng(0).integers(0, 3, 50))])
def test_routing_equals_asking_each_student_alone(students, block_size):
  student = jnp.array(students, jnp.int32)
  noise = jax.random.normal(jax.random.key(0), (len(students), 2))
  labels = jnp.arange(len(students), dtype=jnp.int32)
  got = jax.jit(routing.route, static_argnums=(0, 5))(
      linear_student, PARAMS, student, noise, labels, block_size)
  want = [
      linear_student(
          jax.tree.map(lambda p, k=k: p[k], PARAMS), noise[i:i + 1],
          labels[i:i + 1])[0] for i, k in enumerate(students)]
  np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-6)


@pytest.fixture(scope='module')
def params():
  """Three students of six classes; their last kernels are not zero."""
  module = networks.build(dict(kind='mlp', width=8, depth=1), (4, 4, 1), 6)
  one = networks.init_params(module, jax.random.key(0), (4, 4, 1))
  generators = jax.tree.map(
      lambda x: x[None] + 0.3 * jax.random.normal(
          jax.random.key(x.size), (3, *x.shape)), one)
  return routing.bundle(
      generators, module, partition.consecutive(6, 3), sigma_max=20.,
      sigma_data=0.5)


def test_an_image_does_not_change_with_its_company(params):
  key = jax.random.key(1)
  labels = np.array([5, 0, 3, 3, 1])
  whole = msd_jax.generate(params, labels, key)
  assert whole.shape == (5, 4, 4, 1)
  np.testing.assert_allclose(
      msd_jax.generate(params, labels[:2], key), whole[:2], rtol=1e-5)
  others = msd_jax.generate(params, np.array([5, 1, 2, 3, 0]), key)
  rows = np.array([0, 3])  # labels that stay
  np.testing.assert_allclose(others[rows], whole[rows], rtol=1e-5)


def test_eight_devices_make_the_batches_of_one(params):
  labels = np.random.default_rng(0).integers(0, 6, (8, 5))
  keys = jax.random.split(jax.random.key(2), 8)
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  made = routing.generate_on_each(params, mesh, block_size=2)(labels, keys)
  for i in range(8):
    # XLA rounds otherwise in the program of several devices.
    np.testing.assert_allclose(
        made[i], msd_jax.generate(params, labels[i], keys[i], block_size=2),
        rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match='label 6 at index 9 is out of range'):
    routing.generate_on_each(params, mesh)(
        np.where(np.arange(40) == 9, 6, 0).reshape(8, 5), keys)


def test_no_labels_are_no_images(params):
  images = msd_jax.generate(params, np.zeros(0, int), jax.random.key(0))
  assert images.shape == (0, 4, 4, 1)


def test_other_labels_do_not_compile_again(params):
  before = routing._generate._cache_size()
  for labels in ([0] * 9, [0, 1, 2, 3, 4, 5, 0, 1, 2], [5] * 9):
    msd_jax.generate(params, np.array(labels), jax.random.key(0))
  assert routing._generate._cache_size() - before == 1


@pytest.mark.parametrize('labels, message', [
    ([0, 6], 'label 6 at index 1 is out of range; 6 classes'),
    ([-1], 'label -1 at index 0'), ([[1]], r'shape \[B\]'),
    ([0.5], 'must be integers')])
def test_labels_out_of_range_are_named(params, labels, message):
  with pytest.raises(ValueError, match=message):
    msd_jax.generate(params, np.array(labels), jax.random.key(0))


@pytest.mark.parametrize('num_students', [1, 3, 4, 10])
@pytest.mark.parametrize('kind', ['consecutive', 'random'])
def test_parts_are_disjoint_complete_and_balanced(kind, num_students):
  router = partition.make_router(kind, 10, num_students, seed=0)
  classes, sizes = partition.members(router)
  parts = [set(row[:size]) for row, size in zip(classes, sizes, strict=True)]
  assert sorted(y for part in parts for y in part) == list(range(10))
  assert max(sizes) - min(sizes) <= 1
  assert all(set(row) == part for row, part in zip(classes, parts, strict=True))


def test_consecutive_parts_of_imagenet():
  np.testing.assert_array_equal(
      partition.consecutive(1000, 4), np.arange(1000) // 250)


@pytest.mark.parametrize('num_students', [0, 11])
def test_more_students_than_classes_are_refused(num_students):
  with pytest.raises(ValueError, match='between 1 and the 10 classes'):
    partition.make_router('consecutive', 10, num_students, seed=0)
  chex.assert_equal(partition.consecutive(10, 10).max(), 9)
