"""The DM gradient and the fake score's loss, where the scores are exact."""

import jax
import jax.numpy as jnp
import numpy as np

from msd_jax import losses
from msd_jax import teacher
from tests.msd_diffusion_test import gaussian_denoised


def dm_gradient(x, real_mean, fake_mean):
  sigma = jnp.full(len(x), 0.7)
  return losses.distribution_matching_gradient(
      x, gaussian_denoised(x, sigma, real_mean),
      gaussian_denoised(x, sigma, fake_mean))


def test_descent_moves_images_from_the_fake_mean_to_the_real_one():
  x = jax.random.normal(jax.random.key(0), (16, 3))
  assert (dm_gradient(x, real_mean=1., fake_mean=0.) < 0).all()
  assert (dm_gradient(x, real_mean=-1., fake_mean=0.) > 0).all()


def test_the_gradient_is_zero_where_fake_equals_real():
  x = jax.random.normal(jax.random.key(0), (16, 3))
  np.testing.assert_array_equal(dm_gradient(x, 0.3, 0.3), np.zeros((16, 3)))


def test_the_gradient_is_the_difference_of_scores_times_a_positive_weight():
  """D = x + sigma^2 score, so D_fake - D_real = sigma^2 (s_fake - s_real)."""
  x = jax.random.normal(jax.random.key(0), (16, 3))
  total = 0.5**2 + 0.7**2  # variance of the noised data
  score = lambda mean: -(x - mean) / total
  real = gaussian_denoised(x, jnp.full(16, 0.7), 1.)
  weight = 0.7**2 / (jnp.abs(x - real).mean(1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
      dm_gradient(x, 1., 0.), weight * (score(0.) - score(1.)), rtol=1e-4)


def test_the_normaliser_is_one_number_per_example():
  x = jnp.array([[2., 0.], [20., 0.]])
  gradient = losses.distribution_matching_gradient(
      x, jnp.zeros_like(x), jnp.ones_like(x))
  # mean |x - D_real| is 1 and 10.
  np.testing.assert_allclose(gradient, [[1., 1.], [.1, .1]], rtol=1e-5)


def test_x_equal_to_the_teacher_gives_no_nan():
  x = jnp.ones((2, 3))
  gradient = losses.distribution_matching_gradient(x, x, x)
  np.testing.assert_array_equal(gradient, jnp.zeros_like(x))


def test_the_loss_has_the_gradient_that_it_is_given():
  x = jax.random.normal(jax.random.key(0), (4, 5))
  g = jax.random.normal(jax.random.key(1), (4, 5))
  got = jax.grad(losses.distribution_matching_loss)(x, g)
  np.testing.assert_allclose(got, g / x.size, rtol=1e-5, atol=1e-8)


def test_what_is_not_finite_in_a_gradient_counts_as_zero_and_is_counted():
  g = jnp.array([[jnp.nan, 1.], [jnp.inf, 2.], [-jnp.inf, 3.], [4., 5.]])
  found, share = losses.without_not_finite(g)
  np.testing.assert_array_equal(found, [[0, 1], [0, 2], [0, 3], [4, 5]])
  assert share == 3 / 8


def test_the_weight_of_the_fake_loss_is_edms():
  """DMD2's 1/sigma^2 + 1/sd^2 is EDM's (sigma^2 + sd^2)/(sigma sd)^2."""
  sigma = jnp.geomspace(0.002, 80., 50)
  np.testing.assert_allclose(
      losses.edm_weight(sigma, 0.5), 1 / sigma**2 + 1 / 0.5**2, rtol=1e-5)
  np.testing.assert_allclose(
      losses.edm_weight(jnp.array([0.002, 80.]), 0.5), [250_004., 4.00016],
      rtol=1e-4)


def test_no_gradient_flows_into_the_target():
  d, target = jnp.ones((2, 3)), jnp.zeros((2, 3))
  gradient = jax.grad(losses.denoising_loss, argnums=1)(
      d, target, jnp.ones(2), 0.5)
  np.testing.assert_array_equal(gradient, jnp.zeros((2, 3)))


def linear(params, x, sigma, labels, dropout_key=None):
  """D = a x, with params a."""
  del sigma, labels, dropout_key
  return params * x


def test_score_matching_learns_the_teacher_and_not_the_images():
  images = jax.random.normal(jax.random.key(0), (16, 3))
  batch = {'image': images, 'label': jnp.zeros(16, jnp.int32)}
  matching = teacher.make_denoising(linear, 0.5, teacher=linear)
  loss = lambda a: matching(a, batch, jax.random.key(1), {'teacher': 0.7})
  assert loss(0.7) == jax.grad(loss)(0.7) == 0
  # A parabola about the teacher, weighed as EDM's loss.
  np.testing.assert_allclose(loss(0.9), 4 * loss(0.8), rtol=1e-5)
  denoising = teacher.make_denoising(linear, 0.5)
  assert denoising(0.7, batch, jax.random.key(1), {}) > 0.1
