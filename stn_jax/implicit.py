"""The hypergradient by the implicit function theorem, to compare with.

  dF/dlam = - dF/dw [d2f/dw2]^-1 d2f/dw dlam        at a minimum of f

It needs f to be smooth in lam, which masks, augmentation and integers are
not; where it is, it is exact, and STN's must agree with it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Loss = Callable[[Any, jax.Array], jax.Array]


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
    lam: jax.Array, solve: Callable[[Callable[[Any], Any], Any], Any],
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
