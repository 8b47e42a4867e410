"""Pictures of a tuning run: schedules in their bounds, losses by compute."""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import os

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.ticker import LogLocator
from matplotlib.ticker import MaxNLocator
from matplotlib.ticker import NullFormatter
import numpy as np

from core_jax import curves
from stn_jax import schedule as schedule_lib
from stn_jax import space as space_lib


def plot_schedules(
    path: str | os.PathLike, space: space_lib.Space,
    schedules: Mapping[str, schedule_lib.Schedule], updates_per_round: int,
) -> None:
  """A panel for each hyperparameter, a line for each method, its bounds grey.

  Args:
    path: of the PNG.
    space: gives the bounds.
    schedules: method -> name -> values [R].
    updates_per_round: for the axis of time.
  """
  columns = min(3, len(space))
  rows = math.ceil(len(space) / columns)
  canvas = Figure((3.2 * columns + .2, 2.1 * rows + .5), layout='constrained')
  axes = canvas.subplots(rows, columns, squeeze=False).ravel()
  for ax, (name, h) in zip(axes, space.items(), strict=False):
    for color, (method, found) in zip(
        curves.COLORS, schedules.items(), strict=False):
      steps = np.arange(len(found[name])) * updates_per_round
      ax.plot(steps, found[name], color=color, linewidth=1.4,
              label=method, drawstyle='steps-post' if h.whole else 'default')
    for bound in (h.low, h.high):
      if math.isfinite(bound) and not h.decades:
        ax.axhline(bound, color='#aaaaaa', linewidth=0.8, linestyle=':')
    if h.decades:
      ax.set_yscale('log')
    _style(ax, name.replace('_', ' '))
  for ax in axes[len(space):]:
    ax.set_axis_off()
  for ax in axes[max(0, len(space) - columns):len(space)]:
    ax.set_xlabel('weight update', fontsize=8, color=curves.INK)
  axes[0].legend(fontsize=8, frameon=False, labelcolor=curves.INK)
  canvas.savefig(path, dpi=150)


def plot_comparison(
    path: str | os.PathLike,
    points: Sequence[tuple[str, str, float, float]],
    searches: Mapping[str, Sequence[float]], measure: str,
) -> None:
  """Test loss against compute: dots for single runs, steps for searches.

  Args:
    path: of the PNG.
    points: (name, method, cost in plain runs, test loss); a colour a method.
    searches: name -> test loss of the best trial so far, after each.
    measure: what the vertical axis shows.
  """
  canvas = Figure((7.4, 3.8), layout='constrained')
  ax = canvas.subplots()
  for color, (name, values) in zip(
      curves.COLORS[4:], searches.items(), strict=False):
    ax.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=1.6,
            drawstyle='steps-post', label=f'{name}, best by validation so far')
  methods = list(dict.fromkeys(method for _, method, _, _ in points))
  drawn = collections.Counter()
  for name, method, cost, value in points:
    mark = 'o^vsD<>'[drawn[method] % 7]
    # Beside those of equal cost, not on them.
    x = cost + 0.12 * drawn[cost]
    drawn.update([method, cost])
    ax.scatter([x], [value], color=curves.COLORS[methods.index(method) % 4],
               marker=mark, s=44, zorder=3, label=name)
  ax.set_xlabel('compute, in plain training runs', fontsize=9,
                color=curves.INK)
  _decades(ax)
  ax.legend(fontsize=8, frameon=False, labelcolor=curves.INK,
            loc='center left', bbox_to_anchor=(1.0, 0.5))
  _style(ax, measure)
  canvas.savefig(path, dpi=150)


def plot_losses(
    path: str | os.PathLike,
    lines: Mapping[str, Sequence[tuple[int, float | None]]],
    updates_per_round: int, measure: str,
) -> None:
  """Validation loss over training: name -> (round, loss); dashes from the 9th.

  Args:
    path: of the PNG.
    lines: as above, None where a run diverged.
    updates_per_round: for the axis of time.
    measure: what the vertical axis shows.
  """
  canvas = Figure((7.4, 3.4), layout='constrained')
  ax = canvas.subplots()
  looks = itertools.product(('-', '--', ':'), curves.COLORS)
  for (dashes, color), (name, curve) in zip(
      looks, lines.items(), strict=False):
    x, y = np.array(curve, np.float64).T
    ax.plot(x * updates_per_round, y, color=color, linestyle=dashes,
            linewidth=1.5, label=name)
  ax.set_xlabel('weight update', fontsize=9, color=curves.INK)
  _decades(ax)
  ax.legend(fontsize=8, frameon=False, labelcolor=curves.INK,
            loc='center left', bbox_to_anchor=(1.0, 0.5))
  _style(ax, measure)
  canvas.savefig(path, dpi=150)


def _decades(ax):
  """A logarithmic axis of losses, which seldom span one decade."""
  if not math.isfinite(ax.dataLim.minposy):  # All diverged.
    return
  ax.set_yscale('log')
  ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}'))
  ax.yaxis.set_minor_formatter(NullFormatter())


def _style(ax, title):
  curves.style(ax, title)
  ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
