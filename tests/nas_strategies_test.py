"""Each strategy finds the best cell of a loss that it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas_jax import controller as controller_lib
from nas_jax import enas
from nas_jax import memory as memory_lib
from nas_jax import space as space_lib
from nas_jax import strategies

SPACE = space_lib.enas(4)
BEST = jnp.array([2, 0, 1, 1, 3, 2, 0], jnp.int32)


def wrong(tokens, key=None):
  """How many decisions differ from the best cell's, a loss in nats."""
  best = jnp.broadcast_to(BEST, tokens.shape)
  return jnp.sum(tokens != best, -1).astype(jnp.float32)


def relaxed(alpha, key=None):
  p = jax.nn.softmax(jnp.where(
      jnp.arange(alpha.shape[1])[None]
      < jnp.asarray(SPACE.num_options)[:, None], alpha, -1e9))
  return jnp.sum(1 - jnp.take_along_axis(p, BEST[:, None], 1))


def discretise(alpha):
  there = jnp.arange(alpha.shape[1])[None] < jnp.asarray(
      SPACE.num_options)[:, None]
  return jnp.argmax(jnp.where(there, alpha, -jnp.inf), -1).astype(jnp.int32)


MAKE = {
    'uniform': lambda: strategies.uniform(SPACE),
    'enas': lambda: enas.strategy(enas.Settings(
        controller_lib.Controller(SPACE, 16), memory_lib.Memory(),
        enas.Reward(scale=10.0, samples_per_update=8), optax.adam(1e-2))),
    'evolution': lambda: strategies.evolution(SPACE, 32, 8, 8),
    'halving': lambda: strategies.halving(SPACE, 64, 300, 8),
    'differentiable': lambda: strategies.differentiable(
        lambda key: 1e-3 * jax.random.normal(key, (7, 4)), discretise,
        optax.adam(3e-2)),
}


def train(strategy, steps=300):
  supernet = strategies.Supernet(wrong, relaxed)

  @jax.jit
  def run(state):
    def body(state, key):
      return strategy.update(state, key, supernet)
    return jax.lax.scan(
        body, state, jax.random.split(jax.random.key(1), steps))

  return run(strategy.init(jax.random.key(0)))


@pytest.mark.parametrize('name', MAKE)
def test_what_a_strategy_draws_gets_better_unless_it_is_random(name):
  strategy = MAKE[name]()
  first = strategy.init(jax.random.key(0))
  state, metrics = train(strategy)
  key = jax.random.key(2)
  before = wrong(strategy.sample(first, key, 100)).mean()
  tokens = strategy.sample(state, key, 100)
  assert tokens.dtype == jnp.int32
  assert np.all(np.asarray(tokens) < SPACE.num_options)
  after = wrong(tokens).mean()
  if name == 'uniform':
    assert abs(after - before) < 0.5 and not metrics
  else:
    assert metrics['valid_loss'].shape == (300,)
    assert after < before - 0.9, (before, after)


def test_halving_ends_with_the_best_of_its_cells():
  strategy = MAKE['halving']()
  state, _ = train(strategy)
  assert state['alive'].sum() == 1
  left = state['tokens'][jnp.argmax(state['alive'])]
  assert wrong(left) == wrong(state['tokens']).min()


def test_halving_leaves_the_dead_dead_where_a_rung_measures_few():
  strategy = strategies.halving(SPACE, 64, 14, 2)  # Cuts after two updates.
  supernet, state = strategies.Supernet(wrong), strategy.init(
      jax.random.key(0))
  for i in range(14):
    before = state['alive']
    state, _ = strategy.update(state, jax.random.key(i), supernet)
    assert not jnp.any(state['alive'] & ~before)
  assert state['alive'].sum() == 1


def test_evolution_forgets_its_oldest():
  strategy = MAKE['evolution']()
  first = strategy.init(jax.random.key(0))
  state, _ = train(strategy, steps=8)  # 64 born over a population of 32
  assert state['born'] == 64 and jnp.all(jnp.isfinite(state['losses']))
  assert not jnp.all(state['tokens'] == first['tokens'])


def test_a_mutation_changes_one_decision_that_has_a_choice():
  for i in range(50):
    found = strategies.mutate(SPACE, jax.random.key(i), BEST)
    differ = np.flatnonzero(found != BEST)
    assert len(differ) == 1 and SPACE.num_options[differ[0]] > 1
    assert np.all(np.asarray(found) < SPACE.num_options)


def test_halving_takes_powers_of_two():
  with pytest.raises(ValueError, match='power of two'):
    strategies.halving(SPACE, 20, 10, 1)
