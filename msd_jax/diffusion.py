"""EDM: preconditioning, noise levels, sampler (arXiv 2206.00364).

A network is a function `apply(params, x, c_noise, labels) -> F`; a denoiser
is a function `denoised(params, x, sigma, labels) -> D`. x is [B, ...] (images
[B, H, W, C] or points [B, 2]), sigma float32 [B], labels int32 [B] where -1
means 'no class'.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

Denoiser = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def expand(sigma: jax.Array, x: jax.Array) -> jax.Array:
  """[B] -> [B, 1, ...] of the rank of x."""
  return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))


def preconditioning(
    sigma: jax.Array, sigma_data: float, sigma_min: float | jax.Array = 0.
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """(c_skip, c_out, c_in, c_noise) of noise levels sigma (EDM, table 1).

  With sigma_min above 0 it is that of consistency models, whose output at
  sigma_min is their input (arXiv 2303.01469, appendix C).
  """
  variance = sigma**2 + sigma_data**2
  above = sigma - sigma_min
  c_skip = sigma_data**2 / (above**2 + sigma_data**2)
  c_out = above * sigma_data / jnp.sqrt(variance)
  c_in = 1 / jnp.sqrt(variance)
  c_noise = jnp.log(sigma) / 4
  return c_skip, c_out, c_in, c_noise


def make_denoiser(
    apply: Callable[..., jax.Array], sigma_data: float,
    sigma_min: float | jax.Array = 0.,
) -> Denoiser:
  """D(x; sigma, y) = c_skip x + c_out F(c_in x; c_noise, y) (EDM, eq. 7).

  Args:
    apply: the network's; further keywords of a call (a dropout key) reach it.
    sigma_data: deviation of the data.
    sigma_min: see `preconditioning`.

  Returns:
    The denoiser; coefficients and output are float32.
  """

  def denoised(params, x, sigma, labels, **kwargs):
    chex.assert_equal_shape_prefix([x, sigma, labels], 1)
    chex.assert_rank([sigma, labels], 1)
    c_skip, c_out, c_in, c_noise = preconditioning(
        sigma, sigma_data, sigma_min)
    f = apply(params, expand(c_in, x) * x, c_noise, labels, **kwargs)
    return expand(c_skip, x) * x + expand(c_out, x) * f.astype(jnp.float32)

  return denoised


def make_features(
    encode: Callable[..., jax.Array], sigma_data: float
) -> Denoiser:
  """(params, x, sigma, labels) -> what the network's encoder makes of c_in x.

  Args:
    encode: as `apply` above, but its encoder alone.
    sigma_data: deviation of the data.
  """

  def features(params, x, sigma, labels):
    _, _, c_in, c_noise = preconditioning(sigma, sigma_data)
    return encode(params, expand(c_in, x) * x, c_noise, labels)

  return features


def karras_sigmas(
    num: int, sigma_min: float, sigma_max: float, rho: float = 7.
) -> jax.Array:
  """Noise levels [num], from sigma_max down to sigma_min (EDM, eq. 5)."""
  ramp = jnp.linspace(0., 1., num)
  high, low = sigma_max**(1 / rho), sigma_min**(1 / rho)
  return (high + ramp * (low - high))**rho


def training_sigma(
    key: jax.Array, num: int, mean: float = -1.2, deviation: float = 1.2
) -> jax.Array:
  """Noise levels [num] of training: ln sigma is normal (EDM, table 1)."""
  return jnp.exp(mean + deviation * jax.random.normal(key, (num,)))


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Settings of the stochastic sampler (EDM, algorithm 2; table 5)."""

  num_steps: int = 18
  sigma_min: float = 0.002
  sigma_max: float = 80.
  rho: float = 7.
  churn: float = 0.
  churn_min: float = 0.
  churn_max: float = float('inf')
  churn_noise: float = 1.


def sample(
    denoised: Callable[[jax.Array, jax.Array], jax.Array],
    noise: jax.Array,
    key: jax.Array,
    settings: Sampler,
) -> jax.Array:
  """Solves the probability-flow ODE by Heun's method, with churn.

  Args:
    denoised: (x [B, ...], sigma [B]) -> D, params and labels given.
    noise: unit variance [B, ...].
    key: of the churn.
    settings: 2 num_steps - 1 evaluations of the denoiser.

  Returns:
    Samples [B, ...].
  """
  n = settings.num_steps
  sigmas = karras_sigmas(
      n, settings.sigma_min, settings.sigma_max, settings.rho)
  sigmas = jnp.append(sigmas, 0.)

  def slope(x, sigma):
    sigma_b = jnp.full(x.shape[:1], sigma)
    return (x - denoised(x, sigma_b)) / sigma

  def churned(x, sigma, key):
    gamma = jnp.where(
        (settings.churn_min <= sigma) & (sigma <= settings.churn_max),
        min(settings.churn / n, 2**0.5 - 1), 0.)
    sigma_hat = sigma * (1 + gamma)
    # sqrt(sigma_hat^2 - sigma^2), which rounding could bring below zero.
    extra = sigma * jnp.sqrt(gamma * (2 + gamma)) * settings.churn_noise
    return x + extra * jax.random.normal(key, x.shape), sigma_hat

  def heun(x, inputs):
    sigma, sigma_next, key = inputs
    x, sigma = churned(x, sigma, key)
    d = slope(x, sigma)
    euler = x + (sigma_next - sigma) * d
    d_next = slope(euler, sigma_next)
    return x + (sigma_next - sigma) * (d + d_next) / 2, None

  keys = jax.random.split(key, n)
  x, _ = jax.lax.scan(
      heun, noise * sigmas[0], (sigmas[:-2], sigmas[1:-1], keys[:-1]))
  # The last step, to sigma 0, has no slope at its end: Euler alone.
  x, sigma = churned(x, sigmas[-2], keys[-1])
  return x - sigma * slope(x, sigma)


def ema(average: Any, params: Any, decay: float | jax.Array) -> Any:
  """decay * average + (1 - decay) * params, leaf by leaf."""
  return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def warmed_up_decay(step: jax.Array, half_life_steps: float) -> jax.Array:
  """EDM's EMA rate: a half-life of at most 5 % of the steps so far."""
  half_life = jnp.minimum(half_life_steps, 0.05 * (step + 1))
  return 0.5**(1 / jnp.maximum(half_life, 1e-8))
