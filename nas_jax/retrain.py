"""Training from scratch: R models side by side in one compiled program."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from core_jax import mesh as mesh_lib
from nas_jax import child as child_lib
from nas_jax import models
from nas_jax import reading
from nas_jax import strategies


@struct.dataclass
class Run:
  """One model's; every leaf of a `State.runs` has a leading axis R.

  Attributes:
    arch: what the model reads beside its weights: a cell, or nothing.
    key: of its draws.
    params: weights.
    opt_state: of the optimizer.
    h: where reading the training text has come to.
    best_params: those with the least validation loss at the end of a round.
    best_loss: that loss, nats a token.
  """
  arch: Any
  key: jax.Array
  params: Any
  opt_state: Any
  h: Any
  best_params: Any
  best_loss: jax.Array


@struct.dataclass
class State:
  """Of all runs; arrays only."""
  step: jax.Array
  runs: Run


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of a round.

  Attributes:
    updates: of each model.
    window_tokens: T, backpropagated through.
    rates: of dropout.
    reset_rate: of a stream's state in training, see `data.carry_on`.
  """
  updates: int
  window_tokens: int
  rates: child_lib.Rates | None = None
  reset_rate: float = 0.0


def make_init(
    model: models.Model, tx: optax.GradientTransformation, batch_size: int,
    seeds: tuple[int, ...],
) -> Callable[[Any], State]:
  """{'arch': [R, ...]} -> State; run r starts from seeds[r]."""

  def init_one(arch, seed):
    params_key, key = jax.random.split(jax.random.key(seed))
    params = model.init(params_key)
    return Run(
        arch, key, params, tx.init(params), model.state(batch_size), params,
        jnp.float32(jnp.inf))

  def init(frozen):
    return State(jnp.int32(0), jax.vmap(init_one)(
        frozen['arch'], jnp.asarray(seeds)))

  return init


def make_round(
    model: models.Model, settings: Settings,
    tx: optax.GradientTransformation, mesh: jax.sharding.Mesh,
) -> Callable[[State, Any, Any], tuple[State, dict[str, jax.Array]]]:
  """(state, batch, {'data': search.Data}) -> (state, metrics).

  Every run is trained for `updates` windows and measured on validation.
  Devices along 'student' share the runs out.
  """

  def one(run, inputs, step, text):
    del inputs
    run, losses = train(model, settings, tx, run, step, text.train)
    valid = models.loss_on(
        model, run.params, run.arch, text.valid, settings.window_tokens)
    better = valid < run.best_loss  # False for NaN
    keep = lambda new, old: jnp.where(better, new, old)
    return run.replace(
        best_params=jax.tree.map(keep, run.params, run.best_params),
        best_loss=keep(valid, run.best_loss)), (losses, valid)

  def step(state, batch, frozen):
    del batch
    runs, (losses, valid) = mesh_lib.update_students(one, mesh)(
        state.runs, (), state.step, frozen['data'])
    return State(state.step + 1, runs), {
        'train_loss': strategies.finite_mean(losses),
        'valid_loss': strategies.finite_mean(valid),
        'least_valid_loss': jnp.minimum(
            runs.best_loss.min(), strategies.NO_LOSS),
        'skipped_updates': jnp.sum(~jnp.isfinite(losses), dtype=jnp.float32)}

  return step


def train(
    model: models.Model, settings: Settings,
    tx: optax.GradientTransformation, run: Run, step: jax.Array,
    streams: jax.Array,
) -> tuple[Run, jax.Array]:
  """One run's updates of a round.

  Returns:
    (run, training losses [U] in nats, NaN where an update was left out).
  """

  def loss_fn(params, window, h, key):
    nll, h = model.nll(params, run.arch, window, h, settings.rates, key)
    return nll.mean(), h

  first, num = step * settings.updates, settings.updates
  (params, opt_state, h), (losses, norms) = reading.train_windows(
      loss_fn, tx, (run.params, run.opt_state, run.h), streams, first,
      reading.update_keys(run.key, first, num),
      window_tokens=settings.window_tokens, reset_rate=settings.reset_rate)
  losses = jnp.where(jnp.isfinite(norms), losses, jnp.nan)
  return run.replace(params=params, opt_state=opt_state, h=h), losses
