"""The updates of a round: the weights, then the hyperparameters.

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

from typing import Any

import jax
import jax.numpy as jnp
import optax

from stn_jax import diagnostics
from stn_jax import losses as losses_lib
from stn_jax import problem as problem_lib
from stn_jax import space as space_lib
from stn_jax import state as state_lib


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
    problem: problem_lib.Problem, settings: state_lib.Settings,
    optimizers: state_lib.Optimizers, state: state_lib.State,
    batch: problem_lib.Batch, key: jax.Array,
) -> tuple[state_lib.State, dict[str, jax.Array]]:
  """One update of the weights and their response; lam and rho rest."""
  update = (_stn_update if settings.method == 'stn' else _delta_stn_update)
  return update(problem, optimizers, state, batch, key)


def hypergradient(
    problem: problem_lib.Problem, settings: state_lib.Settings,
    state: state_lib.State, batch: problem_lib.Batch, key: jax.Array,
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
    entropy = space_lib.entropy(problem.space, hyper['rho'])
    return loss - settings.entropy_weight * entropy, (loss, carry)

  (_, aux), grads = jax.value_and_grad(objective, has_aux=True)(
      {'lam': state.lam, 'rho': state.rho})
  mask = space_lib.tuned(problem.space)
  return aux, {
      'lam': grads['lam'] * mask,
      'rho': grads['rho'] * mask * settings.tune_scales}


def validation_update(
    problem: problem_lib.Problem, settings: state_lib.Settings,
    optimizers: state_lib.Optimizers, state: state_lib.State,
    batch: problem_lib.Batch, key: jax.Array,
) -> tuple[state_lib.State, dict[str, jax.Array]]:
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
    problem: problem_lib.Problem, settings: state_lib.Settings,
    optimizers: state_lib.Optimizers, state: state_lib.State,
    grads: dict[str, jax.Array],
) -> tuple[state_lib.State, dict[str, jax.Array]]:
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
