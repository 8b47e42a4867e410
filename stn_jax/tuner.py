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

import chex
from flax import struct
import jax
import jax.numpy as jnp
import optax

from stn_jax import problem as problem_lib
from stn_jax import response as response_lib
from stn_jax import space as space_lib

METHODS = ('delta_stn', 'stn', 'implicit')

# The collection that follows a stream, and so is one for each of the streams.
CARRY = 'carry'


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


def linearised_loss(
    problem: problem_lib.Problem, params: Any, response: Any, variables: Any,
    batch: problem_lib.Batch, lam: jax.Array, eps: jax.Array, key: jax.Array,
) -> jax.Array:
  """f at lam + eps of the network linearised in Theta eps (Delta-STN, 4.3).

  Penalties of the weights need no linearisation: weights are affine in eps.
  """
  hypers = space_lib.constrain(problem.space, lam[None] + eps)

  def outputs_at(h):
    return problem_lib.run_model(
        problem, params, response, variables, batch, hypers,
        response_lib.Perturbation(h, centred=True), key)[0]

  outputs, tangents = jax.jvp(outputs_at, (jnp.zeros_like(eps),), (eps,))
  linearised = jax.tree.map(
      lambda y, dy: y + dy if jnp.issubdtype(y.dtype, jnp.inexact) else y,
      outputs, tangents)
  return problem_lib.training_loss(
      problem, linearised, params, response, batch, hypers,
      response_lib.Perturbation(eps))


def perturbed_loss(
    problem: problem_lib.Problem, params: Any, response: Any, variables: Any,
    batch: problem_lib.Batch, lam: jax.Array, eps: jax.Array, h: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, Any]:
  """f at lam + eps with the weights that answer h; (loss, variables)."""
  hypers = space_lib.constrain(problem.space, lam[None] + eps)
  perturbation = response_lib.Perturbation(h)
  outputs, after = problem_lib.run_model(
      problem, params, response, variables, batch, hypers, perturbation, key)
  return problem_lib.training_loss(
      problem, outputs, params, response, batch, hypers, perturbation), after


def answered(method: str, lam: jax.Array, eps: jax.Array) -> jax.Array:
  """h [B, n], what the layers see at lam + eps.

  STN's response is a function of lam itself; Delta-STN's of the distance to
  the present lam, zero in value but not in gradient.
  """
  if method == 'stn':
    return lam[None] + eps
  return (lam - jax.lax.stop_gradient(lam))[None] + eps


def validation_loss(
    problem: problem_lib.Problem, method: str, params: Any, response: Any,
    variables: Any, batch: problem_lib.Batch, lam: jax.Array, eps: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, Any]:
  """F at the weights that answer lam + eps; (nats, the carry after it)."""
  outputs, after = problem_lib.run_model(
      problem, params, response, variables, batch, None,
      response_lib.Perturbation(answered(method, lam, eps)), key)
  losses = problem.loss(outputs, batch, None)
  chex.assert_rank(losses, 1)
  return jnp.mean(losses), after.get(CARRY, {})


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
      lambda response: linearised_loss(
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
      lambda w: perturbed_loss(
          problem, w['params'], w['response'], state.variables, batch,
          state.lam, eps, answered('stn', state.lam, eps), model_key),
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
  if CARRY in variables:
    variables[CARRY] = state.valid_carry

  def objective(hyper):
    eps = jnp.zeros((problem_lib.num_examples(batch), len(problem.space)))
    if settings.tune_scales:
      eps = space_lib.perturbation(
          eps_key, problem.space, hyper['rho'], problem_lib.num_examples(batch))
    loss, carry = validation_loss(
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
    metrics |= sigma_balance(problem, settings, state.rho, grads['rho'])
  state = move(problem, settings, optimizers, state, grads)
  return state.replace(valid_carry=carry), metrics


def sigma_balance(
    problem: problem_lib.Problem, settings: Settings, rho: jax.Array,
    grad: jax.Array,
) -> dict[str, jax.Array]:
  """sigma dF/dsigma / tau of each hyperparameter, in the mean 1 at rest.

  Below 1 sigma grows: the validation loss curves less than the entropy
  asks for (sigma^2 = tau / curvature at rest, of a quadratic). `grad` is
  that of F - tau H by rho.
  """
  sigma = space_lib.sigma(rho)
  by_sigma = grad / jax.nn.sigmoid(rho)
  balance = 1 + sigma * by_sigma / settings.entropy_weight
  return {f'sigma_balance/{name}': balance[i]
          for i, (name, h) in enumerate(problem.space.items()) if h.tuned}


def move(
    problem: problem_lib.Problem, settings: Settings, optimizers: Optimizers,
    state: State, grads: dict[str, jax.Array],
) -> State:
  """Moves (lam, rho) against their gradients, once the warm-up is over."""
  hyper = {'lam': state.lam, 'rho': state.rho}
  updates, opt_hyper = optimizers.hyper.update(grads, state.opt_hyper, hyper)
  moved = optax.apply_updates(hyper, updates)
  lam, rho = space_lib.clamp(problem.space, moved['lam'], moved['rho'])
  warm = state.step >= settings.warmup_rounds
  keep = lambda new, old: jax.tree.map(
      lambda a, b: jnp.where(warm, a, b), new, old)
  return state.replace(
      lam=keep(lam, state.lam), rho=keep(rho, state.rho),
      opt_hyper=keep(opt_hyper, state.opt_hyper))


def response_quality(
    problem: problem_lib.Problem, method: str, state: State,
    batch: problem_lib.Batch, key: jax.Array,
) -> dict[str, jax.Array]:
  """How much the response takes off the training loss at perturbed lam.

  Gain, nats: of the loss at (lam + eps) with the weights of lam, over that
  with the weights that answer; as the linearised network predicts it, and as
  it is. Where both agree and are positive, the response is to be trusted.
  """
  eps_key, model_key = jax.random.split(key)
  eps = space_lib.perturbation(
      eps_key, problem.space, state.rho, problem_lib.num_examples(batch))
  at = lambda h: perturbed_loss(
      problem, state.params, state.response, state.variables, batch,
      state.lam, eps, h, model_key)[0]
  centre = answered(method, state.lam, jnp.zeros_like(eps))
  still, slope = jax.jvp(at, (centre,), (eps,))
  return {'predicted_gain': -slope, 'actual_gain': still - at(centre + eps)}


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
    SpaceError, LayerError: at once, before anything is computed.
  """
  space_lib.check(problem.space)
  init_variables = problem_lib.make_init_variables(problem, example)
  layers = {} if settings.method == 'implicit' else response_lib.find_layers(
      lambda: init_variables(jax.random.key(0)), problem.handlers,
      problem.without_response)
  problem_lib.check_all_read(problem, example)
  n = len(problem.space)

  def init(frozen):
    del frozen
    params_key, response_key, key = jax.random.split(jax.random.key(seed), 3)
    variables = dict(init_variables(params_key))
    params = variables.pop('params')
    response = response_lib.init(
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
        variables=variables, valid_carry=variables.get(CARRY, {}),
        history=jnp.zeros((num_rounds, n)))

  return init


def make_round(
    problem: problem_lib.Problem, settings: Settings, optimizers: Optimizers
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
  """(state, batch, frozen) -> (state, metrics), one compiled program.

  The batch has 'train', fields [B, T, ...] for T training updates, and
  'valid', fields [B, ...].
  """

  def step(state, batch, frozen):
    del frozen
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
      metrics |= response_quality(
          problem, settings.method, state,
          jax.tree.map(lambda x: x[-1], batches), quality_key)
    state, valid_metrics = validation_update(
        problem, settings, optimizers, state, batch['valid'], valid_key)
    return state.replace(step=state.step + 1), {
        **metrics, **valid_metrics, **describe(problem, state)}

  return step


def describe(
    problem: problem_lib.Problem, state: State
) -> dict[str, jax.Array]:
  """The hyperparameters in their units, and their sigmas, as metrics."""
  values = space_lib.constrain(problem.space, state.lam)
  sigmas = space_lib.sigma(state.rho)
  return {f'hyper/{name}': value for name, value in values.items()} | {
      f'sigma/{name}': sigmas[i]
      for i, name in enumerate(problem.space)}


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
