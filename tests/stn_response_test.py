"""Responses around layers: what they compute, and what they leave alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stn_jax import layers as layers_lib
from stn_jax import models
from stn_jax import response as response_lib
from tests import user_models

B, N = 3, 2  # Examples, and hyperparameters.


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def build(model, *args, handlers=response_lib.HANDLERS, without=(),
          **kwargs):
  """(variables, response) with weights and bottlenecks all random."""
  init = lambda: model.init(jax.random.key(0), *args, **kwargs)
  layers = layers_lib.find_layers(init, handlers, without)
  return init(), layers_lib.init(jax.random.key(1), layers, N, 0.5)


def answered(model, variables, response, h, *args, centred=False,
             handlers=response_lib.HANDLERS, **kwargs):
  perturbation = None if h is None else response_lib.Perturbation(h, centred)
  with nn.intercept_methods(response_lib.interceptor(
      response, perturbation, handlers=handlers)):
    return model.apply(variables, *args, **kwargs)


fused = jax.jit(answered, static_argnums=0, static_argnames='centred')


def materialised(params, response, h):
  """W + (U h) * W_r and b + (C h) * b_r of one h [n], as STN's eq. 10."""

  def answer(path, leaf):
    *names, last = (entry.key for entry in path)
    own = response.get('/'.join(names))
    if own is None:
      return leaf
    num_rows = np.prod(own['bias'].shape) if 'bias' in own else leaf.shape[-1]
    scales = h @ own['bottleneck']
    if last == 'bias':
      return leaf + scales[num_rows:].reshape(leaf.shape) * own['bias']
    rows = own['kernel'].reshape(-1, num_rows)
    return leaf + (scales[None, :num_rows] * rows).reshape(leaf.shape)

  return jax.tree.map_with_path(answer, params)


@functools.partial(jax.jit, static_argnums=0)
def one_by_one(model, variables, response, h, x):
  """The plain model with the weights of each example, [B, ...]."""
  return jax.lax.map(lambda row: model.apply(
      {'params': materialised(variables['params'], response, row[0])},
      row[1][None])[0], (h, x))


LAYERS = {
    'dense over time': (nn.Dense(4), (B, 2, 5)),
    'dense without a bias': (nn.Dense(4, use_bias=False), (B, 5)),
    'heads of one': (nn.DenseGeneral((2, 1)), (B, 4, 5)),
    'joined heads': (nn.DenseGeneral(6, axis=(-2, -1)), (B, 4, 2, 3)),
    'conv in groups': (
        nn.Conv(4, (3, 3), strides=2, feature_group_count=2), (B, 6, 6, 2)),
    'conv 1-D': (nn.Conv(4, (3,), kernel_dilation=2), (B, 7, 2)),
    'conv transpose': (nn.ConvTranspose(4, (3, 3), strides=(2, 2)),
                       (B, 3, 3, 2)),
    'dense in bfloat16': (nn.Dense(4, dtype=jnp.bfloat16), (B, 5)),
    'rnn': (nn.RNN(nn.LSTMCell(4)), (B, 5, 3)),
}


@pytest.fixture(params=LAYERS, scope='module')
def layer(request):
  model, shape = LAYERS[request.param]
  x = normal(2, *shape)
  variables, response = jax.jit(lambda: build(model, x))()
  return model, variables, response, normal(3, B, N), x


def test_a_batch_of_responses_equals_its_weights_one_by_one(layer):
  model, variables, response, h, x = layer
  found = fused(model, variables, response, h, x)
  assert found.dtype == jax.eval_shape(model.apply, variables, x).dtype
  rtol, atol = (0.03, 0.03) if found.dtype == jnp.bfloat16 else (1e-5, 2e-6)
  np.testing.assert_allclose(
      found.astype(jnp.float32),
      one_by_one(model, variables, response, h, x).astype(jnp.float32),
      rtol=rtol, atol=atol)


def test_permuted_rows_give_permuted_outputs(layer):
  model, variables, response, h, x = layer
  order = np.array([2, 0, 1])
  np.testing.assert_allclose(
      *(y.astype(jnp.float32) for y in (
          fused(model, variables, response, h[order], x[order]),
          fused(model, variables, response, h, x)[order])),
      rtol=1e-5, atol=2e-6)


def test_a_zero_perturbation_or_bottleneck_changes_no_bit(layer):
  model, variables, response, h, x = layer
  plain = jax.jit(model.apply)(variables, x)
  zero = jax.tree.map_with_path(
      lambda path, leaf: leaf * (path[-1].key != 'bottleneck'), response)
  for some in (
      fused(model, variables, response, jnp.zeros_like(h), x),
      fused(model, variables, response, jnp.zeros_like(h), x, centred=True),
      fused(model, variables, zero, h, x)):
    np.testing.assert_array_equal(some, plain)


def test_the_centred_product_has_the_tangent_and_gradients_of_the_plain(layer):
  """It leaves out what is multiplied by zero, and nothing else."""
  model, variables, response, h, x = layer

  @functools.partial(jax.jit, static_argnums=2)
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def linearised(response, params, centred):
    y, dy = jax.jvp(
        lambda h: answered(model, {'params': params}, response, h, x,
                           centred=centred), (jnp.zeros_like(h),), (h,))
    return jnp.sum(jnp.sin(y) * dy + dy**2), (y, dy)

  found, expected = (
      linearised(response, variables['params'], centred)
      for centred in (True, False))
  low = found[0][1][0].dtype == jnp.bfloat16
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected),
                  strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
        *(x.astype(jnp.float32) for x in (a, b)),
        rtol=0.05 if low else 1e-4, atol=0.05 if low else 1e-5)


def test_squared_norms_equal_those_of_the_weights_one_by_one(layer):
  model, variables, response, h, _ = layer
  params = variables['params']

  @jax.jit
  def norm(h):
    weights = materialised(params, response, h)
    return sum(
        jnp.sum(leaf**2) for path, leaf in jax.tree.leaves_with_path(weights)
        if path[-1].key == 'kernel')

  found = jax.jit(lambda h: [response_lib.squared_norm(
      params, response, some, B) for some in (
          response_lib.Perturbation(h), None)])(h)
  np.testing.assert_allclose(found[0], jax.lax.map(norm, h), rtol=1e-5)
  np.testing.assert_allclose(found[1], [norm(jnp.zeros(N))] * B, rtol=1e-5)


def test_identical_rows_equal_the_plain_model_with_their_weights():
  model, h, x = nn.Conv(4, (3, 3)), normal(3, 1, N), normal(2, B, 5, 5, 2)
  variables, response = build(model, x)
  np.testing.assert_allclose(
      fused(model, variables, response, jnp.repeat(h, B, 0), x),
      model.apply({'params': materialised(
          variables['params'], response, h[0])}, x), rtol=1e-5, atol=1e-6)


def test_an_embedding_answers_by_its_rows_features():
  model, tokens, h = nn.Embed(7, 4), jnp.array([[1, 1], [6, 0], [2, 3]]), (
      normal(3, B, N))
  variables, response = build(model, tokens)
  np.testing.assert_allclose(
      fused(model, variables, response, h, tokens),
      one_by_one(model, variables, response, h, tokens), rtol=1e-5, atol=1e-6)
  assert set(response['']) == {'kernel', 'bottleneck'}


def test_an_lstm_step_equals_its_weights_one_by_one():
  cell, x, h = nn.LSTMCell(4), normal(2, B, 3), normal(3, B, N)
  carry = normal(4, B, 4), normal(5, B, 4)
  variables, response = build(cell, carry, x)
  (c, s), _ = answered(cell, variables, response, h, carry, x)
  for b in range(B):
    rows = jax.tree.map(lambda a, b=b: a[b:b + 1], (carry, x))
    (c_b, s_b), _ = jax.jit(lambda h, rows: cell.apply(
        {'params': materialised(variables['params'], response, h)}, *rows))(
            h[b], rows)
    np.testing.assert_allclose(c[b:b + 1], c_b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(s[b:b + 1], s_b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope='module')
def language():
  """(params, response, tokens [B, 6], carry) of the LSTM language model."""
  tokens = jax.random.randint(jax.random.key(2), (B, 6), 0, 11)
  variables, response = jax.jit(lambda: build(
      LANGUAGE, tokens, train=False, handlers=models.LANGUAGE_HANDLERS,
      without=('decoder',)))()
  return variables['params'], response, tokens, variables['carry']


LANGUAGE = models.LSTMLanguageModel(11, 4)


def read(params, response, h, tokens, carry, centred=False):
  """Two windows of a stream, under one mask of words and one of weights."""
  rates = {'embedding': jnp.float32(0.3), 'weight': jnp.float32(0.4)}
  for window in (tokens[:, :3], tokens[:, 3:]):
    outputs, after = answered(
        LANGUAGE, {'params': params, 'carry': carry}, response, h, window,
        train=False, rates=rates, rngs={'dropout': jax.random.key(5)},
        mutable=['carry'], handlers=models.LANGUAGE_HANDLERS, centred=centred)
    carry = after['carry']
  return outputs, carry


def test_the_language_model_equals_its_weights_one_by_one(language):
  """Its tied decoder takes the plain embedding, which does not answer."""
  params, response, tokens, carry = language
  h = normal(3, B, N)
  outputs, after = jax.jit(read)(*language[:2], h, tokens, carry)

  @jax.jit
  def alone(args):
    *rows, row_h = args
    return jax.tree.map(lambda x: x[0], read(
        materialised(params, response, row_h), response, None,
        *jax.tree.map(lambda x: x[None], rows)))

  expected, expected_after = jax.lax.map(alone, (tokens, carry, h))
  for x, y in zip(
      jax.tree.leaves((outputs['hidden'], after)),
      jax.tree.leaves((expected['hidden'], expected_after)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6)
    assert (np.abs(y) > 1e-6).any(axis=-1).all()
  table = params['embed']['embedding']
  np.testing.assert_allclose(
      outputs['logits'], outputs['dropped'] @ table.T, rtol=1e-5, atol=1e-6)


def test_the_language_models_centred_tangent_is_the_plain_one(language):
  params, response, tokens, carry = language
  h = normal(3, B, N)
  found, expected = (
      jax.jit(lambda centred=centred: jax.jvp(
          lambda h: read(params, response, h, tokens, carry, centred),
          (jnp.zeros_like(h),), (h,)))() for centred in (True, False))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected),
                  strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


class Sequence(nn.Module):

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.RNN(nn.LSTMCell(4))(x))


class Attention(nn.Module):

  @nn.compact
  def __call__(self, x):
    return x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))


@pytest.mark.parametrize(('model', 'shape', 'num_layers'), [
    (user_models.CNN(), (B, 8, 8, 1), 4),
    (user_models.Residual(), (B, 8, 8, 3), 4),
    (Sequence(), (B, 4, 3), 9), (Attention(), (B, 5, 4), 4)])
def test_an_unchanged_model_answers_and_at_zero_is_itself(
    model, shape, num_layers):
  """In the same bits, unless XLA orders a norm's sums in another way."""
  x, h = normal(2, *shape), normal(3, B, N)
  variables, response = jax.jit(lambda: build(model, x))()
  assert len(response) == num_layers
  apply = jax.jit(lambda variables, x: model.apply(
      variables, x, mutable=['batch_stats']))
  answer = jax.jit(lambda variables, response, h, x: answered(
      model, variables, response, h, x, mutable=['batch_stats']))
  plain = apply(variables, x)
  zero = jax.tree.map_with_path(
      lambda path, leaf: leaf * (path[-1].key != 'bottleneck'), response)
  for some in (answer(variables, zero, h, x),
               answer(variables, response, jnp.zeros_like(h), x)):
    jax.tree.map(np.testing.assert_array_equal, some, plain)
  moved, _ = answer(variables, response, h, x)
  assert (np.abs(moved - plain[0]).max(axis=-1) > 1e-3).all()


def test_a_layer_without_the_batch_in_front_is_named():
  x = normal(2, 5, 4)
  variables, response = build(nn.Dense(4), x)
  with pytest.raises(response_lib.LayerError, match=r'\(5, 4\) has 5 rows, '
                     'but the batch has 3 examples'):
    fused(nn.Dense(4), variables, response, normal(3, B, N), x)


def test_a_layer_may_have_any_name():
  """Also the one that its copy has inside."""

  class Named(nn.Module):

    @nn.compact
    def __call__(self, x):
      return nn.Dense(4, name='response')(x)

  x, h = normal(2, B, 5), normal(3, B, N)
  variables, response = build(Named(), x)
  np.testing.assert_allclose(
      fused(Named(), variables, response, h, x),
      one_by_one(Named(), variables, response, h, x), rtol=1e-5, atol=1e-6)


def test_an_embedding_called_by_name_answers_too():
  model, tokens, h = nn.Embed(7, 4), jnp.array([[1], [6], [2]]), normal(3, B, N)
  variables, response = build(model, tokens)
  np.testing.assert_array_equal(
      answered(model, variables, response, h, inputs=tokens),
      answered(model, variables, response, h, tokens))


def test_a_penalty_of_the_input_gradient_feels_the_centred_response():
  """d/dh of dy/dx at h = 0, by the shortened product and by the whole."""
  model = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(1)])
  x = jax.random.normal(jax.random.key(0), (3, 2))
  params = model.init(jax.random.key(1), x)['params']
  layers = layers_lib.find_layers(lambda: model.init(jax.random.key(1), x))
  own = layers_lib.init(jax.random.key(2), layers, 2, bottleneck_std=1.0)

  def slopes(h, centred):
    intercept = response_lib.interceptor(
        own, response_lib.Perturbation(h, centred))
    with nn.intercept_methods(intercept):
      _, pullback = jax.vjp(lambda x: model.apply({'params': params}, x), x)
      return pullback(jnp.ones((3, 1)))[0]

  eps = jax.random.normal(jax.random.key(3), (3, 2))
  tangents = [
      jax.jvp(lambda h, c=centred: slopes(h, c), (jnp.zeros((3, 2)),), (eps,))
      for centred in (True, False)]
  for one, two in zip(*tangents, strict=True):
    np.testing.assert_allclose(one, two, atol=1e-6)
  assert float(jnp.linalg.norm(tangents[0][1])) > 0.1


def test_a_response_of_rank_two_is_the_sum_of_two(language):
  params, _, tokens, carry = language
  layers = layers_lib.find_layers(
      lambda: LANGUAGE.init(jax.random.key(0), tokens, train=False),
      models.LANGUAGE_HANDLERS, ('decoder',))
  both = layers_lib.init(jax.random.key(5), layers, N, 0.5, rank=2)
  assert {tuple(own) for own in both.values()} == {('0', '1')}
  h = jnp.broadcast_to(normal(3, 1, N), (B, N))
  weights = response_lib.materialise(params, both, h[0])
  found, _ = jax.jit(read)(params, both, h, tokens, carry)
  expected, _ = read(weights, both, None, tokens, carry)
  np.testing.assert_allclose(
      found['hidden'], expected['hidden'], rtol=1e-4, atol=2e-6)
  slope = lambda centred: jax.jvp(
      lambda h: read(
          params, both, h, tokens, carry, centred=centred)[0]['hidden'],
      (jnp.zeros((B, N)),), (h,))[1]
  np.testing.assert_allclose(
      slope(True), slope(False), rtol=1e-4, atol=2e-6)
  kernels = [w for path, w in jax.tree.leaves_with_path(weights)
             if path[-1].key in ('kernel', 'embedding')]
  np.testing.assert_allclose(
      response_lib.squared_norm(
          params, both, response_lib.Perturbation(h), B),
      sum(float(jnp.sum(w**2)) for w in kernels), rtol=1e-5)
