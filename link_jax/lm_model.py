"""A knowledge model that is a language model on this machine's devices."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from link_jax import facts as facts_lib
from link_jax import http_model
from link_jax import knowledge as knowledge_lib
from link_jax import rules as rules_lib
from link_jax import sample
from link_jax.likelihood import Text
from link_jax.lm_score import LanguageModel

MODES = ('choose', 'write')
LEAD = 'It is known that '  # A value in front has something before it.


@dataclasses.dataclass(frozen=True)
class Settings:
  """How values are had of the model.

  Modes: 'choose' lets it draw among members of the variable's set, by how
  likely each makes the predicates; nothing is made up, nothing is to be read.
  'write' asks as an endpoint is asked, and reads what it writes.
  """
  mode: str = 'choose'
  pool_size: int = 64  # members of the set that are weighed in one call
  temperature: float = 1.
  top_p: float = 1.  # of writing
  max_new_tokens: int = 128  # of writing

  def __post_init__(self):
    if self.mode not in MODES:
      raise ValueError(
          f'knowledge.lm.mode is {self.mode!r}; there are {MODES}')


class LmKnowledge:
  """Asks a local language model; every draw is a function of its query."""

  def __init__(
      self, model: LanguageModel, settings: Settings, facts: facts_lib.Facts,
      parse: Callable[[str], list[str]]):
    self.name = f'lm {model.name}'
    self.fingerprint = hashlib.sha256(
        f'{http_model.VERSION} {model.fingerprint} {facts.fingerprint} '
        f'{settings}'.encode()).hexdigest()[:16]
    self._model, self._settings = model, settings
    self._facts, self._parse = facts, parse
    self._write = sample.make_sampler(model)

  def propose(self, queries: Sequence[knowledge_lib.Query]
              ) -> list[list[knowledge_lib.Candidate]]:
    found = ([self._chosen(query) for query in queries]
             if self._settings.mode == 'choose' else self._written(queries))
    return [[knowledge_lib.Candidate(value, self.name) for value in values]
            for values in found]

  def _chosen(self, query):
    """Members of the set, drawn by the likelihood of what they make true."""
    key = sample.call_key(query.seed, query.key(), 'choose')
    members = self._members(query)
    taken = {*query.accepted, *query.rejected}
    pool = sorted(value for value in members if value not in taken)
    generator = np.random.Generator(np.random.Philox(
        int(query.key()[:16], 16)))
    pool = [pool[i] for i in generator.permutation(len(pool))[
        :self._settings.pool_size]]
    if not pool:
      return []
    chosen = sample.choose(
        self._model, [candidate_text(query, value) for value in pool], query.n,
        key, self._settings.temperature)
    return [pool[choice.index] for choice in chosen]

  def _members(self, query):
    members = self._facts.members(query.rule.variable(query.variable).source)
    if members is None:
      raise rules_lib.RuleError(
          f'rule {query.rule.name!r}, types: {query.variable} has no set to '
          "choose from; give it one, or let knowledge.lm.mode be 'write'")
    return members

  def _written(self, queries):
    s = self._settings
    replies = self._write(
        [http_model.prompt_of(query, in_words=True) + '\n1.'
         for query in queries],
        [sample.call_key(query.seed, query.key(), 'write')
         for query in queries],
        max_new_tokens=s.max_new_tokens, temperature=s.temperature,
        top_p=s.top_p)
    return [
        [value for value in self._parse(f'1.{reply}')
         if value not in (*query.accepted, *query.rejected)][:query.n]
        for query, reply in zip(queries, replies, strict=True)]


def candidate_text(query: knowledge_lib.Query, value: str) -> Text:
  """What a value would make true, and where in it the value begins.

  Where nothing joins the variable to values before, its datatype speaks:
  'prawn is an ingredient'.
  """
  bindings = {**query.known, query.variable: value}
  said = rules_lib.conjunction(query.predicates, bindings) or (
      f'{value} is {rules_lib.with_article(query.datatype.lower())}')
  # All from the value's first mention on depends on it.
  return Text(f'{LEAD}{said}.', len(LEAD) + max(said.find(value), 0))
