"""Derivation: many cells of a strategy, measured by the shared weights."""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from nas_jax import child as child_lib
from nas_jax import keys
from nas_jax import models
from nas_jax import strategies


@struct.dataclass
class State:
  """Of a derivation; arrays only.

  Attributes:
    step: [], chunks done.
    tokens: [n, S], the candidates.
    losses: [n], nats a token; infinite where not measured yet.
  """
  step: jax.Array
  tokens: jax.Array
  losses: jax.Array


def make_init(
    strategy: strategies.Strategy, num_cells: int, seed: int
) -> Callable[[Any], State]:
  """frozen {'strategy': its state} -> State, candidates drawn."""

  def init(frozen):
    tokens = strategy.sample(
        frozen['strategy'], keys.of_seed(seed, 'derive'), num_cells)
    return State(jnp.int32(0), tokens, jnp.full(num_cells, jnp.inf))

  return init


def make_step(
    child: child_lib.Child, chunk: int, window_tokens: int, num_windows: int
) -> Callable[[State, Any, Any], tuple[State, dict[str, jax.Array]]]:
  """(state, batch, frozen) -> (state, metrics); measures `chunk` cells.

  `frozen` has 'shared' weights and 'valid' streams [B, L].
  """

  def step(state, batch, frozen):
    del batch
    first = state.step * chunk
    tokens = jax.lax.dynamic_slice_in_dim(state.tokens, first, chunk)
    losses = models.losses_of(
        child, frozen['shared'], tokens, frozen['valid'], window_tokens,
        num_windows)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    found = jax.lax.dynamic_update_slice_in_dim(
        state.losses, losses, first, 0)
    best = jnp.minimum(found.min(), strategies.NO_LOSS)
    return state.replace(step=state.step + 1, losses=found), {
        'best_valid_loss': best}

  return step
