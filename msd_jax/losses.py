"""The losses of EDM, DMD2 and MSD, as functions of arrays.

Means run over all elements of [B, ...]. Sources: EDM (arXiv 2206.00364), DMD
(2311.18828), DMD2 (2405.14867), MSD (2410.23274).
"""

import chex
import jax
import jax.numpy as jnp

from msd_jax.diffusion import expand


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


def distribution_matching_loss(
    x: jax.Array, gradient: jax.Array
) -> jax.Array:
  """A scalar whose gradient by x is `gradient` / (number of elements).

  DMD2's 0.5 mean((x - sg(x - g))^2): its value says nothing, its gradient is
  the method. Elements of g that are not finite count as 0.
  """
  chex.assert_equal_shape([x, gradient])
  target = jax.lax.stop_gradient(x - jnp.nan_to_num(gradient))
  return 0.5 * jnp.mean((x - target)**2)
