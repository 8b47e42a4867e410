"""A small classifier: its features measure samples, its logits check labels."""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import optax

# The truncated normal of linen's default takes seconds to compile per shape.
_INIT = nn.initializers.lecun_uniform()
# Pooling after the convolutions stops at this height and width.
_FINAL_SIZE = 4


class Classifier(nn.Module):
  """Three convolutions, a linear layer of features, a linear layer of logits.

  The features are few on purpose: the bias of a Frechet distance grows with
  the entries of the covariance, F^2, and falls with the number of images. Layer
  normalisation gives each image features of mean 0 and variance 1, so that
  distances under classifiers of different seeds are on one scale.

  Attributes:
    num_classes: Y.
    width: channels of the first convolution; the other two have twice as many.
    num_features: F.
  """

  num_classes: int
  width: int = 32
  num_features: int = 32

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps images [B, H, W, C] in [-1, 1] to logits [B, Y], features [B, F]."""
    chex.assert_rank(images, 4)
    x = images
    widths = (self.width, 2 * self.width, 2 * self.width)
    for i, width in enumerate(widths):
      x = nn.relu(
          nn.Conv(width, (3, 3), kernel_init=_INIT, name=f'conv{i}')(x))
      # Pool as late as the size allows: 8x8 once, 32x32 after each layer.
      if min(x.shape[1:3]) > _FINAL_SIZE << (len(widths) - 1 - i):
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape(x.shape[0], -1)  # [B, H' W' C']
    x = nn.Dense(self.num_features, kernel_init=_INIT, name='features')(x)
    features = nn.LayerNorm(use_bias=False, use_scale=False)(x)
    logits = nn.Dense(
        self.num_classes, kernel_init=_INIT, name='logits')(nn.relu(features))
    return logits, features


def loss(
  apply: Callable[..., tuple[jax.Array, jax.Array]],
  params: Any,
  images: jax.Array,
  labels: jax.Array,
) -> jax.Array:
  """Mean cross-entropy in nats.

  Args:
    apply: `Classifier(...).apply`.
    params: the classifier's parameters.
    images: [B, H, W, C] in [-1, 1].
    labels: int32 [B] in 0..Y-1.

  Returns:
    A scalar.
  """
  chex.assert_shape(labels, (images.shape[0],))
  logits, _ = apply({'params': params}, images)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
