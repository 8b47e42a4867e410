"""Figures of samples and of measured curves, drawn without global state."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import chex
from matplotlib import colormaps
from matplotlib.ticker import ScalarFormatter
import numpy as np

from core_jax import curves as curves_lib
from msd_jax import pixels

_COLOURS = (*curves_lib.COLORS[:6], '#000000', '#b8a500')
_TILE = 64  # Pixels of the figure that an image is at least wide.
_GAP = 10  # Pixels between two images.


def image_grid(
    path: str,
    columns: Mapping[str, np.ndarray],
    *,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str = '',
    samples_per_class: int = 4,
    max_classes: int = 12,
) -> None:
  """Writes a PNG with a block of images for each method and a row per class.

  Every pixel of an image becomes a square of whole pixels. Images of one
  channel are drawn as ink on paper: their lowest value is white.

  Args:
    path: of the PNG.
    columns: title of a block to images [N, H, W, C], uint8 or float in [-1, 1].
    labels: int [N], the same for all blocks.
    class_names: [Y].
    title: of the figure.
    samples_per_class: images in a row of a block, the first of their class.
    max_classes: rows at most, the first classes.
  """
  for images in columns.values():
    chex.assert_shape(images, (len(labels), None, None, None))
  rows = [
      np.flatnonzero(np.asarray(labels) == label)[:samples_per_class]
      for label in range(min(len(class_names), max_classes))]
  blocks = {
      name: _mosaic(_to_bytes(images), rows, samples_per_class)
      for name, images in columns.items()}
  height, width = next(iter(blocks.values())).shape[:2]
  # Margins in pixels; an average glyph of the row names is about 12 wide.
  left = 24 + 12 * max(len(name) for name in class_names[:len(rows)])
  top, edge = 48 + (44 if title else 0), 24
  total_width = left + len(blocks) * (width + edge)
  total_height = top + height + edge
  figure = curves_lib.blank(total_width, total_height)
  for i, (name, block) in enumerate(blocks.items()):
    x = left + i * (width + edge)
    axes = figure.add_axes((
        x / total_width, edge / total_height,
        width / total_width, height / total_height))
    axes.imshow(block, interpolation='nearest', aspect='auto')
    axes.set_axis_off()
    axes.set_title(name, fontsize=9, color=curves_lib.TEXT, pad=6)
    if i == 0:
      _name_rows(axes, class_names[:len(rows)], height / len(rows))
  if title:
    figure.text(
        0.5, 1 - 14 / total_height, title, ha='center', va='top', fontsize=10,
        color=curves_lib.TEXT)
  curves_lib.save(figure, path)


def _name_rows(axes, names, row_height):
  for row, name in enumerate(names):
    axes.text(
        -10, (row + 0.5) * row_height - _GAP / 2, name, ha='right', va='center',
        fontsize=8, color=curves_lib.GREY)


def _to_bytes(images):
  """Images to uint8 [N, H, W, 3]; one channel as ink on paper."""
  images = np.asarray(images)
  if images.dtype != np.uint8:
    images = pixels.to_uint8(images)
  if images.shape[-1] == 1:
    images = np.repeat(255 - images, 3, axis=-1)
  return images


def _mosaic(images, rows, num_columns):
  """Lays images [N, H, W, 3] out by rows of indices: uint8 [h, w, 3]."""
  scale = math.ceil(_TILE / images.shape[2])
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  height, width = (size + _GAP for size in images.shape[1:3])
  sheet = np.full((len(rows) * height, num_columns * width, 3), 255, np.uint8)
  for i, indices in enumerate(rows):
    for j, index in enumerate(indices):
      sheet[
          i * height:(i + 1) * height - _GAP,
          j * width:(j + 1) * width - _GAP] = images[index]
  return sheet


def points(
    path: str,
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    extent: float,
    *,
    title: str = '',
    max_points: int = 20_000,
) -> None:
  """Writes a PNG with a scatter plot per panel, coloured by class.

  Args:
    path: of the PNG.
    panels: title to (points [N, 2], labels int [N]).
    extent: each panel shows [-extent, extent]^2.
    title: of the figure.
    max_points: drawn in a panel, the first of the set.
  """
  num_rows = math.ceil(len(panels) / 4)
  num_columns = math.ceil(len(panels) / num_rows)
  figure = curves_lib.blank(
      330 * num_columns, 360 * num_rows + (40 if title else 0), 'constrained')
  grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
  for axes in grid[len(panels):]:
    axes.set_axis_off()
  num_classes = 1 + max(int(np.max(labels)) for _, labels in panels.values())
  colours = _class_colours(num_classes)
  for axes, (name, (xy, labels)) in zip(grid, panels.items(), strict=False):
    chex.assert_shape(xy, (len(labels), 2))
    xy, labels = np.asarray(xy)[:max_points], np.asarray(labels)[:max_points]
    axes.scatter(xy[:, 0], xy[:, 1], s=1.5, c=colours[labels], linewidths=0,
                 alpha=0.5)
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect='equal')
    axes.set(xticks=(), yticks=())
    axes.spines[:].set_color(curves_lib.RULE)
    axes.set_title(name, fontsize=9, color=curves_lib.TEXT)
  if title:
    figure.suptitle(title, fontsize=10, color=curves_lib.TEXT)
  curves_lib.save(figure, path)


def _class_colours(num_classes):
  """Colours [Y, 3 or 4]: the palette while it lasts, then a cyclic map."""
  if num_classes <= len(_COLOURS):
    return np.array(_COLOURS[:num_classes])
  return colormaps['hsv'](np.linspace(0, 1, num_classes, endpoint=False))


def curves(
    path: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    xlabel: str,
    ylabel: str,
    floor: float | None = None,
    teacher: float | None = None,
    title: str = '',
) -> None:
  """Writes a PNG: distance against one setting (log 2), with lines of runs.

  Args:
    path: of the PNG.
    rows: one for each run, with 'line' (a name), 'x' and 'distance'. Rows of
      one line and x are seeds of one experiment: the line goes through their
      mean, with bars of one deviation (N - 1).
    xlabel: name of the setting.
    ylabel: name and unit of the distance.
    floor: distance of two draws of the true law, a dotted line.
    teacher: the teacher's distance, a dashed line.
    title: of the figure.
  """
  figure = curves_lib.blank(900, 600, 'constrained')
  axes = figure.subplots()
  lines = list(dict.fromkeys(row['line'] for row in rows))
  for i, line in enumerate(lines):
    xs, means, spreads = _statistics(
        [row for row in rows if row['line'] == line])
    # A small shift keeps the bars of different lines apart.
    shift = 2 ** (0.04 * (i - (len(lines) - 1) / 2))
    axes.errorbar(
        xs * shift, means, yerr=spreads, label=line, marker='o',
        markersize=4, capsize=3, linewidth=1.5,
        color=_COLOURS[i % len(_COLOURS)])
  for name, value, style in (
      ('teacher', teacher, '--'), ('floor', floor, ':')):
    if value is not None:
      axes.axhline(value, color=curves_lib.GREY, linestyle=style, linewidth=1.2,
                   label=name)
  axes.set_xscale('log', base=2)
  axes.set_xticks(sorted({row['x'] for row in rows}))
  axes.xaxis.set_major_formatter(ScalarFormatter())
  axes.set_ylim(bottom=0)
  axes.set_xlabel(xlabel, color=curves_lib.TEXT)
  axes.set_ylabel(ylabel, color=curves_lib.TEXT)
  axes.set_title(title, fontsize=10, color=curves_lib.TEXT)
  axes.grid(axis='y', color=curves_lib.RULE, linewidth=0.6)
  axes.spines[['top', 'right']].set_visible(False)
  # Matplotlib lists plain lines before those with bars: put the runs first.
  handles, names = axes.get_legend_handles_labels()
  order = np.argsort([name not in lines for name in names], stable=True)
  axes.legend(
      [handles[i] for i in order], [names[i] for i in order], frameon=False,
      fontsize=8)
  curves_lib.save(figure, path)


def bands(
    path: str,
    panels: Mapping[str, tuple[Mapping[str, Sequence[float]],
                               Mapping[int, float]]],
) -> None:
  """Writes a PNG: in each panel a curve over what it should look like.

  Args:
    path: of the PNG.
    panels: title to (the reference's 'steps', 'least' and 'largest', [N]
      each; step to value of the run).
  """
  num_rows = math.ceil(len(panels) / 2)
  figure = curves_lib.blank(1100, 330 * num_rows, 'constrained')
  grid = figure.subplots(num_rows, 2, squeeze=False).ravel()
  for axes in grid[len(panels):]:
    axes.set_axis_off()
  for axes, (title, (band, mine)) in zip(grid, panels.items(), strict=False):
    axes.fill_between(
        band['steps'], band['least'], band['largest'], color=_COLOURS[4],
        alpha=0.5, linewidth=1, label='seeds of the reference')
    axes.plot(list(mine), list(mine.values()), color=_COLOURS[0],
              linewidth=1.2, label='this run')
    axes.set_title(title, fontsize=9, color=curves_lib.TEXT)
    axes.tick_params(labelsize=8, labelcolor=curves_lib.GREY)
    axes.grid(color=curves_lib.RULE, linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
  grid[0].legend(frameon=False, fontsize=8)
  curves_lib.save(figure, path)


def _statistics(rows):
  """Sorted x, mean and deviation over seeds of the distance, each [n]."""
  by_x = {}
  for row in rows:
    by_x.setdefault(row['x'], []).append(row['distance'])
  xs = sorted(by_x)
  means = [np.mean(by_x[x]) for x in xs]
  spreads = [
      np.std(by_x[x], ddof=1) if len(by_x[x]) > 1 else 0.0
      for x in xs]
  return np.array(xs, np.float64), np.array(means), np.array(spreads)
