"""The losses of EDM, DMD2 and MSD, as functions of arrays.

Means run over all elements of [B, ...]. Sources: EDM (arXiv 2206.00364), DMD
(2311.18828), DMD2 (2405.14867), MSD (2410.23274).
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from msd_jax.diffusion import expand

# Two batches [B, ...] -> their distances [B].
Distance = Callable[[jax.Array, jax.Array], jax.Array]


def edm_weight(sigma: jax.Array, sigma_data: float) -> jax.Array:
  """lambda(sigma) = (sigma^2 + sd^2) / (sigma sd)^2 (EDM, table 1); [B]."""
  return (sigma**2 + sigma_data**2) / (sigma * sigma_data)**2


def denoising_loss(
    denoised: jax.Array,
    target: jax.Array,
    sigma: jax.Array,
    sigma_data: float,
) -> jax.Array:
  """EDM's weighted square error, 1 for a network that outputs zeros.

  The one formula of three losses. With the clean images as target it trains a
  teacher (EDM, eq. 2 and 8); with the generator's images, the fake score
  (DMD2, sec. 3; its weight 1/sigma^2 + 1/sd^2 is edm_weight); with the
  teacher's D, a smaller network (MSD's teacher score matching).

  Args:
    denoised: D(target + noise; sigma), [B, ...].
    target: no gradient flows into it; [B, ...].
    sigma: [B].
    sigma_data: deviation of the data.
  """
  chex.assert_equal_shape([denoised, target])
  weight = expand(edm_weight(sigma, sigma_data), denoised)
  return jnp.mean(weight * (denoised - jax.lax.stop_gradient(target))**2)


def distribution_matching_gradient(
    x: jax.Array, denoised_real: jax.Array, denoised_fake: jax.Array
) -> jax.Array:
  """(D_fake - D_real) / mean|x - D_real|: the gradient of KL(fake || real).

  Descent moves x to where the teacher (real) sees more density than the
  student has (fake). The normaliser is DMD's eq. 8, per example and in
  float32; its 1e-6 is ours: x = D_real gives a large number and no NaN.

  Args:
    x: generated, [B, ...].
    denoised_real: the teacher's D(x + noise), [B, ...].
    denoised_fake: the fake score's D on the same input, [B, ...].
  """
  chex.assert_equal_shape([x, denoised_real, denoised_fake])
  axes = tuple(range(1, x.ndim))
  distance = jnp.abs((x - denoised_real).astype(jnp.float32))
  normaliser = jnp.mean(distance, axes, keepdims=True) + 1e-6
  return (denoised_fake - denoised_real) / normaliser


def without_not_finite(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The gradient with 0 where it is not finite, and the share of that.

  DMD2 has nan_to_num here, which makes of an infinity the largest number.
  """
  bad = ~jnp.isfinite(gradient)
  return jnp.where(bad, 0, gradient), jnp.mean(bad, dtype=jnp.float32)


def distribution_matching_loss(
    x: jax.Array, gradient: jax.Array
) -> jax.Array:
  """A scalar whose gradient by x is `gradient` / (number of elements).

  DMD2's 0.5 mean((x - sg(x - g))^2): its value says nothing, its gradient is
  the method.
  """
  chex.assert_equal_shape([x, gradient])
  target = jax.lax.stop_gradient(x - gradient)
  return 0.5 * jnp.mean((x - target)**2)


def critic_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """softplus(l_fake) + softplus(-l_real), of the discriminator; means over [B].

  The non-saturating loss of GANs (DMD2, sec. 4.3): at its optimum a logit is
  ln p_real / p_fake.
  """
  chex.assert_rank([real_logits, fake_logits], 1)
  return (jnp.mean(jax.nn.softplus(fake_logits))
          + jnp.mean(jax.nn.softplus(-real_logits)))


def generator_gan_loss(fake_logits: jax.Array) -> jax.Array:
  """softplus(-l_fake), of the generator: the critic's other side; [B] -> []."""
  chex.assert_rank(fake_logits, 1)
  return jnp.mean(jax.nn.softplus(-fake_logits))


def matching_weight(
    wanted: jax.Array, found: jax.Array, factor: float = 1.
) -> jax.Array:
  """The weight that gives `found` the norm of `wanted`, times a factor.

  Of gradients by the generated images: d(DM)/dx and d(GAN)/dx, any shape.
  """
  norms = [jnp.sqrt(jnp.sum(jnp.square(x))) for x in (wanted, found)]
  return jax.lax.stop_gradient(factor * norms[0] / (norms[1] + 1e-12))


def square_distance(x: jax.Array, y: jax.Array) -> jax.Array:
  """The mean square difference of [B, ...], for each example: [B].

  Of images it is the regression loss with L2; of features, their distance.
  """
  chex.assert_equal_shape([x, y])
  return jnp.mean(jnp.square(x - y), axis=tuple(range(1, x.ndim)))


def regression_loss(
    x: jax.Array, target: jax.Array, distance: Distance = square_distance
) -> jax.Array:
  """Mean distance to an image that does not learn.

  Of three stages: G(z) to the image that the teacher's sampler makes of the
  same z (DMD, sec. 3.3); f(x_n+1) to the slow f of the same trajectory one
  level down (consistency distillation, arXiv 2303.01469, eq. 7, with weight
  1); a small student to a larger one (post-distillation).

  Args:
    x: [B, ...].
    target: [B, ...]; no gradient flows into it.
    distance: of two batches, [B]; see distances.py.
  """
  return jnp.mean(distance(x, jax.lax.stop_gradient(target)))
