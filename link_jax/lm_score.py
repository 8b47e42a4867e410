"""Log-likelihoods of texts; what texts have in common is computed once.

Tokens of many texts make a trie: texts of a beam share their beginning. Rows
of a batch hold such tries in depth-first order, where token j comes before
token i in a text if and only if j <= i < end[j], `end` being the place after
the last token that j leads to. That is the whole attention mask: a row holds
any number of texts, shared beginnings are there once, and hardly any of it is
padding.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import itertools
import pathlib
from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import numpy as np
import scipy.special
import tokenizers

from core_jax import mesh as mesh_lib
from link_jax import lm
from link_jax import weights
from link_jax.likelihood import Likelihood
from link_jax.likelihood import Text

SHORTEST, ROW = 64, 512  # tokens; longer rows only for texts that need them
TOKENS_PER_CALL = 2048  # on each device
OPEN_ROWS = 16  # the last rows, in whose gaps a text may go


class Rows(NamedTuple):
  """Tries of tokens, depth first, and what follows them; int32 [R, T] each.

  The last token of a text has nothing to predict, so the model does not run
  on it: it is kept as a target, `last` after the token at `last_parent`.
  """

  tokens: np.ndarray
  positions: np.ndarray  # depth in the trie
  end: np.ndarray  # the place after the last token that this one leads to
  parent: np.ndarray  # the place of the token before; a first token's: its own
  last: np.ndarray
  last_parent: np.ndarray


@dataclasses.dataclass
class _OpenRow:
  """A row that is being filled, and the text that went in last."""

  row: Rows
  used: int = 0  # tokens
  num_texts: int = 0
  before: Sequence[int] = ()
  path: np.ndarray = dataclasses.field(
      default_factory=lambda: np.zeros(0, int))

  def new_tokens(self, sequence, share):
    """How many places the sequence would take."""
    shared = _num_shared(self.before, sequence[:-1]) if share else 0
    return len(sequence) - 1 - shared

  def add(self, sequence, share):
    """Adds a text; the places of its scores in [0, 2 T), first token's too."""
    num_new, row, length = (
        self.new_tokens(sequence, share), self.row, len(self.row.tokens))
    *tokens, last = sequence
    shared = len(tokens) - num_new
    new = np.arange(self.used, self.used + num_new)
    self.path = np.concatenate([self.path[:shared], new])
    row.tokens[new] = tokens[shared:]
    row.positions[new] = np.arange(shared, len(tokens))
    row.parent[new] = np.concatenate([self.path[:1], self.path])[shared:-1]
    self.used += num_new
    row.end[self.path] = self.used
    row.last[self.num_texts] = last
    row.last_parent[self.num_texts] = self.path[-1]
    self.num_texts += 1
    self.before = tokens
    return np.append(self.path, length + self.num_texts - 1)


Path = tuple[int, np.ndarray]  # a text: its row, and the places of its scores


def pack(
    sequences: Sequence[Sequence[int]], length: int, share: bool = True
) -> tuple[Rows, list[Path]]:
  """Packs sequences into rows of `length` tokens.

  In lexicographic order each goes where it takes the least room: after the
  text with which it shares its beginning, or into a gap of a row before.

  Args:
    sequences: token ids, two of them at least and `length` + 1 at most.
    length: T.
    share: whether common beginnings are stored once.

  Returns:
    The rows, and where the scores of each sequence are in [R, 2 T]: those of
    `tokens`, then those of `last`.
  """
  rows: list[_OpenRow] = []
  paths: list[Path] = [(0, np.zeros(0, int))] * len(sequences)
  key = ((lambda i: tuple(sequences[i])) if share
         else (lambda i: -len(sequences[i])))
  for i in sorted(range(len(sequences)), key=key):
    rooms = []
    for r in range(max(0, len(rows) - OPEN_ROWS), len(rows)):
      room = length - rows[r].used
      need = rows[r].new_tokens(sequences[i], share)
      if need <= room and rows[r].num_texts < length:
        rooms.append((need, room, r))
    if not rooms:
      rows.append(_OpenRow(_blank_row(length)))
    r = min(rooms)[2] if rooms else len(rows) - 1
    paths[i] = r, rows[r].add(sequences[i], share)
  return Rows(*(np.stack(field) for field in zip(
      *(open_row.row for open_row in rows), strict=True))), paths


def _num_shared(a, b):
  return sum(1 for _ in itertools.takewhile(
      lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _blank_row(length):
  """Padding: tokens that see themselves alone, seen by no other."""
  places = np.arange(length, dtype=np.int32)
  zeros = np.zeros_like(places)
  return Rows(tokens=zeros, positions=zeros.copy(), end=places + 1,
              parent=places.copy(), last=zeros.copy(),
              last_parent=zeros.copy())


def make_step(config: lm.Config) -> Callable[..., Any]:
  """step((), Rows, params) -> ((), log p [R, 2 T]).

  log p of each of `tokens`, then of `last`, given the tokens before it. Of a
  text's first token, and of padding, it means nothing.
  """

  def step(state, rows, params):
    places = jnp.arange(rows.tokens.shape[1])
    query, key = places[None, :, None], places[None, None, :]
    visible = (key <= query) & (query < rows.end[:, None, :])
    x, _ = lm.hidden(params, config, rows.tokens, rows.positions, visible)
    normalizer = lm.log_normalizer(
        params, x.reshape(-1, config.width)).reshape(rows.tokens.shape)
    targets = jnp.concatenate([rows.tokens, rows.last], axis=1)
    parents = jnp.concatenate([rows.parent, rows.last_parent], axis=1)
    before = jnp.take_along_axis(x, parents[:, :, None], axis=1)
    logit = jnp.sum(before * lm.head(params)[targets], axis=-1)
    return state, logit - jnp.take_along_axis(normalizer, parents, axis=1)

  return step


class _Encoded(NamedTuple):
  """A text's tokens; those scored are a part of them."""

  tokens: tuple[int, ...]
  scored: np.ndarray  # bool [T]: has tokens before it, and is not special
  value: np.ndarray  # bool [T]: scored, and part of the value


def num_tokens(encoding: tokenizers.Encoding) -> int:
  """Tokens to the last of the text itself.

  An end-of-text token that the tokenizer adds is no part of it.
  """
  own = np.flatnonzero(np.equal(encoding.special_tokens_mask, 0))
  return int(own[-1]) + 1 if own.size else 0


class LanguageModel:
  """A causal language model on a mesh; a `likelihood.Scorer`, and more.

  Attributes:
    name, fingerprint: of the weights.
    config, params: as in lm.py; params lie on every device of `mesh`.
    share_prefixes: whether common beginnings of texts are computed once.
  """

  def __init__(
      self,
      model: weights.Model,
      mesh: Mesh | None = None,
      share_prefixes: bool = True,
  ):
    self.name, self.fingerprint = model.name, model.fingerprint
    self.config, self.tokenizer = model.config, model.tokenizer
    self.stop_tokens = model.stop_tokens
    self.mesh = mesh_lib.make_mesh() if mesh is None else mesh
    self.params = mesh_lib.put(model.params, self.mesh, P())
    self.share_prefixes = share_prefixes
    self._step = mesh_lib.compile_step(make_step(self.config), self.mesh, ())

  def score(self, texts: Sequence[Text]) -> list[Likelihood]:
    """The log-likelihood of each text, and of its value given what precedes.

    A token that lies across the beginning of the value is the value's. The
    first token of a text is scored only where the tokenizer puts one before
    it.

    Raises:
      ValueError: a text is too long, has no token to score, or its value
        begins outside of it.
    """
    texts = [Text(*text) for text in texts]
    encoded = self._encode(texts)
    log_probs = self._log_probs([e.tokens for e in encoded])
    return [
        Likelihood(
            sum=float(p[e.scored].sum(dtype=np.float64)),
            tokens=int(e.scored.sum()),
            bytes=len(text.text.encode()),
            value_sum=float(p[e.value].sum(dtype=np.float64)),
            value_tokens=int(e.value.sum()))
        for text, e, p in zip(texts, encoded, log_probs, strict=True)]

  def answer_probabilities(
      self, prompts: Sequence[str], answers: Sequence[str]
  ) -> np.ndarray:
    """P(answer | prompt, it is one of `answers`), [prompts, answers].

    An answer is the text that follows the prompt as it stands, its space
    included: ' yes'. For answers of one token each this is the softmax over
    their logits.
    """
    sums = [likelihood.value_sum for likelihood in self.score([
        Text(prompt + answer, len(prompt))
        for prompt in prompts for answer in answers])]
    return scipy.special.softmax(
        np.reshape(sums, (len(prompts), len(answers))), axis=1)

  def _encode(self, texts):
    encodings = self.tokenizer.encode_batch([text.text for text in texts])
    return [self._encoded(text, encoding)
            for text, encoding in zip(texts, encodings, strict=True)]

  def _encoded(self, text, encoding):
    if not 0 <= text.value_start <= len(text.text):
      raise ValueError(
          f'value_start={text.value_start} lies outside of {text.text!r}')
    length = num_tokens(encoding)
    scored = ~np.array(encoding.special_tokens_mask[:length], bool)
    scored[:1] = False  # It has nothing before it.
    if not scored.any():
      raise ValueError(
          f'{text.text!r} has no token to score: {self.name} scores a token '
          'given those before it')
    if length > self.config.context:
      raise ValueError(
          f'{text.text[:50]!r}... has {length} tokens; {self.name} knows '
          f'{self.config.context} positions')
    ends = np.array(encoding.offsets[:length])[:, 1]
    return _Encoded(tuple(encoding.ids[:length]), scored,
                    scored & (ends > text.value_start))

  def _log_probs(self, sequences):
    """For each sequence, log p(token | those before it)."""
    result = [np.zeros(0)] * len(sequences)
    for length, members in _by_row_length(sequences):
      rows, paths = pack(
          [sequences[i] for i in members], length, self.share_prefixes)
      log_probs = self._run(rows)
      for i, (row, places) in zip(members, paths, strict=True):
        result[i] = log_probs[row, places]
    return result

  def _run(self, rows):
    """The step over all rows, in batches of few sizes."""
    num_rows, length = rows.tokens.shape
    batches = list(_batches(
        num_rows, max(1, TOKENS_PER_CALL // length), self.mesh.shape['data']))
    blanks = [_blank_row(length)] * (sum(batches[-1]) - num_rows)
    rows = Rows(*(np.stack([*field, *blank]) for field, *blank in zip(
        rows, *blanks, strict=True)))
    done = []
    for start, size in batches:
      batch = Rows(*(field[start:start + size] for field in rows))
      _, log_probs = self._step(
          (), mesh_lib.put(batch, self.mesh, P('data')), self.params)
      done.append(np.asarray(log_probs))
    return np.concatenate(done)


def _by_row_length(
    sequences: Sequence[Sequence[int]],
) -> Iterable[tuple[int, list[int]]]:
  """Groups of sequences that go into rows of one length, a power of two."""
  groups: dict[int, list[int]] = {}
  for i, sequence in enumerate(sequences):
    groups.setdefault(_power_of_two(max(ROW, len(sequence) - 1)), []).append(i)
  for length, members in groups.items():
    total = sum(len(sequences[i]) - 1 for i in members)
    yield min(length, _power_of_two(max(SHORTEST, total))), members


def _power_of_two(n):
  """The least one that is not below n."""
  return 1 << (n - 1).bit_length()


def _batches(num_rows, most, num_devices):
  """(start, size) of batches: powers of two of rows on each device."""
  start = 0
  while start < num_rows:
    share = -(-(num_rows - start) // num_devices)
    size = min(most, 1 << (share.bit_length() - 1)) * num_devices
    yield start, size
    start += size


def load_scorer(
    path_or_name: str | pathlib.Path, mesh: Mesh | None = None
) -> LanguageModel:
  """A language model from a folder, a .gguf file, or by name ('smollm2').

  Raises:
    ValueError: it can't be read; the message names file, field and fix.
  """
  return LanguageModel(weights.load(path_or_name), mesh)
