"""Eight classes in the plane, whose score is known exactly (MSD, the 2-D toy).

The MSD paper names a conditional 2-D data set but gives no law for it. Ours:
64 Gaussians on an 8 x 8 grid that is staggered, stretched outwards and
twisted; class c is row c, a bent chain of 8 blobs. Neighbouring labels are
neighbours in the plane, so a block of consecutive labels is one region.
Dense and narrow in the middle, wide outside: overall deviation 0.5 per
coordinate, EDM's sigma_data, and everything inside [-1.5, 1.5]^2.
"""

from collections.abc import Sequence
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

NUM_CLASSES = 8
NUM_MODES = 8  # Gaussians in a class.
DEVIATION = 0.5  # Of the whole data set, per coordinate.
LIMIT = 1.5  # Half the side of the square that holds the data.

_MIN_DEVIATION, _MAX_DEVIATION = 0.05, 0.08
_TWIST = 2.0  # Radians between the middle and the rim.
_STRETCH = 1.25  # Power of the radius.


@functools.cache
def mixture() -> tuple[np.ndarray, np.ndarray]:
  """Returns means [8, 8, 2] and deviations [8, 8], by class and mode.

  All 64 modes weigh the same; each Gaussian is isotropic.
  """
  rows, columns = np.meshgrid(
      np.linspace(-1, 1, NUM_CLASSES), np.linspace(-1, 1, NUM_MODES),
      indexing='ij')
  stagger = np.where(np.arange(NUM_CLASSES) % 2, 1, -1) / (2 * NUM_MODES)
  columns = columns + stagger[:, None]
  # The square to the disc (elliptically), so that no corner sticks out.
  x = columns * np.sqrt(1 - rows ** 2 / 2)
  y = rows * np.sqrt(1 - columns ** 2 / 2)
  radius = np.hypot(x, y)
  angle = np.arctan2(y, x) + _TWIST * radius
  grid = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  grid = grid * radius[..., None] ** _STRETCH
  grid = grid - grid.mean(axis=(0, 1))

  rim = np.square(radius / radius.max())
  deviations = _MIN_DEVIATION + (_MAX_DEVIATION - _MIN_DEVIATION) * rim
  # The variance of the mixture is that of its means plus that of its modes.
  wanted = DEVIATION ** 2 - (deviations ** 2).mean()
  means = grid * np.sqrt(wanted / (grid ** 2).mean())
  means, deviations = means.astype(np.float32), deviations.astype(np.float32)
  # The cache hands the same arrays to every caller.
  means.setflags(write=False)
  deviations.setflags(write=False)
  return means, deviations


def sample(
    seed: int | Sequence[int], num: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns points float32 [num, 2] and uniform labels int32 [num]."""
  generator = np.random.default_rng(seed)
  means, deviations = mixture()
  labels = generator.integers(NUM_CLASSES, size=num, dtype=np.int32)
  modes = generator.integers(NUM_MODES, size=num)
  noise = generator.standard_normal((num, 2), dtype=np.float32)
  points = means[labels, modes] + deviations[labels, modes, None] * noise
  return points, labels


def log_density(x: jax.Array, sigma: jax.Array, labels: jax.Array) -> jax.Array:
  """Log density of the noised class at x, in nats.

  Args:
    x: [B, 2], data plus noise of deviation sigma.
    sigma: [B], 0 or more.
    labels: int [B]; -1 takes all classes together.

  Returns:
    log p(x; sigma, label), [B].
  """
  logits, _ = _modes(x, sigma, labels)
  num_modes = jnp.where(labels < 0, NUM_CLASSES * NUM_MODES, NUM_MODES)
  return jax.nn.logsumexp(logits, axis=-1) - jnp.log(num_modes)


def denoised(x: jax.Array, sigma: jax.Array, labels: jax.Array) -> jax.Array:
  """The perfect denoiser E[y | y + sigma eps = x] (EDM eq. 2-3), [B, 2].

  For one Gaussian it is m + s^2 / (s^2 + sigma^2) (x - m); the mixture takes
  the mean of these under the posterior over modes.

  Args:
    x: [B, 2], data plus noise of deviation sigma.
    sigma: [B], 0 or more.
    labels: int [B]; -1 takes all classes together.
  """
  logits, variances = _modes(x, sigma, labels)
  means, deviations = _flat_mixture()
  posterior = jax.nn.softmax(logits, axis=-1)
  keep = jnp.square(deviations)[None] / variances
  return (_weighted(posterior * (1 - keep), means)
          + jnp.sum(posterior * keep, axis=-1, keepdims=True) * x)


def score(x: jax.Array, sigma: jax.Array, labels: jax.Array) -> jax.Array:
  """The score of the noised class, (denoised - x) / sigma^2 (EDM eq. 3).

  Written as the posterior mean of (m - x) / (s^2 + sigma^2), which is the same
  and does not cancel where sigma is small.

  Args:
    x: [B, 2], data plus noise of deviation sigma.
    sigma: [B], 0 or more.
    labels: int [B]; -1 takes all classes together.

  Returns:
    The gradient of `log_density` by x, [B, 2].
  """
  logits, variances = _modes(x, sigma, labels)
  means, _ = _flat_mixture()
  pull = jax.nn.softmax(logits, axis=-1) / variances
  return _weighted(pull, means) - jnp.sum(pull, axis=-1, keepdims=True) * x


def _flat_mixture():
  """Returns means [64, 2] and deviations [64]; mode i is of class i // 8."""
  means, deviations = mixture()
  return jnp.asarray(means.reshape(-1, 2)), jnp.asarray(deviations.reshape(-1))


def _modes(x, sigma, labels):
  """Returns each mode's log density at x and its noised variance, [B, 64].

  Modes of other classes get a log density of -inf.
  """
  chex.assert_shape(x, (None, 2))
  chex.assert_shape([sigma, labels], (x.shape[0],))
  means, deviations = _flat_mixture()
  variances = jnp.square(deviations)[None] + jnp.square(sigma)[:, None]
  squares = (jnp.square(x[:, :1] - means[None, :, 0])
             + jnp.square(x[:, 1:] - means[None, :, 1]))
  logits = -squares / (2 * variances) - jnp.log(2 * jnp.pi * variances)
  classes = jnp.arange(NUM_CLASSES * NUM_MODES) // NUM_MODES
  member = (classes[None] == labels[:, None]) | (labels[:, None] < 0)
  return jnp.where(member, logits, -jnp.inf), variances


def _weighted(weights, means):
  """Sums weights [B, 64] times means [64, 2], in full float32 on a TPU too."""
  return jnp.matmul(weights, means, precision=jax.lax.Precision.HIGHEST)
