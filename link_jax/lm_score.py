"""Log-likelihoods of texts; what texts have in common is computed once.

Tokens of many texts make a trie: texts of a beam share their beginning. Rows
of a batch hold such tries in depth-first order, where token j comes before
token i in a text if and only if j <= i < end[j], `end` being the place after
the last token that j leads to. That is the whole attention mask: a row holds
any number of texts, shared beginnings are there once, and hardly any of it is
padding.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import itertools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
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

SHORTEST, ROW = 64, 2048  # tokens; longer rows only for texts that need them
STEP = 128  # Lengths between are multiples, so that programs are few.


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
    return _num_new(self.before, sequence, share)

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
    sequences: Sequence[Sequence[int]], length: int, num_rows: int,
    share: bool = True) -> tuple[Rows, list[Path | None]]:
  """Packs what fits of sequences into rows of `length` tokens.

  Each goes where it takes the least room: after the text with which it shares
  its beginning, or into a gap.

  Args:
    sequences: token ids, two of them at least; those that begin alike one
      after another.
    length: T.
    num_rows: R.
    share: whether common beginnings are stored once.

  Returns:
    The rows, and where the scores of each sequence are in [R, 2 T]: those of
    `tokens`, then those of `last`; None for one that did not fit.
  """
  rows = [_OpenRow(_blank_row(length)) for _ in range(num_rows)]
  paths: list[Path | None] = []
  for sequence in sequences:
    rooms = []
    for r, row in enumerate(rows):
      room, need = length - row.used, row.new_tokens(sequence, share)
      if need <= room and row.num_texts < length:
        rooms.append((need, room, r))
    r = min(rooms)[2] if rooms else -1
    paths.append((r, rows[r].add(sequence, share)) if rooms else None)
  return Rows(*(np.stack(field) for field in zip(
      *(row.row for row in rows), strict=True))), paths


def ancestors(parent: np.ndarray, most: int) -> np.ndarray:
  """Where a block's first token comes from; its others see no more before it.

  A token before the block that leads to one of its tokens leads to all between
  the two, and so to the first.

  Args:
    parent: int [R, T], of `Rows`.
    most: M, no token is deeper.

  Returns:
    int32 [R, T / BLOCK, M], places; -1 after their end.
  """
  found = np.full((len(parent), parent.shape[1] // lm.BLOCK, most), -1,
                  np.int32)
  for row, blocks in zip(parent, found, strict=True):
    for i, block in enumerate(blocks):
      place, depth = i * lm.BLOCK, 0
      while row[place] != place:
        place = row[place]
        block[depth] = place
        depth += 1
  return found


def _num_new(before, sequence, share):
  """Tokens but for the last, which is a target, that `before` has not."""
  shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(
      before, sequence[:-1], strict=False)) if share else ()
  return len(sequence) - 1 - sum(1 for _ in shared)


def _blank_row(length):
  """Padding: tokens that see themselves alone, seen by no other."""
  places = np.arange(length, dtype=np.int32)
  zeros = np.zeros_like(places)
  return Rows(tokens=zeros, positions=zeros.copy(), end=places + 1,
              parent=places.copy(), last=zeros.copy(),
              last_parent=zeros.copy())


def make_step(config: lm.Config) -> Callable[..., Any]:
  """step((), (Rows, ancestors [R, N, M]), params) -> ((), log p [R, 2 T]).

  log p of each of `tokens`, then of `last`, given the tokens before it. Of a
  text's first token, and of padding, it means nothing.
  """

  def step(state, batch, params):
    rows, before = batch
    x, _ = lm.hidden(params, config, rows.tokens, rows.positions,
                     blocks(rows.end, before))
    normalizer = lm.log_normalizer(
        params, x.reshape(-1, config.width)).reshape(rows.tokens.shape)
    targets = jnp.concatenate([rows.tokens, rows.last], axis=1)
    parents = jnp.concatenate([rows.parent, rows.last_parent], axis=1)
    hidden = jnp.take_along_axis(x, parents[:, :, None], axis=1)
    logit = jnp.sum(hidden * lm.head(params)[targets], axis=-1)
    return state, logit - jnp.take_along_axis(normalizer, parents, axis=1)

  return step


def blocks(end: jax.Array, before: jax.Array) -> lm.Blocks:
  """Token j comes before i in a text if and only if j <= i < end[j].

  Args:
    end: int [R, T], of `Rows`.
    before: int [R, N, M], places of blocks' ancestors, -1 for none.
  """
  num_rows, num_blocks, _ = before.shape
  own = jnp.broadcast_to(
      jnp.arange(end.shape[1]).reshape(1, num_blocks, -1),
      (num_rows, num_blocks, lm.BLOCK))
  key = jnp.concatenate([before, own], axis=2)[:, :, None, :]
  end = jnp.take_along_axis(end, key.reshape(num_rows, -1), axis=1)
  query = own[..., None]
  return lm.Blocks(
      jnp.maximum(before, 0),
      (key >= 0) & (key <= query) & (query < end.reshape(key.shape)))


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
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    while order:
      some, length = self._next([sequences[i] for i in order])
      rows, paths = pack(
          some, length, self.mesh.shape['data'], self.share_prefixes)
      deepest = max(map(len, some)) - 2  # A last token is not there.
      log_probs = self._run(rows, deepest)
      for i, path in zip(order, paths, strict=False):
        if path is not None:
          result[i] = log_probs[path]
      order = [i for i, path in itertools.zip_longest(order, paths)
               if path is None]
    return result

  def _next(self, sequences):
    """The first that fill a row of each device, and its length."""
    num_rows, used, some = self.mesh.shape['data'], 0, []
    for sequence in sequences:
      used += _num_new(
          some[-1][:-1] if some else (), sequence, self.share_prefixes)
      some.append(sequence)
      if used >= num_rows * ROW:
        break
    longest = _power_of_two(max(len(s) for s in some) - 1)
    return some, max(longest, _row_length(-(-used // num_rows)))

  def _run(self, rows, deepest):
    """The step over rows, one for each device; log p [R, 2 T]."""
    # A block's ancestors are before it, and few numbers make few programs.
    most = min(_power_of_two(max(deepest, lm.BLOCK)),
               rows.parent.shape[1] - lm.BLOCK)
    batch = rows, ancestors(rows.parent, most)
    _, log_probs = self._step(
        (), mesh_lib.put(batch, self.mesh, P('data')), self.params)
    return np.asarray(log_probs)


def _row_length(used):
  """What holds so many tokens with little padding."""
  return SHORTEST if used <= SHORTEST else min(-(-used // STEP) * STEP, ROW)


def _power_of_two(n):
  """The least one that is not below n."""
  return 1 << (n - 1).bit_length()


def load_scorer(
    path_or_name: str | pathlib.Path, mesh: Mesh | None = None
) -> LanguageModel:
  """A language model from a folder, a .gguf file, or by name ('smollm2').

  Raises:
    ValueError: it can't be read; the message names file, field and fix.
  """
  return LanguageModel(weights.load(path_or_name), mesh)
