"""The continuous relaxation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import child as child_lib
from nas_jax import darts
from nas_jax import space as space_lib

VOCAB, WIDTH = 11, 4
FORMS = {
    'enas': (space_lib.enas(4), dict(sharing='edge')),
    'last': (space_lib.enas(4), dict(sharing='edge', state='last')),
    'darts': (space_lib.Space(4, space_lib.darts().activations, 'tanh'),
              dict(sharing='node', output='all', norm='rms')),
}


def make(form):
  space, settings = FORMS[form]
  child = child_lib.Child(space, VOCAB, WIDTH, init_scale=0.8, **settings)
  tokens = jax.random.randint(jax.random.key(1), (4, 3), 0, VOCAB)
  h = 0.5 * jax.random.normal(jax.random.key(2), (3, WIDTH))
  return child, child_lib.init_params(child, jax.random.key(0)), tokens, h


@functools.partial(jax.jit, static_argnums=0)
def mixed(child, params, alpha, tokens, h):
  return darts.mixed_negative_log_likelihood(child, params, alpha, tokens, h)


@pytest.mark.parametrize('form', FORMS)
def test_a_mixture_of_one_cell_is_that_cell(form):
  child, params, tokens, h = make(form)
  one = jax.jit(lambda cell: child_lib.negative_log_likelihood(
      child, params, cell, tokens, h))
  cells = space_lib.sample(child.space, jax.random.key(3), 6)
  for cell in space_lib.unstack(cells):
    alpha = darts.from_cell(child, cell)
    found = darts.discretise(child, alpha)
    np.testing.assert_array_equal(found.prev, cell.prev)
    np.testing.assert_array_equal(found.act, cell.act)
    for ours, theirs in zip(
        mixed(child, params, alpha, tokens, h), one(cell), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_mixture_is_the_mean_over_choices_of_one_node():
  # Of two nodes, the last averaged alone: linear in its probabilities.
  space = space_lib.Space(2, space_lib.ACTIVATIONS, 'tanh')
  child = child_lib.Child(space, VOCAB, WIDTH, init_scale=0.8)
  params = child_lib.init_params(child, jax.random.key(0))
  tokens = jnp.zeros((2, 3), jnp.int32)
  h = 0.5 * jax.random.normal(jax.random.key(2), (3, WIDTH))
  alpha = jax.random.normal(jax.random.key(4), (2, 4))
  states = [
      mixed(child, params, darts.from_cell(child, cell), tokens, h)[1]
      for cell in space_lib.unstack(space_lib.enumerate_cells(space))]
  p = np.exp(alpha[1]) / np.exp(alpha[1]).sum()
  np.testing.assert_allclose(
      mixed(child, params, alpha, tokens, h)[1],
      sum(q * s for q, s in zip(p, states, strict=True)), rtol=1e-5)


def test_leaves_of_a_mixture_are_expected_leaves():
  space = space_lib.enas(4)
  child = child_lib.Child(space, VOCAB, WIDTH)
  alpha = jax.random.normal(jax.random.key(5), (7, 4))
  mixture = darts.probabilities(child, alpha)
  # Every cell by its probability; a mixture's node reads independently.
  cells = space_lib.enumerate_cells(space)
  chance = np.ones(len(cells.prev))
  for j, p in enumerate(mixture):
    chance *= np.asarray(p)[cells.prev[:, j], cells.act[:, j]]
  expected = chance @ np.asarray(space_lib.leaves(cells))
  np.testing.assert_allclose(chance.sum(), 1, rtol=1e-5)
  np.testing.assert_allclose(
      darts.shares(child, mixture), expected / expected.sum(), rtol=1e-5)


def test_gradients_of_alpha_agree_with_differences():
  child, params, tokens, h = make('enas')
  alpha = darts.init_alpha(child, jax.random.key(6), scale=1.0)
  assert alpha.shape == (7, 4)
  loss = jax.jit(lambda alpha: mixed(child, params, alpha, tokens, h)[0].sum())
  gradient = jax.grad(loss)(alpha)
  direction = jax.random.normal(jax.random.key(7), alpha.shape)
  step = 1e-2
  slope = (loss(alpha + step * direction) - loss(alpha - step * direction)) / (
      2 * step)
  np.testing.assert_allclose(
      (gradient * direction).sum(), slope, rtol=0.01, atol=1e-3)


def test_weights_of_activations_cannot_be_mixed():
  child = child_lib.Child(
      space_lib.enas(4), VOCAB, WIDTH, sharing='edge_act')
  with pytest.raises(ValueError, match="use 'edge' or 'node'"):
    darts.discretise(child, jnp.zeros((7, 4)))
