"""One variable of the beam search: propose, check the datatype, check facts.

Every parent of a beam asks for values of its own; all parents' questions of
one call go out together, so that a model can answer them side by side.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import NamedTuple

from link_jax import critic as critic_lib
from link_jax import graphs
from link_jax import knowledge as knowledge_lib
from link_jax import rules


class Evidence(NamedTuple):
  """A claim, how sure the critic was, and where that stands."""
  claim: str
  p: float
  sources: tuple[str, ...]


class Partial(NamedTuple):
  """A beam: values so far and what the critics said on the way."""
  bindings: tuple[tuple[str, str], ...]
  type_ps: tuple[float, ...] = ()
  fact_ps: tuple[float, ...] = ()
  evidence: tuple[Evidence, ...] = ()


@dataclasses.dataclass(frozen=True)
class Asking:
  """How many values are asked for, and in how many calls."""
  num_calls: int = 1
  values_per_call: int = 50
  first_values_per_call: int = 100
  patience_calls: int = 2  # Stop after so many calls without one accepted.
  factual_votes: int = 2
  factual_agreeing: int = 2
  seed: int = 0


@dataclasses.dataclass
class Budget:
  """How many values may still be asked for."""
  most: float = math.inf
  taken: int = 0

  @property
  def left(self) -> float:
    return self.most - self.taken

  def take(self, n: int) -> int:
    """As many of n as are left."""
    taken = int(min(n, self.left))
    self.taken += taken
    return taken


@dataclasses.dataclass
class _Parent:
  """What is known of one parent's values while it asks."""
  beam: Partial
  fact_threshold: int
  children: dict[str, Partial] = dataclasses.field(default_factory=dict)
  rejected: list[str] = dataclasses.field(default_factory=list)
  dry_calls: int = 0


@dataclasses.dataclass(frozen=True)
class Expander:
  """Asks `knowledge`, checks with `critic`."""
  knowledge: knowledge_lib.KnowledgeModel
  critic: critic_lib.Critic
  thresholds: critic_lib.Thresholds
  asking: Asking

  def __call__(
      self, rule: rules.Rule, variable: str, beams: Sequence[Partial],
      funnel: Counter, budget: Budget, number: int) -> list[Partial]:
    """All accepted children of the beams; counts go to the funnel.

    `number` is the round's: its calls are others than those before.
    """
    parents = [_Parent(b, self.thresholds.first_fact) for b in beams]
    if rule.variable(variable).role == 'factual':
      self._ask_factual(rule, variable, parents, funnel, budget, number)
    else:
      for call in range(self.asking.num_calls):
        active = [p for p in parents
                  if p.dry_calls < self.asking.patience_calls]
        self._ask(rule, variable, active, funnel, budget,
                  number * self.asking.num_calls + call)
    children = [
        child for parent in parents for child in parent.children.values()
        if critic_lib.passes(critic_lib.accumulated(child.fact_ps),
                             parent.fact_threshold)]
    funnel['factual'] += len(children)
    return children

  def _query(self, rule, variable, parent, call, n):
    return knowledge_lib.Query(
        rule, variable, parent.beam.bindings, n, call, self.asking.seed,
        tuple(parent.children), tuple(parent.rejected))

  def _ask(self, rule, variable, parents, funnel, budget, call):
    first = parents and len(parents[0].beam.bindings) == len(rule.generics)
    n = (self.asking.first_values_per_call if first
         else self.asking.values_per_call)
    asked = [(p, k) for p in parents if (k := budget.take(n))]
    if not asked:
      return
    parents = [p for p, _ in asked]
    replies = self.knowledge.propose(
        [self._query(rule, variable, p, call, k) for p, k in asked])
    fresh = []
    for parent, reply in zip(parents, replies, strict=True):
      taken = {*parent.children, *parent.rejected,
               *(value for _, value in parent.beam.bindings)}
      values = [v for v in dict.fromkeys(c.value for c in reply)
                if v not in taken]
      funnel['proposed'] += len(reply)
      funnel['new'] += len(values)
      fresh.append(values)
    typed = self._check_types(rule, variable, parents, fresh, funnel)
    funnel['typed'] += sum(map(len, typed))
    self._check_facts(rule, variable, parents, typed, funnel)

  def _check_types(self, rule, variable, parents, fresh, funnel):
    """For each parent the children whose datatype is right."""
    verdicts = iter(self.critic.judge([
        critic_lib.type_claim(rule, variable, value)
        for values in fresh for value in values]))
    found = []
    for parent, values in zip(parents, fresh, strict=True):
      children = []
      for value in values:
        verdict = next(verdicts)
        if verdict.p is None:  # To abstain is not to accept.
          funnel['abstained'] += 1
          parent.rejected.append(value)
          continue
        claim = critic_lib.type_claim(rule, variable, value).text
        children.append(parent.beam._replace(
            bindings=(*parent.beam.bindings, (variable, value)),
            type_ps=(*parent.beam.type_ps, verdict.p),
            evidence=(*parent.beam.evidence,
                      Evidence(claim, verdict.p, verdict.evidence))))
      sure = [critic_lib.accumulated(c.type_ps) for c in children]
      threshold = self.thresholds.datatype(sure)
      kept = [c for c, s in zip(children, sure, strict=True)
              if critic_lib.passes(s, threshold)]
      parent.rejected += [c.bindings[-1][1] for c in children if c not in kept]
      found.append(kept)
    return found

  def _check_facts(self, rule, variable, parents, typed, funnel):
    """Adds the children whose facts hold to their parents."""
    searched = [name for name, _ in parents[0].beam.bindings]
    predicates = graphs.claims(rule, variable, searched)
    verdicts = iter(self.critic.judge([
        critic_lib.fact_claim(p, dict(child.bindings))
        for children in typed for child in children for p in predicates]))
    for parent, children in zip(parents, typed, strict=True):
      found = {}
      for child in children:
        given = [next(verdicts) for _ in predicates]
        value = child.bindings[-1][1]
        if any(v.p is None for v in given):
          funnel['abstained'] += 1
          parent.rejected.append(value)
        else:
          found[value] = _with_facts(child, predicates, given)
      sure = {value: critic_lib.accumulated(c.fact_ps)
              for value, c in found.items()}
      parent.fact_threshold = self.thresholds.fact(
          parent.fact_threshold, list(sure.values()) if predicates else [1.])
      kept = {v: c for v, c in found.items()
              if critic_lib.passes(sure[v], parent.fact_threshold)}
      parent.children |= kept
      parent.rejected += [v for v in found if v not in kept]
      parent.dry_calls = 0 if kept else parent.dry_calls + 1

  def _ask_factual(self, rule, variable, parents, funnel, budget, number):
    """One right value: what the model says again, unless a critic denies it."""
    votes, count = [], self.asking.factual_votes
    parents = [p for p in parents if budget.take(count) == count]
    for call in range(number * count, (number + 1) * count):
      replies = self.knowledge.propose(
          [self._query(rule, variable, p, call, 1) for p in parents])
      funnel['proposed'] += sum(map(len, replies))
      votes.append(replies)
    for i, parent in enumerate(parents):
      said = [replies[i][0].value for replies in votes if replies[i]]
      value = critic_lib.consistent(said, self.asking.factual_agreeing)
      if value is None:
        continue
      funnel['new'] += 1
      child = self._judge_factual(rule, variable, parent, value)
      if child is not None:
        funnel['typed'] += 1
        parent.children[value] = child

  def _judge_factual(self, rule, variable, parent, value):
    child = parent.beam._replace(
        bindings=(*parent.beam.bindings, (variable, value)))
    known = [name for name, _ in parent.beam.bindings]
    predicates = graphs.claims(rule, variable, known)
    claims = [critic_lib.fact_claim(p, dict(child.bindings))
              for p in predicates]
    agreed = f'said {self.asking.factual_agreeing} times alike'
    given = [v if v.p is not None else critic_lib.Verdict(1., (agreed,))
             for v in self.critic.judge(claims)]
    if any(not critic_lib.passes(v.p, self.thresholds.start) for v in given):
      return None
    return _with_facts(child, predicates, given)


def _with_facts(
    child: Partial, predicates: Sequence[rules.Predicate],
    verdicts: Sequence[Any]) -> Partial:
  bindings = dict(child.bindings)
  return child._replace(
      fact_ps=(*child.fact_ps, *(v.p for v in verdicts)),
      evidence=(*child.evidence, *(
          Evidence(critic_lib.fact_claim(p, bindings).text, v.p, v.evidence)
          for p, v in zip(predicates, verdicts, strict=True))))
