"""A run's state and its round: training updates, then one of (lam, rho)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stn_jax import diagnostics
from stn_jax import layers as layers_lib
from stn_jax import problem as problem_lib
from stn_jax import response as response_lib
from stn_jax import space as space_lib
from stn_jax import state as state_lib
from stn_jax import updates

Round = Callable[..., tuple[state_lib.State, dict[str, jax.Array]]]


def make_init(
    problem: problem_lib.Problem, settings: state_lib.Settings,
    optimizers: state_lib.Optimizers, example: problem_lib.Batch,
    num_rounds: int, seed: int,
) -> Callable[[Any], state_lib.State]:
  """frozen -> State at step 0.

  Args:
    problem: what is tuned.
    settings: how.
    optimizers: see there.
    example: a batch, or shapes like it.
    num_rounds: of the run, the length of the history.
    seed: of weights and draws.

  Raises:
    SpaceError, LayerError, ValueError: at once, before anything is computed.
  """
  _check_moves(problem.space, settings, num_rounds)
  init_variables = problem_lib.make_init_variables(problem, example)
  layers = {} if settings.method == 'implicit' else layers_lib.find_layers(
      lambda: init_variables(jax.random.key(0)), problem.handlers,
      problem.without_response)
  if not layers and settings.method != 'implicit':
    raise response_lib.LayerError(
        'no layer of the model answers, so that no hyperparameter would move: '
        f'take one out of without_response={problem.without_response}, or use '
        'layers that have a handler')
  problem_lib.check_all_read(problem, example)
  if settings.method == 'implicit':
    problem_lib.check_smooth(problem, example)
  n = len(problem.space)

  def init(frozen):
    del frozen
    params_key, response_key, key = jax.random.split(jax.random.key(seed), 3)
    variables = dict(init_variables(params_key))
    params = variables.pop('params')
    response = layers_lib.init(
        response_key, layers, n, 0.01 if settings.method == 'stn' else 0.0,
        settings.rank)
    joint = settings.method == 'stn'
    lam = jnp.asarray(space_lib.start(problem.space))
    rho = jnp.asarray(space_lib.start_rho(problem.space))
    return state_lib.State(
        step=jnp.int32(0), key=key, params=params, response=response,
        lam=lam, rho=rho,
        opt_params=optimizers.params.init(
            {'params': params, 'response': response} if joint else params),
        opt_response=() if joint else optimizers.response.init(response),
        opt_hyper=optimizers.hyper.init({'lam': lam, 'rho': rho}),
        variables=variables, valid_carry=variables.get(problem_lib.CARRY, {}),
        history=jnp.zeros((num_rounds, n)))

  return init


def _check_moves(space, settings, num_rounds):
  """Raises where the space makes no sense, or nothing in it would move."""
  space_lib.check(space)
  if not any(h.tuned for h in space.values()):
    raise space_lib.SpaceError(
        'tuned=False on every hyperparameter leaves nothing to tune: take it '
        'off one of them, or train without a tuner')
  if settings.warmup_rounds >= num_rounds:
    raise ValueError(
        f'warmup_rounds={settings.warmup_rounds} leaves no round of '
        f'num_rounds={num_rounds} in which a hyperparameter moves')


def make_round(
    problem: problem_lib.Problem, settings: state_lib.Settings,
    optimizers: state_lib.Optimizers,
) -> Round:
  """(state, batch, frozen) -> (state, metrics), one compiled program.

  The batch has 'train', fields [B, T, ...] for T training updates, and
  'valid', fields [B, ...].

  Raises:
    ValueError: method 'implicit', whose round is another; from the step, a
      batch that is empty or does not fit the model's carry.
  """
  if settings.method == 'implicit':
    raise ValueError(
        "method='implicit' has no response to tune by: its round is "
        'stn_jax.implicit.make_round')

  def step(state, batch, frozen):
    del frozen
    state_lib.check_batch(state, batch)
    key = jax.random.fold_in(state.key, state.step)
    train_key, valid_key, quality_key = jax.random.split(key, 3)
    state = state.replace(
        history=state.history.at[state.step].set(state.lam))
    batches = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch['train'])
    num_updates = problem_lib.num_examples(batches)

    def body(state, inputs):
      return updates.training_update(
          problem, settings, optimizers, state, *inputs)

    state, metrics = jax.lax.scan(
        body, state, (batches, jax.random.split(train_key, num_updates)),
        unroll=num_updates if settings.unroll else 1)
    metrics = jax.tree.map(jnp.mean, metrics)
    if settings.diagnose:
      metrics |= diagnostics.response_quality(
          problem, settings.method, state,
          jax.tree.map(lambda x: x[-1], batches), quality_key)
    state, valid_metrics = updates.validation_update(
        problem, settings, optimizers, state, batch['valid'], valid_key)
    return state.replace(step=state.step + 1), {
        **metrics, **valid_metrics, **diagnostics.describe(problem, state)}

  return step


def self_tuning(
    problem: problem_lib.Problem, optimizers: state_lib.Optimizers,
    example: problem_lib.Batch, *, num_rounds: int, seed: int = 0,
    settings: state_lib.Settings | None = None,
) -> tuple[state_lib.State, Round]:
  """A state and a compiled round, for a training script of one's own.

  Args:
    problem: what is tuned.
    optimizers: of weights, response and hyperparameters.
    example: one batch, or shapes like it.
    num_rounds: of the run.
    seed: of weights and draws.
    settings: None for the defaults.

  Returns:
    (state, round): `state, metrics = round(state, batch)`, the state donated,
    the batch as in `make_round`.
  """
  settings = settings or state_lib.Settings()
  init = make_init(problem, settings, optimizers, example, num_rounds, seed)
  step = make_round(problem, settings, optimizers)
  return jax.jit(init)({}), jax.jit(
      lambda state, batch: step(state, batch, {}), donate_argnums=0)
