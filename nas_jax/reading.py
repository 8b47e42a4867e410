"""Weights trained on a text that is read window by window."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nas_jax import data

Carry = tuple[Any, Any, Any]


def train_windows(
    loss_fn: Callable[..., tuple[jax.Array, Any]],
    tx: optax.GradientTransformation, carry: Carry, streams: jax.Array,
    first: jax.Array, keys: jax.Array, *, window_tokens: int,
    reset_rate: float,
) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
  """An update for each key, on the next window each (truncated BPTT).

  Args:
    loss_fn: (params, window [T + 1, B], state, key) -> (nats [], state).
    tx: the optimizer.
    carry: (params, its state, where reading has come to [B, ...]).
    streams: [B, L], tokens; read from the start again at their end.
    first: [], updates done before.
    keys: [U], of the updates.
    window_tokens: T.
    reset_rate: of a stream's state, see `data.carry_on`.

  Returns:
    (carry, (losses [U], norms of the gradients [U])).
  """
  num_windows = data.num_windows(streams, window_tokens)

  def update(carry, inputs):
    i, key = inputs
    params, opt_state, h = carry
    place = (first + i) % num_windows
    h = data.carry_on(h, place, reset_rate, key)
    window = data.take_window(streams, place, window_tokens)
    (loss, h), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        params, window, h, key)
    updates, opt_state = tx.update(grads, opt_state, params)
    # A cell whose state overflows spoils its own window alone.
    h = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), h)
    return (optax.apply_updates(params, updates), opt_state, h), (
        loss, optax.tree.norm(grads))

  return jax.lax.scan(update, carry, (jnp.arange(len(keys)), keys))


def update_keys(key: jax.Array, first: Any, num: int) -> jax.Array:
  """[num] keys, of the updates `first` to `first + num - 1` of a key."""
  return jax.vmap(lambda i: jax.random.fold_in(key, first + i))(
      jnp.arange(num))
