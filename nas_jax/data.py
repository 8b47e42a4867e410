"""Text as rows of tokens: a Markov source, Python's help, Brown, Treebank."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from core_jax import text

_WORD = re.compile(r"[a-z_]+|\d+")
_HELP_VOCABULARY = 1_000


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Text in three parts.

  Attributes:
    splits: 'train', 'valid', 'test' -> ids [n], int32.
    vocab_size: V.
    floor: nats a token below which no model can be in expectation, where it
      is known.
  """
  splits: Mapping[str, np.ndarray]
  vocab_size: int
  floor: float | None = None


@dataclasses.dataclass(frozen=True)
class Markov:
  """A source whose next symbol depends on the last `order` ones.

  Attributes:
    probs: [V, ..., V, V], the last axis the next symbol's.
  """
  probs: np.ndarray

  @classmethod
  def draw(cls, vocab_size: int, order: int, concentration: float,
           seed: int) -> 'Markov':
    """Rows from a symmetric Dirichlet distribution."""
    rng = np.random.default_rng((seed, vocab_size, order))
    return cls(rng.dirichlet(
        np.full(vocab_size, concentration), size=(vocab_size,) * order))

  @property
  def order(self) -> int:
    return self.probs.ndim - 1

  def stationary(self) -> np.ndarray:
    """[V, ..., V], how often each context comes, by power iteration."""
    context = np.full(self.probs.shape[:-1], 1 / self.probs[..., 0].size)
    for _ in range(10_000):
      after = np.sum(context[..., None] * self.probs, 0)
      # Half a step: a source with a period has a stationary state too.
      after = (after + context) / 2
      if np.abs(after - context).max() < 1e-15:
        break
      context = after
    return context

  def entropy_rate(self) -> float:
    """Nats a symbol."""
    p = self.probs
    logs = np.log(p, where=p > 0, out=np.zeros_like(p))
    return float(-np.sum(self.stationary()[..., None] * p * logs))

  def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
    """[num], int32, after a run-in of 100 from the first context."""
    size, order = self.probs.shape[-1], self.order
    steps = np.cumsum(self.probs.reshape(-1, size), -1)
    steps[:, -1] = 1.0
    run_in = 100
    draws = rng.random(num + run_in)
    found, context = np.empty(num + run_in, np.int32), 0
    for i, u in enumerate(draws):
      found[i] = np.searchsorted(steps[context], u, side='right')
      context = (context * size + found[i]) % size**order
    return found[run_in:]


def load(config: ml_collections.ConfigDict) -> Corpus:
  """The corpus of a config's `dataset`.

  Raises:
    TextError: files that are missing or not what they should be.
    ValueError: a data set that there is not.
  """
  match config.dataset:
    case 'markov':
      return markov(**config.markov)
    case 'help':
      return _encoded(python_help())
    case 'brown':
      return _encoded(text.read_brown(config.data_path))
    case 'ptb':
      return _encoded(text.read_ptb(config.data_path))
  raise ValueError(f'dataset={config.dataset!r}; there are markov, help, '
                   'brown, ptb')


def markov(
    vocab_size: int, order: int, concentration: float, num_train: int,
    num_valid: int, seed: int,
) -> Corpus:
  """Fresh text from a source drawn by `seed`; test is as long as valid."""
  if vocab_size < 2 or order < 1 or concentration <= 0:
    raise ValueError(
        f'markov.vocab_size={vocab_size} must be at least 2, '
        f'markov.order={order} at least 1, and '
        f'markov.concentration={concentration} positive')
  source = Markov.draw(vocab_size, order, concentration, seed)
  rng = np.random.default_rng((seed, 1))
  sizes = {'train': num_train, 'valid': num_valid, 'test': num_valid}
  splits = {name: source.sample(n, rng) for name, n in sizes.items()}
  return Corpus(splits, vocab_size, source.entropy_rate())


def python_help() -> dict[str, list[str]]:
  """The language reference that comes with Python: split -> words.

  Some 68,000 words, a little different in each version of Python. Lower case,
  punctuation out, numbers as N, <eos> after a paragraph; of ten paragraphs
  the ninth goes to valid, the tenth to test.
  """
  from pydoc_data import topics
  texts: dict[str, list[str]] = {split: [] for split in text.SPLITS}
  found = '\n\n'.join(topics.topics[name] for name in sorted(topics.topics))
  for i, paragraph in enumerate(re.split(r'\n\s*\n', found.lower())):
    words = [text.NUMBER if word.isdigit() else word
             for word in _WORD.findall(paragraph)]
    split = {8: 'valid', 9: 'test'}.get(i % 10, 'train')
    texts[split] += [*words, text.EOS] if words else []
  return text.limit_vocabulary(texts, _HELP_VOCABULARY)


def _encoded(texts):
  splits, words = text.encode(texts)
  return Corpus(splits, len(words))


def num_windows(streams: jax.Array, window: int) -> int:
  """How many windows of `window` tokens streams [B, L] have."""
  return (streams.shape[1] - 1) // window


def take_window(streams: jax.Array, i: jax.Array, window: int) -> jax.Array:
  """Streams [B, L] -> window i with its last target, [window + 1, B]."""
  return jax.lax.dynamic_slice_in_dim(
      streams, i * window, window + 1, axis=1).T


def carry_on(
    state: Any, place: jax.Array, reset_rate: float, key: jax.Array
) -> Any:
  """The state [B, ...] with which window `place` begins.

  Zeros where the text begins, and with probability `reset_rate` anywhere, in
  each stream by itself. Without these a model is at zero once an epoch, and a
  cell whose state can grow may, from there, stay where no training has led it.
  """
  begins = jnp.broadcast_to(place == 0, ())
  if reset_rate:
    rows = len(jax.tree.leaves(state)[0])
    # Apart from the keys that split(key) and masks' fold_in(key, 0 to 3) give.
    begins |= jax.random.bernoulli(
        jax.random.fold_in(key, 4), reset_rate, (rows,))
  return jax.tree.map(
      lambda x: jnp.where(
          begins.reshape(begins.shape + (1,) * (x.ndim - begins.ndim)),
          0.0, x), state)
