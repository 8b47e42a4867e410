"""Statistics of rankings, of pairs that are not independent, and of seeds."""

import math
from typing import Any
from typing import NamedTuple

import chex
import numpy as np
from scipy import stats

_ROUNDING = 1e-12  # two equal statistics, summed in other orders


class Mantel(NamedTuple):
  """What a permutation test of two matrices found.

  Attributes:
    effect: the correlation over pairs; nan where a matrix does not vary.
    p: two-sided, (1 + #{|permuted| >= |found|}) / (1 + permutations).
    null_sd: standard deviation of the permuted correlations.
  """
  effect: float
  p: float
  null_sd: float


def spearman(x: Any, y: Any) -> float:
  """Rank correlation; nan where one of them does not vary."""
  return _correlation(stats.spearmanr, x, y)


def pearson(x: Any, y: Any) -> float:
  """Linear correlation; nan where one of them does not vary."""
  return _correlation(stats.pearsonr, x, y)


def kendall(x: Any, y: Any) -> float:
  """Kendall's tau-b; nan where one of them does not vary."""
  return _correlation(stats.kendalltau, x, y)


def kendall_null_sd(num: int) -> float:
  """Standard deviation of tau over uniformly random orders of `num`."""
  return math.sqrt(2 * (2 * num + 5) / (9 * num * (num - 1)))


def sparse_kendall(predicted: Any, true: Any, width: float) -> float:
  """Tau-b with the truth rounded to multiples of `width`.

  What differs by less than `width` counts as tied, since noise orders it.
  """
  if width <= 0:
    raise ValueError(f'width is {width}; truth is rounded to multiples of it, '
                     'so give one over 0')
  return kendall(predicted, np.round(np.asarray(true) / width))


def top_k_overlap(predicted: Any, true: Any, k: int) -> float:
  """Share of the truly lowest k that are among the k predicted lowest."""
  predicted, true = _pair(predicted, true)
  if not 1 <= k <= len(true):
    raise ValueError(f'k is {k}; there are {len(true)} to choose from')
  best, chosen = (np.argsort(v, kind='stable')[:k] for v in (true, predicted))
  return len(np.intersect1d(best, chosen)) / k


def percentile_of_best(predicted: Any, true: Any) -> float:
  """Share of all others that are truly worse than the predicted lowest.

  1 where the prediction finds the best, 0.5 on average where it is random;
  ties count half.
  """
  predicted, true = _pair(predicted, true)
  chosen = int(np.argmin(predicted))
  others = np.delete(true, chosen)
  ties = (others == true[chosen]).mean() / 2
  return float((others > true[chosen]).mean() + ties)


def mantel(x: Any, y: Any, *, num_permutations: int, seed: int,
           ranks: bool = True) -> Mantel:
  """Correlation of two symmetric matrices over pairs of objects.

  Pairs that share an object are not independent, so p comes from permuting
  the objects of x: rows and columns together (Mantel, 1967).

  Args:
    x: [M, M].
    y: [M, M].
    num_permutations: of the objects, drawn uniformly.
    seed: of the permutations.
    ranks: Spearman's correlation; otherwise Pearson's.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  chex.assert_equal_shape([x, y])
  num = _num_objects(x)
  upper = np.triu_indices(num, 1)
  if not (np.isfinite(x[upper]).all() and np.isfinite(y[upper]).all()):
    raise ValueError('a matrix of the Mantel test is not finite: leave out '
                     'the objects that have no value')
  a, b = _standard(x[upper], ranks), _standard(y[upper], ranks)
  if a is None or b is None:
    return Mantel(math.nan, math.nan, math.nan)
  matrix = np.zeros((num, num))
  matrix[upper] = a
  matrix += matrix.T
  effect = float(a @ b)
  rng = np.random.default_rng(seed)
  null = np.empty(num_permutations)
  for i in range(num_permutations):
    order = rng.permutation(num)
    null[i] = matrix[order[upper[0]], order[upper[1]]] @ b
  exceed = int((np.abs(null) >= abs(effect) - _ROUNDING).sum())
  return Mantel(
      effect, (1 + exceed) / (1 + num_permutations), float(null.std()))


def mean_interval(values: Any, confidence: float = 0.95) -> dict[str, float]:
  """Mean over seeds, its sd, and Student's interval of the mean.

  Args:
    values: [S]; of one alone, sd and interval are nan.
    confidence: that the interval holds the mean of normal values.
  """
  values = np.asarray(values, np.float64)
  chex.assert_rank(values, 1)
  num, mean = len(values), float(values.mean())
  if num < 2:
    return {'mean': mean, 'sd': math.nan, 'low': math.nan, 'high': math.nan}
  sd = float(values.std(ddof=1))
  half = sd / math.sqrt(num) * stats.t.ppf((1 + confidence) / 2, num - 1)
  return {'mean': mean, 'sd': sd, 'low': mean - half, 'high': mean + half}


def paired_comparison(ours: Any, baseline: Any, *, num_resamples: int,
                      seed: int) -> dict[str, float]:
  """Losses of two policies on the same seeds: which has the lower mean?

  Args:
    ours: [S], lower is better.
    baseline: [S], with the same seeds in the same order.
    num_resamples: of the seeds, with replacement.
    seed: of the resampling.

  Returns:
    difference: mean of ours - baseline; low and high: its 95 % bootstrap
    interval; probability_better: share of resamples where ours is lower, ties
    half; p: two-sided, over the signs of the differences, exact where there
    are at most `num_resamples` of them. With few seeds p cannot be small:
    five give at least 1/16, however the bootstrap looks.
  """
  ours, baseline = _pair(ours, baseline)
  differences = ours - baseline
  rng = np.random.default_rng(seed)
  rows = rng.integers(len(differences), size=(num_resamples, len(differences)))
  means = differences[rows].mean(1)
  low, high = np.quantile(means, [0.025, 0.975])
  signs = stats.permutation_test(
      (ours, baseline), lambda a, b, axis: np.mean(a - b, axis=axis),
      permutation_type='samples', n_resamples=num_resamples, rng=rng,
      vectorized=True) if len(differences) > 1 else None
  return {
      'difference': float(differences.mean()),
      'low': float(low), 'high': float(high),
      'probability_better': float(
          (means < 0).mean() + (means == 0).mean() / 2),
      'p': float(signs.pvalue) if signs else math.nan,
  }


def _pair(x, y):
  """Two rows of the same length, float64, without nan."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  chex.assert_rank([x, y], 1)
  if x.shape != y.shape or x.size == 0:
    raise ValueError(f'{x.size} values against {y.size}: both rank the same '
                     'objects, at least one')
  if np.isnan(x).any() or np.isnan(y).any():
    raise ValueError('a value is nan: give inf to what failed, or leave it '
                     'out of both')
  return x, y


def _correlation(measure, x, y):
  x, y = _pair(x, y)
  if (x == x[0]).all() or (y == y[0]).all():
    return math.nan
  return float(measure(x, y).statistic)


def _num_objects(x):
  if x.ndim != 2 or x.shape[0] != x.shape[1] or len(x) < 3:
    raise ValueError(f'a matrix of shape {x.shape}: pairs of at least three '
                     'objects are [M, M]')
  return len(x)


def _standard(values, ranks):
  """Centred, of norm 1; None where nothing varies."""
  values = stats.rankdata(values) if ranks else values
  if np.ptp(values) == 0:
    return None
  centred = values - values.mean()
  return centred / np.linalg.norm(centred)
