"""The chunked likelihood against that of all logits at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas_jax import softmax

STEPS, COLUMNS, WIDTH = 64, 64, 4


def draw(num_words, scale):
  keys = jax.random.split(jax.random.key(0), 4)
  normal = lambda key, *shape: scale * jax.random.normal(key, shape)
  return ((normal(keys[0], STEPS, COLUMNS, WIDTH),
           normal(keys[1], num_words, WIDTH), normal(keys[2], num_words)),
          jax.random.randint(keys[3], (STEPS, COLUMNS), 0, num_words))


def weighted(nll):
  return (nll * jnp.cos(jnp.arange(nll.size)).reshape(nll.shape)).sum()


# 512 words make two chunks, 509, a prime, one; 10 times as large a softmax
# overflows where nothing is subtracted.
@pytest.mark.parametrize('num_words, chunks', [(512, 2), (509, 1)])
@pytest.mark.parametrize('scale', [1.0, 10.0])
def test_chunks_add_up_to_the_whole(num_words, chunks, scale):
  weights, targets = draw(num_words, scale)

  def whole(outputs, embedding, bias):
    return optax.softmax_cross_entropy_with_integer_labels(
        outputs @ embedding.T + bias.reshape(1, 1, -1), targets)

  def ours(*weights):
    return softmax.negative_log_likelihood(*weights, targets)

  lines = str(jax.make_jaxpr(ours)(*weights))
  assert f'length={chunks}\n' in lines
  np.testing.assert_allclose(
      jax.jit(ours)(*weights), whole(*weights), rtol=1e-5, atol=1e-4 * scale)
  slope = lambda f: jax.jit(jax.grad(
      lambda *weights: weighted(f(*weights)), (0, 1, 2)))(*weights)
  chex.assert_trees_all_close(
      slope(ours), slope(whole), rtol=1e-3, atol=2e-4 * scale)


def test_no_array_has_all_logits():
  weights, targets = draw(512, 1.0)
  text = str(jax.make_jaxpr(jax.grad(lambda *weights: weighted(
      softmax.negative_log_likelihood(*weights, targets))))(*weights))
  assert f'[256,{STEPS * COLUMNS}]' in text
  assert f'512,{STEPS * COLUMNS}]' not in text
