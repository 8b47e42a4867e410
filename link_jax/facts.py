"""The embedded facts: sets, tables of pairs and numbers, each with a source."""

from collections.abc import Mapping
import dataclasses
import functools
import gzip
import hashlib
import pathlib

DATA = pathlib.Path(__file__).parent / 'data'


@dataclasses.dataclass(frozen=True)
class Table:
  """Pairs x, y: `right[x]` and `left[y]` are ordered, `source[x, y]` says
  where a pair stands."""
  right: Mapping[str, tuple[str, ...]]
  left: Mapping[str, tuple[str, ...]]
  source: Mapping[tuple[str, str], str]


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
  """What a source of knowledge holds; `fingerprint` is a hash of its files.

  Sets and relations of it are asked for again and again, and made once.
  """
  sets: Mapping[str, Mapping[str, str]]  # name -> value -> source
  tables: Mapping[str, Table]
  numbers: Mapping[str, Mapping[str, tuple[float, str]]]
  fingerprint: str

  def members(self, name: str) -> Mapping[str, str] | None:
    """Value -> source of a set, or of a class as 'kind_of:bird'."""
    return _members(self, name)


@functools.cache
def _members(facts, name):
  prefix, _, kind = name.partition(':')
  if prefix != 'kind_of' or not kind:
    return facts.sets.get(name)
  table = facts.tables['kind_of']
  if kind not in table.left:
    return None
  return {x: table.source[x, kind] for x in table.left[kind]}


def read(path: pathlib.Path) -> Facts:
  """Facts of a file of lines 'kind, name, x, y, source', tabs between them.

  Raises:
    ValueError: names the line that is not so.
  """
  packed = path.read_bytes()
  sets, pairs, numbers = {}, {}, {}
  lines = gzip.decompress(packed).decode().splitlines()
  for i, line in enumerate(lines, start=1):
    try:
      kind, name, x, y, source = line.split('\t')
      if kind == 'set':
        sets.setdefault(name, {})[x] = source
      elif kind == 'table':
        pairs.setdefault(name, {})[x, y] = source
      elif kind == 'number':
        numbers.setdefault(name, {})[x] = float(y), source
      else:
        raise ValueError(f'the kind is {kind!r}')
    except ValueError as e:
      raise ValueError(f'{path}, line {i}: no fact: {e}') from e
  return Facts(sets, {n: _table(p) for n, p in pairs.items()}, numbers,
               hashlib.sha256(packed).hexdigest()[:16])


def _table(pairs):
  right, left = {}, {}
  for x, y in pairs:
    right.setdefault(x, []).append(y)
    left.setdefault(y, []).append(x)
  return Table({x: tuple(ys) for x, ys in right.items()},
               {y: tuple(xs) for y, xs in left.items()}, pairs)


@functools.lru_cache(maxsize=1)
def embedded() -> Facts:
  """The facts that come with the package."""
  return read(DATA / 'facts.tsv.gz')


def _synsets():
  """(source, its words, pointers, definition) of WordNet's synsets."""
  text = gzip.decompress((DATA / 'wordnet.tsv.gz').read_bytes()).decode()
  return (line.split('\t') for line in text.splitlines())


@functools.lru_cache(maxsize=1)
def glosses() -> Mapping[str, str]:
  """Source of a WordNet fact -> the definition that it stands in."""
  return {source: definition for source, _, _, definition in _synsets()}


@functools.lru_cache(maxsize=1)
def definitions() -> Mapping[str, tuple[str, ...]]:
  """A word -> the definitions of its senses."""
  found = {}
  for _, words, _, definition in _synsets():
    for word in words.split('|'):
      found.setdefault(word, []).append(definition)
  return {word: tuple(senses) for word, senses in found.items()}
