"""The hypergradient by the implicit function theorem, to compare with.

  dF/dlam = - dF/dw [d2f/dw2]^-1 d2f/dw dlam        at a minimum of f

It needs f to be smooth in lam, which masks, augmentation and integers are
not; where it is, it is exact, and STN's must agree with it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from stn_jax import diagnostics
from stn_jax import problem as problem_lib
from stn_jax import space as space_lib
from stn_jax import state as state_lib
from stn_jax import updates

Loss = Callable[[Any, jax.Array], jax.Array]
Solve = Callable[[Callable[[Any], Any], Any], Any]

SOLVERS = ('cg', 'neumann')


def hessian_product(train_loss: Loss, w: Any, lam: jax.Array, v: Any) -> Any:
  """(d2f/dw2) v, without the matrix."""
  return jax.jvp(lambda w: jax.grad(train_loss)(w, lam), (w,), (v,))[1]


def conjugate_gradient(
    product: Callable[[Any], Any], b: Any, num_steps: int
) -> Any:
  """Solves product(x) = b by conjugate gradients."""
  return jax.scipy.sparse.linalg.cg(product, b, maxiter=num_steps)[0]


def neumann(
    product: Callable[[Any], Any], b: Any, num_steps: int, step_size: float
) -> Any:
  """a sum_k (I - a H)^k b, which tends to H^-1 b for a below 2 / max(H).

  Lorraine et al. 2019 take `num_steps` up to 20: early terms alone.
  """

  def body(carry, _):
    term, total = carry
    term = jax.tree.map(
        lambda t, h: t - step_size * h, term, product(term))
    return (term, jax.tree.map(jnp.add, total, term)), None

  (_, total), _ = jax.lax.scan(body, (b, b), None, length=num_steps)
  return jax.tree.map(lambda x: step_size * x, total)


def hypergradient(
    train_loss: Loss, valid_loss: Callable[[Any], jax.Array], w: Any,
    lam: jax.Array, solve: Solve,
) -> jax.Array:
  """dF/dlam [n] through the response of the minimum.

  Args:
    train_loss: f(w, lam), twice differentiable.
    valid_loss: F(w).
    w: near a minimum of f.
    lam: [n].
    solve: (v -> Hv, b) -> about H^-1 b; see `conjugate_gradient`, `neumann`.
  """
  adjoint = solve(
      lambda v: hessian_product(train_loss, w, lam, v),
      jax.grad(valid_loss)(w))
  _, pullback = jax.vjp(lambda lam: jax.grad(train_loss)(w, lam), lam)
  return -pullback(adjoint)[0]


def smooth_losses(
    problem: problem_lib.Problem, variables: Any, batch: problem_lib.Batch,
    key: jax.Array,
) -> tuple[Loss, Callable[[Any], jax.Array]]:
  """f(w, lam) and F(w) of a batch, without masks and augmentation."""

  def outputs(w):
    return problem_lib.run_model(
        problem, w, {}, variables, batch, None, None, key)[0]

  def train_loss(w, lam):
    size = problem_lib.num_examples(batch)
    hypers = space_lib.values(
        problem.space, jnp.broadcast_to(lam, (size, lam.shape[0])))
    return problem_lib.training_loss(
        problem, outputs(w), w, {}, batch, hypers, None)

  def valid_loss(w):
    return jnp.mean(problem.loss(outputs(w), batch, None))

  return train_loss, valid_loss


def make_round(
    problem: problem_lib.Problem, settings: state_lib.Settings,
    optimizers: state_lib.Optimizers, solve: Solve,
):
  """As `tuner.make_round`, with hypergradients by the implicit function.

  f is taken on the last training batch, as `smooth_losses` has it: only what
  enters it smoothly, such as weight decay, is tuned.

  Args:
    problem: what is tuned.
    settings: its warm-up.
    optimizers: of weights and hyperparameters.
    solve: as in `hypergradient`.
  """

  def train(state, batch, key):
    hypers = problem_lib.constant(
        problem, state.lam, problem_lib.num_examples(batch))
    params, opt_params, variables, loss = updates.plain_update(
        problem, optimizers.params, state.params, state.opt_params,
        state.variables, batch, hypers, key)
    return state.replace(
        params=params, opt_params=opt_params, variables=variables), loss

  def step(state, batch, frozen):
    del frozen
    state_lib.check_batch(state, batch)
    key = jax.random.fold_in(state.key, state.step)
    state = state.replace(
        history=state.history.at[state.step].set(state.lam))
    batches = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch['train'])
    losses = []
    for i in range(problem_lib.num_examples(batches)):
      last = jax.tree.map(lambda x, i=i: x[i], batches)
      state, loss = train(state, last, jax.random.fold_in(key, i))
      losses.append(loss)
    train_loss, _ = smooth_losses(problem, state.variables, last, key)
    _, valid_loss = smooth_losses(
        problem, state.variables, batch['valid'], key)
    lam_grad = space_lib.tuned(problem.space) * hypergradient(
        train_loss, valid_loss, state.params, state.lam, solve)
    state, moved = updates.move(
        problem, settings, optimizers, state,
        {'lam': lam_grad, 'rho': jnp.zeros_like(state.rho)})
    return state.replace(step=state.step + 1), {
        'train_loss': jnp.mean(jnp.stack(losses)),
        'valid_loss': valid_loss(state.params),
        'hypergradient_norm': optax.tree.norm(lam_grad),
        **moved, **diagnostics.describe(problem, state)}

  return step
