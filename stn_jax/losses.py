"""The losses of both levels, at weights that answer the hyperparameters.

No gradient goes through masks, augmentation or integers: by lam each of these
has one through the response alone.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from stn_jax import problem as problem_lib
from stn_jax import response as response_lib
from stn_jax import space as space_lib


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
  return jnp.mean(losses), after.get(problem_lib.CARRY, {})
