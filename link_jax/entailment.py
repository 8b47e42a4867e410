"""Probing's text side: 13 ways to ask whether a premise entails a conclusion.

LINK asks each statement in 13 forms, some with the conclusion and some with
its negation, and counts it as known only if all 13 answers are right. Negation
and question are made by rule here, where LINK asks a language model.
"""

from collections.abc import Sequence
import re
from typing import Any
from typing import NamedTuple

import numpy as np

NUM_TEMPLATES = 13
_AUXILIARIES = ('is', 'are', 'was', 'were', 'has', 'have', 'had', 'will',
                'would', 'may', 'might', 'can', 'could', 'must', 'should',
                'does', 'did', 'do')
_OWNS = re.compile(
    r'\b(has|had) (?=(?:a|an|the|no|any|to|fewer|more|less)\b)')
_ANSWERS = (('Yes', 'No'), ('True', 'False'), ('Right', 'Wrong'))


class Probe(NamedTuple):
  """One question; `label` is 0 where the first answer is right, else 1."""
  template: int  # 1 to 13
  prompt: str
  answers: tuple[str, str]
  label: int


class Sentence(NamedTuple):
  """'PersonX' | 'is' | 'able to eat paella', and whether it is denied."""
  subject: str
  auxiliary: str
  rest: str
  denied: bool


def analyse(sentence: str) -> Sentence:
  """The parts of a conclusion.

  Raises:
    ValueError: it has no auxiliary verb that could be denied or asked with.
  """
  text = _OWNS.sub(lambda m: 'does have ' if m[1] == 'has' else 'did have ',
                   sentence, count=1)
  # 'has no money' denies, 'is in no way' would too; both read 'no'.
  text = re.sub(r'\bhave no\b', 'not have', text, count=1)
  found = re.match(
      rf'(\S+(?: \S+)*?) ({"|".join(_AUXILIARIES)})\b(n\'t)?\s*(.*)$', text)
  if not found:
    cannot = re.match(r'(\S+(?: \S+)*?) cannot (.*)$', text)
    if not cannot:
      raise ValueError(
          f'conclusion {sentence!r} has no auxiliary verb ({_AUXILIARIES[0]}, '
          f'{_AUXILIARIES[4]}, {_AUXILIARIES[7]} ...): it cannot be negated by '
          'rule')
    return Sentence(cannot[1], 'can', cannot[2], True)
  subject, auxiliary, short, rest = found.groups()
  rest, denials = re.subn(r'^(?:not|never)\s+', '', rest)
  return Sentence(subject, auxiliary, rest, bool(denials or short))


def say(parts: Sentence, denied: bool) -> str:
  """The sentence, affirmed or denied."""
  middle = f'{parts.auxiliary} not' if denied else parts.auxiliary
  if not denied and parts.auxiliary in ('does', 'did') and (
      parts.rest.startswith('have ')):  # 'does have' is 'has'
    form = 'has' if parts.auxiliary == 'does' else 'had'
    return f'{parts.subject} {form} {parts.rest.removeprefix("have ")}'
  return f'{parts.subject} {middle} {parts.rest}'


def negate(sentence: str) -> str:
  """'PersonX is not able to eat paella' -> 'PersonX is able to eat paella'."""
  parts = analyse(sentence)
  return say(parts, not parts.denied)


def question(sentence: str) -> str:
  """Asks for what is affirmed: '... is not able to eat paella' ->
  'is PersonX able to eat paella?'."""
  parts = analyse(sentence)
  return f'{parts.auxiliary} {parts.subject} {parts.rest}?'


def probes(premise: str, conclusion: str, positive: bool) -> list[Probe]:
  """All 13, in LINK's order of forms.

  Of a denying conclusion six are to be affirmed and seven denied, of an
  affirming one seven and six: the plain question changes sides.
  """
  p, c, other = premise, conclusion, negate(conclusion)
  yes, true, right = _ANSWERS
  forms = [
      (f'Is it true that if {p}, {c}?', yes, 0),
      (f'Yes or no: if {p}, {c}.', yes, 0),
      (f'True or false: if {p}, {c}.', true, 0),
      (f'Right or wrong: if {p}, {c}.', right, 0),
      (f'Premise: {p}. Conclusion: {c}. Does the premise entail the '
       'conclusion?', yes, 0),
      (f'Premise: {p}. Conclusion: {other}. Does the premise contradict the '
       'conclusion?', yes, 0),
      (f'Is it true that if {p}, {other}?', yes, 1),
      (f'Yes or no: if {p}, {other}.', yes, 1),
      (f'Answer the question: if {p}, {question(c)}', yes, int(not positive)),
      (f'True or false: if {p}, {other}.', true, 1),
      (f'Right or wrong: if {p}, {other}.', right, 1),
      (f'Premise: {p}. Conclusion: {other}. Does the premise entail the '
       'conclusion?', yes, 1),
      (f'Premise: {p}. Conclusion: {c}. Does the premise contradict the '
       'conclusion?', yes, 1)]
  return [Probe(i, *form) for i, form in enumerate(forms, start=1)]


def of_statement(statement: dict[str, Any]) -> list[Probe]:
  """Probes of a line of statements.jsonl; of a false one, labels flipped."""
  found = probes(statement['premise'], statement['conclusion'],
                 statement['positive'])
  if statement['label']:
    return found
  return [probe._replace(label=1 - probe.label) for probe in found]


class Accuracy(NamedTuple):
  """Of statements with right [N, 13] answers."""
  templates: tuple[float, ...]  # [13]
  mean: float
  all_right: float
  num_statements: int


def accuracy(right: np.ndarray) -> Accuracy:
  """Per template, their mean, and the share with all 13 right.

  Args:
    right: bool [N, 13].
  """
  right = np.asarray(right, bool).reshape(-1, NUM_TEMPLATES)
  if not len(right):
    return Accuracy((float('nan'),) * NUM_TEMPLATES, float('nan'),
                    float('nan'), 0)
  return Accuracy(
      tuple(right.mean(0).tolist()), float(right.mean()),
      float(right.all(1).mean()), len(right))


def read_answer(text: str, answers: Sequence[str]) -> int | None:
  """Index of the answer that a reply begins with, whatever its case."""
  found = re.match(r"\W*(\w+)", text)
  lower = [answer.lower() for answer in answers]
  return lower.index(found[1].lower()) if found and (
      found[1].lower() in lower) else None
