"""Which candidates stay: by likelihood, head and long tail."""

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Indel

SPLITS = ('head', 'longtail')
KINDS = ('compat75', 'quantile', 'length_matched')


class Scored(NamedTuple):
  """What a selector knows of a candidate; `text` breaks ties."""
  score: float  # nats
  length: int  # tokens
  text: str


@dataclasses.dataclass(frozen=True)
class Selector:
  """How candidates are cut.

  Kinds: 'compat75' keeps the upper 75 % as head and the lower 75 % as tail, as
  LINK's code does, so that half of a shared pool is in both. 'quantile' keeps
  the upper and lower `quantile` at the last variable and halves before, which
  never meet. 'length_matched' does the same within each length, so that both
  splits have the same lengths.
  """
  kind: str = 'quantile'
  quantile: float = 0.25
  beam_size: int = 200
  rouge_weight: float = 0.

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(
          f'selector.kind is {self.kind!r}; there are {", ".join(KINDS)}')
    if not 0 < self.quantile <= 0.5:
      raise ValueError(f'selector.quantile is {self.quantile}, not in (0, 0.5]:'
                       ' above a half, head and tail would meet')


def ordered(scored: Sequence[Scored], split: str) -> list[int]:
  """Indices, the most head-like or the most tail-like first."""
  sign = -1 if split == 'head' else 1
  return sorted(range(len(scored)), key=lambda i: (
      sign * scored[i].score, scored[i].text))


def part(n: int, kind: str, quantile: float) -> int:
  """How many of n a split keeps."""
  if kind == 'compat75':
    return math.ceil(0.75 * n)
  return max(int(quantile * n), int(n > 1))


def step(
    selector: Selector, scored: Sequence[Scored], split: str) -> list[int]:
  """Who goes on to the next variable: indices, best first.

  The disjoint kinds keep the better half; of an odd number the one in the
  middle goes on in both splits, for it is the statements that must not meet.
  """
  ratio = 0.75 if selector.kind == 'compat75' else 0.5
  groups = (list(_by_length(scored).values())
            if selector.kind == 'length_matched' else [range(len(scored))])
  kept = [
      group[i] for group in groups
      for i in ordered([scored[j] for j in group], split)[
          :math.ceil(ratio * len(group))]]
  rank = {i: r for r, i in enumerate(ordered(scored, split))}
  return sorted(kept, key=rank.__getitem__)[:selector.beam_size]


def last(
    selector: Selector, pools: dict[str, Sequence[Scored]]
) -> dict[str, list[int]]:
  """What is kept of both splits' pools at the last variable."""
  if selector.kind != 'length_matched':
    return {
        split: ordered(pool, split)[:min(
            part(len(pool), selector.kind, selector.quantile),
            selector.beam_size)]
        for split, pool in pools.items()}
  groups = {split: _by_length(pool) for split, pool in pools.items()}
  kept = {split: [] for split in pools}
  for length in sorted(set.intersection(*(set(g) for g in groups.values()))):
    count = min(part(len(g[length]), selector.kind, selector.quantile)
                for g in groups.values())
    for split, pool in pools.items():
      group = groups[split][length]
      kept[split] += [group[i] for i in ordered(
          [pool[j] for j in group], split)[:count]]
  return kept


def _by_length(scored):
  groups = {}
  for i, one in enumerate(scored):
    groups.setdefault(one.length, []).append(i)
  return groups


def rouge_l(a: str, b: str) -> float:
  """ROUGE-L's F1 of two texts' words: 2 LCS / (m + n)."""
  return Indel.normalized_similarity(a.lower().split(), b.lower().split())


def penalised(score: float, value: str, before: Sequence[str],
              weight: float) -> float:
  """LINK's head score: the mean ROUGE-L with the values before costs."""
  if not weight or not before:
    return score
  return score - weight * float(np.mean([rouge_l(value, b) for b in before]))
