"""What a reader of a source hands over."""

from typing import NamedTuple


class Row(NamedTuple):
  """One fact and where it stands.

  `kind` is 'set' (x is in the set `name`), 'table' (x and y are a pair of it)
  or 'number' (x has the number y). `source` is 'wordnet:<offset>' and so on.
  """
  kind: str
  name: str
  x: str
  y: str
  source: str


def member(name: str, x: str, source: str) -> Row:
  return Row('set', name, x, '', source)


def pair(name: str, x: str, y: str, source: str) -> Row:
  return Row('table', name, x, y, source)


def number(name: str, x: str, y: float, source: str) -> Row:
  return Row('number', name, x, f'{y:.10g}', source)
