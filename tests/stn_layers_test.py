"""Which layers answer, which are refused, and how a response starts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stn_jax import layers as layers_lib
from stn_jax import models
from stn_jax import response as response_lib

X = np.ones((3, 5), np.float32)


def build(model, *args, handlers=response_lib.HANDLERS, without=(), n=2,
          **kwargs):
  """(variables, response), as a run of Delta-STN starts."""
  init = lambda: model.init(jax.random.key(0), *args, **kwargs)
  layers = layers_lib.find_layers(init, handlers, without)
  return init(), layers_lib.init(jax.random.key(1), layers, n)


class Own(nn.Module):
  """A module with a parameter of its own."""

  @nn.compact
  def __call__(self, x):
    gain = self.param('gain', nn.initializers.ones, (4,))
    return nn.Dense(4)(x) * gain[None, None]


class Layered(nn.Module):
  """Equal layers in a scan."""

  @nn.compact
  def __call__(self, x):
    scan = nn.scan(
        lambda layer, x, _: (layer(x), None), length=2,
        variable_axes={'params': 0}, split_rngs={'params': True})
    return scan(nn.Dense(5, name='layer'), x, None)[0]


@pytest.mark.parametrize(('model', 'message', 'without'), [
    (nn.RNN(nn.OptimizedLSTMCell(4)),
     r'nn.LSTMCell has the same parameters, and answers.*without_response',
     ('cell',)),
    (Own(), "the model, a Own, has the parameter 'gain' and no response",
     None),
    (Layered(), r"layer: .* stacked over a scan .*\('layer',\)", ('layer',)),
    (nn.ConvTranspose(4, (3,), transpose_kernel=True),
     'the model: transpose_kernel=True', None)])
def test_a_layer_that_cannot_answer_is_named(model, message, without):
  x = jnp.ones((3, 6, 5))
  with pytest.raises(response_lib.LayerError, match=message):
    jax.eval_shape(lambda: build(model, x))
  if without:
    _, response = jax.eval_shape(lambda: build(model, x, without=without))
    assert not response


def test_zero_bottlenecks_start_a_response_at_zero_with_weights_to_learn():
  _, response = build(nn.Dense(4), X)
  np.testing.assert_array_equal(response['']['bottleneck'], 0)
  assert (response['']['kernel'] != 0).all()
  assert (response['']['bias'] != 0).all()
  again = build(nn.Dense(4), X)[1]
  jax.tree.map(np.testing.assert_array_equal, response, again)


def test_a_kernel_that_starts_at_zero_has_a_response_that_can_move():
  model = nn.Dense(4, kernel_init=nn.initializers.zeros)
  _, response = build(model, X)
  assert (response['']['kernel'] != 0).all()
  assert np.abs(response['']['kernel']).max() <= 5 ** -0.5


class Scale(nn.Module):
  """Has a handler below, and nothing that one asks for."""

  @nn.compact
  def __call__(self, x):
    return x * self.param('gain', nn.initializers.ones, (1, 5))


def test_a_layer_with_a_handler_that_is_no_such_layer_is_named():
  with pytest.raises(
      response_lib.LayerError, match="the model, a Scale with a handler, .*"
      r"\['gain'\] and lacks a parameter 'kernel' or 'embedding', features"):
    build(Scale(), X, handlers={Scale: response_lib.affine})


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(('model', 'shape', 'n', 'base', 'whole'), [
    # The papers' code has 8 gains more in STN's AlexNet.
    (models.AlexNet(), (32, 32, 3), 15, 23_272_266, 46_825_160 - 8),
    (models.AlexNet(), (32, 32, 3), 18, 23_272_266, 46_881_276),
    (models.VGG16(), (32, 32, 3), 26, 15_245_130, 30_763_676),
    (models.SimpleCNN(), (28, 28, 1), 6, None, 4_997_772),
    (models.MLP((1200,) * 3, 10), (784,), 3, None, 7_694_480)])
def test_the_papers_networks_have_their_numbers_of_parameters(
    model, shape, n, base, whole):
  x = jnp.zeros((1, *shape))
  variables, response = jax.eval_shape(
      lambda: build(model, x, n=n, train=False))
  assert base in (None, size(variables['params']))
  assert size(variables['params']) + size(response) == whole


def test_the_language_model_of_the_paper_has_its_number_of_parameters():
  model = models.LSTMLanguageModel(10_000, 650)
  tokens = jnp.zeros((1, 2), jnp.int32)
  variables, response = jax.eval_shape(lambda: build(
      model, tokens, train=False, handlers=models.LANGUAGE_HANDLERS,
      without=('decoder',), n=7))
  assert size(variables['params']) == 13_280_400
  assert size(variables['params']) + size(response) == 26_700_950


def test_resnet18_has_the_parameters_of_its_cifar_form():
  """11,173,962, as widely reported for ten classes."""
  x = jnp.zeros((1, 32, 32, 3))
  shapes = jax.eval_shape(lambda: models.ResNet18().init(
      jax.random.key(0), x, train=False))
  assert size(shapes['params']) == 11_173_962
