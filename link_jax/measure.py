"""How far head and long tail are apart, and what else could explain it."""

from collections.abc import Iterable
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np
from scipy import stats

EFFECTIVE = 0.3
"""delta above which the paper calls head and tail apart."""


class Row(NamedTuple):
  """A statement's numbers by one scorer."""
  rule: str
  domain: str
  split: str
  score: float  # nats, by some norm
  length: int  # tokens
  zipf: float  # a mean over the words of its values


class Delta(NamedTuple):
  """Mean over rules of mean(head) - mean(tail), with its 95 % interval from a
  bootstrap over rules."""
  mean: float
  low: float
  high: float
  median: float
  num_rules: int
  share_effective: float  # of rules with delta > EFFECTIVE
  share_positive: float


def split_scores(rows: Iterable[Row]) -> tuple[np.ndarray, np.ndarray]:
  """Scores of the head and of the tail."""
  rows = list(rows)
  return tuple(np.array([r.score for r in rows if r.split == split], np.float64)
               for split in ('head', 'longtail'))


def by_rule(rows: Iterable[Row]) -> dict[str, list[Row]]:
  found = {}
  for row in rows:
    found.setdefault(row.rule, []).append(row)
  return found


def rule_deltas(rows: Iterable[Row]) -> dict[str, float]:
  """Rule -> mean(head) - mean(tail), of rules that have both."""
  found = {}
  for rule, of_rule in by_rule(rows).items():
    head, tail = split_scores(of_rule)
    if len(head) and len(tail):
      found[rule] = float(head.mean() - tail.mean())
  return found


def delta(rows: Sequence[Row], seed: int, num_resamples: int = 9999) -> Delta:
  """LINK's delta (sec. 4), every rule counting alike."""
  values = np.array(list(rule_deltas(rows).values()))
  if not len(values):
    return Delta(*[math.nan] * 4, 0, math.nan, math.nan)
  low = high = float(values.mean())
  if len(values) > 1 and np.ptp(values) > 0:
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=num_resamples, method='percentile',
        rng=np.random.default_rng(seed)).confidence_interval
    low, high = float(interval.low), float(interval.high)
  return Delta(
      float(values.mean()), low, high, float(np.median(values)), len(values),
      float(np.mean(values > EFFECTIVE)), float(np.mean(values > 0)))


def auc(head: np.ndarray, tail: np.ndarray) -> float:
  """P(score of a head statement > that of a tail statement), ties half."""
  if not (len(head) and len(tail)):
    return math.nan
  u = stats.mannwhitneyu(head, tail).statistic
  return float(u / (len(head) * len(tail)))


def mean_auc(rows: Sequence[Row]) -> float:
  """Mean of the rules' AUCs: between rules, templates would decide."""
  found = [auc(*split_scores(r)) for r in by_rule(rows).values()]
  found = [x for x in found if not math.isnan(x)]
  return float(np.mean(found)) if found else math.nan


def overlap(head: np.ndarray, tail: np.ndarray, bin_nats: float) -> float:
  """Area that two histograms share, 0 to 1."""
  if not (len(head) and len(tail)):
    return math.nan
  both = np.concatenate([head, tail])
  first = math.floor(both.min() / bin_nats)
  last = math.floor(both.max() / bin_nats) + 2
  edges = np.arange(first, last) * bin_nats
  shares = [np.histogram(x, edges)[0] / len(x) for x in (head, tail)]
  return float(np.minimum(*shares).sum())


def _within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """Values less the mean of their group."""
  _, index = np.unique(groups, return_inverse=True)
  means = np.bincount(index, values) / np.bincount(index)
  return values - means[index]


def controlled_delta(rows: Sequence[Row], *, length: bool, frequency: bool
                     ) -> float:
  """The part of delta that length and word frequency do not explain.

  Least squares, within rules: score ~ split + length + zipf; the coefficient
  of the split. Without controls it is delta, rules weighted by their sizes.
  """
  if not rows:
    return math.nan
  rules = np.array([r.rule for r in rows])
  centre = lambda x: _within(np.array(x, np.float64), rules)
  columns = [centre([r.split == 'head' for r in rows])]
  if length:
    columns.append(centre([r.length for r in rows]))
  if frequency:
    columns.append(centre([r.zipf for r in rows]))
  solution, *_ = np.linalg.lstsq(
      np.stack(columns, 1), centre([r.score for r in rows]), rcond=None)
  return float(solution[0])


def spearman(rows: Sequence[Row], field: str) -> float:
  """Rank correlation, within rules, of the score with 'length' or 'zipf'."""
  rules = np.array([r.rule for r in rows])
  x = _within(np.array([getattr(r, field) for r in rows], np.float64), rules)
  y = _within(np.array([r.score for r in rows], np.float64), rules)
  if len(rows) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return math.nan
  return float(stats.spearmanr(x, y).statistic)


def summary(rows: Sequence[Row], seed: int, num_resamples: int,
            bin_nats: float) -> dict[str, Any]:
  """All figures of one selector by one scorer."""
  head, tail = split_scores(rows)
  found = delta(rows, seed, num_resamples)
  return {
      'delta': found.mean, 'delta_low': found.low, 'delta_high': found.high,
      'delta_median': found.median, 'num_rules': found.num_rules,
      'share_effective': found.share_effective,
      'share_positive': found.share_positive,
      'auc': mean_auc(rows), 'overlap': overlap(head, tail, bin_nats),
      'delta_pooled': controlled_delta(rows, length=False, frequency=False),
      'delta_length': controlled_delta(rows, length=True, frequency=False),
      'delta_length_zipf': controlled_delta(rows, length=True, frequency=True),
      'head': len(head), 'longtail': len(tail)}


def critic_auc(labels: Sequence[bool], ps: Sequence[float | None]
               ) -> dict[str, float]:
  """Calibration of a critic on labelled claims: AUC, Brier score, and how
  many it leaves open."""
  judged = [(label, p) for label, p in zip(labels, ps, strict=True)
            if p is not None]
  right = np.array([p for label, p in judged if label])
  wrong = np.array([p for label, p in judged if not label])
  brier = float(np.mean([(p - label) ** 2 for label, p in judged])) if (
      judged) else math.nan
  return {'auc': auc(right, wrong), 'brier': brier,
          'abstained': 1 - len(judged) / max(len(labels), 1)}
