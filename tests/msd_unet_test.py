"""The ADM network and its convolution against what they are defined to be."""

import chex
import flax
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from msd_jax import conv
from msd_jax import layers
from msd_jax import unet

TINY = dict(resolution=8, channels=3, num_classes=5, model_channels=32,
            channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,))


def inputs(batch=2, size=8, channels=3, num_classes=5):
  keys = jax.random.split(jax.random.key(1), 3)
  return (jax.random.normal(keys[0], (batch, size, size, channels)),
          jax.random.normal(keys[1], (batch,)),
          jax.random.randint(keys[2], (batch,), 0, num_classes))


def initial(network, args, seed=0):
  """Parameters, compiled at once: a hundred small programs take longer."""
  return jax.jit(network.init)(jax.random.key(seed), *args)['params']


def apply(network, params, *args):
  return jax.jit(network.apply)({'params': params}, *args)


def randomized(params, seed=0):
  """Parameters that are 0 nowhere, of a size that keeps activations near 1."""
  generator = np.random.default_rng(seed)
  scale = lambda leaf: (3 * max(9, np.prod(leaf.shape[:-1]))) ** -.5
  return jax.tree.map(
      lambda leaf: leaf + np.float32(scale(leaf)) * generator.standard_normal(
          leaf.shape, np.float32), params)


def test_imagenet64_has_edms_parameters():
  network = unet.ADM(resolution=64, channels=3, num_classes=1000)
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  c_noise = jax.ShapeDtypeStruct((1,), jnp.float32)
  labels = jax.ShapeDtypeStruct((1,), jnp.int32)
  params = jax.eval_shape(
      network.init, jax.random.key(0), x, c_noise, labels)['params']
  leaves = jax.tree.leaves(params)
  assert sum(leaf.size for leaf in leaves) == 295_899_267
  assert len(leaves) == 541
  shape = lambda *path: params['dec'][path[0]][path[1]]['kernel'].shape
  assert shape('8x8_block3', 'conv0') == (3, 3, 1344, 768)
  assert shape('64x64_block0', 'skip') == (1, 1, 576, 192)
  assert shape('32x32_block1', 'qkv') == (1, 1, 384, 1152)
  assert 'qkv' not in params['dec']['8x8_in1']
  assert 'skip' not in params['dec']['16x16_up']


def test_new_network_is_zero():
  network = unet.ADM(**TINY)
  x, c_noise, labels = inputs()
  params = initial(network, (x, c_noise, labels))
  chex.assert_trees_all_equal(
      apply(network, params, x, c_noise, labels), jnp.zeros_like(x))


def test_initial_weights_lie_within_the_fan_in_bound():
  network = unet.ADM(**TINY)
  params = initial(network, inputs())
  layer = params['enc']['8x8_block0']['conv0']
  bound = (9 * 32) ** -.5
  for leaf in layer.values():
    assert bound * .9 < jnp.abs(leaf).max() <= bound
  assert .9 < params['map_label']['kernel'].std() < 1.1


def test_no_class_adds_nothing_to_the_embedding():
  network = unet.ADM(**TINY)
  x, c_noise, _ = inputs()
  none = jnp.full((2,), -1)
  params = randomized(initial(network, (x, c_noise, none)))
  out = apply(network, params, x, c_noise, none)
  params['map_label'] = jax.tree.map(jnp.zeros_like, params['map_label'])
  again = apply(network, params, x, c_noise, jnp.array([0, 4]))
  chex.assert_trees_all_close(out, again, atol=1e-6)


def test_dropout_needs_its_key_and_changes_the_output():
  network = unet.ADM(**TINY, dropout=.5)
  args = inputs()
  params = {'params': randomized(initial(network, args))}
  with pytest.raises(flax.errors.InvalidRngError):
    network.apply(params, *args, deterministic=False)
  draw = jax.jit(lambda seed: network.apply(
      params, *args, deterministic=False,
      rngs={'dropout': jax.random.key(seed)}))
  chex.assert_trees_all_equal(draw(0), draw(0))
  assert jnp.abs(draw(0) - draw(1)).max() > 1e-3


@pytest.mark.parametrize('offset', [0., 1000.])
def test_group_norm_is_the_two_pass_formula(offset):
  x = offset + jax.random.normal(jax.random.key(0), (2, 4, 4, 32))
  params = {'scale': jnp.full(32, 2.), 'bias': jnp.full(32, .5)}
  groups = np.asarray(x, np.float64).reshape(2, 16, 8, 4)
  mean = groups.mean((1, 3), keepdims=True)
  std = np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
  expected = ((groups - mean) / std).reshape(x.shape) * 2 + .5
  # float32 holds x itself to 6e-5 at 1000.
  np.testing.assert_allclose(
      layers.group_norm(params, x), expected, atol=1e-5 + offset * 1e-6)


def test_bfloat16_network_keeps_float32_parameters_and_output():
  args = inputs()
  exact = unet.ADM(**TINY)
  params = randomized(initial(exact, args))
  half = unet.ADM(**TINY, dtype=jnp.bfloat16)
  born = jax.eval_shape(half.init, jax.random.key(0), *args)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(born))
  y = apply(half, params, *args)
  assert y.dtype == jnp.float32
  expected = apply(exact, params, *args)
  assert jnp.abs(y - expected).max() < .1 * jnp.abs(expected).max()


def test_bfloat16_network_embeds_noise_and_class_in_float32():
  """As EDM's does: the products of [B, E] are float32, those of images not."""
  args = inputs()
  half = unet.ADM(**TINY, dtype=jnp.bfloat16)
  params = jax.eval_shape(half.init, jax.random.key(0), *args)
  products = [
      x.invars[0].aval for x in jax.make_jaxpr(half.apply)(params, *args).eqns
      if x.primitive.name == 'dot_general']
  of_rows = [a.dtype for a in products if a.ndim == 2 and a.shape[0] == 2]
  assert len(of_rows) > 3 and set(of_rows) == {jnp.dtype('float32')}
  assert any(a.dtype == jnp.bfloat16 for a in products)


# The convolution.


def conv_case(shape=(8, 6, 4, 5), features=7):
  keys = jax.random.split(jax.random.key(2), 3)
  x = jax.random.normal(keys[0], shape)
  kernel = jax.random.normal(keys[1], (3, 3, shape[-1], features))
  return x, kernel, jax.random.normal(keys[2], (*shape[:3], features))


def outputs_and_gradients(f, x, kernel, dy):
  y, vjp = jax.vjp(f, x, kernel)
  return y, *vjp(dy)


def winograd(x, kernel):
  """conv3x3 as for wide layers, whatever the width."""
  return conv._conv3x3(*conv._varying_alike(x, kernel))


@pytest.mark.parametrize('shape', [(8, 6, 4, 5), (1, 2, 2, 1), (3, 8, 8, 16)])
def test_winograd_and_its_gradients_are_the_ordinary_ones(shape):
  case = conv_case(shape)
  both = jax.jit(lambda *args: [
      outputs_and_gradients(f, *args) for f in (winograd, conv._ordinary)])
  for a, b in zip(*both(*case), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('shape, features, products', [
    ((1, 16, 16, 8), 4, True), ((1, 15, 16, 8), 4, False)])
def test_even_sizes_are_matrix_products_on_cpu_alone(
    shape, features, products):
  traced = jax.jit(conv.conv3x3).trace(
      jax.ShapeDtypeStruct(shape, jnp.float32),
      jax.ShapeDtypeStruct((3, 3, shape[-1], features), jnp.float32))
  on = lambda platform: traced.lower(lowering_platforms=(platform,)).as_text()
  assert ('stablehlo.convolution' not in on('cpu')) == products
  for platform in ('tpu', 'cuda'):
    assert on(platform).count('stablehlo.convolution') == 1
    assert 'stablehlo.dot_general' not in on(platform)


def test_winograd_stays_a_call_for_the_cpu_compiler():
  x, kernel, _ = conv_case()
  gradients = jax.grad(lambda *args: jnp.sum(winograd(*args)**2), (0, 1))
  compiled = jax.jit(gradients).lower(x, kernel).compile().as_text()
  # Forwards, both gradients, and the one by the image within those.
  assert compiled.count(' call(') == 3


def test_winograd_under_transforms():
  x, kernel, dy = conv_case()
  _, _, expected = outputs_and_gradients(conv._ordinary, x, kernel, dy)
  loss = lambda kernel, x, dy: jnp.vdot(winograd(x, kernel), dy)
  gradient = jax.grad(jax.checkpoint(loss))
  # One image at a time: the gradients of the images add up.
  one = lambda xy: gradient(kernel, xy[0][None], xy[1][None])
  add = lambda total, xy: (total + one(xy), None)
  ways = jax.jit(lambda x, dy: [
      gradient(kernel, x, dy),
      jax.lax.map(one, (x, dy)).sum(0),
      jax.lax.scan(add, jnp.zeros_like(kernel), (x, dy))[0],
      jax.vmap(one)((x, dy)).sum(0)])
  for actual in ways(x, dy):
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def data_mesh():
  return jax.make_mesh((8,), ('data',),
                       axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize('manual', [False, True])
def test_sharded_batch_gives_the_result_of_one_device(manual):
  case = conv_case()
  expected = jax.jit(
      lambda *args: outputs_and_gradients(conv._ordinary, *args))(*case)
  f = lambda *args: outputs_and_gradients(winograd, *args)
  mesh = data_mesh()
  data, whole = PartitionSpec('data'), PartitionSpec()
  if manual:
    f = jax.shard_map(f, mesh=mesh, in_specs=(data, whole, data),
                      out_specs=(data, data, whole))
  place = lambda *specs: tuple(NamedSharding(mesh, spec) for spec in specs)
  actual = jax.jit(f, in_shardings=place(data, whole, data),
                   out_shardings=place(data, data, whole))(*case)
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_students_convolve_one_image_each_with_its_own_kernel():
  """Under shard_map the kernels vary, the images do not."""
  x, kernel, dy = conv_case((2, 4, 4, 3), 5)
  kernels = kernel[None] * (1 + jnp.arange(8.)).reshape(8, 1, 1, 1, 1)

  def own(x, kernels, dy):
    y, dx, d_kernel = outputs_and_gradients(winograd, x, kernels[0], dy)
    return y[None], dx, d_kernel[None]

  data, whole = PartitionSpec('data'), PartitionSpec()
  # dy is as the output is: each student's own.
  f = jax.shard_map(
      lambda x, k, dy: own(x, k, dy[0]), mesh=data_mesh(),
      in_specs=(whole, data, data), out_specs=(data, whole, data))
  y, dx, d_kernels = jax.jit(f)(x, kernels, jnp.stack([dy] * 8))
  for k in range(8):
    expected, _, d_kernel = outputs_and_gradients(
        conv._ordinary, x, kernels[k], dy)
    np.testing.assert_allclose(y[k], expected, atol=1e-3)
    np.testing.assert_allclose(d_kernels[k], d_kernel, atol=1e-3)
  each = [outputs_and_gradients(conv._ordinary, x, k, dy)[1] for k in kernels]
  np.testing.assert_allclose(dx, sum(each), atol=1e-2)


def test_sharded_network_gives_the_result_of_one_device():
  network = unet.ADM(**TINY)
  args = inputs(batch=8)
  params = randomized(initial(network, args))
  f = jax.value_and_grad(lambda params, *args: jnp.square(
      network.apply({'params': params}, *args)).mean())
  expected = jax.jit(f)(params, *args)
  mesh = data_mesh()
  data = NamedSharding(mesh, PartitionSpec('data'))
  whole = NamedSharding(mesh, PartitionSpec())
  actual = jax.jit(f, in_shardings=(whole, data, data, data),
                   out_shardings=whole)(params, *args)
  chex.assert_trees_all_close(actual, expected, atol=1e-5, rtol=1e-3)


# Parity with an independent implementation.


def torch_params(network):
  """A torch ADM's parameters, as the tree of ours."""
  tree = {}
  for name, value in network.state_dict().items():
    *path, kind = name.split('.')
    value = np.asarray(value)
    if kind == 'weight':
      kind = 'scale' if value.ndim == 1 else 'kernel'
      value = value.transpose({1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[
          value.ndim])
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[kind] = jnp.asarray(value)
  return tree


@pytest.mark.parametrize('size', [8, 16])
def test_parity_with_torch(size):
  torch = pytest.importorskip('torch')
  from benchmarks import torch_msd
  config = dict(TINY, resolution=size, model_channels=64,
                attention_resolutions=(size // 2,), channels_per_head=32)
  peer = torch_msd.ADM(**config, dropout=0.)
  torch_msd.randomize(peer)
  params = torch_params(peer)
  x, c_noise, labels = inputs(size=size)
  network = unet.ADM(**config)
  chex.assert_trees_all_equal_shapes(params, jax.eval_shape(
      network.init, jax.random.key(0), x, c_noise, labels)['params'])

  f = lambda x: network.apply({'params': params}, x, c_noise, labels)
  y, dx = jax.jit(lambda x: (lambda y, vjp: (y, *vjp(x)))(*jax.vjp(f, x)))(x)
  tensor = lambda a: torch.from_numpy(np.array(a))
  tx = tensor(x).permute(0, 3, 1, 2).requires_grad_()
  ty = peer(tx, tensor(c_noise), tensor(labels).long())
  ty.backward(tensor(x).permute(0, 3, 1, 2))
  image = lambda t: t.detach().permute(0, 2, 3, 1).numpy()
  assert np.abs(y).max() > .1
  np.testing.assert_allclose(y, image(ty), atol=1e-5 * np.abs(y).max())
  np.testing.assert_allclose(
      dx, image(tx.grad), atol=2e-5 * float(jnp.abs(dx).max()))
