"""The hyperparameters that a run tunes: ranges, transforms, perturbations.

Gradient descent works on `lam`, a vector [n] of unconstrained numbers, one a
hyperparameter, in the order of the space. Models and losses see the values in
their ranges, `constrain(space, lam)`. Perturbations are drawn around `lam`
with deviations `sigma = softplus(rho)` (STN, section 3.3).

What can be tuned is what changes the minimum of the training loss and reaches
it through the training forward pass: dropout of every kind, weight decay,
penalties of activations and Jacobians, augmentation, input noise, label
smoothing; real, positive, bounded or integer. A learning rate, a momentum or
a batch size leaves the minimum where it is: its gradient through the best
response is zero, whatever it does to the speed. A choice between unordered
alternatives has no neighbourhood to respond to.
"""

from collections.abc import Mapping
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

SIGMA_RANGE = (1e-2, 2.0)
# Within it a sigmoid is between 0.0025 and 0.9975, and still has a slope.
LAM_LIMIT = 6.0
# Of lam and its perturbation: a rate of 1 would scale by 1 / 0. 1.2e-4 of the
# range is kept from both ends.
_PERTURBED_LIMIT = 9.0
_NOT_TUNABLE = (
    'learning_rate', 'lr', 'momentum', 'batch_size', 'num_steps', 'warmup')


class SpaceError(ValueError):
  """A hyperparameter that cannot be tuned as it is declared."""


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
  """One dimension of the search; see `bounded`, `integer`, `positive`, `real`.

  Attributes:
    start: value at the start, in its own units.
    low, high: open interval of the values; infinite where there is no bound.
    whole: values are floored to integers: low, ..., high - 1.
    sigma: deviation of the perturbation of `lam` at the start.
    shared: one perturbation for a whole batch: for what cannot differ between
      its examples, such as the mask of a weight.
    tuned: False keeps it at `start`, without perturbation.
    decades: a positive value whose logarithm is tuned.
  """

  start: float
  low: float = -math.inf
  high: float = math.inf
  whole: bool = False
  sigma: float = 0.5
  shared: bool = False
  tuned: bool = True
  decades: bool = False


Space = Mapping[str, Hyperparameter]


def bounded(start: float, low: float, high: float, *, sigma: float = 0.5,
            shared: bool = False, tuned: bool = True) -> Hyperparameter:
  """A real number in (low, high): low + (high - low) sigmoid(lam).

  Perturbed, it stays 1.2e-4 of the range from both ends.
  """
  return Hyperparameter(
      start, low, high, sigma=sigma, shared=shared, tuned=tuned)


def integer(start: int, low: int, high: int, *, sigma: float = 0.5,
            shared: bool = False, tuned: bool = True) -> Hyperparameter:
  """An integer in range(low, high): the floor of the bounded real number."""
  return Hyperparameter(start, low, high, True, sigma, shared, tuned)


def positive(start: float, *, sigma: float = 0.5, shared: bool = False,
             tuned: bool = True) -> Hyperparameter:
  """A real number above 0: softplus(lam)."""
  return Hyperparameter(start, 0.0, sigma=sigma, shared=shared, tuned=tuned)


def log(start: float, *, sigma: float = 0.5, shared: bool = False,
        tuned: bool = True) -> Hyperparameter:
  """A real number above 0 over many decades: exp(lam)."""
  return Hyperparameter(
      start, 0.0, sigma=sigma, shared=shared, tuned=tuned, decades=True)


def real(start: float, *, sigma: float = 0.5, shared: bool = False,
         tuned: bool = True) -> Hyperparameter:
  """Any real number: lam itself."""
  return Hyperparameter(start, sigma=sigma, shared=shared, tuned=tuned)


def _kind(h):
  if h.decades:
    return 'log'
  if math.isinf(h.high):
    return 'real' if math.isinf(h.low) else 'positive'
  return 'bounded'


def check(space: Space) -> None:
  """Raises SpaceError at the first hyperparameter that makes no sense."""
  if not space:
    raise SpaceError('the space is empty: name at least one hyperparameter')
  for name, h in space.items():
    if name in _NOT_TUNABLE:
      raise SpaceError(
          f'{name!r} cannot be tuned: it does not move the minimum of the '
          'training loss, so no best response carries its gradient. Tune it '
          'by search (see stn_jax.baselines) or give it a schedule')
    if not name.isidentifier() or name == 'step':
      raise SpaceError(
          f"{name!r} cannot head a column of a schedule, whose first is "
          "'step': take letters, digits and _")
    kind = _kind(h)
    if h.whole and not math.isfinite(h.high - h.low):
      raise SpaceError(
          f'{name}: an integer needs two ends, not ({h.low}, {h.high})')
    if kind == 'bounded' and not math.isfinite(h.high - h.low) or (
        kind == 'positive' and h.low):
      raise SpaceError(
          f'{name}: its range ({h.low}, {h.high}) has one end; give it two, '
          'or use positive, log or real')
    if kind == 'bounded' and not h.low < h.high:
      raise SpaceError(
          f'{name}: its range ({h.low}, {h.high}) is upside down or empty')
    if h.whole and (h.low != round(h.low) or h.high != round(h.high)):
      raise SpaceError(
          f'{name}: an integer range has whole bounds, not '
          f'({h.low}, {h.high})')
    if h.whole and h.high - h.low < 2:
      raise SpaceError(
          f'{name}: range({h.low}, {h.high}) holds one value; widen it, or '
          'make it a constant of the model')
    # An integer may start at its least value: half of its cell is below.
    if not h.low < h.start < h.high and not (h.whole and h.start == h.low):
      raise SpaceError(
          f'{name}: it starts at {h.start}, which is not inside '
          f'({h.low}, {h.high})')
    if h.whole and h.start != round(h.start):
      raise SpaceError(f'{name}: an integer starts at one, not at {h.start}')
    if kind == 'bounded' and abs(_inverse(h, h.start)) > LAM_LIMIT:
      raise SpaceError(
          f'{name}: it starts at {h.start}, so near the end of '
          f'({h.low}, {h.high}) that it has no gradient; keep '
          f'{(h.high - h.low) / (1 + math.exp(LAM_LIMIT)):.2g} from both ends')
    if not SIGMA_RANGE[0] <= h.sigma <= SIGMA_RANGE[1]:
      raise SpaceError(
          f'{name}: sigma={h.sigma} is not in {list(SIGMA_RANGE)}')


def unconstrain(space: Space, values: Mapping[str, float]) -> np.ndarray:
  """name -> value in its range  ->  lam float32 [n]."""
  return np.array(
      [_inverse(h, values[name]) for name, h in space.items()], np.float32)


def _inverse(h, value):
  match _kind(h):
    case 'log':
      return math.log(value)
    case 'positive':
      # softplus^-1 without exp(value), which overflows.
      return value + math.log(-math.expm1(-value))
    case 'bounded':
      if h.whole and value == h.low:
        value += 0.5
      return math.log((value - h.low) / (h.high - value))
    case _:
      return value


def start(space: Space) -> np.ndarray:
  """lam float32 [n] at the start."""
  return unconstrain(space, {name: h.start for name, h in space.items()})


def start_rho(space: Space) -> np.ndarray:
  """rho float32 [n] at the start: softplus(rho) is each sigma."""
  sigma = np.array([h.sigma for h in space.values()], np.float64)
  return inverse_softplus(sigma).astype(np.float32)


def inverse_softplus(x: np.ndarray) -> np.ndarray:
  """x > 0 -> y with softplus(y) = x, without overflow."""
  return x + np.log(-np.expm1(-x))


def tuned(space: Space) -> np.ndarray:
  """float32 [n]: 1 where the hyperparameter moves."""
  return np.array([h.tuned for h in space.values()], np.float32)


def values(space: Space, lam: jax.Array) -> dict[str, jax.Array]:
  """lam [..., n] -> name -> values [...] in their ranges."""
  return {name: _forward(h, lam[..., i])
          for i, (name, h) in enumerate(space.items())}


def constrain(space: Space, lam: jax.Array) -> dict[str, jax.Array]:
  """`values`, and no gradient passes: what a training loss does with them
  (draw a mask, cut a hole) has none, and the method needs none (STN, 3.2)."""
  return values(space, jax.lax.stop_gradient(lam))


def _forward(h, lam):
  match _kind(h):
    case 'log':
      return jnp.exp(lam)
    case 'positive':
      return jax.nn.softplus(lam)
    case 'bounded':
      value = h.low + (h.high - h.low) * jax.nn.sigmoid(
          jnp.clip(lam, -_PERTURBED_LIMIT, _PERTURBED_LIMIT))
      if not h.whole:
        return value
      # The slack makes up for rounding: an integer is a cell's lower end.
      slack = 2e-6 * max(abs(h.low), abs(h.high))
      # The sigmoid rounds to 1 before it gets there.
      return jnp.clip(jnp.floor(value + slack), h.low, h.high - 1)
    case _:
      return lam


def sigma(rho: jax.Array) -> jax.Array:
  """Deviation of the perturbations, [n]."""
  return jax.nn.softplus(rho)


def perturbation(
    key: jax.Array, space: Space, rho: jax.Array, batch_size: int
) -> jax.Array:
  """eps ~ N(0, diag(sigma^2)), [B, n], a row an example; 0 where not tuned."""
  noise = jax.random.normal(key, (batch_size, len(space)))
  shared = np.array([h.shared for h in space.values()])
  noise = jnp.where(shared[None], noise[:1], noise)
  return noise * (sigma(rho) * tuned(space))[None]


def entropy(space: Space, rho: jax.Array) -> jax.Array:
  """H of the perturbations of what is tuned, nats (STN, eq. 12)."""
  per_dimension = jnp.log(sigma(rho) * math.sqrt(2 * math.pi * math.e))
  return jnp.sum(per_dimension * tuned(space))


def clamp(
    space: Space, lam: jax.Array, rho: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Projects (lam, rho) to where transforms have slopes and sigma is sane."""
  limit = np.array(
      [LAM_LIMIT if _kind(h) == 'bounded' else np.inf
       for h in space.values()], np.float32)
  least, most = inverse_softplus(np.array(SIGMA_RANGE))
  return jnp.clip(lam, -limit, limit), jnp.clip(rho, least, most)
