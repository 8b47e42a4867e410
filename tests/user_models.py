"""Models that know nothing of self-tuning."""

import functools

import flax.linen as nn
import jax.numpy as jnp


class CNN(nn.Module):
  """As in flax's examples: not a word of self-tuning."""

  @nn.compact
  def __call__(self, x):
    x = nn.avg_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
    return nn.Dense(10)(x)


class Residual(nn.Module):
  """Norms with running statistics, and a branch that is added."""

  @nn.compact
  def __call__(self, x):
    norm = functools.partial(nn.BatchNorm, use_running_average=False)
    x = nn.relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
    y = nn.relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
    return nn.Dense(10)(jnp.mean(x + norm()(nn.Conv(4, (1, 1))(y)), (1, 2)))
