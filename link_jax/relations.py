"""Relations that a rule's predicates are bound to, over embedded facts.

  table:capital_of           a pair of the table; ~table: with x and y swapped
  not_table:borders          two that the table knows, but not as a pair
  less:died:born[:5 | :x2]   number `died` of x under `born` of y, by 5, or 2x
  differs                    x and y are not the same
"""

import bisect
from collections.abc import Iterator
import dataclasses
import functools
from typing import NamedTuple
from typing import Protocol

from link_jax import facts as facts_lib

Facts = facts_lib.Facts


class Answer(NamedTuple):
  """True, False, or None where the source does not know x or y."""
  holds: bool | None
  sources: tuple[str, ...] = ()


class Relation(Protocol):
  """What decides a predicate; `given_left` enumerates y for an x."""

  def ask(self, x: str, y: str) -> Answer:
    ...

  def given_left(self, x: str) -> Iterator[str]:
    ...

  def given_right(self, y: str) -> Iterator[str]:
    ...


@dataclasses.dataclass(frozen=True)
class InTable:
  """Pairs of a table; closed over what stands in it, open beyond."""
  table: facts_lib.Table

  def ask(self, x, y):
    if (x, y) in self.table.source:
      return Answer(True, (self.table.source[x, y],))
    known = x in self.table.right and y in self.table.left
    return Answer(False if known else None)

  def given_left(self, x):
    return iter(self.table.right.get(x, ()))

  def given_right(self, y):
    return iter(self.table.left.get(y, ()))


@dataclasses.dataclass(frozen=True)
class NotInTable:
  """Two different ones that the table knows, in neither order a pair."""
  table: facts_lib.Table

  def ask(self, x, y):
    known = [x in self.table.right or x in self.table.left,
             y in self.table.right or y in self.table.left]
    if not all(known):
      return Answer(None)
    pair = (x, y) in self.table.source or (y, x) in self.table.source
    return Answer(x != y and not pair)

  def given_left(self, x):
    names = dict.fromkeys((*self.table.right, *self.table.left))
    return (y for y in names if self.ask(x, y).holds)

  def given_right(self, y):
    return self.given_left(y)


@dataclasses.dataclass(frozen=True)
class Less:
  """left[x] * factor + margin < right[y]."""
  left: dict[str, tuple[float, str]]
  right: dict[str, tuple[float, str]]
  margin: float = 0.
  factor: float = 1.

  def ask(self, x, y):
    if x not in self.left or y not in self.right:
      return Answer(None)
    (a, source), (b, other) = self.left[x], self.right[y]
    holds = a * self.factor + self.margin < b and x != y
    return Answer(holds, (source, other) if holds else ())

  def given_left(self, x):
    if x not in self.left:
      return iter(())
    least = self.left[x][0] * self.factor + self.margin
    values, names = self._ordered_right
    return (n for n in names[bisect.bisect_right(values, least):] if n != x)

  def given_right(self, y):
    if y not in self.right:
      return iter(())
    values, names = self._ordered_left
    end = bisect.bisect_left(
        values, self.right[y][0],
        key=lambda a: a * self.factor + self.margin)
    return (n for n in names[:end] if n != y)

  @functools.cached_property
  def _ordered_left(self):
    return _ordered(self.left)

  @functools.cached_property
  def _ordered_right(self):
    return _ordered(self.right)


def _ordered(numbers):
  """Values in ascending order and the names that have them."""
  rows = sorted((value, name) for name, (value, _) in numbers.items())
  return tuple(v for v, _ in rows), tuple(n for _, n in rows)


@dataclasses.dataclass(frozen=True)
class Differs:
  """x is not y. It enumerates nothing: a set of the source does."""

  def ask(self, x, y):
    return Answer(x != y)

  def given_left(self, x):
    del x
    return None

  given_right = given_left


@dataclasses.dataclass(frozen=True)
class Swapped:
  """The relation with x and y swapped."""
  of: Relation

  def ask(self, x, y):
    return self.of.ask(y, x)

  def given_left(self, x):
    return self.of.given_right(x)

  def given_right(self, y):
    return self.of.given_left(y)


@functools.cache
def parse(binding: str, facts: Facts) -> Relation:
  """The relation that a binding names.

  Raises:
    ValueError: says what is not known, and what there is.
  """
  if binding.startswith('~'):
    return Swapped(parse(binding[1:], facts))
  kind, *parts = binding.split(':')
  if kind in ('table', 'not_table') and len(parts) == 1:
    _check(binding, 'table', parts[0], facts.tables)
    make = InTable if kind == 'table' else NotInTable
    return make(facts.tables[parts[0]])
  if kind == 'less' and 2 <= len(parts) <= 3:
    for part in parts[:2]:
      _check(binding, 'number', part, facts.numbers)
    return _less(binding, facts, *parts)
  if kind == 'differs' and not parts:
    return Differs()
  raise ValueError(
      f'binding {binding!r} is not known; there are table:NAME, ~table:NAME, '
      'not_table:NAME, less:NUMBER:NUMBER[:MARGIN or :xFACTOR] and differs')


def _less(binding, facts, left, right, by='0'):
  try:
    margin, factor = (0., float(by[1:])) if by[:1] == 'x' else (float(by), 1.)
  except ValueError:
    raise ValueError(f'binding {binding!r}: {by!r} is no number') from None
  return Less(facts.numbers[left], facts.numbers[right], margin, factor)


def _check(binding, kind, name, known):
  if name not in known:
    raise ValueError(f'binding {binding!r}: there is no {kind} {name!r}; there '
                     f'are {", ".join(sorted(known))}')
