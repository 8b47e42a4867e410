"""Cells, their codec, and how many there are."""

import collections
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import space as space_lib

Cell, Space = space_lib.Cell, space_lib.Space


def all_tokens(space):
  return np.asarray(space_lib.encode(space, space_lib.enumerate_cells(space)))


@pytest.mark.parametrize('num_nodes, num_acts, size', [
    (2, 2, 4), (3, 2, 16), (3, 4, 128), (4, 4, 1536)])
def test_a_space_has_k_to_the_n_times_n_minus_1_factorial_cells(
    num_nodes, num_acts, size):
  space = Space(num_nodes, space_lib.ACTIVATIONS[:num_acts])
  tokens = all_tokens(space)
  assert space.size == len(tokens) == len(np.unique(tokens, axis=0)) == size
  np.testing.assert_array_equal(space_lib.index(space, tokens), range(size))


def test_the_papers_spaces_have_their_sizes():
  assert space_lib.enas(12).size == 669_692_775_628_800
  assert space_lib.darts().size == 2_642_411_520
  assert space_lib.enas_lm().size == 95_126_814_720


@pytest.mark.parametrize('space', [
    space_lib.enas(5), space_lib.darts(), space_lib.enas_lm()],
    ids=['enas', 'darts', 'enas_lm'])
def test_decoding_inverts_encoding(space):
  cells = space_lib.sample(space, jax.random.key(0), 200)
  tokens = space_lib.encode(space, cells)
  assert tokens.shape == (200, 2 * space.num_nodes - 1)
  back = space_lib.decode(space, tokens)
  np.testing.assert_array_equal(back.prev, cells.prev)
  np.testing.assert_array_equal(back.act, cells.act)
  for cell in space_lib.unstack(cells):
    assert all(cell.prev[1:] < np.arange(1, space.num_nodes))
    assert space_lib.leaves(cell)[-1] == 1
    again = space_lib.from_json(
        space, json.loads(json.dumps(space_lib.to_json(space, cell))))
    np.testing.assert_array_equal(again.act, cell.act)


def test_uniform_cells_have_the_trees_of_a_uniform_attachment():
  n, num = 12, 20_000
  cells = space_lib.sample(space_lib.enas(n), jax.random.key(1), num)
  # Half of the nodes are leaves, E = N / 2.
  counts = space_lib.leaves(cells).sum(-1)
  assert abs(counts.mean() - n / 2) < 4 * counts.std() / math.sqrt(num)
  # The last node is as deep as a harmonic number.
  depth = jnp.zeros((num, n))
  for j in range(1, n):
    parents = jnp.take_along_axis(depth, cells.prev[:, j:j + 1], 1)
    depth = depth.at[:, j].set(parents[:, 0] + 1)
  harmonic = sum(1 / j for j in range(1, n))
  assert abs(depth[:, -1].mean() - harmonic) < 0.05
  share = jax.nn.one_hot(cells.prev[:, 7], 7).mean(0)
  np.testing.assert_allclose(share, 1 / 7, atol=0.01)


def test_the_published_cell_is_one_tree_in_three_encodings():
  cells = [space_lib.published(n) for n in space_lib.PUBLISHED_ENAS]
  assert len({space_lib.canonical(c) for c in cells}) == 1
  assert len({str(c.prev) + str(c.act) for c in cells}) == 3
  for cell in cells:
    assert space_lib.leaves(cell).sum() == 6
  assert list(np.flatnonzero(space_lib.leaves(cells[2]))) == [
      2, 5, 6, 9, 10, 11]


def hooks_and_automorphisms(cell):
  """Of a tree: the product of its subtrees' sizes, and |Aut|."""

  def count(node):
    below = [count(j) for j in range(1, len(cell.prev))
             if cell.prev[j] == node]
    shapes = collections.Counter(shape for shape, *_ in below)
    size = 1 + sum(size for _, size, _, _ in below)
    hooks = size * math.prod(hooks for *_, hooks, _ in below)
    alike = math.prod(map(math.factorial, shapes.values()))
    return ((int(cell.act[node]), frozenset(shapes.items())), size, hooks,
            alike * math.prod(same for *_, same in below))

  return count(0)[2:]


def test_the_published_tree_has_560_encodings():
  for name in space_lib.PUBLISHED_ENAS:
    hooks, automorphisms = hooks_and_automorphisms(space_lib.published(name))
    assert (hooks, automorphisms) == (142_560, 6)
    assert math.factorial(12) == 560 * hooks * automorphisms


@pytest.mark.parametrize('num_nodes, classes', [
    (1, 2), (2, 4), (3, 14), (4, 52), (5, 214), (6, 916)])
def test_trees_up_to_the_order_of_nodes(num_nodes, classes):
  space = Space(num_nodes, ('tanh', 'relu'))
  trees = collections.defaultdict(list)
  for cell in space_lib.unstack(space_lib.enumerate_cells(space)):
    trees[space_lib.canonical(cell)].append(cell)
  assert len(trees) == classes
  # Each has N! / (hooks |Aut|) encodings, which makes (N - 1)! K^N in all.
  for cells in trees.values():
    hooks, automorphisms = hooks_and_automorphisms(cells[0])
    assert len(cells) * hooks * automorphisms == math.factorial(num_nodes)


def test_code_bases_number_activations_otherwise():
  space = space_lib.enas(2)
  order = ('tanh', 'relu', 'sigmoid', 'identity')  # of enas_lm
  ours = space_lib.from_string(space, '2 0 3')
  theirs = space_lib.from_string(space, '3 0 2', order)
  np.testing.assert_array_equal(ours.act, theirs.act)
  genotype = [('tanh', 0)] + [('relu', 1)] * 7
  cell = space_lib.from_genotype(space_lib.darts(), genotype)
  np.testing.assert_array_equal(cell.prev, [0, 0] + [1] * 7)


@pytest.mark.parametrize('make, words', [
    (lambda s: space_lib.check_tokens(s, [0, 0, 1]), '5 tokens, not 3'),
    (lambda s: space_lib.check_tokens(s, [0, 1, 0, 0, 0]), r'prev\[1\]'),
    (lambda s: space_lib.check_tokens(s, [0, 0, 4, 0, 0]), r'act\[1\]\) is 4'),
    (lambda s: space_lib.check_tokens(s, [0., 0, 0, 0, 0]), 'integers'),
    (lambda s: space_lib.check_cell(s, space_lib.published()), '3 entries'),
    (lambda s: space_lib.from_string(s, '0 0 x 0 0'), 'row of integers'),
    (lambda s: space_lib.from_names(s, [0] * 3, ['elu'] * 3), 'elu'),
    (lambda s: space_lib.from_genotype(s, [('tanh', 0)] * 2), 'node 0'),
    (lambda s: space_lib.from_json(s, {'prev': [0]}), "'prev' and 'act'"),
    (lambda s: space_lib.from_json(s, {'prev': [0, 0, 1], 'act': [0, 1, 2]}),
     'no activation 0, 1, 2'),
    (lambda s: space_lib.check_cell(
        s, space_lib.Cell([0, .7, 1.2], [0, 1, 2])), 'prev of a cell has'),
    (lambda s: space_lib.from_genotype(space_lib.darts(), []),
     '8 pairs, not 0'),
    (lambda s: space_lib.enumerate_cells(space_lib.enas(12)), 'cells, over'),
    (lambda s: Space(3, ('tanh', 'gelu')), 'gelu'),
    (lambda s: Space(3, first='elu'), 'first'),
])
def test_what_no_cell_has_is_refused_with_the_place(make, words):
  with pytest.raises(space_lib.SpaceError, match=words):
    make(space_lib.enas(3))
