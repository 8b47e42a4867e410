"""What a scorer is given and what it says: the one interface to likelihoods.

A scorer keeps sums and counts, and means are made from them here, so that no
one has to guess what a mean was taken over.
"""

from collections.abc import Sequence
from typing import NamedTuple
from typing import Protocol


class Text(NamedTuple):
  """A statement, and where its value begins.

  The value's tokens are those from `value_start` to the end of the text.
  """
  text: str
  value_start: int  # characters


class Likelihood(NamedTuple):
  """Natural logs of probabilities, summed, and what they were summed over."""
  sum: float  # nats; without the first token where there is no BOS
  tokens: int  # that were scored
  bytes: int  # UTF-8 bytes of the text
  value_sum: float  # nats of the value's tokens given their prefix
  value_tokens: int


class Scorer(Protocol):
  """A model of text; `fingerprint` is a hash of its weights or counts."""
  name: str
  fingerprint: str

  def score(self, texts: Sequence[Text]) -> list[Likelihood]:
    ...


def mean(x: Likelihood) -> float:
  """Nats per token of the text: what LINK ranks and measures by."""
  return x.sum / max(x.tokens, 1)


def total(x: Likelihood) -> float:
  """Nats of the text."""
  return x.sum


def value_mean(x: Likelihood) -> float:
  """Nats per token of the value given its prefix."""
  return x.value_sum / max(x.value_tokens, 1)


def value_total(x: Likelihood) -> float:
  """Nats of the value given its prefix."""
  return x.value_sum


def per_byte(x: Likelihood) -> float:
  """Nats per byte of the text: comparable between tokenizers."""
  return x.sum / max(x.bytes, 1)


NORMS = {
    'mean': mean, 'total': total, 'value_mean': value_mean,
    'value_total': value_total, 'per_byte': per_byte}
"""Ways to make one number of a Likelihood, by the name a config gives."""


def check_norm(name: str) -> str:
  """The name itself.

  Raises:
    ValueError: there is no such norm.
  """
  if name not in NORMS:
    raise ValueError(f'norm {name!r} is not known; there are {sorted(NORMS)}')
  return name
