"""Who judges values: exact lookup, a language model's yes or no, agreement."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple
from typing import Protocol

import numpy as np

from link_jax import facts as facts_lib
from link_jax import relations
from link_jax import rules


class Claim(NamedTuple):
  """That a value is of its datatype, or that a predicate holds.

  `predicate` is None for a datatype, and `x`, `y` are then the value and the
  name of its set (or '').
  """
  text: str
  predicate: rules.Predicate | None
  x: str
  y: str


class Verdict(NamedTuple):
  """Probability that a claim is true, or None: the critic abstains."""
  p: float | None
  evidence: tuple[str, ...] = ()


class Critic(Protocol):
  name: str
  fingerprint: str

  def judge(self, claims: Sequence[Claim]) -> list[Verdict]:
    ...


def type_claim(rule: rules.Rule, variable: str, value: str) -> Claim:
  declared = rule.variable(variable)
  return Claim(f'{value} is a {declared.datatype.lower()}', None, value,
               declared.source)


def fact_claim(
    predicate: rules.Predicate, bindings: rules.Bindings) -> Claim:
  x, y = (bindings[name] for name in predicate.arguments)
  return Claim(rules.verbalise(predicate.template, bindings), predicate, x, y)


class FactsCritic:
  """Looks claims up. It says 1, 0, or abstains where the facts are silent."""

  def __init__(self, facts: facts_lib.Facts):
    self.name, self.fingerprint = 'facts', facts.fingerprint
    self._facts = facts

  def judge(self, claims: Sequence[Claim]) -> list[Verdict]:
    return [self._judge(claim) for claim in claims]

  def _judge(self, claim):
    if claim.predicate is None:
      members = self._facts.members(claim.y)
      if members is None:
        return Verdict(None)
      source = members.get(claim.x)
      return Verdict(float(source is not None), (source,) if source else ())
    binding = claim.predicate.binding
    if not binding:
      return Verdict(None)
    answer = relations.parse(binding, self._facts).ask(claim.x, claim.y)
    p = None if answer.holds is None else float(answer.holds)
    return Verdict(p, answer.sources)


class AnswerModel(Protocol):
  """A language model that can say how likely each of some answers is."""
  name: str
  fingerprint: str

  def answer_probabilities(
      self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """[prompts, answers], rows in [0, 1]."""


class YesNoCritic:
  """Asks a language model, as LINK asks Flan-T5: yes against no alone. The
  order of words is LINK's, the words are ours."""

  def __init__(self, model: AnswerModel):
    self.name, self.fingerprint = f'yes-no {model.name}', model.fingerprint
    self._model = model

  @staticmethod
  def prompt(claim: Claim) -> str:
    statement = (claim.text if claim.predicate is None
                 else f'Statement: {claim.text}')
    return ('Think of an ordinary situation and answer yes or no.\n'
            'Is the following correct?\n'
            f'{statement}.\nAnswer:')

  def judge(self, claims: Sequence[Claim]) -> list[Verdict]:
    if not claims:
      return []
    found = np.asarray(self._model.answer_probabilities(
        [self.prompt(claim) for claim in claims], [' yes', ' no']))
    return [Verdict(float(yes / (yes + no)) if yes + no > 0 else None)
            for yes, no in found]


class FirstOf:
  """The first critic that does not abstain decides."""

  def __init__(self, critics: Sequence[Critic]):
    self.name = ', then '.join(critic.name for critic in critics)
    self.fingerprint = '-'.join(critic.fingerprint for critic in critics)
    self._critics = critics

  def judge(self, claims: Sequence[Claim]) -> list[Verdict]:
    verdicts = [Verdict(None)] * len(claims)
    for critic in self._critics:
      open_ = [i for i, v in enumerate(verdicts) if v.p is None]
      for i, verdict in zip(
          open_, critic.judge([claims[i] for i in open_]), strict=True):
        verdicts[i] = verdict
    return verdicts


def consistent(answers: Sequence[str], at_least: int) -> str | None:
  """The answer given `at_least` times, if there is one: for factual nodes,
  whose one right value an honest model says again (LINK: twice of twice)."""
  if not answers:
    return None
  answer, count = Counter(answers).most_common(1)[0]
  return answer if count >= at_least else None


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """In hundredths, so that 0.85 stays 0.85.

  `moving` is LINK's released way: the datatype's threshold comes down in steps
  until something passes; the facts' goes up with the best confidence seen.
  """
  start: int = 85
  step: int = 5
  lowest: int = 65
  moving: bool = True

  def datatype(self, confidences: Sequence[float]) -> int:
    """The highest rung at which one passes, or the lowest."""
    rung = self.start
    while (self.moving and rung > self.lowest
           and not any(passes(c, rung) for c in confidences)):
      rung = max(rung - self.step, self.lowest)
    return rung

  def fact(self, current: int, confidences: Sequence[float]) -> int:
    """The threshold after a call; it starts at `first_fact`."""
    if not self.moving:
      return self.start
    best = max((hundredths(c) for c in confidences), default=0)
    return max(current, min(self.start, best // self.step * self.step))

  @property
  def first_fact(self) -> int:
    return 0 if self.moving else self.start


def hundredths(confidence: float) -> int:
  """0.85 -> 85; what is a hair below, by rounding of sums, counts as it."""
  return int(np.floor(confidence * 100 + 1e-9))


def passes(confidence: float, threshold: int) -> bool:
  return hundredths(confidence) >= threshold


def accumulated(steps: Sequence[float]) -> float:
  """Confidence in a beam: the mean of its steps' probabilities."""
  return float(np.mean(steps)) if steps else 1.
