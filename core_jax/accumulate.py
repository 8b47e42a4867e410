"""Gradients of a large batch from small ones, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (params, rows [B, ...], key) -> mean over the rows, aux: scalars or [B, ...].
Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


def value_and_grad(
    loss_fn: Loss, num_microbatches: int = 1
) -> Callable[..., tuple[tuple[jax.Array, Any], Any]]:
  """Of a loss that is a mean over rows, its mean over microbatches.

  Args:
    loss_fn: its aux has the axis of the rows, or scalars that are means.
    num_microbatches: must divide B; each has a key of its own.

  Returns:
    (params, rows, key) -> ((loss, aux), gradients by params), those of all
    rows; memory is that of a microbatch.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  num = num_microbatches
  if num == 1:
    return grad_fn

  def accumulated(params, rows, key):
    def add(total, part):
      (loss, aux), grads = grad_fn(params, *part)
      return jax.tree.map(
          lambda a, b: a + b / num, total, (loss, grads)), aux

    parts = jax.tree.map(lambda x: _split(x, num), rows)
    keys = jax.random.split(key, num)
    shapes = jax.eval_shape(
        grad_fn, params, *jax.tree.map(lambda x: x[0], (parts, keys)))
    zero = jax.tree.map(_zero_like, (shapes[0][0], shapes[1]))
    (loss, grads), aux = jax.lax.scan(add, zero, (parts, keys))
    return (loss, jax.tree.map(_join, aux)), grads

  return accumulated


def _zero_like(shape):
  """Zeros, that vary over the devices of a shard_map as the total will."""
  manual = shape.manual_axis_type  # None outside
  axes = tuple(manual.varying) if manual else ()
  zeros = jnp.zeros(shape.shape, shape.dtype)
  return jax.lax.pcast(zeros, axes, to='varying') if axes else zeros


def _split(x, num):
  """[B, ...] -> [num, B / num, ...], every num-th row to the same part.

  So each part is spread over the devices that the rows are spread over.
  """
  if x.shape[0] % num:
    raise ValueError(
        f'compute.microbatches={num} does not divide a batch of {x.shape[0]}')
  return x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1)


def _join(parts):
  """The inverse of `_split`; the mean of scalars."""
  if parts.ndim == 1:
    return parts.mean()
  return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])
