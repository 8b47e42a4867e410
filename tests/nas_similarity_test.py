"""Distances between cells: metrics, exact ones, and bounds of each other."""

import itertools

import jax
import networkx as nx
import numpy as np
import pytest

from nas_jax import similarity
from nas_jax import space as space_lib

Cell, Space = space_lib.Cell, space_lib.Space
TWO = ('tanh', 'relu')


def stack(cells):
  return Cell(*map(np.stack, zip(*cells, strict=True)))


def some(num_nodes, num, seed=0):
  space = space_lib.enas(num_nodes)
  return space_lib.sample(space, jax.random.key(seed), num)


def published():
  return stack([space_lib.published(n) for n in space_lib.PUBLISHED_ENAS])


def pairs(matrix):
  return matrix[np.triu_indices(len(matrix), 1)]


def labelled(cell):
  graph = nx.DiGraph()
  graph.add_nodes_from((j, {'act': int(a)}) for j, a in enumerate(cell.act))
  graph.add_edges_from(
      (int(cell.prev[j]), j) for j in range(1, len(cell.prev)))
  return graph


def assert_metric(d):
  """Symmetric, 0 on the diagonal, and never longer by way of a third."""
  np.testing.assert_array_equal(d, d.T)
  assert not np.diag(d).any()
  assert (d[:, None] <= d[:, :, None] + d.T[None]).all()


@pytest.mark.parametrize('distance', [
    similarity.aligned_edit_distance, similarity.graph_edit_distance,
    similarity.tree_distance])
def test_distances_between_cells_are_metrics(distance):
  assert_metric(distance(some(5, 40)))


def test_aligned_distance_tells_every_two_cells_apart():
  cells = space_lib.enumerate_cells(Space(4, TWO))
  d = similarity.aligned_edit_distance(cells)
  np.testing.assert_array_equal(d == 0, np.eye(len(d), dtype=bool))


@pytest.mark.parametrize('distance', [
    similarity.graph_edit_distance, similarity.tree_distance])
def test_distances_without_order_are_zero_for_isomorphic_cells_only(distance):
  cells = space_lib.enumerate_cells(Space(4, TWO))
  names = np.array([space_lib.canonical(c) for c in space_lib.unstack(cells)])
  np.testing.assert_array_equal(
      distance(cells) == 0, names[:, None] == names[None])


def test_the_published_cell_is_at_no_distance_in_its_three_encodings():
  cells = published()
  assert not similarity.tree_distance(cells).any()
  np.testing.assert_array_equal(
      pairs(similarity.aligned_edit_distance(cells)), [10, 14, 8])


@pytest.mark.parametrize('num_nodes', [3, 4, 5])
def test_exact_distance_is_the_least_over_all_orders_of_nodes(num_nodes):
  cells = some(num_nodes, 6, seed=num_nodes)
  found = similarity.graph_edit_distance(cells)
  prev, act = np.asarray(cells.prev), np.asarray(cells.act)

  def edits(a, b, order):
    moved = {(order[prev[a, j]], order[j]) for j in range(1, num_nodes)}
    edges = {(prev[b, j], j) for j in range(1, num_nodes)}
    return len(moved ^ edges) + sum(
        act[a, j] != act[b, order[j]] for j in range(num_nodes))

  for a, b in itertools.combinations(range(6), 2):
    assert found[a, b] == min(
        edits(a, b, p) for p in itertools.permutations(range(num_nodes)))


@pytest.mark.parametrize('num_nodes, num', [(4, 6), (5, 4), (6, 3)])
def test_exact_distance_is_that_of_networkx(num_nodes, num):
  cells = some(num_nodes, num, seed=3)
  graphs = [labelled(c) for c in space_lib.unstack(cells)]
  expected = [
      nx.graph_edit_distance(a, b, node_match=lambda x, y: x == y)
      for a, b in itertools.combinations(graphs, 2)]
  np.testing.assert_array_equal(
      pairs(similarity.graph_edit_distance(cells)), expected)


def test_aligned_distance_bounds_the_exact_one():
  cells = some(6, 50)
  exact = similarity.graph_edit_distance(cells)
  aligned = similarity.aligned_edit_distance(cells)
  assert (exact <= aligned).all() and (exact < aligned).any()


def test_more_nodes_than_orders_can_be_tried_are_refused():
  with pytest.raises(space_lib.SpaceError, match='tree_distance'):
    similarity.graph_edit_distance(some(9, 2))


def test_first_yield_is_an_upper_bound_which_isomorphic_cells_may_miss():
  cells = some(3, 5, seed=1)
  graphs = [similarity.to_graph(c) for c in space_lib.unstack(cells)]
  exact = np.array([nx.graph_edit_distance(a, b)
                    for a, b in itertools.combinations(graphs, 2)])
  assert (pairs(similarity.first_yield_distance(cells)) >= exact).all()
  melodyguan, carpedm20, _ = space_lib.unstack(published())
  assert nx.is_isomorphic(
      *map(similarity.to_graph, (melodyguan, carpedm20)))
  found = similarity.first_yield_distance(stack([melodyguan, carpedm20]))
  np.testing.assert_array_equal(found, [[0, 4], [4, 0]])


def test_tree_distance_is_the_least_over_all_matchings():
  cells = some(4, 12, seed=2)
  prev, act = np.asarray(cells.prev), np.asarray(cells.act)

  def edits(a, b):
    """Nodes of a stay under their parents, or go: all ways to do so."""
    fates = itertools.product([None, 0, 1, 2, 3], repeat=3)
    best = np.inf
    for to in ((0, *fate) for fate in fates):
      kept = [j for j in to if j is not None]
      if len(set(kept)) < len(kept) or any(
          to[j] is not None and (
              to[j] == 0 or to[prev[a, j]] is None
              or to[prev[a, j]] != prev[b, to[j]]) for j in (1, 2, 3)):
        continue
      changed = sum(act[a, i] != act[b, j] for i, j in enumerate(to)
                    if j is not None)
      best = min(best, changed + 2 * (4 - len(kept)))
    return best

  found = similarity.tree_distance(cells)
  for a, b in itertools.combinations(range(12), 2):
    assert found[a, b] == edits(a, b)


def test_a_chain_shares_one_edge_with_a_star():
  n = 6
  chain = Cell(np.maximum(np.arange(n) - 1, 0), np.zeros(n, int))
  star = Cell(np.zeros(n, int), np.zeros(n, int))
  for distance in (similarity.tree_distance, similarity.graph_edit_distance,
                   similarity.aligned_edit_distance):
    assert distance(stack([chain, star]))[0, 1] == 2 * (n - 2)


def test_common_parts_with_and_without_the_constants():
  cells = published()
  plain = similarity.common_connections(cells)
  np.testing.assert_array_equal(np.diag(plain), 11)
  np.testing.assert_array_equal(
      np.diag(similarity.common_activations(cells)), 11)
  # N + 2 + L of a cell with itself.
  authors = similarity.common_connections(cells, constants=True)
  np.testing.assert_array_equal(np.diag(authors), 14 + 6)
  np.testing.assert_array_equal(
      np.diag(similarity.common_activations(cells, constants=True)), 20)
  # Leaves of the second: 3 5 6 9 10 11; of the third: 2 5 6 9 10 11.
  assert authors[1, 2] - plain[1, 2] == 2 + 1 + 5


def test_two_uniform_cells_share_a_harmonic_number_of_edges():
  common = pairs(similarity.common_connections(some(12, 1000)))
  harmonic = sum(1 / j for j in range(1, 12))
  assert abs(common.mean() - harmonic) < 0.05


@pytest.mark.parametrize('num_nodes', [3, 4])
def test_what_two_uniform_cells_share_in_the_mean(num_nodes):
  # Over all pairs: a parent of j with 1 / j, an activation with 1 / 4.
  cells = space_lib.enumerate_cells(space_lib.enas(num_nodes))
  parents = sum(1 / j for j in range(1, num_nodes))
  activations = num_nodes / 4
  for found, expected in (
      (similarity.common_connections(cells), parents),
      (similarity.common_activations(cells), parents / 4),
      (similarity.aligned_edit_distance(cells),
       2 * (num_nodes - 1 - parents) + num_nodes - activations)):
    assert found.mean() == pytest.approx(expected, rel=1e-12)


def test_aligned_distance_counts_what_is_not_common():
  cells = some(12, 30)
  act = np.asarray(cells.act)
  differ = (act[:, None] != act[None]).sum(-1)
  np.testing.assert_array_equal(
      similarity.aligned_edit_distance(cells),
      2 * (11 - similarity.common_connections(cells)) + differ)


def test_hidden_states_in_closed_form():
  hidden = np.array([[3.0, 0.0], [0.0, 4.0], [6.0, 0.0], [3.0, 0.0]])
  np.testing.assert_allclose(
      similarity.l2_distance(hidden)[0], [0, 5, 3, 0])
  np.testing.assert_allclose(
      similarity.cosine_similarity(hidden)[0], [1, 0, 1, 1], atol=1e-15)


def test_equal_states_are_exactly_equal():
  hidden = np.repeat(np.random.default_rng(0).normal(size=(1, 100)), 5, 0)
  assert (similarity.l2_distance(hidden) == 0).all()
  assert (similarity.cosine_similarity(hidden) == 1).all()
