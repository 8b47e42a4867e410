"""Rules, and what they say in words.

A rule says: if its premises hold of an anonymous subject (the generic
variable, 'PersonX'), so does its one conclusion. Premises with the subject are
*information*, the others *constraints*: facts of the world.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import re

import inflect

SLOT = re.compile(r'\[(a )?([A-Z])\]')
"""[B] is the value of B, [a B] the same with its article."""


class RuleError(ValueError):
  """A rule that cannot be searched; the message names the rule and field."""


@dataclasses.dataclass(frozen=True)
class Variable:
  """One of a rule's variables.

  `role` is 'generic', 'information' (in the conclusion, or beside a generic in
  a premise), 'factual' (one right value, such as a year) or 'constraint'.
  `source` names a set of a knowledge source, or is ''.
  """
  name: str
  datatype: str
  role: str
  source: str = ''


@dataclasses.dataclass(frozen=True)
class Predicate:
  """`name(x, y)`, its English template, and what decides it ('' if none)."""
  name: str
  arguments: tuple[str, str]
  template: str
  kind: str  # 'information', 'constraint', 'conclusion'
  binding: str = ''

  @property
  def symbol(self) -> str:
    return f'{self.name}({", ".join(self.arguments)})'


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule whose graph has been checked (see graphs.py)."""
  name: str
  domain: str
  variables: tuple[Variable, ...]
  premises: tuple[Predicate, ...]
  conclusion: Predicate

  @property
  def predicates(self) -> tuple[Predicate, ...]:
    return (*self.premises, self.conclusion)

  def variable(self, name: str) -> Variable:
    return next(v for v in self.variables if v.name == name)

  @property
  def generics(self) -> tuple[str, ...]:
    return tuple(v.name for v in self.variables if v.role == 'generic')

  @property
  def positive(self) -> bool:
    """Whether the conclusion affirms (compatibility) or denies (exclusion)."""
    return not re.search(r"\b(not|never|no|nothing|cannot)\b|n't\b",
                         self.conclusion.template)


Bindings = Mapping[str, str]
"""Variable -> value."""


def generic_bindings(rule: Rule) -> dict[str, str]:
  """The anonymous subjects: P -> 'PersonX'."""
  return {v.name: f'{v.datatype}X' for v in rule.variables
          if v.role == 'generic'}


@functools.lru_cache(maxsize=1)
def _english():
  return inflect.engine()


@functools.lru_cache(maxsize=65536)
def with_article(noun: str) -> str:
  """'anchovy' -> 'an anchovy'."""
  return _english().a(noun)


def verbalise(template: str, bindings: Bindings) -> str:
  """The template with its slots filled, in one pass: a value stays as it is,
  whatever letters it has."""
  return SLOT.sub(
      lambda m: with_article(bindings[m[2]]) if m[1] else bindings[m[2]],
      template)


def symbolic(predicate: Predicate, bindings: Bindings) -> str:
  """'is_ingredient_in(prawn, B)': bound arguments as values."""
  arguments = ', '.join(bindings.get(a, a) for a in predicate.arguments)
  return f'{predicate.name}({arguments})'


def is_bound(predicate: Predicate, bindings: Iterable[str]) -> bool:
  return set(predicate.arguments) <= set(bindings)


def conjunction(
    predicates: Sequence[Predicate], bindings: Bindings) -> str:
  """The bound ones of the predicates, in their order, joined by 'and'."""
  return ' and '.join(
      verbalise(p.template, bindings) for p in predicates
      if is_bound(p, bindings))


def premise(rule: Rule, bindings: Bindings) -> str:
  """What the statement tells: the premises with the subject."""
  return conjunction(
      [p for p in rule.premises if p.kind == 'information'], bindings)


def statement(rule: Rule, bindings: Bindings) -> str:
  """The short statement; constraints are left to the reader's knowledge."""
  return (f'if {premise(rule, bindings)}, '
          f'{verbalise(rule.conclusion.template, bindings)}')
