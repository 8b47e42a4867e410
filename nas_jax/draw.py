"""Pictures of cells: a layered tree from the inputs down to the new state."""

from collections.abc import Mapping
import os
from typing import Any

from matplotlib import patches
from matplotlib import path as path_lib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
import numpy as np

from core_jax import curves
from nas_jax import space as space_lib

Cell, Space = space_lib.Cell, space_lib.Space
COLORS = {'tanh': curves.COLORS[0], 'relu': curves.COLORS[1],
          'sigmoid': curves.COLORS[2], 'identity': curves.COLORS[6]}
_EDGE, _TO_MEAN = '#8a8a8a', '#c4c4c4'
_TOP = -1.4  # rows above node 0


def draw_cell(ax: Any, space: Space, cell: Cell, font_size: float = 8) -> None:
  """Draws one cell into matplotlib axes.

  Nodes bear their activation and, lowered, their number. Children stand in
  an order that does not depend on numbers, so isomorphic cells look the same.
  """
  cell = space_lib.check_cell(space, cell)
  x, depth = _layout(cell)
  bottom, middle = depth.max() + 1.2, (x.min() + x.max()) / 2
  for side, name in ((-0.55, 'x[t]'), (0.55, 'h[t-1]')):
    _curve(ax, (x[0] + side, -1), (x[0], 0), _EDGE)
    _label(ax, x[0] + side, -1, name, font_size)
  for j in range(1, len(x)):
    i = cell.prev[j]
    _curve(ax, (x[i], depth[i]), (x[j], depth[j]), _EDGE)
  for j in np.flatnonzero(space_lib.leaves(cell)):
    # A leaf has its column for itself: straight down meets nothing.
    ax.plot([x[j], x[j]], [depth[j], depth.max()], color=_TO_MEAN,
            linewidth=1, zorder=1)
    _curve(ax, (x[j], depth.max()), (middle, bottom), _TO_MEAN)
  _curve(ax, (middle, bottom), (middle, bottom + 1), _EDGE)
  for j, act in enumerate(cell.act):
    name = space.activations[act]
    _label(ax, x[j], depth[j], f'{name}$_{{{j}}}$', font_size, COLORS[name])
  _label(ax, middle, bottom, 'mean', font_size)
  _label(ax, middle, bottom + 1, 'h[t]', font_size)
  ax.set_xlim(min(x.min(), x[0] - 0.55) - 0.6, max(x.max(), x[0] + 0.55) + 0.6)
  ax.set_ylim(_extent(cell)[1] + _TOP, _TOP)
  ax.set_axis_off()


def draw_cells(space: Space, cells: Mapping[str, Cell], columns: int = 2,
               width: float = 7.4) -> Figure:
  """Title -> cell, `columns` side by side, in a figure `width` inches wide."""
  titles = list(cells)
  columns = min(columns, len(titles))
  rows = [titles[i:i + columns] for i in range(0, len(titles), columns)]
  heights = [max(_extent(cells[t])[1] for t in row) for row in rows]
  widths = [max(_extent(cells[row[c]])[0] for row in rows if c < len(row))
            for c in range(columns)]
  inches = min(1.0, width / sum(widths))  # of a column of leaves
  canvas = Figure((inches * sum(widths), sum(0.42 * h + 0.3 for h in heights)),
                  layout='constrained')
  axes = canvas.subplots(
      len(rows), columns, squeeze=False,
      gridspec_kw={'width_ratios': widths, 'height_ratios': heights})
  for ax in axes.ravel():
    ax.set_axis_off()
  font_size = float(np.clip(12 * inches, 4.5, 8.5))
  for row, names, height in zip(axes, rows, heights, strict=True):
    for ax, title in zip(row, names, strict=False):
      draw_cell(ax, space, cells[title], font_size)
      ax.set_ylim(height + _TOP, _TOP)  # layers of neighbours stand level
      ax.set_title(title, fontsize=9, color=curves.INK, loc='center')
  return canvas


def save_cell(path: str | os.PathLike, space: Space, cell: Cell,
              title: str = '') -> None:
  """Writes one cell as .svg, .png or whatever matplotlib knows."""
  draw_cells(space, {title: cell}).savefig(path, dpi=150)


def to_dot(space: Space, cell: Cell) -> str:
  """One cell -> a text of Graphviz' dot language."""
  cell = space_lib.check_cell(space, cell)
  lines = ['digraph cell {', '  node [shape=box style="rounded,filled"];']
  lines += [f'  {name} [label="{label}" fillcolor="white"];'
            for name, label in (('x', 'x[t]'), ('h', 'h[t-1]'),
                                ('mean', 'mean'), ('out', 'h[t]'))]
  for j, act in enumerate(cell.act):
    name = space.activations[act]
    lines.append(f'  n{j} [label="{j} {name}" fillcolor="{COLORS[name]}40"];')
  edges = [('x', 'n0'), ('h', 'n0')]
  edges += [(f'n{cell.prev[j]}', f'n{j}') for j in range(1, len(cell.prev))]
  edges += [(f'n{j}', 'mean') for j in np.flatnonzero(space_lib.leaves(cell))]
  lines += [f'  {a} -> {b};' for a, b in [*edges, ('mean', 'out')]]
  return '\n'.join([*lines, '}\n'])


def _layout(cell):
  """Columns [N], one of its own for each leaf, and depths [N]."""
  n = len(cell.prev)
  below, depth, text = [[] for _ in range(n)], np.zeros(n, int), [''] * n
  for j in range(1, n):
    depth[j] = depth[cell.prev[j]] + 1
  for j in range(n - 1, -1, -1):
    below[j].sort(key=lambda i: (len(text[i]), text[i]))
    text[j] = f'({cell.act[j]}{"".join(text[i] for i in below[j])})'
    if j:
      below[cell.prev[j]].append(j)
  x, free = np.zeros(n), 0

  def place(j):
    nonlocal free
    for i in below[j]:
      place(i)
    if below[j]:
      x[j] = (x[below[j][0]] + x[below[j][-1]]) / 2
    else:
      x[j], free = free, free + 1

  place(0)
  return x, depth


def _extent(cell):
  """Columns and rows that the picture of a cell takes."""
  x, depth = _layout(cell)
  columns = max(x.max(), x[0] + 0.55) - min(x.min(), x[0] - 0.55) + 1.2
  return columns, depth.max() + 4.0


def _label(ax, x, y, text, font_size, color=None):
  tint = 0.78 + 0.22 * np.array(to_rgb(color)) if color else 'white'
  ax.text(x, y, text, fontsize=font_size, color='#222222', ha='center',
          va='center', zorder=3, bbox={
              'boxstyle': 'round,pad=0.3', 'facecolor': tint,
              'edgecolor': color or 'white', 'linewidth': 1.1})


def _curve(ax, start, end, color):
  """A line that leaves and arrives vertically."""
  (x0, y0), (x1, y1) = start, end
  half = (y0 + y1) / 2
  line = path_lib.Path(
      [(x0, y0), (x0, half), (x1, half), (x1, y1)],
      [path_lib.Path.MOVETO] + 3 * [path_lib.Path.CURVE4])
  ax.add_patch(patches.PathPatch(
      line, facecolor='none', edgecolor=color, linewidth=1.1, zorder=1))
