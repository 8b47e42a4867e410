"""Self-tuning: one round trains the weights, then moves the hyperparameters.

Two methods behind one interface.

  STN (1903.03088): the weights answer, w(lam) = W + (U lam) * W_r, and all of
    them are trained together on the loss at perturbed hyperparameters.
  Delta-STN (2010.13514): w(lam_0 + eps) = w_0 + Theta eps. w_0 is trained on
    the loss at lam_0 itself, Theta on the loss of the network linearised in
    Theta eps. A step of lam then leaves the network as it is.

Either way the hyperparameters follow the gradient of the validation loss
through the response alone; no gradient goes through masks, augmentation or
integers.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from stn_jax import diagnostics
from stn_jax import layers as layers_lib
from stn_jax import losses as losses_lib
from stn_jax import problem as problem_lib
from stn_jax import response as response_lib
from stn_jax import space as space_lib

METHODS = ('delta_stn', 'stn', 'implicit')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a run goes about it.

  Attributes:
    method: 'delta_stn', 'stn', or 'implicit' to compare with: weights without
      a response, hypergradients by the implicit function theorem.
    warmup_rounds: rounds before the hyperparameters start to move.
    entropy_weight: tau, of the perturbations' entropy; 0 lets sigma fall.
    tune_scales: whether sigma is tuned; if not, the hypergradient is taken
      at lam itself.
    rank: terms of each layer's response; the papers have one.
    unroll: writes the training updates of a round out one after the other.
      XLA on CPU is slow at a convolution's gradient in a loop; a long round
      of matrix products compiles faster as a loop.
    diagnose: measures how well the response predicts; costs a forward pass.
  """
  method: str = 'delta_stn'
  warmup_rounds: int = 0
  entropy_weight: float = 1e-3
  tune_scales: bool = True
  rank: int = 1
  unroll: bool = False
  diagnose: bool = True

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(
          f'method={self.method!r}; there are {", ".join(METHODS)}')
    for name, least in (
        ('rank', 1), ('entropy_weight', 0), ('warmup_rounds', 0)):
      if not getattr(self, name) >= least:
        raise ValueError(
            f'{name}={getattr(self, name)}: give {least} or more')


class Optimizers(NamedTuple):
  """Of the weights, of the response, and of (lam, rho).

  STN trains weights and response with the first, as one.
  """
  params: optax.GradientTransformation
  response: optax.GradientTransformation
  hyper: optax.GradientTransformation


@struct.dataclass
class State:
  """Arrays only.

  Attributes:
    step: rounds done, int32 [].
    key: never changes; draws come from fold_in(key, step).
    params: of the model, as it has them.
    response: of its layers.
    lam, rho: float32 [n].
    opt_params, opt_response, opt_hyper: of the optimizers.
    variables: the model's other collections, such as batch_stats.
    valid_carry: the validation stream's own carry, or {}.
    history: lam of each round so far, float32 [rounds, n].
  """
  step: jax.Array
  key: jax.Array
  params: Any
  response: Any
  lam: jax.Array
  rho: jax.Array
  opt_params: Any
  opt_response: Any
  opt_hyper: Any
  variables: Any
  valid_carry: Any
  history: jax.Array


def plain_update(
    problem: problem_lib.Problem, tx: optax.GradientTransformation,
    params: Any, opt_state: Any, variables: Any, batch: problem_lib.Batch,
    hypers: problem_lib.Hypers, key: jax.Array,
) -> tuple[Any, Any, Any, jax.Array]:
  """w <- w - lr df(lam, w)/dw, without any response.

  It is the first half of Delta-STN, and all of ordinary training.

  Returns:
    (params, opt_state, variables, loss).
  """

  def loss_fn(params):
    outputs, after = problem_lib.run_model(
        problem, params, {}, variables, batch, hypers, None, key)
    return problem_lib.training_loss(
        problem, outputs, params, {}, batch, hypers, None), after

  (loss, variables), grads = jax.value_and_grad(
      loss_fn, has_aux=True)(params)
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state, variables, loss


def _delta_stn_update(problem, optimizers, state, batch, key):
  """The weights at lam, then the response around it (Delta-STN, alg. 1)."""
  plain_key, response_key, eps_key = jax.random.split(key, 3)
  params, opt_params, variables, loss = plain_update(
      problem, optimizers.params, state.params, state.opt_params,
      state.variables, batch,
      problem_lib.constant(problem, state.lam, problem_lib.num_examples(batch)),
      plain_key)
  eps = space_lib.perturbation(
      eps_key, problem.space, state.rho, problem_lib.num_examples(batch))
  response_loss, grads = jax.value_and_grad(
      lambda response: losses_lib.linearised_loss(
          problem, params, response, state.variables, batch, state.lam, eps,
          response_key))(state.response)
  updates, opt_response = optimizers.response.update(
      grads, state.opt_response, state.response)
  return state.replace(
      params=params, opt_params=opt_params, variables=variables,
      response=optax.apply_updates(state.response, updates),
      opt_response=opt_response), {
          'train_loss': loss, 'response_loss': response_loss}


def _stn_update(problem, optimizers, state, batch, key):
  """Weights and response together, at perturbed lam (STN, alg. 1)."""
  model_key, eps_key = jax.random.split(key)
  eps = space_lib.perturbation(
      eps_key, problem.space, state.rho, problem_lib.num_examples(batch))
  both = {'params': state.params, 'response': state.response}
  (loss, variables), grads = jax.value_and_grad(
      lambda w: losses_lib.perturbed_loss(
          problem, w['params'], w['response'], state.variables, batch,
          state.lam, eps, losses_lib.answered('stn', state.lam, eps),
          model_key),
      has_aux=True)(both)
  updates, opt_params = optimizers.params.update(
      grads, state.opt_params, both)
  both = optax.apply_updates(both, updates)
  return state.replace(
      params=both['params'], response=both['response'],
      opt_params=opt_params, variables=variables), {'train_loss': loss}


def training_update(
    problem: problem_lib.Problem, settings: Settings, optimizers: Optimizers,
    state: State, batch: problem_lib.Batch, key: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
  """One update of the weights and their response; lam and rho rest."""
  update = (_stn_update if settings.method == 'stn' else _delta_stn_update)
  return update(problem, optimizers, state, batch, key)


def hypergradient(
    problem: problem_lib.Problem, settings: Settings, state: State,
    batch: problem_lib.Batch, key: jax.Array,
) -> tuple[tuple[jax.Array, Any], dict[str, jax.Array]]:
  """d(F - tau H)/d(lam, rho) through the response; the weights rest.

  Returns:
    ((F, carry of the validation stream), {'lam': [n], 'rho': [n]}).
  """
  eps_key, model_key = jax.random.split(key)
  variables = {**state.variables}
  if problem_lib.CARRY in variables:
    variables[problem_lib.CARRY] = state.valid_carry

  def objective(hyper):
    eps = jnp.zeros((problem_lib.num_examples(batch), len(problem.space)))
    if settings.tune_scales:
      eps = space_lib.perturbation(
          eps_key, problem.space, hyper['rho'], problem_lib.num_examples(batch))
    loss, carry = losses_lib.validation_loss(
        problem, settings.method, state.params, state.response, variables,
        batch, hyper['lam'], eps, model_key)
    surprise = space_lib.entropy(problem.space, hyper['rho'])
    return loss - settings.entropy_weight * surprise, (loss, carry)

  (_, aux), grads = jax.value_and_grad(objective, has_aux=True)(
      {'lam': state.lam, 'rho': state.rho})
  mask = space_lib.tuned(problem.space)
  return aux, {
      'lam': grads['lam'] * mask,
      'rho': grads['rho'] * mask * settings.tune_scales}


def validation_update(
    problem: problem_lib.Problem, settings: Settings, optimizers: Optimizers,
    state: State, batch: problem_lib.Batch, key: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
  """One update of lam and rho after the warm-up; the weights rest."""
  (loss, carry), grads = hypergradient(problem, settings, state, batch, key)
  metrics = {'valid_loss': loss,
             'hypergradient_norm': optax.tree.norm(grads['lam'])}
  if settings.tune_scales and settings.entropy_weight:
    metrics |= diagnostics.sigma_balance(
        problem, settings.entropy_weight, state.rho, grads['rho'])
  state, moved = move(problem, settings, optimizers, state, grads)
  return state.replace(valid_carry=carry), metrics | moved


def move(
    problem: problem_lib.Problem, settings: Settings, optimizers: Optimizers,
    state: State, grads: dict[str, jax.Array],
) -> tuple[State, dict[str, jax.Array]]:
  """Moves (lam, rho) against their gradients, once the warm-up is over.

  They rest, and so does their optimizer, where a gradient is not finite:
  `hypergradient_skipped` is 1 then. What is not tuned rests whatever the
  optimizer says, which may have a decay.
  """
  hyper = {'lam': state.lam, 'rho': state.rho}
  mask = space_lib.tuned(problem.space)
  by_scale = settings.tune_scales and settings.method != 'implicit'
  updates, opt_hyper = optimizers.hyper.update(grads, state.opt_hyper, hyper)
  moved = optax.apply_updates(hyper, {
      'lam': updates['lam'] * mask, 'rho': updates['rho'] * mask * by_scale})
  lam, rho = space_lib.clamp(problem.space, moved['lam'], moved['rho'])
  finite = jnp.all(jnp.isfinite(jnp.stack([grads['lam'], grads['rho']])))
  free = finite & (state.step >= settings.warmup_rounds)
  keep = lambda new, old: jax.tree.map(
      lambda a, b: jnp.where(free, a, b), new, old)
  return state.replace(
      lam=keep(lam, state.lam), rho=keep(rho, state.rho),
      opt_hyper=keep(opt_hyper, state.opt_hyper)), {
          'hypergradient_skipped': 1.0 - finite}


def make_init(
    problem: problem_lib.Problem, settings: Settings, optimizers: Optimizers,
    example: problem_lib.Batch, num_rounds: int, seed: int,
) -> Callable[[Any], State]:
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
  space_lib.check(problem.space)
  if settings.warmup_rounds >= num_rounds:
    raise ValueError(
        f'warmup_rounds={settings.warmup_rounds} leaves no round of '
        f'num_rounds={num_rounds} in which a hyperparameter moves')
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
    return State(
        step=jnp.int32(0), key=key, params=params, response=response,
        lam=lam, rho=rho,
        opt_params=optimizers.params.init(
            {'params': params, 'response': response} if joint else params),
        opt_response=() if joint else optimizers.response.init(response),
        opt_hyper=optimizers.hyper.init({'lam': lam, 'rho': rho}),
        variables=variables, valid_carry=variables.get(problem_lib.CARRY, {}),
        history=jnp.zeros((num_rounds, n)))

  return init


def make_round(
    problem: problem_lib.Problem, settings: Settings, optimizers: Optimizers
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
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
    check_batch(state, batch)
    key = jax.random.fold_in(state.key, state.step)
    train_key, valid_key, quality_key = jax.random.split(key, 3)
    state = state.replace(
        history=state.history.at[state.step].set(state.lam))
    batches = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch['train'])
    num_updates = problem_lib.num_examples(batches)

    def body(state, inputs):
      return training_update(problem, settings, optimizers, state, *inputs)

    state, metrics = jax.lax.scan(
        body, state, (batches, jax.random.split(train_key, num_updates)),
        unroll=num_updates if settings.unroll else 1)
    metrics = jax.tree.map(jnp.mean, metrics)
    if settings.diagnose:
      metrics |= diagnostics.response_quality(
          problem, settings.method, state,
          jax.tree.map(lambda x: x[-1], batches), quality_key)
    state, valid_metrics = validation_update(
        problem, settings, optimizers, state, batch['valid'], valid_key)
    return state.replace(step=state.step + 1), {
        **metrics, **valid_metrics, **diagnostics.describe(problem, state)}

  return step


def check_batch(state: State, batch: problem_lib.Batch) -> None:
  """Raises ValueError for a batch that a round cannot use; shapes alone."""
  train, valid = (
      problem_lib.num_examples(batch[part]) for part in ('train', 'valid'))
  if not train or not valid:
    raise ValueError(
        f"batch['train'] has {train} examples and batch['valid'] {valid}: "
        'weights and hyperparameters need some each')
  streams = {x.shape[0] for x in jax.tree.leaves(
      state.variables.get(problem_lib.CARRY, {})) if x.ndim}
  if streams and {train, valid} != streams:
    raise ValueError(
        f"the model's carry is of {sorted(streams)} streams, but "
        f"batch['train'] has {train} rows and batch['valid'] {valid}: give "
        'the same number in both, and in the example')


def self_tuning(
    problem: problem_lib.Problem, optimizers: Optimizers,
    example: problem_lib.Batch, *, num_rounds: int, seed: int = 0,
    settings: Settings = Settings(),
) -> tuple[State, Callable[..., tuple[State, dict[str, jax.Array]]]]:
  """A state and a compiled round, for a training script of one's own.

  Args:
    problem: what is tuned.
    optimizers: of weights, response and hyperparameters.
    example: one batch, or shapes like it.
    num_rounds: of the run.
    seed: of weights and draws.
    settings: see there.

  Returns:
    (state, round): `state, metrics = round(state, batch)`, the state donated,
    the batch as in `make_round`.
  """
  init = make_init(problem, settings, optimizers, example, num_rounds, seed)
  step = make_round(problem, settings, optimizers)
  return jax.jit(init)({}), jax.jit(
      lambda state, batch: step(state, batch, {}), donate_argnums=0)
