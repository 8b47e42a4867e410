"""Years of persons, battles and presidents, from WordNet's glosses."""

from collections.abc import Iterator
import re

from link_jax.sources import record
from link_jax.sources.wordnet import WordNet

_LIFE = re.compile(r'\((?:[^()]*[^()\d])?(\d{3,4})-(\d{3,4})\)\s*$')
CLASSES = {
    'composer': ('composer', 1), 'painter': ('painter', 1),
    'writer': ('writer', 1), 'scientist': ('scientist', 1),
    'philosopher': ('philosopher', 1), 'musician': ('musician', 1),
    'ruler': ('sovereign', 1), 'officer': ('military officer', 1),
    'actor': ('actor', 1),
    'explorer': ('explorer', 1), 'inventor': ('inventor', 1),
    'mathematician': ('mathematician', 1), 'architect': ('architect', 1),
    'sculptor': ('sculptor', 1),
}
"""Set -> word and sense of the class."""


def full_name(words: tuple[str, ...]) -> str | None:
  """The longest of a person's names that has the first one, the surname, in
  it: by-names such as 'Father of Radio' have not."""
  names = [w for w in words if ' ' in w and ',' not in w
           and set(words[0].split()) <= set(w.split())
           and not re.match(r'(the|Sir|Saint|St\.|King|Queen|President) ', w)]
  return max(names, key=len) if names else None


def life(gloss: str) -> tuple[int, int] | None:
  """'... (1875-1937)' -> the years, where they can be a life AD."""
  found = _LIFE.search(gloss)
  if not found:
    return None
  born, died = int(found[1]), int(found[2])
  return (born, died) if 12 <= died - born <= 110 else None


def persons(net: WordNet) -> Iterator[record.Row]:
  inside = {name: set(net.below(net.find(word, sense)))
            for name, (word, sense) in CLASSES.items()}
  for offset in net.below(net.find('person', 1)):
    synset = net.synsets[offset]
    name, years = full_name(synset.words), life(synset.definition)
    if name is None or years is None or net.num_senses(name) != 1:
      continue
    source = f'wordnet:{offset}'
    yield record.number('born', name, years[0], source)
    yield record.number('died', name, years[1], source)
    yield record.pair('died_in', name, str(years[1]), source)
    yield record.member('person', name, source)
    yield record.number('year', str(years[1]), years[1], 'calendar')
    yield record.member('death_year', str(years[1]), source)
    for group, offsets in inside.items():
      if offset in offsets:
        yield record.member(group, name, source)


_FOUGHT_TWICE = re.compile(
    r'Ypres|Somme|Marne|Panipat|Tannenberg|Poitiers|Ravenna|Lutzen|Sempatch')
"""Names of more than one battle, or misspelt ones."""


def battles(net: WordNet) -> Iterator[record.Row]:
  """`fought`: the year of a battle whose gloss gives one year alone."""
  for offset in net.below(net.find('military action', 1)):
    synset = net.synsets[offset]
    name = next((w for w in synset.words if re.match(
        r'(battle|siege) of ', w.lower())), None)
    found = set(re.findall(
        r'(?<![\d-])(1[0-9]{3}|[4-9]\d\d)(?![\d-])(?! ?BC)', synset.definition))
    if name is None or len(found) != 1 or ' BC' in synset.definition or (
        _FOUGHT_TWICE.search(name)):
      continue
    name = name[0].upper() + name[1:]
    yield record.number('fought', name, int(found.pop()), f'wordnet:{offset}')
    yield record.member('battle', name, f'wordnet:{offset}')


def presidents(net: WordNet) -> Iterator[record.Row]:
  """`president`: the ordinal; who held the office twice is left out."""
  for synset in net.synsets.values():
    found = re.match(r'(\d+)(?:st|nd|rd|th) President of the United States',
                     synset.definition)
    name = full_name(synset.words)
    if found and name and 'Cleveland' not in name:
      source = f'wordnet:{synset.offset}'
      yield record.number('president', name, int(found[1]), source)
      yield record.member('us_president', name, source)


def rows(net: WordNet) -> Iterator[record.Row]:
  for read in (persons, battles, presidents):
    yield from read(net)
