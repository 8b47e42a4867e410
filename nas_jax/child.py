"""The child network: a language model whose cell is an argument.

All cells of a space share one set of weights; which of them a cell uses is
looked up once per window, before time runs, so that every architecture runs
in the same compiled program. Equations and figures: ENAS (Pham et al. 2018),
and what public code has of it.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from nas_jax import cell as cell_lib
from nas_jax import softmax
from nas_jax import space as space_lib

SHARING = ('edge', 'edge_act', 'node')
STATES = ('mean', 'last')
OUTPUTS = ('leaves', 'all')
NORMS = ('none', 'batch', 'rms')
NORM_EPSILON = 1e-5

Cell = space_lib.Cell
Params = dict[str, jax.Array]
Run = Callable[[jax.Array, jax.Array, jax.Array],
               tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Child:
  """Settings, fixed in the program.

  Attributes:
    space: what a cell is.
    vocab_size: V.
    hidden_size: H, of the embedding too, which is tied with the softmax.
    sharing: which cells share a node's weights: those that have the 'edge'
      [N(N-1)/2, H, 2H], the edge and the activation at its end, 'edge_act'
      [F, N(N-1)/2, H, 2H], or all, 'node' [N-1, H, 2H].
    state: what the next step gets: 'mean', of what `output` averages, or
      'last', the last node (ENAS-pytorch).
    output: what is averaged: 'leaves', or 'all' nodes but node 0 (enas_lm,
      DARTS).
    norm: of the output before the softmax: 'none', 'batch' (by the window's
      own statistics per step: running ones mean nothing where the cell
      changes), 'rms'.
    input_bias: whether node 0 has a bias; the others have none.
    max_norm: of output and state, per example; 0 for none.
    init_scale: weights start uniform in +-init_scale.
  """
  space: space_lib.Space
  vocab_size: int
  hidden_size: int
  sharing: str = 'edge'
  state: str = 'mean'
  output: str = 'leaves'
  norm: str = 'none'
  input_bias: bool = True
  max_norm: float = 25.0
  init_scale: float = 0.025

  def __post_init__(self):
    for name, choices in (('sharing', SHARING), ('state', STATES),
                          ('output', OUTPUTS), ('norm', NORMS)):
      if getattr(self, name) not in choices:
        raise ValueError(f'{name}={getattr(self, name)!r}; there are '
                         f'{", ".join(choices)}')
    for name in ('vocab_size', 'hidden_size'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)}; it is at least 1')
    if self.max_norm < 0:
      raise ValueError(f'max_norm={self.max_norm}; 0 is for none')

  @property
  def form(self) -> cell_lib.Form:
    return cell_lib.Form(self.space.activations, self.state, self.max_norm)


class Rates(NamedTuple):
  """Dropout rates.

  Attributes:
    embedding: of words, for the whole window.
    input: of the embedding's elements, the same at all steps.
    output: of the output's elements, the same at all steps.
    weight: of node 0's recurrent weights, for the whole window.
  """
  embedding: float = 0.0
  input: float = 0.0
  output: float = 0.0
  weight: float = 0.0


def shapes(child: Child) -> dict[str, tuple[int, ...]]:
  """Name -> shape of the shared weights."""
  h, v, n = child.hidden_size, child.vocab_size, child.space.num_nodes
  edges, acts = n * (n - 1) // 2, len(child.space.activations)
  nodes = {'edge': (edges,), 'edge_act': (acts, edges), 'node': (n - 1,)}
  found = {'embedding': (v, h), 'bias': (v,), 'w0': (2 * h, 2 * h),
           'w': (*nodes[child.sharing], h, 2 * h)}
  if child.input_bias:
    found['b0'] = (2 * h,)
  if child.norm != 'none':
    found['norm_scale'] = (h,)
  if child.norm == 'batch':
    found['norm_offset'] = (h,)
  return found


def init_params(child: Child, key: jax.Array) -> Params:
  """Shared weights, float32: U(+-init_scale); the softmax's bias is 0."""
  params = {}
  for i, (name, shape) in enumerate(sorted(shapes(child).items())):
    if name == 'norm_scale':
      params[name] = jnp.ones(shape)
    elif name in ('bias', 'norm_offset'):
      params[name] = jnp.zeros(shape)
    else:
      params[name] = jax.random.uniform(
          jax.random.fold_in(key, i), shape, jnp.float32, -child.init_scale,
          child.init_scale)
  return params


def count_params(child: Child) -> int:
  """How many numbers the weights have; sharing='node' has those of a cell."""
  return sum(math.prod(shape) for shape in shapes(child).values())


def initial_state(child: Child, batch_size: int) -> jax.Array:
  """[B, H], zeros."""
  return jnp.zeros((batch_size, child.hidden_size))


def edge(target: jax.Array, source: jax.Array) -> jax.Array:
  """Number of the edge source -> target, counted by targets."""
  return target * (target - 1) // 2 + source


def node_weights(child: Child, params: Params, cell: Cell) -> jax.Array:
  """What the cell's nodes but the first use, [N - 1, H, 2H]."""
  num_nodes = child.space.num_nodes
  chex.assert_shape([cell.prev, cell.act], (num_nodes,))
  edges = edge(jnp.arange(1, num_nodes), cell.prev[1:])
  if child.sharing == 'node':
    return params['w']
  if child.sharing == 'edge':
    return params['w'][edges]
  return params['w'][cell.act[1:], edges]


def single_params(child: Child, params: Params, cell: Cell) -> Params:
  """The weights of one cell alone, laid out as sharing='node' has them."""
  return params | {'w': node_weights(child, params, cell)}


def negative_log_likelihood(
    child: Child, params: Params, cell: Cell, tokens: jax.Array,
    h: jax.Array, *, rates: Rates | None = None, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Of each token given those before it.

  Args:
    child: settings.
    params: shared weights.
    cell: one cell, [N]; may be traced.
    tokens: [T + 1, B], int32, below vocab_size.
    h: [B, H], the state before.
    rates: of dropout; None for evaluation.
    key: of dropout; None for evaluation.

  Returns:
    [T, B] in nats, of tokens[1:], and the state after, [B, H].
  """
  outputs, h = _outputs(child, params, cell, tokens[:-1], h, rates, key)
  nll = softmax.negative_log_likelihood(
      outputs, params['embedding'], params['bias'], tokens[1:])
  return nll, h


def negative_log_likelihood_split(
    child: Child, params: Params, cells: Cell, tokens: jax.Array,
    h: jax.Array, *, rates: Rates | None = None, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """The same with M cells, each for B / M of the columns, in order.

  The work of one cell, the gradient's mean over M of them.

  Args:
    child: settings.
    params: shared weights.
    cells: [M, N].
    tokens: [T + 1, B], int32; M divides B.
    h: [B, H], the state before, each column its own.
    rates: of dropout; None for evaluation.
    key: of dropout; None for evaluation.

  Returns:
    [T, B] in nats, of tokens[1:], and the state after, [B, H].
  """
  num_cells, (steps, batch_size) = cells.prev.shape[0], tokens.shape
  if batch_size % num_cells:
    raise ValueError(f'cells_per_update={num_cells} does not divide the '
                     f'{batch_size} streams of batch_size')
  size = batch_size // num_cells
  by_cell = lambda x: jnp.moveaxis(
      x.reshape(x.shape[0], num_cells, size, *x.shape[2:]), 1, 0)
  keys = None if key is None else jax.random.split(key, num_cells)
  outputs, h = jax.vmap(
      lambda cell, tokens, h, key: _outputs(
          child, params, cell, tokens, h, rates, key),
      in_axes=(0, 0, 0, None if key is None else 0))(
          cells, by_cell(tokens[:-1]), h.reshape(num_cells, size, -1), keys)
  outputs = jnp.moveaxis(outputs, 0, 1).reshape(steps - 1, batch_size, -1)
  nll = softmax.negative_log_likelihood(
      outputs, params['embedding'], params['bias'], tokens[1:])
  return nll, h.reshape(batch_size, -1)


def logits(
    child: Child, params: Params, cell: Cell, tokens: jax.Array,
    h: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """tokens [T, B] -> logits of the next ones [T, B, V], the state after."""
  outputs, h = _outputs(child, params, cell, tokens, h, None, None)
  return outputs @ params['embedding'].T + _rows(params['bias'], 3), h


def _outputs(child, params, cell, tokens, h, rates, key):
  """tokens [T, B] -> what the softmax reads [T, B, H], the state after."""
  mean = averaged(child, cell)
  wiring = cell_lib.Wiring(cell.prev, cell.act, mean / mean.sum())
  nodes = node_weights(child, params, cell)
  run = lambda recurrent, inputs, h: cell_lib.run(
      child.form, wiring, cell_lib.Weights(recurrent, nodes), inputs, h)
  return around(child, params, run, tokens, h, rates, key)


def around(
    child: Child, params: Params, run: Run, tokens: jax.Array, h: jax.Array,
    rates: Rates | None, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """What is around a recurrence: embedding, node 0's input, norm, dropout.

  Args:
    child: settings.
    params: shared weights.
    run: (recurrent weights [H, 2H], inputs [T, B, 2H], h [B, H]) -> outputs
      [T, B, H] and the state after.
    tokens: [T, B], int32.
    h: [B, H], the state before.
    rates: of dropout; None for evaluation.
    key: of dropout; None for evaluation.

  Returns:
    What the softmax reads, [T, B, H], and the state after, [B, H].
  """
  chex.assert_rank(tokens, 2)
  batch_size, width = tokens.shape[1], child.hidden_size
  chex.assert_shape(h, (batch_size, width))
  kept = masks(
      params['embedding'].shape, batch_size, (width, 2 * width), rates, key)
  x = params['embedding'][tokens]
  x = x * kept['embedding'][tokens][..., None] * kept['input'][None]
  inputs = x @ params['w0'][:width]
  if child.input_bias:
    inputs = inputs + _rows(params['b0'], 3)
  outputs, h = run(params['w0'][width:] * kept['weight'], inputs, h)
  return _normalise(child, params, outputs) * kept['output'][None], h


def averaged(child: Child, cell: Cell) -> jax.Array:
  """[N], 1.0 for the nodes of cell [N] that the output averages."""
  if child.output == 'leaves' or child.space.num_nodes == 1:
    return space_lib.leaves(cell)
  return jnp.ones(child.space.num_nodes).at[0].set(0.0)


def _normalise(child, params, outputs):
  """[T, B, H]; 'batch' over B at each step, 'rms' over H."""
  if child.norm == 'none':
    return outputs
  scale = _rows(params['norm_scale'], 3)
  if child.norm == 'rms':
    square = jnp.mean(outputs**2, -1, keepdims=True)
    return scale * outputs * jax.lax.rsqrt(square + NORM_EPSILON)
  mean = jnp.mean(outputs, 1, keepdims=True)
  variance = jnp.var(outputs, 1, keepdims=True)
  normal = (outputs - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
  return scale * normal + _rows(params['norm_offset'], 3)


def masks(
    embedding: tuple[int, int], batch_size: int, recurrent: tuple[int, int],
    rates: Rates | None, key: jax.Array | None
) -> dict[str, jax.Array]:
  """What is multiplied with; ones where nothing is dropped.

  Args:
    embedding: (V, H).
    batch_size: B.
    recurrent: shape of the recurrent weights.
    rates: None drops nothing.
    key: None drops nothing.

  Returns:
    'embedding' [V], 'input' and 'output' [B, H], 'weight' as `recurrent`.
  """
  v, h = embedding
  sizes = Rates((v,), (batch_size, h), (batch_size, h), recurrent)
  if rates is None or key is None:
    return {name: jnp.ones(shape) for name, shape in sizes._asdict().items()}
  found = {}
  for i, (name, shape) in enumerate(sizes._asdict().items()):
    keep = 1 - getattr(rates, name)
    kept = jax.random.bernoulli(jax.random.fold_in(key, i), keep, shape)
    found[name] = kept / keep
  return found


def _rows(x, rank):
  return x.reshape(*(1,) * (rank - 1), -1)
