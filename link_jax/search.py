"""The knowledge beam search: variable by variable, head and long tail apart.

LINK, sec. 3: for each variable in turn a knowledge model proposes values, a
critic keeps those of the right datatype and with true facts, a language model
ranks what is left, and the likely ones go on in the head's beam, the unlikely
in the tail's. After the last variable the beams are the statements.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from link_jax import expand
from link_jax import graphs
from link_jax import likelihood as likelihood_lib
from link_jax import rules
from link_jax import selection

SPLITS = selection.SPLITS
ON_EXHAUSTED = ('keep', 'drop', 'stop')
OnEvent = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Search:
  """What a search works with, and by which settings.

  Attributes:
    expander: proposes and checks.
    ranker: whose likelihoods decide the split.
    selector: how they decide.
    norm: which number of a likelihood, see likelihood.NORMS.
    order: of the variables, see graphs.search_order.
    target_per_split: statements at most for a rule and split.
    max_repeats: of one value of a variable within a split; 0 for no limit.
    max_candidates: values that may be asked for of a rule. Where a split is
      short of its target the search asks again, until they are spent; 0 for
      one round, whatever it gives.
    on_exhausted: what becomes of a rule that is short at the end: 'keep' what
      it has, 'drop' it, or 'stop' with an error.
  """
  expander: expand.Expander
  ranker: likelihood_lib.Scorer
  selector: selection.Selector
  norm: str = 'mean'
  order: str = 'auto'
  target_per_split: int = 12
  max_repeats: int = 2
  max_candidates: int = 0
  on_exhausted: str = 'keep'


class Exhausted(ValueError):
  """A rule gave fewer statements than wanted; the message says how many."""


class Found(NamedTuple):
  """A finished statement."""
  beam: expand.Partial
  score: float
  statement: str
  shared: bool  # The other split has it too.


class Result(NamedTuple):
  """Statements by split, and a row of counts for each step and split."""
  found: dict[str, list[Found]]
  funnel: list[dict[str, Any]]


class _Candidate(NamedTuple):
  beam: expand.Partial
  scored: selection.Scored


def search(rule: rules.Rule, by: Search, on_event: OnEvent | None = None
           ) -> Result:
  """Statements of a rule; `on_event` hears of every step that is done.

  Raises:
    Exhausted: a split is short of its target, and `on_exhausted` is 'stop'.
  """
  budget = expand.Budget(by.max_candidates or math.inf)
  pools, funnel = {split: {} for split in SPLITS}, []
  for number in itertools.count():
    for split, pool in _round(
        rule, by, funnel, budget, number, on_event).items():
      pools[split] |= {c.beam.bindings: c for c in pool}
    found = _finish(rule, by, pools)
    if not by.max_candidates or budget.left < 1 or _is_full(by, found):
      break
  found = _exhausted(rule, by, found)
  for row in funnel[-2:]:
    row['kept'] = len(found[row['split']])
  return Result(found, funnel)


def _is_full(by, found):
  return all(len(ones) >= by.target_per_split for ones in found.values())


def _exhausted(rule, by, found):
  """What becomes of a rule's statements if they are too few."""
  if by.on_exhausted == 'keep' or _is_full(by, found):
    return found
  if by.on_exhausted == 'drop':
    return {split: [] for split in found}
  counts = ' and '.join(f'{len(ones)} of {by.target_per_split} {split}'
                        for split, ones in found.items())
  raise Exhausted(
      f'rule {rule.name!r} gave {counts} statements. Raise '
      'search.max_candidates or lower search.target_per_split, or let '
      "search.on_exhausted be 'keep' or 'drop'")


def _round(rule, by, funnel, budget, number, on_event):
  """Split -> candidates of the last variable, found from the first on."""
  generic = rules.generic_bindings(rule)
  order = graphs.search_order(rule, by.order)
  start = expand.Partial(tuple(
      (name, generic[name]) for name in order if name in generic))
  beams, variables = {split: [start] for split in SPLITS}, order[len(generic):]
  for i, variable in enumerate(variables):
    pools = _pools(rule, variable, beams, by, funnel, budget, number)
    if variable != variables[-1]:
      beams = {
          split: [pool[j].beam for j in (
              range(len(pool)) if i == 0 else selection.step(
                  by.selector, [c.scored for c in pool], split))]
          for split, pool in pools.items()}
      for row in funnel[-2:]:
        row['kept'] = len(beams[row['split']])
    if on_event:
      on_event({'event': 'step', 'rule': rule.name, 'round': number,
                'variable': variable, 'rows': [dict(r) for r in funnel[-2:]]})
  return pools


def _pools(rule, variable, beams, by, funnel, budget, number):
  """Split -> candidates. Beams that have not parted yet share theirs."""
  pools, children, counts = {}, None, None
  same = beams['head'] == beams['longtail']
  for split in SPLITS:
    if children is None or not same:
      counts = Counter()
      share = expand.Budget(  # The head leaves the tail its half.
          budget.left / 2 if split == 'head' and not same else budget.left)
      children = by.expander(
          rule, variable, beams[split], counts, share, number)
      budget.taken += share.taken
    funnel.append({
        'rule': rule.name, 'variable': variable, 'split': split,
        **{name: counts[name] for name in (
            'proposed', 'new', 'typed', 'abstained', 'factual')}, 'kept': 0})
    pools[split] = _score(rule, variable, children, split, by)
  return pools


def text_of(
    rule: rules.Rule, bindings: rules.Bindings, variable: str
) -> likelihood_lib.Text:
  """All bound predicates as one text, and where the variable's value is."""
  marked = {**bindings, variable: f'\0{bindings[variable]}'}
  parts = [
      rules.SLOT.sub(lambda m: _fill(m, bindings, marked), p.template)
      for p in rule.predicates if rules.is_bound(p, bindings)]
  text = ' and '.join(parts)
  start = max(text.find('\0'), 0)
  return likelihood_lib.Text(text.replace('\0', ''), start)


def _fill(match, bindings, marked):
  if not match[1]:
    return marked[match[2]]
  value = bindings[match[2]]
  article = rules.with_article(value).removesuffix(value)
  return article + marked[match[2]]


def _score(rule, variable, children, split, by):
  """Candidates with the number that a split ranks them by."""
  texts = [text_of(rule, dict(c.bindings), variable) for c in children]
  norm = likelihood_lib.NORMS[by.norm]
  weight = by.selector.rouge_weight if split == 'head' else 0.
  found = []
  for child, text, one in zip(
      children, texts, by.ranker.score(texts), strict=True):
    *before, (_, value) = child.bindings
    score = selection.penalised(
        norm(one), value, [v for _, v in before], weight)
    found.append(_Candidate(child, selection.Scored(
        score, one.tokens, text.text)))
  return found


def _finish(rule, by, pools):
  """Split -> statements: each once, balanced over values, at most target."""
  unique = {split: _unique(rule, [*pool.values()], split)
            for split, pool in pools.items()}
  kept = selection.last(by.selector, {
      split: [c.scored for c in pool.values()]
      for split, pool in unique.items()})
  chosen = {}
  for split, indices in kept.items():
    names = list(unique[split])
    chosen[split] = {names[i]: unique[split][names[i]] for i in indices}
  both = set.intersection(*(set(c) for c in chosen.values()))
  if by.selector.kind != 'compat75':
    # A statement that both ways lead to is neither: in no split, then.
    chosen = {split: {name: c for name, c in found.items() if name not in both}
              for split, found in chosen.items()}
  found = {
      split: [Found(c.beam, c.scored.score, name, name in both)
              for name, c in _balanced(rule, by, chosen[split])]
      for split in SPLITS}
  return _matched(rule, by, found)


def _unique(rule, pool, split):
  """Short statement -> its most head-like, or tail-like, candidate."""
  found = {}
  for i in selection.ordered([c.scored for c in pool], split):
    candidate = pool[i]
    found.setdefault(
        rules.statement(rule, dict(candidate.beam.bindings)), candidate)
  return found


def _balanced(rule, by, chosen: dict[str, _Candidate]
              ) -> Sequence[tuple[str, _Candidate]]:
  """At most `target_per_split`, drawn evenly, no value too often."""
  names = sorted(chosen)
  seed = hashlib.sha256(
      f'{by.expander.asking.seed} {rule.name}'.encode()).digest()
  key = int.from_bytes(seed[:8], 'big')
  draw = np.random.Generator(np.random.Philox(key)).permutation(len(names))
  uses, limits, picked = Counter(), _limits(by, chosen.values()), []
  for i in draw:
    bindings = chosen[names[i]].beam.bindings
    if len(picked) < by.target_per_split and all(
        uses[b] < limits[b[0]] for b in bindings):
      uses.update(bindings)
      picked.append((names[i], chosen[names[i]]))
  return sorted(picked, key=lambda item: item[0])


def _limits(by, candidates):
  """Variable -> how often one value may be in a split."""
  values = {}
  for candidate in candidates:
    for name, value in candidate.beam.bindings:
      values.setdefault(name, set()).add(value)
  return {
      name: max(by.max_repeats, math.ceil(2 * by.target_per_split / len(seen)))
      if by.max_repeats and len(seen) > 1 else by.target_per_split
      for name, seen in values.items()}


def _matched(rule, by, found):
  """With 'length_matched', as many of each length in one split as in the
  other, after the draw too."""
  if by.selector.kind != 'length_matched':
    return found
  lengths = {
      split: Counter(_length(rule, by, f) for f in ones)
      for split, ones in found.items()}
  left = lengths['head'] & lengths['longtail']
  matched = {}
  for split, ones in found.items():
    room, matched[split] = Counter(left), []
    for one in ones:
      if room[_length(rule, by, one)]:
        room[_length(rule, by, one)] -= 1
        matched[split].append(one)
  return matched


def _length(rule, by, found):
  bindings = dict(found.beam.bindings)
  text = text_of(rule, bindings, found.beam.bindings[-1][0])
  return by.ranker.score([text])[0].tokens
