"""Ways to choose cells over shared weights, as triples of pure functions.

A `Strategy` says which cells the shared weights train on and what it learns
from their validation losses. A round has the same updates of the weights for
all, and then steps of the strategy: most evaluate some cells in each, DARTS
takes a gradient of its mixture, random search does nothing and may have more
candidates at its end (`uniform.num_cells`) for what that saves.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nas_jax import space as space_lib

NO_LOSS = 99.0  # nats, logged where there is no finite loss
_DIVERGED, _UNMEASURED = 1e6, 1e9  # nats, of cells in successive halving

State = dict[str, Any]
Metrics = dict[str, jax.Array]


class Supernet(NamedTuple):
  """The shared weights as a strategy sees them.

  Attributes:
    losses: (tokens [M, S], key) -> validation loss [M] of each cell on one
      window, nats.
    relaxed: (alpha, key) -> [], that of the mixture of all cells.
  """
  losses: Callable[[jax.Array, jax.Array], jax.Array]
  relaxed: Callable[[Any, jax.Array], jax.Array] | None = None


class Strategy(NamedTuple):
  """How to choose cells.

  Attributes:
    init: key -> state.
    sample: (state, key, num) -> tokens [num, S], to train on and to derive.
    update: (state, key, supernet) -> (state, metrics); one step.
    begin: (state, key, round) -> state, before the steps of a round.
    relax: state -> alpha, where the weights train on a mixture of cells.
  """
  init: Callable[[jax.Array], State]
  sample: Callable[[State, jax.Array, int], jax.Array]
  update: Callable[[State, jax.Array, Supernet], tuple[State, Metrics]]
  begin: Callable[[State, jax.Array, jax.Array], State] = (
      lambda state, key, round_: state)
  relax: Callable[[State], Any] | None = None


def uniform(space: space_lib.Space) -> Strategy:
  """Random search with weight sharing: every encoding is as likely.

  It learns nothing: what it chooses by are its candidates at the end.
  """

  def sample(state, key, num):
    del state
    return space_lib.encode(space, space_lib.sample(space, key, num))

  def update(state, key, supernet):
    del key, supernet
    return {'updates': state['updates'] + 1}, {}

  return Strategy(lambda key: {'updates': jnp.int32(0)}, sample, update)


def finite_mean(losses: jax.Array) -> jax.Array:
  """Mean of those that are finite, NO_LOSS where none is."""
  good = jnp.isfinite(losses)
  total = jnp.where(good, losses, 0.0).sum()
  return jnp.where(good.any(), total / jnp.maximum(good.sum(), 1), NO_LOSS)


def mutate(
    space: space_lib.Space, key: jax.Array, tokens: jax.Array
) -> jax.Array:
  """One cell's tokens [S] with one decision taken otherwise."""
  free = np.flatnonzero(space.num_options > 1)
  where_key, what_key = jax.random.split(key)
  t = jax.random.choice(where_key, jnp.asarray(free))
  options = jnp.asarray(space.num_options)[t]
  shift = jax.random.randint(what_key, (), 1, options)
  return tokens.at[t].set((tokens[t] + shift) % options)


def evolution(
    space: space_lib.Space, population: int, tournament: int,
    num_evaluated: int,
) -> Strategy:
  """Regularised evolution: the best of a few is mutated, the oldest dies.

  The state has 'tokens' [P, S] and 'losses' [P] of the population, infinite
  where a first member has not been evaluated, and 'born' [], how many have.
  """

  def init(key):
    first = space_lib.sample(space, key, population)
    return {'tokens': space_lib.encode(space, first),
            'losses': jnp.full(population, jnp.inf), 'born': jnp.int32(0)}

  def sample(state, key, num):
    return state['tokens'][jax.random.randint(key, (num,), 0, population)]

  def child(state, key):
    draw_key, mutate_key = jax.random.split(key)
    rivals = jax.random.choice(
        draw_key, population, (tournament,), replace=False)
    best = rivals[jnp.argmin(state['losses'][rivals])]
    return mutate(space, mutate_key, state['tokens'][best])

  def update(state, key, supernet):
    child_key, loss_key = jax.random.split(key)
    places = (state['born'] + jnp.arange(num_evaluated)) % population
    bred = jax.vmap(lambda key: child(state, key))(
        jax.random.split(child_key, num_evaluated))
    tokens = jnp.where(
        state['born'] < population, state['tokens'][places], bred)
    losses = supernet.losses(tokens, loss_key)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    return {
        'tokens': state['tokens'].at[places].set(tokens),
        'losses': state['losses'].at[places].set(losses),
        'born': state['born'] + num_evaluated,
    }, {'valid_loss': finite_mean(losses)}

  return Strategy(init, sample, update)


def halving(
    space: space_lib.Space, num_cells: int, num_updates: int,
    num_evaluated: int,
) -> Strategy:
  """Successive halving of random cells over `num_updates` updates.

  The state has 'tokens' [n, S], 'alive' [n], 'total' [n] and 'count' [n] of
  the losses since the last cut, and 'updates' [].
  """
  if num_cells < 2 or num_cells & (num_cells - 1):
    raise ValueError(f'halving.num_cells={num_cells} is not a power of two')
  every = max(1, num_updates // num_cells.bit_length())

  def init(key):
    first = space_lib.sample(space, key, num_cells)
    return {'tokens': space_lib.encode(space, first),
            'alive': jnp.ones(num_cells, bool),
            'total': jnp.zeros(num_cells), 'count': jnp.zeros(num_cells),
            'updates': jnp.int32(0)}

  def sample(state, key, num):
    share = state['alive'] / state['alive'].sum()
    return state['tokens'][jax.random.choice(key, num_cells, (num,), p=share)]

  def cut(state):
    mean = state['total'] / jnp.maximum(state['count'], 1)
    # One that was not measured goes before those that are dead.
    mean = jnp.where(state['count'] > 0, mean, _UNMEASURED)
    mean = jnp.where(state['alive'], mean, jnp.inf)
    keep = jnp.maximum(state['alive'].sum() // 2, 1)
    alive = jnp.zeros(num_cells, bool).at[jnp.argsort(mean)].set(
        jnp.arange(num_cells) < keep)
    blank = jnp.zeros(num_cells)
    return state | {'alive': alive, 'total': blank, 'count': blank}

  def update(state, key, supernet):
    # Those evaluated least often come next, the dead never.
    order = jnp.argsort(jnp.where(state['alive'], state['count'], jnp.inf))
    chosen = order[jnp.arange(num_evaluated) % state['alive'].sum()]
    losses = supernet.losses(state['tokens'][chosen], key)
    bad = ~jnp.isfinite(losses)
    state = state | {
        'total': state['total'].at[chosen].add(
            jnp.where(bad, _DIVERGED, losses)),
        'count': state['count'].at[chosen].add(1.0),
        'updates': state['updates'] + 1}
    state = jax.lax.cond(
        state['updates'] % every == 0, cut, lambda state: state, state)
    return state, {'valid_loss': finite_mean(losses),
                   'cells_left': state['alive'].sum().astype(jnp.float32)}

  return Strategy(init, sample, update)


def differentiable(
    init_alpha: Callable[[jax.Array], Any],
    discretise: Callable[[Any], jax.Array], tx: optax.GradientTransformation,
) -> Strategy:
  """First-order DARTS: the gradient of the mixture's validation loss.

  Args:
    init_alpha: key -> alpha, a tree.
    discretise: alpha -> tokens [S].
    tx: of alpha; DARTS has Adam 3e-3, weight decay 1e-3.
  """

  def init(key):
    alpha = init_alpha(key)
    return {'alpha': alpha, 'opt_state': tx.init(alpha)}

  def sample(state, key, num):
    del key  # There is one cell.
    tokens = discretise(state['alpha'])
    return jnp.broadcast_to(tokens, (num, *tokens.shape))

  def update(state, key, supernet):
    loss, grad = jax.value_and_grad(supernet.relaxed)(state['alpha'], key)
    updates, opt_state = tx.update(grad, state['opt_state'], state['alpha'])
    alpha = optax.apply_updates(state['alpha'], updates)
    return {'alpha': alpha, 'opt_state': opt_state}, {
        'valid_loss': finite_mean(loss)}

  return Strategy(init, sample, update, relax=lambda state: state['alpha'])
