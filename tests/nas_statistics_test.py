"""Statistics against scipy, enumeration and their own null distributions."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from nas_jax import statistics

RNG = np.random.default_rng(0)


def matrix(values):
  return distance.squareform(np.asarray(values, float))


def distances(num, rng):
  return distance.squareform(distance.pdist(rng.normal(size=(num, 3))))


@pytest.mark.parametrize('x, y', [
    (RNG.normal(size=30), RNG.normal(size=30)),
    (RNG.integers(4, size=30), RNG.integers(3, size=30))],
    ids=['random', 'tied'])
@pytest.mark.parametrize('name, ours', [
    ('spearmanr', statistics.spearman), ('pearsonr', statistics.pearson),
    ('kendalltau', statistics.kendall)])
def test_correlations_are_scipys(x, y, name, ours):
  assert ours(x, y) == getattr(stats, name)(x, y).statistic


def test_what_does_not_vary_correlates_with_nothing():
  assert math.isnan(statistics.spearman([1, 1, 1], [1, 2, 3]))
  assert math.isnan(statistics.kendall([1, 2, 3], [np.inf] * 3))


def test_failures_rank_last_and_nan_is_refused():
  assert statistics.kendall([1, 2, 3], [4, 5, np.inf]) == 1
  with pytest.raises(ValueError, match='nan: give inf'):
    statistics.kendall([1, 2, 3], [4, 5, np.nan])
  with pytest.raises(ValueError, match='3 values against 2'):
    statistics.kendall([1, 2, 3], [4, 5])


@pytest.mark.parametrize('num', [3, 6])
def test_sd_of_tau_over_all_orders(num):
  taus = [statistics.kendall(range(num), order)
          for order in itertools.permutations(range(num))]
  assert np.mean(taus) == pytest.approx(0, abs=1e-12)
  assert np.std(taus) == pytest.approx(statistics.kendall_null_sd(num))


def test_sd_of_tau_at_the_sizes_of_the_benchmarks():
  assert statistics.kendall_null_sd(32) == pytest.approx(0.124, abs=5e-4)
  assert statistics.kendall_null_sd(100) == pytest.approx(0.0678, abs=5e-5)


def test_sparse_tau_forgives_exchanges_within_a_bin():
  true = [1.00, 1.01, 2.00, 2.01]
  predicted = [2, 1, 4, 3]
  # Of six pairs four agree and two do not.
  assert statistics.kendall(predicted, true) == pytest.approx(2 / 6)
  # Four pairs are left, all agree: 4 / sqrt(6 * 4).
  assert statistics.sparse_kendall(predicted, true, 0.1) == pytest.approx(
      4 / math.sqrt(24))
  with pytest.raises(ValueError, match='width is 0'):
    statistics.sparse_kendall(predicted, true, 0)


def test_overlap_of_the_best():
  true = [5.0, 1.0, 2.0, 4.0, 3.0]
  predicted = [0.0, 1.0, 2.0, 3.0, 4.0]
  # Truly best: 1 2 4; predicted: 0 1 2.
  assert statistics.top_k_overlap(predicted, true, 3) == pytest.approx(2 / 3)
  assert statistics.top_k_overlap(predicted, true, 5) == 1
  with pytest.raises(ValueError, match='k is 6; there are 5'):
    statistics.top_k_overlap(predicted, true, 6)


def test_percentile_of_the_predicted_best():
  true = np.array([3.0, 1.0, 2.0, 2.0])
  # Any prediction which is lowest at i: others that are worse, ties half.
  found = [statistics.percentile_of_best(np.arange(4) != i, true)
           for i in range(4)]
  np.testing.assert_allclose(found, [0, 1, 1.5 / 3, 1.5 / 3])
  assert np.mean(found) == 0.5


def test_mantel_p_is_the_share_of_all_orders():
  x, y = matrix([1, 5, 2, 6, 3, 4]), matrix([2, 6, 1, 5, 4, 3])
  upper = np.triu_indices(4, 1)
  every = [statistics.spearman(x[np.ix_(p, p)][upper], y[upper])
           for p in map(list, itertools.permutations(range(4)))]
  share = np.mean(np.abs(every) >= abs(every[0]) - 1e-9)
  found = statistics.mantel(x, y, num_permutations=20_000, seed=0)
  assert found.effect == pytest.approx(every[0])
  assert found.p == pytest.approx(share, abs=0.01)
  assert found.null_sd == pytest.approx(np.std(every), rel=0.02)


@pytest.mark.parametrize('ranks', [True, False])
def test_mantel_effect_is_the_correlation_over_pairs(ranks):
  x, y = distances(20, RNG), distances(20, RNG)
  upper = np.triu_indices(20, 1)
  measure = statistics.spearman if ranks else statistics.pearson
  found = statistics.mantel(x, y, num_permutations=9, seed=0, ranks=ranks)
  assert found.effect == pytest.approx(measure(x[upper], y[upper]))


def test_the_least_p_counts_the_order_found():
  x = distances(20, RNG)
  found = statistics.mantel(x, x, num_permutations=99, seed=0)
  assert found.effect == pytest.approx(1) and found.p == 1 / 100


def test_mantel_p_is_uniform_where_nothing_is_related():
  rng = np.random.default_rng(1)
  found = [statistics.mantel(
      distances(12, rng), distances(12, rng), num_permutations=99, seed=i).p
           for i in range(300)]
  assert stats.kstest(found, 'uniform').pvalue > 0.01


def test_the_null_of_independent_pairs_has_an_sd_of_one_over_their_root():
  rng = np.random.default_rng(2)
  num = 100
  pairs = num * (num - 1) // 2
  x, y = matrix(rng.normal(size=pairs)), matrix(rng.normal(size=pairs))
  found = statistics.mantel(x, y, num_permutations=2000, seed=0)
  assert found.null_sd == pytest.approx(0.0142, abs=7e-4)
  assert found.null_sd == pytest.approx(1 / math.sqrt(pairs), rel=0.05)


def test_the_same_seed_permutes_alike():
  x, y = distances(10, RNG), distances(10, RNG)
  runs = [statistics.mantel(x, y, num_permutations=50, seed=s)
          for s in (3, 3, 4)]
  assert runs[0] == runs[1] != runs[2]


def test_matrices_without_a_test_are_named_or_nan():
  x = distances(5, RNG)
  found = statistics.mantel(x, np.ones((5, 5)), num_permutations=9, seed=0)
  assert np.isnan(found).all()
  with pytest.raises(ValueError, match='not finite'):
    statistics.mantel(x, x * np.nan, num_permutations=9, seed=0)
  with pytest.raises(ValueError, match='three'):
    statistics.mantel(x[:2, :2], x[:2, :2], num_permutations=9, seed=0)


def test_interval_of_a_mean_is_students():
  values = RNG.normal(size=5)
  found = statistics.mean_interval(values)
  expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  assert found['low'] == pytest.approx(expected.low)
  assert found['high'] == pytest.approx(expected.high)
  assert found['sd'] == pytest.approx(np.std(values, ddof=1))
  assert math.isnan(statistics.mean_interval([1.0])['low'])


def test_a_policy_that_always_wins():
  found = statistics.paired_comparison(
      [1, 2, 3, 4, 5], [2, 3, 4, 5, 7], num_resamples=1000, seed=0)
  assert found['probability_better'] == 1
  assert found['difference'] == pytest.approx(-1.2)
  assert found['low'] < -1.2 < found['high'] < 0
  assert found['p'] == 1 / 16  # two of 32 signs


def test_equal_policies_are_better_half_of_the_time():
  same = statistics.paired_comparison(
      [1, 2, 3], [1, 2, 3], num_resamples=100, seed=0)
  assert same['probability_better'] == 0.5 and same['p'] == 1
  # Resamples of +1, -1 with one of each tie; the others are split evenly.
  split = statistics.paired_comparison(
      [1, 2], [2, 1], num_resamples=20_000, seed=0)
  assert split['probability_better'] == pytest.approx(0.5, abs=0.01)


def test_the_bootstrap_pairs_seeds():
  # Seeds vary by 100, the policies by 1: unpaired resamples would not see it.
  seeds = np.arange(8) * 100.0
  found = statistics.paired_comparison(
      seeds - 1, seeds, num_resamples=500, seed=0)
  assert found['probability_better'] == 1 and found['low'] == -1
