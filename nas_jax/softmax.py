"""The likelihood of words under a softmax tied with the embedding.

Of [V, T, B] logits only those of some words exist at a time, few enough for a
cache; the gradient computes them once more. Words come first: sums over them
then run along the columns.
"""

import math

import chex
import jax
from jax import lax
import jax.numpy as jnp

# Logits at a time, and the fewest words: where two cores are fastest.
CHUNK_LOGITS = 2**20
CHUNK_WORDS = 128
# exp and a sum over any vocabulary stay finite, and above 0, within this.
LARGEST_LOGIT = 60.0


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
  rows = outputs.reshape(-1, outputs.shape[-1])
  log_z = log_normaliser(rows, embedding, bias)
  return log_z.reshape(targets.shape) - at_target


@jax.custom_vjp
def log_normaliser(
    outputs: jax.Array, embedding: jax.Array, bias: jax.Array
) -> jax.Array:
  """log sum_v exp(embedding_v . outputs + bias_v); outputs [R, H] -> [R].

  Where Cauchy and Schwarz say that no logit is large, no maximum is looked
  for.
  """
  longest = lambda x: jnp.sqrt((x * x).sum(-1).max())
  bound = longest(outputs) * longest(embedding) + jnp.abs(bias).max()
  return lax.cond(bound < LARGEST_LOGIT, _of_small_logits, _of_any_logits,
                  outputs, embedding, bias)


def _of_small_logits(outputs, embedding, bias):

  def chunk(total, words):
    return total + jnp.exp(_logits(outputs, *words)).sum(0), None

  total, _ = lax.scan(chunk, jnp.zeros_like(outputs[:, 0]),
                      _chunks(embedding, bias, outputs.shape[0]))
  return jnp.log(total)


def _of_any_logits(outputs, embedding, bias):

  def chunk(carry, words):
    largest, total = carry
    z = _logits(outputs, *words)
    larger = jnp.maximum(largest, z.max(0))
    total = total * jnp.exp(largest - larger)
    return (larger, total + jnp.exp(z - larger[None]).sum(0)), None

  zeros = jnp.zeros_like(outputs[:, 0])
  (largest, total), _ = lax.scan(
      chunk, (jnp.full_like(zeros, -jnp.inf), zeros),
      _chunks(embedding, bias, outputs.shape[0]))
  return jnp.log(total) + largest


def _logits(outputs, embedding, bias):
  """outputs [R, H], some words' embedding [W, H] and bias [W] -> [W, R]."""
  return embedding @ outputs.T + bias[:, None]


def _chunks(embedding, bias, num_rows):
  """[V, H], [V] -> [C, V / C, H], [C, V / C]."""
  num_words, width = embedding.shape
  wanted = max(CHUNK_LOGITS / num_rows, CHUNK_WORDS)
  words = min((k for k in range(1, num_words + 1) if num_words % k == 0),
              key=lambda k: abs(math.log(k / wanted)))
  return embedding.reshape(-1, words, width), bias.reshape(-1, words)


def _forward(outputs, embedding, bias):
  log_z = log_normaliser(outputs, embedding, bias)
  return log_z, (outputs, embedding, bias, log_z)


def _backward(residuals, cotangent):
  outputs, embedding, bias, log_z = residuals

  def chunk(d_outputs, words):
    p = jnp.exp(_logits(outputs, *words) - log_z[None])
    d_z = p * cotangent[None]
    return d_outputs + d_z.T @ words[0], (d_z @ outputs, d_z.sum(1))

  d_outputs, (d_embedding, d_bias) = lax.scan(
      chunk, jnp.zeros_like(outputs),
      _chunks(embedding, bias, outputs.shape[0]))
  return (d_outputs, d_embedding.reshape(embedding.shape),
          d_bias.reshape(bias.shape))


log_normaliser.defvjp(_forward, _backward)
