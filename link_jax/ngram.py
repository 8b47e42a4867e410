"""Scorers without weights: word counts of the web and of wordfreq's corpora.

`bigram` has the counts that PyPI's wordsegment carries (Google's web corpus:
333,213 words, 258,437 pairs), `unigram` the frequencies of PyPI's wordfreq
(books, subtitles, news, encyclopedias). They are of different texts, so that
one can judge what the other ranked. Words are lower case, without accents.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
import re
import unicodedata

from link_jax.likelihood import Likelihood
from link_jax.likelihood import Text

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_START = '<s>'
_UNSEEN = 1e-4
"""Probability of all words that were not counted."""
_PAIRS = 0.75
"""Weight of pairs against single words where the pair's first word has any."""


def words(text: str) -> list[tuple[str, int]]:
  """Words and where they begin in the text."""
  # Accents go letter by letter, so that the places stay.
  plain = ''.join(
      unicodedata.normalize('NFKD', c)[:1].lower()[:1] or c for c in text)
  return [(m[0], m.start()) for m in _WORD.finditer(plain)]


def unseen_probability(word: str) -> float:
  """Of a word that was not counted: 36 characters, "'" and an end, all alike.

  Over all words it sums to _UNSEEN.
  """
  return _UNSEEN * 38. ** -(len(word) + 1)


@dataclasses.dataclass(frozen=True)
class Counts:
  """Of words, their sum, of pairs, and their sums by the first word."""
  words: Mapping[str, float]
  total: float
  pairs: Mapping[str, float]
  pair_totals: Mapping[str, float]

  def probability(self, word: str, before: str) -> float:
    """p(word | before), a mixture that sums to 1 over all words."""
    count = self.words.get(word)
    alone = (unseen_probability(word) if count is None
             else (1 - _UNSEEN) * count / self.total)
    total = self.pair_totals.get(before)
    if total is None:
      return alone
    pair = self.pairs.get(f'{before} {word}', 0.) / total
    return _PAIRS * pair + (1 - _PAIRS) * alone


class Bigram:
  """Words given the word before; the first given the start of a sentence."""

  def __init__(self, name: str, counts: Counts, fingerprint: str):
    self.name, self.fingerprint = name, fingerprint
    self._log = functools.lru_cache(maxsize=1 << 18)(
        lambda word, before: math.log(counts.probability(word, before)))

  def score(self, texts: Sequence[Text]) -> list[Likelihood]:
    return [self._score(text) for text in texts]

  def _score(self, text):
    before, total, value, value_words, count = _START, 0., 0., 0, 0
    for word, start in words(text.text):
      nats = self._log(word, before)
      total, count, before = total + nats, count + 1, word
      if start >= text.value_start:
        value, value_words = value + nats, value_words + 1
    return Likelihood(
        total, count, len(text.text.encode()), value, value_words)


@functools.lru_cache(maxsize=1)
def bigram() -> Bigram:
  """wordsegment's counts."""
  import wordsegment
  if not wordsegment.UNIGRAMS:
    wordsegment.load()
  pairs = {
      pair: count for pair, count in wordsegment.BIGRAMS.items()
      if (first := pair.split()[0]) == _START or first in wordsegment.UNIGRAMS}
  totals = {}
  for pair, count in pairs.items():
    first, second = pair.split()
    if second in wordsegment.UNIGRAMS:
      totals[first] = totals.get(first, 0.) + count
  counts = Counts(
      wordsegment.UNIGRAMS, sum(wordsegment.UNIGRAMS.values()), pairs, totals)
  return Bigram('bigram', counts, _version('wordsegment'))


@functools.lru_cache(maxsize=1)
def unigram() -> Bigram:
  """wordfreq's frequencies, each word alone."""
  import wordfreq
  found = {word: p for word, p in
           wordfreq.get_frequency_dict('en', 'large').items()
           if _WORD.fullmatch(word)}
  counts = Counts(found, sum(found.values()), {}, {})
  return Bigram('unigram', counts, _version('wordfreq'))


def _version(package):
  version = f'{package} {importlib.metadata.version(package)}'
  return hashlib.sha256(version.encode()).hexdigest()[:16]


def zipf(text: str) -> float:
  """Mean of log10 of its words' frequencies per 10^9 words (wordfreq).

  Of the words one by one: wordfreq's own figure for a phrase adds their
  rarities as if they were one word.
  """
  import wordfreq
  found = [wordfreq.zipf_frequency(word, 'en') for word, _ in words(text)]
  return sum(found) / len(found) if found else 0.
