"""WordNet's files data.* and index.*, as wndb(5WN) describes them."""

from collections.abc import Iterator
import dataclasses
import functools
import pathlib

HYPERNYM, INSTANCE = '@', '@i'
PART_OF = '#p'
ENTAILS, CAUSES = '*', '>'


@dataclasses.dataclass(frozen=True)
class Synset:
  """`pointers` are (symbol, offset) within the part of speech."""
  offset: str
  words: tuple[str, ...]
  pointers: tuple[tuple[str, str], ...]
  frames: frozenset[int]
  gloss: str

  @property
  def definition(self) -> str:
    """The gloss without its examples."""
    return self.gloss.split('; "')[0].strip()

  def follow(self, *symbols: str) -> list[str]:
    return [offset for symbol, offset in self.pointers if symbol in symbols]


class WordNet:
  """One part of speech ('noun' or 'verb') of a WordNet folder."""

  def __init__(self, folder: str, part: str):
    root = pathlib.Path(folder)
    self.part = part
    self.synsets = {s.offset: s for s in _read_data(root / f'data.{part}')}
    self._senses = dict(_read_index(root / f'index.{part}'))
    self._below = {}
    for synset in self.synsets.values():
      for above in synset.follow(HYPERNYM, INSTANCE):
        self._below.setdefault(above, []).append(synset.offset)

  def find(self, word: str, sense: int = 1) -> str:
    """'shellfish', 1 -> its offset."""
    return self._senses[word.lower().replace(' ', '_')][sense - 1]

  def is_first(self, word: str, offset: str) -> bool:
    """Whether this is what the word means most often."""
    senses = self._senses.get(word.lower().replace(' ', '_'), ())
    return bool(senses) and senses[0] == offset

  def num_senses(self, word: str) -> int:
    return len(self._senses.get(word.lower().replace(' ', '_'), ()))

  def name(self, offset: str) -> str | None:
    """The first word of a synset that means it first of all, or None."""
    for word in self.synsets[offset].words:
      if self.is_first(word, offset) and not any(c.isdigit() for c in word):
        return word
    return None

  def below(self, offset: str) -> list[str]:
    """All that is under a synset, nearest first; without itself."""
    return list(self._below_cached(offset))

  @functools.lru_cache(maxsize=4096)  # noqa: B019, lives as long as a command
  def _below_cached(self, offset):
    found, todo = dict.fromkeys([offset]), [offset]
    for one in todo:
      for other in self._below.get(one, ()):
        if other not in found:
          found[other] = None
          todo.append(other)
    return tuple(found)[1:]

  @functools.lru_cache(maxsize=65536)  # noqa: B019, as above
  def above(self, offset: str) -> tuple[str, ...]:
    """All that a synset is a kind or an instance of, nearest first."""
    found, todo = {}, [offset]
    for one in todo:
      for other in self.synsets[one].follow(HYPERNYM, INSTANCE):
        if other not in found:
          found[other] = None
          todo.append(other)
    return tuple(found)


def _read_data(path) -> Iterator[Synset]:
  letter = {'data.noun': 'n', 'data.verb': 'v'}[path.name]
  with path.open(encoding='latin-1') as file:
    for line in file:
      if line.startswith('  '):  # the licence, on top
        continue
      fields, _, gloss = line.partition(' | ')
      part = fields.split()
      count = int(part[3], 16)
      words = tuple(
          w.split('(')[0].replace('_', ' ') for w in part[4:4 + 2 * count:2])
      at = 4 + 2 * count
      num_pointers = int(part[at])
      quads = [part[at + 1 + 4 * i:at + 5 + 4 * i] for i in range(num_pointers)]
      rest = part[at + 1 + 4 * num_pointers:]
      yield Synset(
          part[0], words,
          tuple((symbol, offset) for symbol, offset, pos, _ in quads
                if pos == letter),
          frozenset(int(n) for plus, n in zip(rest[1::3], rest[2::3],
                                              strict=False) if plus == '+'),
          gloss.strip())


def _read_index(path):
  with path.open(encoding='latin-1') as file:
    for line in file:
      if not line.startswith('  '):
        part = line.split()
        yield part[0], tuple(part[-int(part[2]):])
