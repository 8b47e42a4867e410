"""The likelihood of words under a softmax tied with the embedding.

Of [T, B, V] logits only a chunk exists at a time, small enough for a cache;
the gradient computes them once more. A chunk lies with words first: sums over
words then run along the batch.
"""

import math

import chex
import jax
from jax import lax
import jax.numpy as jnp

# Rows (a step of a column each) of a chunk, at which two cores are fastest.
FORWARD_ROWS = 64
BACKWARD_ROWS = 320


def negative_log_likelihood(
    outputs: jax.Array, embedding: jax.Array, bias: jax.Array,
    targets: jax.Array
) -> jax.Array:
  """-log softmax(embedding outputs + bias)[targets], in nats.

  Args:
    outputs: [T, B, H].
    embedding: [V, H].
    bias: [V].
    targets: [T, B], int32.

  Returns:
    [T, B].
  """
  chex.assert_shape(targets, outputs.shape[:2])
  chex.assert_shape(bias, embedding.shape[:1])
  chex.assert_equal(outputs.shape[-1], embedding.shape[-1])
  at_target = (outputs * embedding[targets]).sum(-1) + bias[targets]
  return log_normaliser(outputs, embedding, bias) - at_target


@jax.custom_vjp
def log_normaliser(
    outputs: jax.Array, embedding: jax.Array, bias: jax.Array
) -> jax.Array:
  """log sum_v exp(embedding_v . outputs + bias_v), [T, B]."""

  def chunk(y):
    z = _logits(y, embedding, bias)
    largest = z.max(0)
    return jnp.log(jnp.exp(z - largest[None]).sum(0)) + largest

  chunks = _chunks(outputs, FORWARD_ROWS)
  return lax.map(chunk, chunks).reshape(outputs.shape[:2])


def _logits(y, embedding, bias):
  """y [R, H] -> [V, R]."""
  return embedding @ y.T + bias[:, None]


def _chunks(x, rows):
  """x [T, B, ...] -> [C, T / C * B, ...], about so many rows each."""
  steps, batch_size = x.shape[:2]
  divisors = [k for k in range(1, steps + 1) if steps % k == 0]
  k = min(divisors, key=lambda k: abs(math.log(k * batch_size / rows)))
  return x.reshape(steps // k, k * batch_size, *x.shape[2:])


def _forward(outputs, embedding, bias):
  log_z = log_normaliser(outputs, embedding, bias)
  return log_z, (outputs, embedding, bias, log_z)


def _backward(residuals, cotangent):
  outputs, embedding, bias, log_z = residuals

  def chunk(totals, inputs):
    y, log_z, d = inputs
    d_z = jnp.exp(_logits(y, embedding, bias) - log_z[None]) * d[None]
    d_embedding, d_bias = totals
    return (d_embedding + d_z @ y, d_bias + d_z.sum(1)), d_z.T @ embedding

  (d_embedding, d_bias), d_outputs = lax.scan(
      chunk, (jnp.zeros_like(embedding), jnp.zeros_like(bias)),
      tuple(_chunks(x, BACKWARD_ROWS)
            for x in (outputs, log_z, cotangent)))
  return d_outputs.reshape(outputs.shape), d_embedding, d_bias


log_normaliser.defvjp(_forward, _backward)
