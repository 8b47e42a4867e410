"""The relaxation of cells, against the cells themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas_jax import child as child_lib
from nas_jax import darts
from nas_jax import space as space_lib

CHILD = child_lib.Child(space_lib.enas(4), 11, 6, init_scale=0.5)


def text(seed=0):
  return jax.random.randint(jax.random.key(seed), (6, 3), 0, 11)


def one_hot(space, cell):
  """The mixture that is one cell."""
  num_acts = len(space.activations)
  nodes = jnp.arange(1, space.num_nodes)
  places = child_lib.edge(nodes, cell.prev[1:])
  num_edges = space.num_nodes * (space.num_nodes - 1) // 2
  edges = jnp.zeros((num_edges, num_acts)).at[places, cell.act[1:]].set(1.0)
  return darts.Mixture(jax.nn.one_hot(cell.act[0], num_acts), edges)


@pytest.mark.parametrize('settings', [
    {}, {'sharing': 'node'}, {'state': 'last'}, {'output': 'all'},
    {'norm': 'rms'}], ids=str)
def test_a_mixture_with_all_weight_on_one_cell_is_that_cell(settings):
  child = dataclasses.replace(CHILD, **settings)
  params = child_lib.init_params(child, jax.random.key(1))
  h = 0.1 * jax.random.normal(jax.random.key(2), (3, 6))
  cells = space_lib.sample(child.space, jax.random.key(3), 3)
  for cell in space_lib.unstack(cells):
    mixed, after = darts.mixed_negative_log_likelihood(
        child, params, one_hot(child.space, cell), text(), h)
    exact, end = child_lib.negative_log_likelihood(
        child, params, cell, text(), h)
    np.testing.assert_allclose(mixed, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after, end, rtol=1e-5, atol=1e-6)


def test_probabilities_of_a_node_sum_to_one():
  alpha = darts.init_alpha(CHILD, jax.random.key(0))
  found = darts.mixture(CHILD.space, jax.tree.map(lambda x: 1e3 * x, alpha))
  assert abs(found.first.sum() - 1) < 1e-6
  for j in range(1, 4):
    assert abs(found.edges[darts.edges_of(j)].sum() - 1) < 1e-6
  assert abs(darts.shares(CHILD, found).sum() - 1) < 1e-6
  fixed = darts.mixture(dataclasses.replace(CHILD.space, first='relu'), alpha)
  np.testing.assert_array_equal(fixed.first, [0, 1, 0, 0])


def test_leaves_of_a_mixture_are_the_expected_leaves():
  alpha = darts.init_alpha(CHILD, jax.random.key(6))
  found = darts.mixture(CHILD.space, jax.tree.map(lambda x: 1e3 * x, alpha))
  # Over all 1536 cells; a mixture's nodes choose independently.
  cells = space_lib.enumerate_cells(CHILD.space)
  chance = np.asarray(found.first)[cells.act[:, 0]]
  for j in range(1, 4):
    edges = child_lib.edge(j, cells.prev[:, j])
    chance = chance * np.asarray(found.edges)[edges, cells.act[:, j]]
  expected = chance @ np.asarray(space_lib.leaves(cells))
  np.testing.assert_allclose(chance.sum(), 1, rtol=1e-5)
  np.testing.assert_allclose(
      darts.shares(CHILD, found), expected / expected.sum(), rtol=1e-5)


def test_one_node_after_the_first_is_linear_in_its_probabilities():
  space = space_lib.Space(2, first='tanh')
  child = dataclasses.replace(CHILD, space=space)
  params = child_lib.init_params(child, jax.random.key(1))
  h = 0.1 * jax.random.normal(jax.random.key(2), (3, 6))
  state = jax.jit(lambda found: darts.mixed_negative_log_likelihood(
      child, params, found, text()[:2], h)[1])
  alpha = darts.init_alpha(child, jax.random.key(7))
  found = darts.mixture(space, jax.tree.map(lambda x: 1e3 * x, alpha))
  mean = sum(
      p * state(one_hot(space, cell)) for p, cell in zip(
          found.edges[0], space_lib.unstack(space_lib.enumerate_cells(space)),
          strict=True))
  np.testing.assert_allclose(state(found), mean, rtol=1e-4, atol=1e-6)


def test_a_node_takes_its_parent_by_the_largest_weight():
  # Node 2: parent 0 has more in all, parent 1 the largest single weight.
  edges = jnp.zeros((6, 4)).at[1].set(2.0).at[2, 3].set(3.0)
  found = darts.discretise(CHILD.space, {'first': jnp.zeros(4), 'edges': edges})
  assert (found.prev[2], found.act[2]) == (1, 3)


def test_discretising_finds_the_cell_that_alpha_favours():
  for cell in space_lib.unstack(
      space_lib.sample(CHILD.space, jax.random.key(4), 20)):
    favoured = {name: 3.0 * x for name, x in one_hot(
        CHILD.space, cell)._asdict().items()}
    found = darts.discretise(CHILD.space, favoured)
    np.testing.assert_array_equal(found.prev, cell.prev)
    np.testing.assert_array_equal(found.act, cell.act)


def test_the_gradient_of_alpha_is_that_of_finite_differences():
  child = dataclasses.replace(CHILD, space=space_lib.enas(3))
  params = child_lib.init_params(child, jax.random.key(1))
  h = child_lib.initial_state(child, 3)

  @jax.jit
  def loss(alpha):
    return darts.mixed_negative_log_likelihood(
        child, params, darts.mixture(child.space, alpha), text(), h)[0].mean()

  alpha = darts.init_alpha(child, jax.random.key(5))
  grad = jax.grad(loss)(alpha)
  step = jax.tree.map(lambda x: 1e-2 * x / jnp.linalg.norm(grad['edges']), grad)
  up = loss(jax.tree.map(jnp.add, alpha, step))
  down = loss(jax.tree.map(jnp.subtract, alpha, step))
  slope = optax.tree.vdot(grad, step)
  np.testing.assert_allclose((up - down) / 2, slope, rtol=0.05)


def test_weights_by_activation_have_no_relaxation():
  child = dataclasses.replace(CHILD, sharing='edge_act')
  with pytest.raises(ValueError, match='edge_act'):
    darts.check(child)
