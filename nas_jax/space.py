"""Cells of a recurrent network as integer arrays, and the spaces they form.

A cell has N nodes. Node 0 reads the input and the last state; node j > 0 reads
one earlier node, `prev[j]`, and applies the activation `act[j]`: a rooted
tree with labelled nodes, whose leaves are averaged.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import itertools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS = ('tanh', 'relu', 'identity', 'sigmoid')


class SpaceError(ValueError):
  """Tokens or text that are no cell of the space."""


class Cell(NamedTuple):
  """One cell, or many with leading axes.

  Attributes:
    prev: [..., N], int32; prev[j] < j, and prev[0] = 0, which nothing reads.
    act: [..., N], int32, in the order of the space's activations.
  """
  prev: Any
  act: Any


@dataclasses.dataclass(frozen=True)
class Space:
  """All cells of N nodes.

  Attributes:
    num_nodes: N, node 0 included.
    activations: their names, in the order of their numbers.
    first: name of node 0's activation where it is not searched.
  """
  num_nodes: int
  activations: tuple[str, ...] = ACTIVATIONS
  first: str | None = None

  def __post_init__(self):
    unknown = sorted(set(self.activations) - set(ACTIVATIONS))
    if unknown:
      raise SpaceError(
          f'activations has {unknown}; there are {", ".join(ACTIVATIONS)}')
    if len(set(self.activations)) != len(self.activations) or (
        not self.activations):
      raise SpaceError('activations must be different, and at least one')
    if self.num_nodes < 1:
      raise SpaceError(f'num_nodes={self.num_nodes}; a cell has at least one')
    if self.first is not None and self.first not in self.activations:
      raise SpaceError(f'first={self.first!r} is not among the activations')

  @property
  def num_decisions(self) -> int:
    """act[0], then prev and act of every other node: 2N - 1."""
    return 2 * self.num_nodes - 1

  @functools.cached_property
  def num_options(self) -> np.ndarray:
    """[2N - 1], how many choices each decision has."""
    num_acts = len(self.activations)
    options = [1 if self.first else num_acts]
    for j in range(1, self.num_nodes):
      options += [j, num_acts]
    return np.asarray(options, np.int32)

  @property
  def size(self) -> int:
    """How many cells the space has."""
    return math.prod(int(k) for k in self.num_options)

  def first_index(self) -> int:
    """Number of node 0's activation where it is fixed, else 0."""
    return self.activations.index(self.first) if self.first else 0


def enas(num_nodes: int = 12) -> Space:
  """ENAS: all activations searched."""
  return Space(num_nodes)


def darts() -> Space:
  """DARTS: a fixed tanh node, then eight."""
  return Space(9, ('tanh', 'relu', 'sigmoid', 'identity'), first='tanh')


def enas_lm() -> Space:
  """google-research's enas_lm: a fixed tanh node, then nine."""
  return Space(10, ('tanh', 'relu', 'sigmoid', 'identity'), first='tanh')


SPACES = {'darts': darts, 'enas': enas, 'enas_lm': enas_lm}


def encode(space: Space, cell: Cell) -> jax.Array:
  """Cells -> tokens [..., 2N - 1]: act[0], then (prev[j], act[j]).

  Where node 0's activation is fixed, its token is 0, the only option.
  """
  prev, act = jnp.asarray(cell.prev), jnp.asarray(cell.act)
  first = jnp.zeros_like(act[..., :1]) if space.first else act[..., :1]
  pairs = jnp.stack([prev[..., 1:], act[..., 1:]], -1)
  rest = pairs.reshape(*pairs.shape[:-2], -1)
  return jnp.concatenate([first, rest], -1).astype(jnp.int32)


def decode(space: Space, tokens: jax.Array) -> Cell:
  """Tokens [..., 2N - 1] -> cells; the inverse of `encode`."""
  tokens = jnp.asarray(tokens, jnp.int32)
  first = tokens[..., :1] + space.first_index()
  rest = tokens[..., 1:].reshape(*tokens.shape[:-1], space.num_nodes - 1, 2)
  prev = jnp.concatenate([jnp.zeros_like(first), rest[..., 0]], -1)
  return Cell(prev, jnp.concatenate([first, rest[..., 1]], -1))


def check_tokens(space: Space, tokens: Any) -> np.ndarray:
  """Tokens of one cell from outside -> [2N - 1], int32.

  Raises:
    SpaceError: no cell of the space has them; says which token and why.
  """
  tokens = np.asarray(tokens)
  if tokens.shape != (space.num_decisions,):
    raise SpaceError(
        f'a cell of {space.num_nodes} nodes has {space.num_decisions} '
        f'tokens, not {tokens.size}: is it of another space?')
  if not np.issubdtype(tokens.dtype, np.integer):
    raise SpaceError(f'tokens are integers, not {tokens.dtype}')
  for t, (token, k) in enumerate(zip(tokens, space.num_options, strict=True)):
    if not 0 <= token < k:
      kind = 'prev' if t % 2 else 'act'
      raise SpaceError(
          f'token {t} ({kind}[{(t + 1) // 2}]) is {token}; it has the options '
          f'0 to {k - 1}')
  return tokens.astype(np.int32)


def check_cell(space: Space, cell: Cell) -> Cell:
  """One cell from outside -> numpy; SpaceError where the space lacks it."""
  prev, act = np.asarray(cell.prev), np.asarray(cell.act)
  for name, x in (('prev', prev), ('act', act)):
    if not np.issubdtype(x.dtype, np.integer):
      raise SpaceError(f'{name} of a cell has integers, not {x.dtype}')
  if prev.shape != (space.num_nodes,) or act.shape != prev.shape:
    raise SpaceError(
        f'prev and act of a cell of this space have {space.num_nodes} '
        f'entries, not {prev.size} and {act.size}: is it of another space?')
  if space.first and act[0] != space.first_index():
    raise SpaceError(
        f'act[0] is {act[0]}, but node 0 is {space.first!r} in this space, '
        f'{space.first_index()}')
  if prev[0] != 0:
    raise SpaceError(f'prev[0] is {prev[0]}; it is 0, and nothing reads it')
  check_tokens(space, np.asarray(encode(space, Cell(prev, act))))
  return Cell(prev.astype(np.int32), act.astype(np.int32))


def from_names(space: Space, prev: Any, names: Any) -> Cell:
  """prev [N] and N names of activations -> a cell, by the space's numbers."""
  missing = [name for name in names if name not in space.activations]
  if missing:
    raise SpaceError(
        f'the space has no activation {", ".join(map(repr, missing))}; it has '
        f'{", ".join(space.activations)}')
  act = [space.activations.index(name) for name in names]
  return check_cell(space, Cell(np.asarray(prev), np.asarray(act)))


def from_genotype(space: Space, genotype: Any) -> Cell:
  """DARTS' list of (name, predecessor), without node 0 -> a cell."""
  if space.first is None:
    raise SpaceError("a genotype leaves node 0 out: use a space with 'first'")
  if len(genotype) != space.num_nodes - 1:
    raise SpaceError(f'a genotype of this space has {space.num_nodes - 1} '
                     f'pairs, not {len(genotype)}')
  names, prev = zip(*genotype, strict=True)
  return from_names(space, (0, *prev), (space.first, *names))


def from_string(space: Space, text: str, order: Any = ACTIVATIONS) -> Cell:
  """'0 0 1 2 ...', act[0] and pairs as ENAS prints them -> a cell.

  Args:
    space: all of whose activations are searched.
    text: integers.
    order: names of activations in the order that the text numbers them;
      ENAS' own code has ours, enas_lm has the last two exchanged.
  """
  try:
    tokens = np.asarray([int(word) for word in text.split()], np.int64)
  except ValueError as e:
    raise SpaceError(f'{text!r} is not a row of integers') from e
  if tokens.size != space.num_decisions:
    check_tokens(space, tokens)
  for t, token in enumerate(tokens[::2]):
    if not 0 <= token < len(order):
      raise SpaceError(f'token {2 * t} (act[{t}]) is {token}; there are '
                       f'{len(order)} activations')
  return from_names(
      space, (0, *tokens[1::2]), [order[token] for token in tokens[::2]])


def to_json(space: Space, cell: Cell) -> dict[str, Any]:
  """A cell -> what JSON takes, activations by name."""
  return {'prev': [int(i) for i in cell.prev],
          'act': [space.activations[int(a)] for a in cell.act]}


def from_json(space: Space, found: Mapping[str, Any]) -> Cell:
  """The inverse of `to_json`; SpaceError for anything else."""
  try:
    prev, names = found['prev'], found['act']
  except (KeyError, TypeError) as e:
    raise SpaceError("a cell in JSON has 'prev' and 'act'") from e
  return from_names(space, prev, names)


def sample(space: Space, key: jax.Array, num: int) -> Cell:
  """`num` cells, uniform over the space's encodings."""
  options = jnp.asarray(space.num_options)
  tokens = jax.random.randint(
      key, (num, space.num_decisions), 0, options[None])
  return decode(space, tokens)


def enumerate_cells(space: Space, limit: int = 100_000) -> Cell:
  """All cells of a small space, in the order of their tokens."""
  if space.size > limit:
    raise SpaceError(f'the space has {space.size:,} cells, over {limit:,}')
  tokens = np.asarray(list(itertools.product(
      *[range(int(k)) for k in space.num_options])), np.int32)
  return jax.tree.map(np.asarray, decode(space, tokens))


def index(space: Space, tokens: Any) -> np.ndarray:
  """Tokens [..., 2N - 1] -> place [...] in `enumerate_cells`' order."""
  strides = np.cumprod([1, *space.num_options[:0:-1]])[::-1]
  return np.asarray(tokens) @ strides


def leaves(cell: Cell) -> jax.Array:
  """[..., N], 1.0 for the nodes that no node reads; float32."""
  num_nodes = cell.prev.shape[-1]
  readers = jax.nn.one_hot(cell.prev[..., 1:], num_nodes).sum(-2)
  return (readers == 0).astype(jnp.float32)


def canonical(cell: Cell) -> str:
  """One cell -> a text that is the same for all orders of its nodes."""
  prev, act = np.asarray(cell.prev), np.asarray(cell.act)
  below: list[list[str]] = [[] for _ in prev]
  for j in range(len(prev) - 1, 0, -1):
    below[prev[j]].append(f'{act[j]}{_joined(below[j])}')
  return f'{act[0]}{_joined(below[0])}'


def _joined(parts):
  return f'({",".join(sorted(parts))})' if parts else ''


def unstack(cells: Cell) -> Iterator[Cell]:
  """Cells [M, N] -> M cells, numpy."""
  prev, act = np.asarray(cells.prev), np.asarray(cells.act)
  return (Cell(p, a) for p, a in zip(prev, act, strict=True))


# ENAS' cell for the Penn Treebank, as three code bases print it: one tree.
_T, _R = 'tanh', 'relu'
PUBLISHED_ENAS = {
    'melodyguan': (
        (0, 0, 1, 2, 2, 2, 5, 1, 6, 8, 8, 8),
        (_T, _T, _R, _R, _T, _T, _R, _T, _R, _R, _R, _R)),
    'carpedm20': (
        (0, 0, 1, 1, 2, 2, 2, 4, 7, 8, 8, 8),
        (_T, _T, _R, _T, _T, _T, _R, _R, _R, _R, _R, _R)),
    'darts': (
        (0, 0, 1, 1, 3, 3, 3, 4, 7, 8, 8, 8),
        (_T, _T, _T, _R, _T, _T, _R, _R, _R, _R, _R, _R)),
}


def published(name: str = 'darts') -> Cell:
  """The published ENAS cell in one of its three encodings."""
  return from_names(enas(12), *PUBLISHED_ENAS[name])
