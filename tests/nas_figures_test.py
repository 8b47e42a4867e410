"""Pictures: where nodes of a cell stand, and that every figure is drawn."""

import re

import jax
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest

from nas_jax import analysis
from nas_jax import draw
from nas_jax import figures
from nas_jax import similarity
from nas_jax import space as space_lib

SPACE = space_lib.enas(12)
RNG = np.random.default_rng(0)


def some(num, space=SPACE):
  return space_lib.sample(space, jax.random.key(0), num)


def drawn(cell, space=SPACE):
  """Text -> place of what `draw_cell` writes."""
  ax = Figure().subplots()
  draw.draw_cell(ax, space, cell)
  return {t.get_text(): t.get_position() for t in ax.texts}


def places(cell):
  """Activation and place of every node, whatever its number."""
  return sorted((re.sub(r'\$.*', '', text), *place)
                for text, place in drawn(cell).items())


def test_isomorphic_cells_look_the_same():
  first, *others = [
      space_lib.published(n) for n in space_lib.PUBLISHED_ENAS]
  for other in others:
    assert places(other) == places(first)


def test_no_two_nodes_stand_at_one_place():
  for cell in space_lib.unstack(some(20)):
    found = drawn(cell)
    x, y = np.array(list(found.values())).T
    assert len(found) == 12 + 4
    apart = np.abs(x[:, None] - x) + np.abs(y[:, None] - y)
    assert (apart + np.eye(len(x)) >= 1 - 1e-9).all()


def test_nothing_stands_below_a_leaf_but_the_mean():
  for cell in space_lib.unstack(some(20)):
    found = {int(m[1]): place for text, place in drawn(cell).items()
             if (m := re.search(r'\{(\d+)\}', text))}
    for j in np.flatnonzero(space_lib.leaves(cell)):
      x, y = found[j]
      assert not [i for i, place in found.items()
                  if place[0] == x and place[1] > y]


def test_children_stand_a_layer_below_their_parents():
  cell = next(space_lib.unstack(some(1)))
  found = drawn(cell)
  row = {j: next(p[1] for t, p in found.items() if f'{{{j}}}' in t)
         for j in range(12)}
  assert all(row[j] == row[cell.prev[j]] + 1 for j in range(1, 12))


def test_dot_has_each_node_and_edge():
  text = draw.to_dot(SPACE, space_lib.published())
  assert text.count('->') == 2 + 11 + 6 + 1
  assert 'n3 [label="3 relu"' in text and 'n7 -> n8;' in text


def test_a_cell_of_another_space_is_not_drawn():
  with pytest.raises(space_lib.SpaceError, match='another space'):
    draw.to_dot(space_lib.enas(5), space_lib.published())


@pytest.mark.parametrize('space', [
    space_lib.enas(1), space_lib.enas(2), space_lib.darts()],
    ids=['1', '2', 'darts'])
def test_a_cell_of_any_size_is_saved(tmp_path, space):
  cell = next(space_lib.unstack(some(1, space)))
  draw.save_cell(tmp_path / 'cell.svg', space, cell)
  draw.save_cell(tmp_path / 'cell.png', space, cell)
  assert '<svg' in (tmp_path / 'cell.svg').read_text()
  assert Image.open(tmp_path / 'cell.png').width > 100


def test_a_method_has_one_colour():
  names = ['enas', 'enas_replay', 'uniform', 'mine', 'yours']
  found = figures.method_colors(names)
  assert len(set(found.values())) == 5
  assert figures.method_colors(['enas_replay'])['enas_replay'] == (
      found['enas_replay'])


def reports(space):
  options = space.num_options
  for concentration in (0.3, 3.0):
    probabilities = np.zeros((20, len(options), options.max()))
    for t, k in enumerate(options):
      probabilities[:, t, :k] = RNG.dirichlet([concentration] * k, 20)
    yield analysis.decision_report(probabilities)


def figure(name, path):
  """Draws the figure of a name from random numbers."""
  cells = some(24)
  hidden = RNG.normal(size=(24, 8))
  states, edits = (similarity.l2_distance(hidden),
                   similarity.aligned_edit_distance(cells))
  losses = np.append(RNG.normal(5, 0.3, 23), np.inf)
  steps, course = np.arange(30), RNG.normal(size=30)
  match name:
    case 'cells':
      found = dict(zip(('enas', 'with_memory'), space_lib.unstack(cells),
                       strict=False))
      figures.plot_cells(path, SPACE, found)
    case 'pairs':
      figures.plot_pairs(path, SPACE, cells, states, edits, 1)
    case 'search':
      figures.plot_search(
          path, {'reward': {'enas': (steps, course)},
                 'entropy, nats': {'replay': (steps, course)}}, 'round')
    case 'perplexities':
      figures.plot_perplexities(
          path, {'uniform': np.exp(losses), 'enas': [120.0] * 9,
                 'replay': [np.inf]})
    case 'decisions':
      figures.plot_decisions(
          path, SPACE, dict(zip(('enas', 'replay'), reports(SPACE),
                                strict=True)))
    case 'hidden_distances':
      figures.plot_hidden_distances(
          path, {'enas': (states, edits), 'replay': (states * 0, edits)})
    case 'projections':
      figures.plot_projections(path, {'enas': (hidden, losses)})
    case 'ranking':
      figures.plot_ranking(path, [losses, losses + 1], [losses + course[:24]])
    case 'strategies':
      figures.plot_strategies(
          path, {'uniform': [101.0, 99.0, 100.0], 'enas': [98.0]},
          'test perplexity', {'floor': 90.0})


FIGURES = ('cells', 'pairs', 'search', 'perplexities', 'decisions',
           'hidden_distances', 'projections', 'ranking', 'strategies')


def test_every_figure_is_drawn_here():
  ours = {n.removeprefix('plot_') for n in dir(figures)
          if n.startswith('plot_')}
  assert ours == set(FIGURES)


@pytest.mark.parametrize('name', FIGURES)
@pytest.mark.filterwarnings('error')
def test_figures_are_drawn(tmp_path, name):
  figure(name, tmp_path / 'figure.png')
  image = Image.open(tmp_path / 'figure.png').convert('L')
  assert image.width > 500
  assert np.asarray(image).std() > 5  # not blank


@pytest.mark.filterwarnings('error')
def test_what_collapsed_is_drawn_or_named(tmp_path):
  path = tmp_path / 'figure.png'
  figures.plot_projections(path, {'enas': (np.ones((9, 4)), [np.inf] * 9)})
  figures.plot_perplexities(path, {'enas': [np.inf, np.inf]})
  none = np.zeros((3, 3), int)
  figures.plot_hidden_distances(path, {'enas': (none, none)})
  same = space_lib.Cell(none, none)
  with pytest.raises(ValueError, match='all 3 cells are the same'):
    figures.plot_pairs(path, space_lib.enas(3), same, none, none)
