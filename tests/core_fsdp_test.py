"""Split weights and small batches change where work is done, not its result."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from core_jax import accumulate
from core_jax import fsdp
from core_jax import mesh as mesh_lib


def loss_fn(params, rows, key):
  del key
  error = rows['x'] @ params['w'] - rows['y']
  return jnp.mean(jnp.square(error)), error


def problem():
  x, y, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in
             enumerate([(16, 64), (16, 24), (64, 24)]))
  return {'w': w}, {'x': x, 'y': y}, jax.random.key(0)


@pytest.mark.parametrize('shape, prefix, spec', [
    ((64, 128), P(), P(None, 'data')),
    ((128, 64), P(), P('data', None)),
    ((64, 64), P(), P(None, 'data')),  # of equals the last
    ((2, 64, 60), P('student'), P('student', 'data', None)),
    ((63, 65), P(), P()),  # divides nowhere
    ((8, 8), P(), P()),  # small
])
def test_the_longest_dimension_that_divides_goes_over_data(
    shape, prefix, spec):
  mesh = mesh_lib.make_mesh(2)  # ('student', 'data') of 2 x 4
  found = fsdp.specs({'w': jax.ShapeDtypeStruct(shape, 'float32')}, mesh,
                     prefix)
  assert found == {'w': spec}


def test_gathered_params_give_the_same_gradients_and_these_are_split():
  params, rows, key = problem()
  mesh = mesh_lib.make_mesh()
  split = jax.device_put(params, mesh_lib.shardings(
      mesh, fsdp.specs(params, mesh, P())))
  rows_over_devices = jax.device_put(rows, NamedSharding(mesh, P('data')))
  gathered = lambda params, *args: loss_fn(fsdp.gather(params, mesh), *args)
  grad = jax.jit(jax.grad(gathered, has_aux=True))
  grads, _ = grad(split, rows_over_devices, key)
  assert grads['w'].sharding.spec == split['w'].sharding.spec == P('data', None)
  whole, _ = jax.grad(loss_fn, has_aux=True)(params, rows, key)
  chex.assert_trees_all_close(grads, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('num', [2, 4, 16])
def test_microbatches_give_the_gradient_of_the_batch(num):
  args = problem()
  (loss, error), grads = accumulate.value_and_grad(loss_fn, num)(*args)
  (whole_loss, whole_error), whole = accumulate.value_and_grad(loss_fn)(*args)
  np.testing.assert_allclose(loss, whole_loss, rtol=1e-5)
  chex.assert_trees_all_close(grads, whole, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(error, whole_error, rtol=1e-5, atol=1e-6)


def test_students_work_through_microbatches_side_by_side():
  params, rows, key = problem()
  mesh = mesh_lib.make_mesh(2)
  students = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), params)
  grads = lambda num: mesh_lib.update_students(
      lambda one, inputs, rows, key: (one, accumulate.value_and_grad(
          loss_fn, num)(one, rows, key)[1]), mesh)(students, (), rows, key)[1]
  chex.assert_trees_all_close(
      jax.jit(grads, static_argnums=0)(4), jax.jit(grads, static_argnums=0)(1),
      rtol=1e-4, atol=1e-6)


def test_microbatches_draw_different_numbers():
  noise = lambda params, rows, key: (
      params, jax.random.normal(key, rows.shape))
  (_, drawn), _ = accumulate.value_and_grad(noise, 2)(
      1., jnp.zeros(4), jax.random.key(0))
  assert len(np.unique(drawn)) == 4


def test_microbatches_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match='microbatches=3 does not divide .* 16'):
    accumulate.value_and_grad(loss_fn, 3)(*problem())
