"""DDPM++ and NCSN++ against an independent torch implementation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msd_jax import conv
from msd_jax import layers
from msd_jax import networks
from msd_jax import songunet
from msd_jax import teacher

TINY = dict(resolution=16, channels=3, num_classes=5, model_channels=16,
            channel_mult=(1, 2), num_blocks=1, attention_resolutions=(8,))
NCSN = dict(residual_encoder=True, resample_filter=(1, 3, 3, 1), fourier=True,
            channel_mult_noise=2)


def abstract_params(network):
  size = (1, network.resolution, network.resolution, network.channels)
  return jax.eval_shape(
      network.init, jax.random.key(0), jnp.zeros(size), jnp.zeros(1),
      jnp.zeros(1, jnp.int32))['params']


@pytest.mark.parametrize('network, expected', [
    # EDM's conditional CIFAR-10 networks, and those of FFHQ and AFHQ.
    (songunet.SongUNet(32, 3, 10, augment_dim=9), 55_735_299),
    (songunet.NCSNpp(32, 3, 10, augment_dim=9), 56_400_643),
    (songunet.SongUNet(
        64, 3, 0, channel_mult=(1, 2, 2, 2), augment_dim=9), 61_805_571)])
def test_published_sizes(network, expected):
  params = abstract_params(network)
  params.pop('map_noise', None)  # A constant, which EDM counts as no weight.
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def inputs(network, batch=2):
  generator = np.random.default_rng(1)
  draw = lambda *shape: generator.standard_normal(shape, np.float32)
  size = network.resolution
  return (draw(batch, size, size, network.channels), draw(batch),
          generator.integers(0, 5, batch, np.int32))


@pytest.mark.parametrize('kind, settings', [
    ('ddpmpp', {}), ('ncsnpp', NCSN)])
def test_parity_with_torch(kind, settings, monkeypatch):
  # Compiles sooner; the other convolution has tests of its own.
  monkeypatch.setattr(conv, '_conv3x3', conv._ordinary)
  torch = pytest.importorskip('torch')
  from tests import torch_song
  from tests.msd_unet_test import torch_params
  torch.manual_seed(0)
  peer = torch_song.Song(**TINY, **settings, augment_dim=4)
  tree = torch_params(peer)
  network = networks.NETWORKS[kind](**TINY, augment_dim=4)
  expected = abstract_params(network)
  params = jax.tree_util.tree_map_with_path(
      lambda path, _: _at(tree, path), expected)
  chex.assert_trees_all_equal_shapes(params, expected)

  x, c_noise, labels = inputs(network)
  augment = np.ones((2, 4), np.float32)
  tensor = lambda a: torch.from_numpy(np.array(a))
  f = jax.jit(lambda p, augment: network.apply(
      {'params': p}, x, c_noise, labels, augment_labels=augment))
  for ours, theirs in ((None, None), (augment, tensor(augment))):
    y = f(params, ours)
    with torch.no_grad():
      ty = peer(tensor(x).permute(0, 3, 1, 2), tensor(c_noise),
                tensor(labels).long(), theirs)
    assert np.abs(y).max() > .1
    np.testing.assert_allclose(y, ty.permute(0, 2, 3, 1), atol=1e-4)


def _at(tree, path):
  for entry in path:
    tree = tree[entry.key]
  return tree


@pytest.mark.parametrize('taps', [(1, 1), (1, 3, 3, 1)])
def test_up_is_four_times_the_transpose_of_down(taps):
  x = np.random.default_rng(0).standard_normal((2, 6, 8, 3), np.float32)
  down = lambda x: layers.resample('down', x, taps)
  y = np.random.default_rng(1).standard_normal((2, 3, 4, 3), np.float32)
  _, transpose = jax.vjp(down, x)
  np.testing.assert_allclose(
      layers.resample('up', y, taps), 4 * transpose(y)[0], atol=1e-6)


def test_a_description_builds_the_same_network():
  network = networks.build(
      dict(kind='ncsnpp', model_channels=16, channel_mult=(1, 2)),
      (16, 16, 3), 5)
  described = networks.describe(network)
  assert networks.from_description(described) == network
  assert 'ncsnpp' in described


@pytest.mark.parametrize('warmup_steps, rates', [
    (0, [1., 1., 1.]), (2, [0., .5, 1.])])
def test_a_warm_up_rises_to_the_rate_and_none_begins_there(warmup_steps, rates):
  tx = teacher.make_optimizer(
      lr=1., warmup_steps=warmup_steps, clip_norm=1e9)
  params, found = {'a': jnp.ones(1)}, []
  state = tx.init(params)
  for _ in rates:  # Adam's step at a constant gradient is the rate.
    updates, state = tx.update(params, state, params)
    found.append(-float(updates['a'][0]))
  np.testing.assert_allclose(found, rates, atol=1e-4)


def test_nothing_trains_the_random_frequencies():
  network = songunet.NCSNpp(**TINY)
  params = jax.tree.map(
      lambda leaf: jnp.full(leaf.shape, .1), abstract_params(network))
  _, c_noise, labels = inputs(network)
  grads = jax.grad(lambda p: jnp.square(
      network._embed(p, c_noise, labels, None)).sum())(params)
  assert np.any(grads['map_layer0']['kernel'])
  assert not np.any(grads['map_noise']['freqs'])
  tx = teacher.make_optimizer(
      lr=1., warmup_steps=1, clip_norm=1., weight_decay=.5)
  small = {name: params[name] for name in ('map_layer0', 'map_noise')}
  still = jax.tree.map(jnp.zeros_like, small)
  _, state = tx.update(still, tx.init(small), small)  # The warm-up's lr is 0.
  updates, _ = tx.update(still, state, small)
  assert np.all(updates['map_layer0']['kernel'])
  assert not np.any(updates['map_noise']['freqs'])
