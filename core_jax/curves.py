"""Draws the metrics of a run as small multiples, one picture a stage."""

import math
import os
import pathlib
import re
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from matplotlib.ticker import FuncFormatter
from matplotlib.ticker import LogLocator
from matplotlib.ticker import MaxNLocator
from matplotlib.ticker import NullFormatter
import numpy as np

from core_jax import metrics as metrics_lib

UNITS = ('seconds', 'nats', 'bits', 'bytes', 'percent', 'tokens')
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9',
          '#7f7f7f', '#b8a900')  # told apart by colour-blind eyes too
INK, GRID = '#444444', '#e4e4e4'
# Of pictures in pixels: their text, lines beside the data, frames.
TEXT, GREY, RULE = '#222222', '#666666', '#dddddd'
DPI = 150


def plot_curves(workdir: str | os.PathLike) -> list[pathlib.Path]:
  """Draws `figures/curves_<stage>.png` for each stage with a course to show.

  One panel a metric; metrics that are called `name/0`, `name/1`, ... share
  one. What has a single value, such as a final evaluation, is left out.

  Returns:
    The files, in the order of the stages.
  """
  stages = {}
  for row in metrics_lib.read(workdir):
    stages.setdefault(row['stage'], []).append(row)
  paths = []
  for stage, rows in stages.items():
    if panels := _panels(rows):
      name = re.sub(r'[^\w-]+', '_', stage)
      paths.append(pathlib.Path(workdir) / 'figures' / f'curves_{name}.png')
      paths[-1].parent.mkdir(parents=True, exist_ok=True)
      _draw(panels).savefig(paths[-1], dpi=DPI)
  return paths


def style(ax: Any, title: str) -> None:
  """Gives axes their title and a grid in place of frame and ticks."""
  ax.set_title(title, loc='left', fontsize=9, color=INK)
  ax.tick_params(labelsize=8, length=0, which='both', labelcolor=INK)
  ax.grid(color=GRID, linewidth=0.7)
  ax.set_axisbelow(True)
  for side in ('top', 'right', 'left', 'bottom'):
    ax.spines[side].set_visible(False)


def blank(width: int, height: int, layout: str | None = None) -> Figure:
  """A white figure of this many pixels, with a canvas of its own."""
  figure = Figure(
      figsize=(width / DPI, height / DPI), dpi=DPI, layout=layout,
      facecolor='white')
  FigureCanvasAgg(figure)
  return figure


def save(figure: Figure, path: str | os.PathLike) -> None:
  """Writes a PNG, and the folder that it is to be in."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=DPI, format='png')


def _panels(rows):
  """Panel's name -> curve's name -> (steps [N], values [N])."""
  names = dict.fromkeys(name for row in rows for name in row
                        if name not in metrics_lib.RESERVED)
  panels = {}
  for name in names:
    points = [(row['step'], row[name]) for row in rows if name in row]
    if len(points) > 1:
      steps, values = np.array(points, np.float64).T  # None becomes nan
      panel, _, index = name.rpartition('/')
      panel = panel if panel and index.isdigit() else name
      panels.setdefault(panel, {})[index] = steps, values
  return panels


def _draw(panels):
  """Small multiples; a light line is what was logged, a dark its mean."""
  columns = min(2, len(panels))  # a third would be too small on a phone
  rows = math.ceil(len(panels) / columns)
  canvas = Figure((3.3 * columns + 0.3, 2.2 * rows + 0.2),
                  layout='constrained')
  canvas.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
  axes = canvas.subplots(rows, columns, squeeze=False).ravel()
  for ax, (name, curves) in zip(axes, panels.items(), strict=False):
    _draw_panel(ax, name, curves)
  for ax in axes[max(0, len(panels) - columns):len(panels)]:
    ax.set_xlabel('step', color=INK, fontsize=8)
  for ax in axes[len(panels):]:
    ax.set_axis_off()
  return canvas


def _draw_panel(ax, name, curves):
  for i, (label, (steps, values)) in enumerate(curves.items()):
    color = COLORS[i % len(COLORS)]
    window = len(values) // 25
    smooth = window > 3
    ax.plot(steps, values, color=color, linewidth=0.8 if smooth else 1.4,
            alpha=0.3 if smooth else 1.0, label=None if smooth else label)
    if smooth:
      ax.plot(steps, _running_mean(values, window), color=color,
              linewidth=1.6, label=label)
  if _spans_decades(np.concatenate([v for _, v in curves.values()])):
    ax.set_yscale('log')
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_minor_formatter(NullFormatter())
  else:
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_formatter(FuncFormatter(_tick))
  style(ax, _label(name))
  ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
  ax.xaxis.set_major_formatter(FuncFormatter(_tick))
  if len(curves) > 1:
    ax.legend(fontsize=7, frameon=False, ncols=2, labelcolor=INK)


def _running_mean(values, window):
  """Mean over `window` neighbours that are there, fewer at the ends."""
  there = np.isfinite(values)
  kernel = np.ones(window)
  total = np.convolve(np.where(there, values, 0.0), kernel, 'same')
  count = np.convolve(there.astype(float), kernel, 'same')
  return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _spans_decades(values):
  values = values[np.isfinite(values)]
  return bool(values.size and values.min() > 0
              and values.max() > 100 * values.min())


def _tick(value, unused_position):
  """12000 -> '12k', 0.25 -> '0.25'."""
  if abs(value) >= 1e4:
    return EngFormatter(sep='').format_eng(value)
  return f'{value:.5g}'


def _label(name):
  """'step_seconds' -> 'step (seconds)'."""
  *words, last = name.replace('_', ' ').split()
  if words and last in UNITS and words[-1] != 'per':
    return f'{" ".join(words)} ({last})'
  return ' '.join([*words, last])
