"""Metrics of a round that tell whether to trust it."""

import jax
import jax.numpy as jnp

from stn_jax import losses
from stn_jax import problem as problem_lib
from stn_jax import space as space_lib
from stn_jax import state as state_lib


def sigma_balance(
    problem: problem_lib.Problem, entropy_weight: float, rho: jax.Array,
    grad: jax.Array,
) -> dict[str, jax.Array]:
  """sigma dF/dsigma / tau of each hyperparameter, in the mean 1 at rest.

  Below 1 sigma grows: the validation loss curves less than the entropy
  asks for (sigma^2 = tau / curvature at rest, of a quadratic). `grad` is
  that of F - tau H by rho.
  """
  sigma = space_lib.sigma(rho)
  by_sigma = grad / jax.nn.sigmoid(rho)
  balance = 1 + sigma * by_sigma / entropy_weight
  return {f'sigma_balance/{name}': balance[i]
          for i, (name, h) in enumerate(problem.space.items()) if h.tuned}


def response_quality(
    problem: problem_lib.Problem, method: str, state: state_lib.State,
    batch: problem_lib.Batch, key: jax.Array,
) -> dict[str, jax.Array]:
  """How much the response takes off the training loss at perturbed lam.

  Gain, nats: of the loss at (lam + eps) with the weights of lam, over that
  with the weights that answer; predicted by the slope of the loss along the
  response, and as it is. Where both agree and are positive, the response is
  to be trusted. A model with a carry reads the batch from `state.variables`,
  which after the batch's own update are those that follow it.
  """
  eps_key, model_key = jax.random.split(key)
  eps = space_lib.perturbation(
      eps_key, problem.space, state.rho, problem_lib.num_examples(batch))
  at = lambda h: losses.perturbed_loss(
      problem, state.params, state.response, state.variables, batch,
      state.lam, eps, h, model_key)[0]
  centre = losses.answered(method, state.lam, jnp.zeros_like(eps))
  still, slope = jax.jvp(at, (centre,), (eps,))
  return {'predicted_gain': -slope, 'actual_gain': still - at(centre + eps)}


def describe(
    problem: problem_lib.Problem, state: state_lib.State
) -> dict[str, jax.Array]:
  """The hyperparameters in their units, and their sigmas, as metrics."""
  values = space_lib.constrain(problem.space, state.lam)
  sigmas = space_lib.sigma(state.rho)
  return {f'hyper/{name}': value for name, value in values.items()} | {
      f'sigma/{name}': sigmas[i]
      for i, name in enumerate(problem.space)}
