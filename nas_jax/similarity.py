"""How alike cells are, and how alike the states that produced them.

Every function takes a batch and returns a symmetric matrix [M, M]. Two views
of a cell matter: with its nodes numbered, as a controller writes it, and as a
tree whose nodes have no order, as it computes.
"""

import functools
import itertools
from typing import Any

import chex
import numpy as np
from scipy import optimize
from scipy.spatial import distance

from nas_jax import space as space_lib

Cell = space_lib.Cell
_MAX_EXACT_NODES = 8  # 40,320 orders


def aligned_edit_distance(cells: Cell) -> np.ndarray:
  """2 * differing parents + differing activations, node by node; [M, M].

  A parent that differs is one edge removed and one put in. The distance bounds
  the graph edit distance from above, and isomorphic cells may be far apart.
  """
  prev, act = _arrays(cells)
  parents = (prev[:, None, 1:] != prev[None, :, 1:]).sum(-1)
  activations = (act[:, None] != act[None]).sum(-1)
  return 2 * parents + activations


def common_connections(cells: Cell, constants: bool = False) -> np.ndarray:
  """Edges that two cells share, as many as nodes with one parent; [M, M].

  Args:
    cells: [M, N].
    constants: counts also, as Adam and Lorraine's code does, the two edges
      into node 0, those of common leaves to the average, and the one to h[t];
      a cell with L leaves then shares N + 2 + L with itself.
  """
  prev, _ = _arrays(cells)
  common = (prev[:, None, 1:] == prev[None, :, 1:]).sum(-1)
  return common + 2 + _common_ends(cells) if constants else common


def common_activations(cells: Cell, constants: bool = False) -> np.ndarray:
  """Shared edges whose lower nodes also have one activation; [M, M].

  Args:
    cells: [M, N].
    constants: as in `common_connections`; the edges into node 0 count where
      its activation is shared.
  """
  prev, act = _arrays(cells)
  same = act[:, None] == act[None]
  common = ((prev[:, None, 1:] == prev[None, :, 1:]) & same[..., 1:]).sum(-1)
  return common + 2 * same[..., 0] + _common_ends(cells) if (
      constants) else common


def graph_edit_distance(cells: Cell) -> np.ndarray:
  """Exact distance of cells as graphs: nodes by activation, edges; [M, M].

  Each edit costs 1: an edge more or less, a node's activation. Cells have the
  same number of nodes, so leaving a node out never pays, and the distance is
  the least aligned distance over all orders of one cell's nodes.

  Raises:
    SpaceError: more than 8 nodes.
  """
  prev, act = _arrays(cells)
  num, n = prev.shape
  if n > _MAX_EXACT_NODES:
    raise space_lib.SpaceError(
        f'{n} nodes have too many orders for an exact distance, which goes up '
        f'to {_MAX_EXACT_NODES}; use tree_distance')
  edges = np.zeros((num, n, n), np.float32)
  edges[np.arange(num)[:, None], prev[:, 1:], np.arange(1, n)] = 2.0
  labels = (act[..., None] == np.arange(act.max() + 1)).astype(np.float32)
  fixed = np.concatenate(
      [edges.reshape(num, -1) / 2, labels.reshape(num, -1)], 1).T
  agreement = np.zeros((num, num), np.float32)
  for order in map(list, itertools.permutations(range(n))):
    moved = np.concatenate(
        [edges[:, order][:, :, order].reshape(num, -1),
         labels[:, order].reshape(num, -1)], 1)
    np.maximum(agreement, moved @ fixed, out=agreement)
  return 2 * (n - 1) + n - agreement.astype(np.int64)


def tree_distance(cells: Cell) -> np.ndarray:
  """Least edits of nodes between cells as unordered trees; [M, M].

  Selkow's top-down edit distance (1977) with children in any order: a node's
  activation changes for 1, and a subtree goes or comes for its size. It is a
  metric, 0 for isomorphic cells only, and quick at N = 12, where the exact
  graph edit distance is out of reach. Unlike it, a subtree that hangs on
  elsewhere is paid for node by node.
  """
  roots, nodes = _trees(cells)

  @functools.cache
  def edits(a, b):
    if a == b:
      return 0
    (act_a, below_a, _), (act_b, below_b, _) = nodes[a], nodes[b]
    size_a, size_b = (np.array([nodes[i][2] for i in below], np.int64)
                      for below in (below_a, below_b))
    total = int(act_a != act_b) + int(size_a.sum() + size_b.sum())
    if not below_a or not below_b:
      return total
    # Matching two subtrees always costs less than dropping both.
    saved = size_a[:, None] + size_b[None] - np.array(
        [[edits(min(i, j), max(i, j)) for j in below_b] for i in below_a])
    return total - int(
        saved[optimize.linear_sum_assignment(saved, maximize=True)].sum())

  found = np.zeros((len(roots),) * 2, np.int64)
  for i, j in itertools.combinations(range(len(roots)), 2):
    a, b = sorted((roots[i], roots[j]))
    found[i, j] = found[j, i] = edits(a, b)
  return found


def first_yield_distance(cells: Cell) -> np.ndarray:
  """The distance of Adam and Lorraine's code, for comparison; [M, M].

  The first bound that networkx gives for the graph edit distance of the
  graphs with x[t], h[t-1], average and h[t], activations not compared. It is
  loose: isomorphic cells may be 4 apart. About 20 ms a pair at N = 12.
  """
  import networkx as nx  # of the extra 'nas'

  graphs = [to_graph(cell) for cell in space_lib.unstack(cells)]
  found = np.zeros((len(graphs),) * 2, np.int64)
  for i, j in itertools.combinations(range(len(graphs)), 2):
    bound = next(nx.optimize_graph_edit_distance(graphs[i], graphs[j]))
    found[i, j] = found[j, i] = bound
  return found


def to_graph(cell: Cell) -> Any:
  """One cell -> a networkx.DiGraph with its inputs, average and output.

  Nodes are -1 (x[t]), -2 (h[t-1]), 0 to N - 1, N (average) and N + 1 (h[t]).
  Edges stand parent by parent, in the order in which parents are first read:
  the first bound depends on it.
  """
  import networkx as nx

  n = len(cell.prev)
  below: dict[int, list[int]] = {-1: [0], -2: [0]}
  for j, parent in enumerate(np.asarray(cell.prev)[1:], start=1):
    below.setdefault(int(parent), []).append(j)
  below |= {int(j): [n] for j in np.flatnonzero(space_lib.leaves(cell))}
  below[n] = [n + 1]
  return nx.DiGraph([(i, j) for i, nodes in below.items() for j in nodes])


def l2_distance(hidden: Any) -> np.ndarray:
  """Hidden states [M, h] -> Euclidean distances [M, M]."""
  hidden = np.asarray(hidden, np.float64)
  chex.assert_rank(hidden, 2)
  return distance.cdist(hidden, hidden)


def cosine_similarity(hidden: Any) -> np.ndarray:
  """Hidden states [M, h] -> cosines [M, M]; equal states have exactly 1."""
  hidden = np.asarray(hidden, np.float64)
  chex.assert_rank(hidden, 2)
  norm = np.linalg.norm(hidden, axis=1, keepdims=True)
  unit = hidden / np.maximum(norm, np.finfo(np.float64).tiny)
  return 1 - distance.cdist(unit, unit, 'sqeuclidean') / 2


def _arrays(cells):
  prev, act = np.asarray(cells.prev), np.asarray(cells.act)
  chex.assert_rank([prev, act], 2)
  chex.assert_equal_shape([prev, act])
  return prev, act


def _common_ends(cells):
  """Edges of common leaves to the average, and the average's own; [M, M]."""
  leaf = np.asarray(space_lib.leaves(cells)).astype(np.int64)
  return leaf @ leaf.T + 1


def _trees(cells):
  """Roots [M] and the distinct subtrees (act, children, size), by number."""
  numbers, nodes, roots = {}, [], []
  for prev, act in zip(*_arrays(cells), strict=True):
    below = [[] for _ in prev]
    for j in range(len(prev) - 1, -1, -1):
      tree = int(act[j]), tuple(sorted(below[j]))
      if tree not in numbers:
        numbers[tree] = len(nodes)
        nodes.append((*tree, 1 + sum(nodes[i][2] for i in tree[1])))
      if j:
        below[prev[j]].append(numbers[tree])
    roots.append(numbers[tree])
  return roots, nodes
