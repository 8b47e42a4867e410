"""The networks of the papers' experiments, as plain linen modules.

Nothing here knows of self-tuning: dropout is `nn.Dropout` by name, and what a
mask cannot reach that way is an argument. The exception is the recurrence of
the LSTM, see there.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stn_jax import regularize
from stn_jax import response as response_lib

Carry = tuple[jax.Array, jax.Array]

# U(+-1 / sqrt(fan_in)): what the papers' code starts from.
_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def _uniform(bound):
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound)


def _bias_init(fan_in):
  return _uniform(fan_in ** -0.5)


def dense(features: int, x: jax.Array, name: str) -> jax.Array:
  """A layer with the papers' initial weights, applied to x [..., D]."""
  return nn.Dense(
      features, kernel_init=_init, bias_init=_bias_init(x.shape[-1]),
      name=name)(x)


def conv(
    features: int, size: int, x: jax.Array, name: str, stride: int = 1
) -> jax.Array:
  """A convolution, padded to keep the sides, on x [B, H, W, C]."""
  return nn.Conv(
      features, (size, size), strides=stride, padding=size // 2,
      kernel_init=_init, bias_init=_bias_init(size**2 * x.shape[-1]),
      name=name)(x)


def _pool(x):
  """The maximum of 2 x 2 pixels, an odd last row or column left out.

  `nn.max_pool` gives the same; its tangent is slow on CPU.
  """
  batch_size, height, width, channels = x.shape
  x = x[:, :height // 2 * 2, :width // 2 * 2]
  x = x.reshape(batch_size, height // 2, 2, width // 2, 2, channels)
  return jnp.max(x, axis=(2, 4))


def _drop(x, train, name, channels=False):
  """Dropout whose rate comes from outside; of whole channels if asked."""
  return nn.Dropout(
      0.0, broadcast_dims=(1, 2) if channels else (), name=name)(
          x, deterministic=not train)


class Linear(nn.Module):
  """Linear layers without biases to one number; `widths` of hidden ones."""

  widths: Sequence[int] = ()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, D] -> [B, 1]."""
    for i, width in enumerate((*self.widths, 1)):
      x = nn.Dense(width, use_bias=False, name=f'dense{i}')(x)
    return x


class MLP(nn.Module):
  """ReLU layers; `dropout0` on the input, `dropout<i>` after layer i."""

  widths: Sequence[int]
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, ...] -> logits [B, classes]."""
    x = _drop(x.reshape(x.shape[0], -1), train, 'dropout0')
    for i, width in enumerate(self.widths):
      x = nn.relu(dense(width, x, f'dense{i}'))
      x = _drop(x, train, f'dropout{i + 1}')
    return dense(self.num_classes, x, 'logits')


class SimpleCNN(nn.Module):
  """Delta-STN's network for Fashion-MNIST.

  `dropout0` on the input (of elements: the original drops channels, which
  blanks a grey image), 1 and 2 of channels after the convolutions,
  `dropout_fc` before the last layer.
  """

  num_classes: int = 10
  channels: Sequence[int] = (16, 32)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> logits [B, classes]."""
    x = _drop(x, train, 'dropout0')
    for i, features in enumerate(self.channels):
      x = _pool(nn.relu(conv(features, 5, x, f'conv{i}')))
      x = _drop(x, train, f'dropout{i + 1}', channels=True)
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(dense(x.shape[-1], x, 'fc0'))
    x = _drop(x, train, 'dropout_fc')
    return dense(self.num_classes, x, 'logits')


class AlexNet(nn.Module):
  """STN's network for CIFAR-10; 5 channel dropouts, 2 of elements."""

  num_classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, 32, 32, 3] -> logits [B, classes]."""
    for i, features in enumerate((64, 192, 384, 256, 256)):
      x = nn.relu(conv(features, 3, x, f'conv{i}', stride=1 + (i == 0)))
      if i in (0, 1, 4):
        x = _pool(x)
      x = _drop(x, train, f'dropout{i}', channels=True)
    x = x.reshape(x.shape[0], -1)
    for i in range(2):
      x = _drop(x, train, f'fcdropout{i}')
      x = nn.relu(dense(4096, x, f'fc{i}'))
    return dense(self.num_classes, x, 'logits')


class VGG16(nn.Module):
  """Delta-STN's network for CIFAR-10, without norms."""

  num_classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, 32, 32, 3] -> logits [B, classes]."""
    x = _drop(x, train, 'dropout0')
    he = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
    index = 0
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
      for _ in range(count):
        x = nn.relu(nn.Conv(
            width, (3, 3), kernel_init=he, name=f'conv{index}')(x))
        index += 1
        x = _drop(x, train, f'dropout{index}', channels=True)
      x = _pool(x)
    x = x.reshape(x.shape[0], -1)
    for i in range(2):
      x = _drop(x, train, f'fcdropout{i}')
      x = nn.relu(dense(512, x, f'fc{i}'))
    return dense(self.num_classes, x, 'logits')


class ResNet18(nn.Module):
  """The CIFAR form: a 3x3 stem, four stages of two blocks, norms.

  `dropout<i>` of channels after block i. No code of the papers has it; where
  they put its dropouts is not known.
  """

  num_classes: int = 10
  width: int = 64

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> logits [B, classes]."""
    norm = functools.partial(nn.BatchNorm, use_running_average=not train)
    con = functools.partial(nn.Conv, use_bias=False, kernel_init=_init)
    x = nn.relu(norm(name='norm')(con(
        self.width, (3, 3), name='conv')(x)))
    for block in range(8):
      features = self.width * 2 ** (block // 2)
      stride = 2 if block in (2, 4, 6) else 1
      name = f'block{block}'
      y = con(features, (3, 3), stride, name=f'{name}_conv0')(x)
      y = nn.relu(norm(name=f'{name}_norm0')(y))
      y = con(features, (3, 3), name=f'{name}_conv1')(y)
      y = norm(name=f'{name}_norm1')(y)
      if x.shape != y.shape:
        x = norm(name=f'{name}_norm2')(con(
            features, (1, 1), stride, name=f'{name}_conv2')(x))
      x = _drop(nn.relu(x + y), train, f'dropout{block}', channels=True)
    return dense(self.num_classes, jnp.mean(x, (1, 2)), 'logits')


def _lstm(recurrent, inputs, carry):
  """The scan over time: inputs [T, B, 4H], recurrent: h -> [B, 4H].

  Gates in the order of the papers' code: forget, input, output, candidate.
  """

  def cell(carry, z):
    c, h = carry
    f, i, o, g = jnp.split(z + recurrent(h), 4, axis=-1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    h = nn.sigmoid(o) * jnp.tanh(c)
    return (c, h), h

  # What a checkpoint gives back is a list.
  return jax.lax.scan(cell, tuple(carry), inputs)


class Recurrence(nn.Module):
  """An LSTM's h -> gates, over a whole sequence.

  It has a response of its own, `recurrence`: DropConnect masks the weights,
  which an answer around a layer's output cannot see, and both products of a
  time step are one with the weights side by side.
  """

  features: int  # 4H
  kernel_init: Any = _init
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
      self, inputs: jax.Array, carry: Carry, mask: jax.Array | None
  ) -> tuple[Carry, jax.Array]:
    """inputs [T, B, 4H], (c, h) [B, H], mask [H, 4H] -> (carry, h [T, B, H]).
    """
    size = self.features // 4
    kernel = self.param(
        'kernel', self.kernel_init, (size, self.features), self.param_dtype)
    bias = self.param('bias', _bias_init(size), (self.features,))
    if mask is not None:
      kernel = kernel * mask
    return _lstm(lambda h: h @ kernel + bias[None], inputs, carry)


def recurrence(module, own, perturbation, next_fun, args, kwargs):
  """The response of `Recurrence`; the mask holds for both of its weights."""
  del next_fun, kwargs
  inputs, carry, mask = args
  params, own = module.variables['params'], response_lib.terms(own)
  masked = lambda kernel: kernel if mask is None else kernel * mask
  kernels = [masked(w['kernel']) for w in (params, *own)]
  weight_gates, bias_gates = zip(
      *(response_lib.gates(term, perturbation) for term in own), strict=True)
  bias = params['bias'][None] + sum(
      response_lib.scaled(gate, term['bias'][None], perturbation)
      for gate, term in zip(bias_gates, own, strict=True))
  side_by_side = jnp.concatenate(kernels, axis=1)

  def recurrent(h):
    if perturbation.centred:  # Tangents of all but the first are not used.
      y, *values = (h @ kernel for kernel in kernels)
    else:
      y, *values = jnp.split(h @ side_by_side, len(kernels), axis=-1)
    return y + bias + sum(
        response_lib.scaled(gate, value, perturbation)
        for gate, value in zip(weight_gates, values, strict=True))

  return _lstm(recurrent, inputs, carry)


class Bias(nn.Module):
  """x + b: of the decoder, whose weights are the embedding's."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


class LSTMLanguageModel(nn.Module):
  """Embedding, LSTM layers, and a decoder tied to the embedding.

  Variational dropouts `input_dropout`, `hidden_dropout<i>` between layers and
  `output_dropout`: one mask for all time steps. The state follows the stream
  in the collection 'carry'.
  """

  vocabulary_size: int
  width: int
  num_layers: int = 2

  @nn.compact
  def __call__(
      self, tokens: jax.Array, train: bool,
      rates: Mapping[str, jax.Array] | None = None,
  ) -> dict[str, jax.Array]:
    """Tokens [B, T] -> logits [B, T, V], hidden and dropped [B, T, width].

    Args:
      tokens: ids.
      train: whether masks are drawn.
      rates: 'embedding' [] of words, 'weight' [] of DropConnect.
    """
    embed = nn.Embed(
        self.vocabulary_size, self.width, name='embed',
        embedding_init=_uniform(0.1))
    x = embed(tokens)
    if rates is not None:
      x = x * regularize.word_mask(
          self.make_rng('dropout'), tokens, self.vocabulary_size,
          rates['embedding'])
    for i in range(self.num_layers):
      x = _drop_in_time(
          x, train, f'hidden_dropout{i}' if i else 'input_dropout')
      x = self._layer(x, i, rates)
    dropped = _drop_in_time(x, train, 'output_dropout')
    logits = Bias(name='decoder')(embed.attend(dropped))
    return {'logits': logits, 'hidden': x, 'dropped': dropped}

  def _layer(self, x, index, rates):
    """One LSTM layer over the window, from where the last one ended."""
    batch_size = x.shape[0]
    gates = jnp.swapaxes(dense(4 * self.width, x, f'input{index}'), 0, 1)
    mask = None
    if rates is not None:
      mask = regularize.dropconnect_mask(
          self.make_rng('dropout'), (self.width, 4 * self.width),
          rates['weight'])
    carry = self.variable(
        'carry', f'layer{index}',
        lambda: (jnp.zeros((batch_size, self.width)),) * 2)
    after, h = Recurrence(4 * self.width, name=f'recurrent{index}')(
        gates, jax.lax.stop_gradient(carry.value), mask)
    if not self.is_initializing():
      carry.value = after
    return jnp.swapaxes(h, 0, 1)


def _drop_in_time(x, train, name):
  """Variational dropout of x [B, T, H]: one mask for all of T."""
  return nn.Dropout(0.0, broadcast_dims=(1,), name=name)(
      x, deterministic=not train)


LANGUAGE_HANDLERS = {
    **response_lib.HANDLERS, Recurrence: recurrence}
