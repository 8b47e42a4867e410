"""Spaces: transforms and their ends, perturbations, and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stn_jax import space

EVERY_KIND = {
    'rate': space.bounded(0.05, 0.0, 0.95),
    'shift': space.bounded(-1.0, -3.0, 2.0),
    'holes': space.integer(1, 0, 5),
    'alpha': space.positive(0.05),
    'decay': space.log(1e-4),
    'offset': space.real(-2.0)}


@pytest.mark.parametrize(('hyperparameter', 'lam'), [
    (space.bounded(0.05, 0, 1), -2.9444),
    (space.bounded(0.05, 0, 0.9), -2.8332),
    (space.bounded(0.05, 0, 0.95), -2.8904),
    (space.bounded(0.05, 0, 0.3), -1.6094),
    (space.bounded(0.05, 0, 0.5), -2.1972),
    (space.integer(4, 2, 24), -2.3026),
    (space.integer(1, 0, 5), -1.3863),
    (space.bounded(5, 0, 45), -2.0794),
    (space.positive(0.5), -0.432752),
    (space.positive(1.0), 0.541325),
    (space.log(1e-4), math.log(1e-4)),
    (space.real(-3.0), -3.0)])
def test_start_values_of_the_papers(hyperparameter, lam):
  found, = space.start({'name': hyperparameter})
  np.testing.assert_allclose(found, lam, atol=6e-5)


def test_a_value_survives_the_way_to_lam_and_back():
  for seed in range(3):
    lam = np.random.default_rng(seed).uniform(-5, 5, 6).astype(np.float32)
    values = space.constrain(EVERY_KIND, jnp.asarray(lam))
    again = space.unconstrain(
        EVERY_KIND, {name: float(x) for name, x in values.items()})
    real = [name != 'holes' for name in EVERY_KIND]
    np.testing.assert_allclose(again[real], lam[real], rtol=1e-4, atol=1e-5)
    back = space.constrain(EVERY_KIND, jnp.asarray(again))
    for name in EVERY_KIND:
      np.testing.assert_allclose(back[name], values[name], rtol=1e-5)


def test_every_integer_starts_at_itself():
  """An integer is the lower end of its cell, where rounding decides."""
  integers = {
      f'{i} of ({low}, {high})': space.integer(i, low, high)
      for low, high in [(0, h) for h in range(2, 40)] + [(2, 24), (-7, 3)]
      for i in range(low, high)}
  found = space.constrain(integers, jnp.asarray(space.start(integers)))
  assert {name: int(x) for name, x in found.items()} == {
      name: h.start for name, h in integers.items()}


@pytest.mark.parametrize(('low', 'high'), [(0, 4), (0, 5), (0, 24), (2, 24)])
def test_an_integer_takes_all_values_but_the_upper_end(low, high):
  integer = {'n': space.integer(low + 1, low, high)}
  lam = jnp.linspace(-30, 30, 100_001)[:, None]
  found = np.unique(space.constrain(integer, lam)['n'])
  np.testing.assert_array_equal(found, np.arange(low, high))


def test_values_stay_in_their_ranges_however_far_lam_goes():
  for lam in (-100.0, -20.0, 20.0, 80.0):
    values = space.constrain(EVERY_KIND, jnp.full(6, lam))
    for name, h in EVERY_KIND.items():
      assert np.isfinite(values[name]), (name, lam)
      assert h.low <= values[name] <= h.high, (name, lam)
      if np.isfinite(h.high) and not h.whole:
        assert h.low < values[name] < h.high, (name, lam)


def test_inverse_softplus_neither_overflows_nor_loses_small_values():
  x = np.array([1e-12, 1e-3, 1.0, 50.0, 1e4])
  np.testing.assert_allclose(
      np.logaddexp(0, space.inverse_softplus(x)), x, rtol=1e-9)


def sampled(hyperparameter, num=200_000):
  """Values at the start with perturbations of its sigma."""
  one = {'x': hyperparameter}
  eps = space.perturbation(
      jax.random.key(0), one, jnp.asarray(space.start_rho(one)), num)
  return np.asarray(
      space.constrain(one, jnp.asarray(space.start(one))[None] + eps)['x'])


@pytest.mark.parametrize(('high', 'sigma', 'probabilities'), [
    (5, 1.0, [0.500, 0.337, 0.127, 0.034, 0.003]),
    (4, 0.5, [0.500, 0.486])])
def test_probabilities_of_the_number_of_holes(high, sigma, probabilities):
  """A start at the lower end of its cell: half of the examples have less."""
  found = sampled(space.integer(1, 0, high, sigma=sigma))
  for value, probability in enumerate(probabilities):
    # Three deviations of a mean of 200,000.
    assert abs(np.mean(found == value) - probability) < 4e-3, value


@pytest.mark.parametrize(('sigma', 'mean', 'low', 'high'), [
    (0.5, 0.055, 0.023, 0.107), (1.0, 0.072, 0.010, 0.213)])
def test_what_sigma_means_for_a_dropout_rate(sigma, mean, low, high):
  found = sampled(space.bounded(0.05, 0, 0.95, sigma=sigma))
  np.testing.assert_allclose(found.mean(), mean, atol=1e-3)
  np.testing.assert_allclose(
      np.quantile(found, [0.05, 0.95]), [low, high], atol=1e-3)


def test_perturbations_are_a_row_an_example_unless_shared_or_at_rest():
  three = {'own': space.real(0.0, sigma=0.3),
           'shared': space.real(0.0, sigma=0.7, shared=True),
           'rests': space.real(0.0, tuned=False)}
  rho = jnp.asarray(space.start_rho(three))
  eps = np.asarray(jax.vmap(
      lambda key: space.perturbation(key, three, rho, 500))(
          jax.random.split(jax.random.key(0), 400)))
  np.testing.assert_array_equal(eps[:, :, 2], 0)
  assert (eps[:, :, 1] == eps[:, :1, 1]).all()
  assert len(np.unique(eps[0, :, 0])) == 500
  np.testing.assert_allclose(eps[..., 0].std(), 0.3, rtol=0.01)
  np.testing.assert_allclose(eps[:, 0, 1].std(), 0.7, rtol=0.1)


def test_entropy_is_a_gaussians_and_leaves_out_what_rests():
  """H of N(0, 1) is 1.4189385 nats, of N(0, 0.5^2) 0.7257914."""
  for sigma, nats in ((1.0, 1.4189385), (0.5, 0.7257914)):
    one = {'x': space.real(0.0, sigma=sigma)}
    both = one | {'y': space.real(0.0, sigma=1.5, tuned=False)}
    for some in (one, both):
      rho = jnp.asarray(space.start_rho(some))
      np.testing.assert_allclose(space.entropy(some, rho), nats, atol=2e-6)


def test_no_gradient_passes_through_the_values():
  lam = jnp.asarray(space.start(EVERY_KIND))
  slope = jax.jacobian(lambda lam: space.constrain(EVERY_KIND, lam))(lam)
  for name in EVERY_KIND:
    np.testing.assert_array_equal(slope[name], 0)


def test_clamps_hold_bounded_lam_and_every_sigma():
  lam, rho = space.clamp(EVERY_KIND, jnp.full(6, 50.), jnp.full(6, 50.))
  np.testing.assert_array_equal(lam, [6, 6, 6, 50, 50, 50])
  np.testing.assert_allclose(space.sigma(rho), 2.0, rtol=1e-5)
  _, rho = space.clamp(EVERY_KIND, lam, jnp.full(6, -50.))
  np.testing.assert_allclose(space.sigma(rho), 0.01, rtol=1e-4)
  start = jnp.asarray(space.start(EVERY_KIND))
  same, _ = space.clamp(EVERY_KIND, start, rho)
  np.testing.assert_array_equal(same, start)


@pytest.mark.parametrize(('one', 'message'), [
    ({}, 'the space is empty'),
    ({'learning_rate': space.log(0.1)}, "'learning_rate' cannot be tuned"),
    ({'batch_size': space.integer(8, 1, 64)}, "'batch_size' cannot be tuned"),
    ({'p': space.bounded(0.5, 1, 0)}, r'p: its range \(1, 0\) is upside down'),
    ({'p': space.bounded(0.5, 0, 0)}, r'p: its range \(0, 0\) .* empty'),
    ({'p': space.bounded(3.0, 2.0, math.inf)}, 'p: .* has one end'),
    ({'p': space.bounded(-3.0, -math.inf, 0.0)}, 'p: .* has one end'),
    ({'n': space.integer(1, 0.5, 4)}, 'n: an integer range has whole bounds'),
    ({'n': space.integer(1, 0, math.inf)}, 'n: an integer needs two ends'),
    ({'n': space.integer(1, -math.inf, 4)}, 'n: an integer needs two ends'),
    ({'step': space.log(0.1)}, "'step' cannot head a column"),
    ({'conv1/rate': space.log(0.1)}, "'conv1/rate' cannot head a column"),
    ({'n': space.integer(2, 2, 3)}, r'n: range\(2, 3\) holds one value'),
    ({'n': space.integer(1.5, 0, 4)}, 'n: an integer starts at one'),
    ({'n': space.integer(4, 0, 4)}, r'n: it starts at 4, .* \(0, 4\)'),
    ({'p': space.bounded(1.5, 0, 1)}, r'p: it starts at 1.5, .* \(0, 1\)'),
    ({'p': space.bounded(0.0, 0, 1)}, 'p: it starts at 0.0'),
    ({'p': space.bounded(math.nan, 0, 1)}, 'p: it starts at nan'),
    ({'p': space.bounded(1e-3, 0, 1)}, 'p: .* keep 0.0025 from both ends'),
    ({'a': space.positive(0.0)}, 'a: it starts at 0.0'),
    ({'a': space.log(-1.0)}, r'a: it starts at -1.0, .* \(0.0, inf\)'),
    ({'a': space.real(0.0, sigma=0.0)}, r'a: sigma=0.0 is not in \[0.01, 2'),
    ({'a': space.real(0.0, sigma=9.0)}, 'a: sigma=9.0 is not in')])
def test_what_makes_no_sense_is_refused(one, message):
  with pytest.raises(space.SpaceError, match=message):
    space.check(one)


def test_what_makes_sense_is_not():
  space.check(EVERY_KIND | {'least': space.integer(2, 2, 24)})
