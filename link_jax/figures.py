"""Pictures of head and tail, drawn without global state."""

from collections.abc import Mapping
from collections.abc import Sequence
import os

import numpy as np

from core_jax import curves

HEAD, TAIL = curves.COLORS[:2]
_NAMES = {'head': 'head', 'longtail': 'long tail'}


def histograms(
    path: str | os.PathLike,
    panels: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]],
    *, num_bins: int = 45) -> None:
  """Head and tail above each other, on the scale of their panel.

  Args:
    path: of the PNG.
    panels: (title, what the scores are) to those of head [N] and tail [M].
    num_bins: of a panel.
  """
  panels = {k: v for k, v in panels.items() if len(v[0]) and len(v[1])}
  if not panels:
    return
  columns = min(2, len(panels))
  figure = curves.blank(
      520 * columns, 560 * -(-len(panels) // columns), 'constrained')
  cells = figure.subfigures(
      -(-len(panels) // columns), columns, squeeze=False).flat
  for cell, ((title, unit), scores) in zip(
      cells, panels.items(), strict=False):
    pair = cell.subplots(2, 1, sharex=True)
    low, high = np.quantile(np.concatenate(scores), [0.002, 0.998])
    edges, top = np.linspace(low, high, num_bins + 1), 0.
    for axes, values, colour, name in zip(
        pair, scores, (HEAD, TAIL), _NAMES.values(), strict=True):
      shares, _ = np.histogram(np.clip(values, low, high), edges)
      shares = shares / len(values)
      axes.stairs(shares, edges, fill=True, color=colour, alpha=0.85)
      axes.axvline(
          values.mean(), color=curves.TEXT, linewidth=1, linestyle='--')
      axes.text(
          0.03, 0.94, f'{name}\nmean {values.mean():.2f}',
          transform=axes.transAxes, va='top', fontsize=8, color=curves.TEXT)
      top = max(top, shares.max())
      _tidy(axes)
    for axes in pair:
      axes.set_ylim(0, top * 1.25)
    pair[0].set_title(f'{title}, {unit}', fontsize=9, color=curves.TEXT)
    pair[1].set_xlabel(unit, fontsize=8, color=curves.TEXT)
    cell.supylabel('share of statements', fontsize=8, color=curves.TEXT)
  curves.save(figure, path)


def funnel(path: str | os.PathLike, counts: Mapping[str, int]) -> None:
  """Bars of what was proposed and what passed each check."""
  figure = curves.blank(900, 60 * len(counts) + 100, 'constrained')
  axes = figure.subplots()
  names, values = list(counts), np.array(list(counts.values()), np.float64)
  places = np.arange(len(names))[::-1]
  axes.barh(places, values, color=HEAD, height=0.62)
  for place, value in zip(places, values, strict=True):
    axes.text(value, place, f' {int(value):,}', va='center', fontsize=8,
              color=curves.TEXT)
  axes.set_yticks(places, names, fontsize=8)
  axes.set_xlim(0, values.max() * 1.15 if values.max() else 1)
  axes.tick_params(left=False)
  _tidy(axes)
  axes.set_xticks([])
  axes.spines['bottom'].set_visible(False)
  curves.save(figure, path)


def deltas(
    path: str | os.PathLike, by_domain: Mapping[str, Mapping[str, float]],
    *, effective: float) -> None:
  """A dot for each rule's delta, a row a domain."""
  figure = curves.blank(1000, 70 * len(by_domain) + 130, 'constrained')
  axes = figure.subplots()
  for place, values in enumerate(reversed(by_domain.values())):
    xs = np.array(sorted(values.values()))
    # Dots of nearly one place stand beside each other.
    shift = 0.22 * np.resize([0, 1, -1], len(xs))
    axes.scatter(xs, place + shift, s=14, color=HEAD, alpha=0.75, linewidths=0)
    if len(xs):
      axes.plot([xs.mean()] * 2, [place - 0.35, place + 0.35],
                color=curves.TEXT, linewidth=1.5)
  axes.axvline(0, color=curves.GREY, linewidth=0.8)
  axes.axvline(effective, color=TAIL, linewidth=1, linestyle='--')
  axes.set_yticks(range(len(by_domain)), list(reversed(by_domain)), fontsize=8)
  axes.set_xlabel("delta of a rule, nats a token; line: a domain's mean; "
                  f'dashed: {effective}', fontsize=8, color=curves.TEXT)
  axes.tick_params(left=False)
  _tidy(axes)
  curves.save(figure, path)


def scatter(
    path: str | os.PathLike,
    panels: Mapping[str, Sequence[tuple[float, float, str]]],
    *, ylabel: str) -> None:
  """Scores against a control; points are (x, y, split)."""
  figure = curves.blank(520 * len(panels), 420, 'constrained')
  grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  for axes, (xlabel, points) in zip(grid, panels.items(), strict=True):
    for split, colour in (('head', HEAD), ('longtail', TAIL)):
      xy = np.array([(x, y) for x, y, s in points if s == split]).reshape(-1, 2)
      axes.scatter(xy[:, 0], xy[:, 1], s=5, color=colour, alpha=0.35,
                   linewidths=0, label=_NAMES[split])
    axes.set_xlabel(xlabel, fontsize=8, color=curves.TEXT)
    _tidy(axes)
  grid[0].set_ylabel(ylabel, fontsize=8, color=curves.TEXT)
  legend = grid[0].legend(frameon=False, fontsize=8, markerscale=2)
  for handle in legend.legend_handles:
    handle.set_alpha(1)
  curves.save(figure, path)


def _tidy(axes):
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(curves.RULE)
  axes.tick_params(labelsize=8, color=curves.RULE)
