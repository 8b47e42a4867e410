"""Who proposes values: the protocol, and the embedded facts behind it."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
from typing import NamedTuple
from typing import Protocol

import numpy as np

from link_jax import facts as facts_lib
from link_jax import graphs
from link_jax import relations
from link_jax import rules


class Candidate(NamedTuple):
  """A proposed value and who proposed it."""
  value: str
  provenance: str


@dataclasses.dataclass(frozen=True)
class Query:
  """Asks for `n` values of a variable, given those before it.

  `call` counts the calls for the same values; with the seed it is a part of
  what a cache knows an answer by, so that no call gets another's answer.
  """
  rule: rules.Rule
  variable: str
  bindings: tuple[tuple[str, str], ...]  # in search order, generics first
  n: int
  call: int
  seed: int
  accepted: tuple[str, ...] = ()
  rejected: tuple[str, ...] = ()

  @property
  def known(self) -> dict[str, str]:
    return dict(self.bindings)

  @property
  def predicates(self) -> tuple[rules.Predicate, ...]:
    return graphs.prompt_predicates(
        self.rule, self.variable, [name for name, _ in self.bindings])

  @property
  def datatype(self) -> str:
    return self.rule.variable(self.variable).datatype

  def key(self) -> str:
    """A hash of what is asked, the seed and the number of the call."""
    asked = [self.rule.name, self.variable, self.bindings, self.n, self.call,
             self.seed]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class KnowledgeModel(Protocol):
  """Proposes values, a list for each query; it may propose what is wrong."""
  name: str
  fingerprint: str

  def propose(self, queries: Sequence[Query]) -> list[list[Candidate]]:
    ...


class FactsModel:
  """Draws from the embedded facts: along the first predicate that is bound,
  or from the variable's set.

  Like any knowledge model it also guesses: `guess_share` of the values are of
  the right set, whatever the predicates say. The critic is to find them out.
  """

  def __init__(self, facts: facts_lib.Facts, guess_share: float = 0.):
    if not 0 <= guess_share < 1:
      raise ValueError(
          f'knowledge.guess_share is {guess_share}, not in [0, 1)')
    self.name = 'facts'
    self.fingerprint = f'{facts.fingerprint} {guess_share}'
    self._facts, self._guess_share = facts, guess_share
    self._lists = {}

  def propose(self, queries: Sequence[Query]) -> list[list[Candidate]]:
    return [self._propose(query) for query in queries]

  def _propose(self, query):
    taken = {*query.accepted, *query.rejected}
    pool = [value for value in self._pool(query) if value not in taken]
    key = int(query.key()[:16], 16)
    generator = np.random.Generator(np.random.Philox(key))
    guesses = self._guesses(query, generator, taken)
    order = generator.permutation(len(pool))[:query.n - len(guesses)]
    return [Candidate(value, self.name)
            for value in (*(pool[i] for i in order), *guesses)]

  def _guesses(self, query, generator, taken):
    """Values of the set, for the part of a query that is guessed."""
    variable = query.rule.variable(query.variable)
    members = self._list(variable.source)
    count = int(self._guess_share * query.n)
    first = len(query.bindings) == len(query.rule.generics)
    if first or variable.role == 'factual' or not members:
      return []
    drawn = generator.integers(len(members), size=count)
    return [members[i] for i in drawn if members[i] not in taken]

  def _list(self, source):
    """A set in order, made once: a guess is the member of a number."""
    if source not in self._lists:
      self._lists[source] = tuple(self._facts.members(source) or ())
    return self._lists[source]

  def _pool(self, query):
    source = query.rule.variable(query.variable).source
    members = self._facts.members(source) or {}
    known = query.known
    for predicate in query.predicates:
      found = self._along(predicate, query.variable, known)
      if found is not None:
        return [value for value in dict.fromkeys(found)
                if not source or value in members]
    return list(members)

  def _along(self, predicate, variable, known):
    if not predicate.binding:
      return None
    relation = relations.parse(predicate.binding, self._facts)
    x, y = predicate.arguments
    return (relation.given_right(known[y]) if x == variable
            else relation.given_left(known[x]))


def check_bindings(rule: rules.Rule, facts: facts_lib.Facts) -> None:
  """Raises RuleError where a rule names what the facts do not have."""
  for predicate in rule.premises:
    if predicate.binding:
      try:
        relations.parse(predicate.binding, facts)
      except ValueError as e:
        raise rules.RuleError(
            f'rule {rule.name!r}, bindings: {predicate.symbol}: {e}') from e
  for variable in rule.variables:
    if variable.source and facts.members(variable.source) is None:
      raise rules.RuleError(
          f'rule {rule.name!r}, types: {variable.name} is to be of the set '
          f'{variable.source!r}; there are {", ".join(sorted(facts.sets))} and '
          'kind_of:CLASS')
