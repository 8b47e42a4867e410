"""EDM's formulas against closed forms, on Gaussians where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msd_jax import diffusion
from msd_jax import layers
from msd_jax import losses
from msd_jax import networks

DEVIATION = 0.5


def gaussian_denoised(x, sigma, mean=0., deviation=DEVIATION):
  """E[clean | x] where the clean ones are N(mean, deviation^2)."""
  sigma = diffusion.expand(sigma, x)
  return (deviation**2 * x + sigma**2 * mean) / (deviation**2 + sigma**2)


def test_preconditioning_at_the_sigma_of_one_step_generation():
  c_skip, c_out, c_in, c_noise = diffusion.preconditioning(
      jnp.float32(80.), 0.5)
  np.testing.assert_allclose(
      [c_skip, c_out, c_in, c_noise], [3.906e-5, 0.49999, 0.0125, 1.09551],
      rtol=1e-4)


def test_noise_levels_of_dmd2():
  ascending = diffusion.karras_sigmas(1000, 0.002, 80.)[::-1]
  at = {0: 0.002, 1: 0.0020502, 20: 0.0032316, 100: 0.016751, 250: 0.17031,
        500: 2.52651, 750: 17.6173, 900: 45.556, 980: 72.0539, 999: 80.}
  np.testing.assert_allclose(
      [ascending[i] for i in at], list(at.values()), rtol=2e-4)


@pytest.mark.parametrize('network, shape', [
    (dict(kind='mlp', width=16, depth=2), (4, 4, 1)),
    (dict(kind='mlp', width=16, depth=2), (2,)),
    (dict(kind='adm', model_channels=32, channel_mult=(1, 2), num_blocks=1,
          attention_resolutions=(4,)), (8, 8, 3))])
def test_a_fresh_network_denoises_to_c_skip_x(network, shape):
  module = networks.build(network, shape, 3)
  params = networks.init_params(module, jax.random.key(0), shape)
  denoised = diffusion.make_denoiser(networks.apply_fn(module), 0.5)
  x = jax.random.normal(jax.random.key(1), (2, *shape))
  sigma = jnp.array([0.1, 5.])
  c_skip = 0.25 / (sigma**2 + 0.25)
  np.testing.assert_array_equal(
      denoised(params, x, sigma, jnp.array([0, 2])),
      diffusion.expand(c_skip, x) * x)


@pytest.mark.parametrize('kind', networks.NETWORKS)
def test_fresh_params_are_no_weak_types(kind):
  """A weak type would turn strong in the first step: a second compilation."""
  module = networks.build(dict(kind=kind), (8, 8, 1), 10)
  params = jax.eval_shape(
      lambda key: networks.init_params(module, key, (8, 8, 1)),
      jax.random.key(0))
  assert not any(x.weak_type for x in jax.tree.leaves(params))


def test_the_training_loss_of_a_fresh_network_is_one():
  """With F = 0 and data of deviation sd, EDM's weight makes it 1."""
  key, noise_key, sigma_key = jax.random.split(jax.random.key(0), 3)
  images = 0.5 * jax.random.normal(key, (200_000, 1))
  sigma = diffusion.training_sigma(sigma_key, 200_000)
  x = images + sigma[:, None] * jax.random.normal(noise_key, images.shape)
  c_skip = diffusion.preconditioning(sigma, 0.5)[0]
  loss = losses.denoising_loss(c_skip[:, None] * x, images, sigma, 0.5)
  np.testing.assert_allclose(loss, 1., atol=0.02)


def solve(num_steps, **settings):
  """Error of the sampler where the solution is known: data N(0, sd^2)."""
  with jax.enable_x64(True):
    noise = jnp.linspace(-2., 2., 9)[:, None]
    sampler = diffusion.Sampler(num_steps=num_steps, sigma_max=10., **settings)
    x = diffusion.sample(
        gaussian_denoised, noise, jax.random.key(0), sampler)
    exact = noise * 10. * DEVIATION / np.sqrt(DEVIATION**2 + 10.**2)
    return float(jnp.abs(x - exact).max())


def test_the_sampler_converges_with_order_two():
  steps = np.array([32, 64, 128])
  errors = [solve(n, sigma_min=0.002) for n in steps]
  order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
  assert 1.8 < order < 2.3, (order, errors)


def test_churn_keeps_the_law_of_the_samples():
  noise = jax.random.normal(jax.random.key(0), (50_000, 1))
  sampler = diffusion.Sampler(
      num_steps=64, churn=20., churn_min=0.05, churn_max=50.)
  x = diffusion.sample(
      lambda x, sigma: gaussian_denoised(x, sigma, mean=1.), noise,
      jax.random.key(1), sampler)
  np.testing.assert_allclose([x.mean(), x.std()], [1., DEVIATION], atol=0.02)


def test_churn_of_imagenet_raises_191_of_256_levels():
  sigmas = diffusion.karras_sigmas(256, 0.002, 80.)
  assert int(((sigmas >= 0.05) & (sigmas <= 50.)).sum()) == 191
  assert min(40 / 256, 2**0.5 - 1) == 0.15625


def test_ema_half_life():
  """After its half-life of constant params, half the way is gone."""
  average, step = {'w': jnp.zeros(())}, jnp.int32(10_000)
  for _ in range(50):
    decay = diffusion.warmed_up_decay(step, 50.)
    average = diffusion.ema(average, {'w': jnp.ones(())}, decay)
  np.testing.assert_allclose(average['w'], 0.5, rtol=1e-5)


def test_positional_embedding_has_cosines_first():
  embedding = layers.positional_embedding(jnp.zeros(1), 8)
  np.testing.assert_array_equal(embedding, [[1, 1, 1, 1, 0, 0, 0, 0]])


def test_a_description_builds_the_same_module():
  for network in (dict(kind='mlp', width=24), dict(
      kind='adm', model_channels=32, channel_mult=(1, 2),
      attention_resolutions=())):
    module = networks.build(network, (8, 8, 1), 10)
    again = networks.from_description(networks.describe(module))
    assert again == module


@pytest.mark.parametrize('network, message', [
    (dict(kind='resnet'), "kind='resnet' is not known.*'adm', 'ddpmpp', 'mlp'"),
    (dict(kind='mlp', widht=8), "no \\['widht'\\].*width"),
    (dict(kind='adm'), "takes square images, not \\(2,\\); use 'mlp'")])
def test_a_network_that_cannot_be_built_says_why(network, message):
  with pytest.raises(ValueError, match=message):
    networks.build(network, (2,), 8)


@pytest.mark.parametrize('network, message', [
    (dict(kind='adm', model_channels=144),
     'block .64x64_.*: 144 channels do not divide'),
    (dict(kind='adm', model_channels=64, channel_mult=(1, 5, 2),
          attention_resolutions=(32,), channels_per_head=96),
     '320 channels of block .32x32_block0. do not divide into its 3 heads'),
    (dict(kind='ddpmpp', model_channels=2), '2 channels do not divide into'),
    (dict(kind='ncsnpp', channel_mult=8 * (1,)), '7 times, and 64 is not')])
def test_sizes_that_no_block_can_have_are_refused(network, message):
  with pytest.raises(ValueError, match=message):
    networks.build(network, (64, 64, 3), 8)
