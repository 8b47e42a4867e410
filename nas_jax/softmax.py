"""The likelihood of words under a softmax tied with the embedding."""

import chex
import jax
import jax.numpy as jnp

# Logits beyond so many numbers are computed in chunks, and once more for the
# gradient.
MAX_LOGITS = 2**25


def negative_log_likelihood(
    outputs: jax.Array, embedding: jax.Array, bias: jax.Array,
    targets: jax.Array
) -> jax.Array:
  """-log softmax(outputs embedding^T + bias)[targets], in nats.

  Args:
    outputs: [T, B, H].
    embedding: [V, H].
    bias: [V].
    targets: [T, B], int32.

  Returns:
    [T, B].
  """
  num_steps, batch_size, _ = outputs.shape
  chex.assert_shape(targets, (num_steps, batch_size))
  chex.assert_shape(bias, embedding.shape[:1])

  def step(inputs):
    y, target = inputs
    z = y @ embedding.T + bias[None]
    at_target = jnp.take_along_axis(z, target[:, None], -1)[:, 0]
    return jax.nn.logsumexp(z, -1) - at_target

  if num_steps * batch_size * embedding.shape[0] > MAX_LOGITS:
    return jax.lax.map(jax.checkpoint(step), (outputs, targets))
  flat = step((outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)))
  return flat.reshape(num_steps, batch_size)
