"""One round of search: shared weights, then the strategy, in one program."""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from core_jax import mesh as mesh_lib
from nas_jax import child as child_lib
from nas_jax import darts
from nas_jax import data
from nas_jax import keys
from nas_jax import reading
from nas_jax import space as space_lib
from nas_jax import strategies

Params = Any


@struct.dataclass
class State:
  """Of a search; arrays only.

  Attributes:
    step: [], rounds done.
    key: of all draws, never replaced.
    params: the shared weights.
    opt_state: of their optimizer.
    h: [B, H], where reading the training text has come to.
    strategy: the strategy's own.
  """
  step: jax.Array
  key: jax.Array
  params: Params
  opt_state: Any
  h: jax.Array
  strategy: Any


class Data(NamedTuple):
  """Tokens on the device.

  Attributes:
    train: [B, L], streams that the shared weights are trained on.
    valid: [B', L'], streams that strategies are rewarded on.
  """
  train: jax.Array
  valid: jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of a round.

  Attributes:
    shared_updates: of the shared weights.
    strategy_updates: of the strategy.
    window_tokens: T, backpropagated through, and of one reward.
    cells_per_update: M cells share the streams of an update.
    rates: of dropout.
    reset_rate: of a stream's state in training, see `data.carry_on`.
  """
  shared_updates: int
  strategy_updates: int
  window_tokens: int
  cells_per_update: int = 1
  rates: child_lib.Rates | None = None
  reset_rate: float = 0.0


def split_key(seed: int) -> jax.Array:
  """[3] keys: of the shared weights, of the strategy's start, of the rest."""
  return jax.random.split(keys.of_seed(seed, 'search'), 3)


def make_init(
    child: child_lib.Child, strategy: strategies.Strategy,
    tx: optax.GradientTransformation, batch_size: int, seed: int,
) -> Callable[[Any], State]:
  """frozen -> State; the shared weights depend on nothing but the seed."""

  def init(frozen):
    del frozen
    params_key, strategy_key, key = split_key(seed)
    params = child_lib.init_params(child, params_key)
    return State(
        jnp.int32(0), key, params, tx.init(params),
        child_lib.initial_state(child, batch_size),
        strategy.init(strategy_key))

  return init


def cell_losses(
    child: child_lib.Child, params: Params, tokens: jax.Array,
    window: jax.Array,
) -> jax.Array:
  """Validation losses of cells by the shared weights, dropout off.

  Args:
    child: settings.
    params: shared weights.
    tokens: [M, S], of the cells.
    window: [T + 1, B], text.

  Returns:
    [M], nats a token.
  """
  h = child_lib.initial_state(child, window.shape[1])

  def loss(tokens):
    cell = space_lib.decode(child.space, tokens)
    nll, _ = child_lib.negative_log_likelihood(
        child, params, cell, window, h)
    return nll.mean()

  return jax.lax.map(loss, tokens)


def make_round(
    child: child_lib.Child, strategy: strategies.Strategy,
    settings: Settings, tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> Callable[[State, Any, Any], tuple[State, dict[str, jax.Array]]]:
  """(state, batch, {'data': Data}) -> (state, metrics).

  Weights are trained on cells that the strategy draws, and then it is shown
  losses of cells on windows of the validation text drawn at random.
  """

  def step(state, batch, frozen):
    del batch
    text = Data(*[mesh_lib.split_rows(x, mesh) for x in frozen['data']])
    begin_key, shared_key, strategy_key = jax.random.split(
        jax.random.fold_in(state.key, state.step), 3)
    state = state.replace(
        strategy=strategy.begin(state.strategy, begin_key, state.step))
    state, train = shared_phase(
        child, strategy, settings, tx, state, text.train, shared_key)
    found, metrics = strategy_phase(
        child, strategy, settings, state, text.valid, strategy_key)
    state = state.replace(step=state.step + 1, strategy=found)
    return state, train | metrics

  return step


def shared_phase(
    child: child_lib.Child, strategy: strategies.Strategy,
    settings: Settings, tx: optax.GradientTransformation, state: State,
    train: jax.Array, key: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
  """`shared_updates` of the shared weights, one window of text each."""

  def loss_fn(params, window, h, key):
    cell_key, key = jax.random.split(key)
    if strategy.relax is not None:
      nll, h = darts.mixed_negative_log_likelihood(
          child, params,
          darts.mixture(child.space, strategy.relax(state.strategy)), window, h,
          rates=settings.rates, key=key)
      return nll.mean(), h
    cells = space_lib.decode(child.space, strategy.sample(
        state.strategy, cell_key, settings.cells_per_update))
    nll, h = child_lib.negative_log_likelihood_split(
        child, params, cells, window, h, rates=settings.rates, key=key)
    return nll.mean(), h

  num = settings.shared_updates
  (params, opt_state, h), (losses, norms) = reading.train_windows(
      loss_fn, tx, (state.params, state.opt_state, state.h), train,
      state.step * num, reading.update_keys(key, 0, num),
      window_tokens=settings.window_tokens, reset_rate=settings.reset_rate)
  good = jnp.isfinite(losses) & jnp.isfinite(norms)
  mean = lambda x: jnp.sum(jnp.where(good, x, 0)) / jnp.maximum(good.sum(), 1)
  return state.replace(params=params, opt_state=opt_state, h=h), {
      'train_loss': mean(losses), 'grad_norm': mean(norms),
      'skipped_updates': jnp.sum(~good).astype(jnp.float32)}


def strategy_phase(
    child: child_lib.Child, strategy: strategies.Strategy,
    settings: Settings, state: State, valid: jax.Array, key: jax.Array,
) -> tuple[Any, dict[str, jax.Array]]:
  """`strategy_updates` of the strategy; means of its metrics."""
  length = settings.window_tokens
  params = jax.lax.stop_gradient(state.params)

  def draw_window(key):
    place = jax.random.randint(key, (), 0, data.num_windows(valid, length))
    return data.take_window(valid, place, length)

  def relaxed(alpha, key):
    window = draw_window(key)
    h = child_lib.initial_state(child, window.shape[1])
    return darts.mixed_negative_log_likelihood(
        child, params, darts.mixture(child.space, alpha), window, h)[0].mean()

  supernet = strategies.Supernet(
      lambda tokens, key: cell_losses(
          child, params, tokens, draw_window(key)), relaxed)
  found, metrics = jax.lax.scan(
      lambda found, key: strategy.update(found, key, supernet),
      state.strategy, jax.random.split(key, settings.strategy_updates))
  return found, jax.tree.map(jnp.mean, metrics)
