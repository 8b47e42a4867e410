"""Pictures of a search: cells, decisions, hidden states and rankings.

Methods are given by name; each has one colour in all pictures.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import os
from typing import Any

from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.ticker import LogLocator
from matplotlib.ticker import MaxNLocator
from matplotlib.ticker import NullFormatter
import numpy as np
from scipy import stats

from core_jax import curves
from nas_jax import analysis
from nas_jax import draw
from nas_jax import space as space_lib
from nas_jax import statistics

WIDTH = 7.4  # inches of a page
_COLORS = dict(zip(
    ('enas', 'enas_reconstruct', 'enas_replay', 'enas_prev_action',
     'evolution', 'darts', 'uniform', 'halving'), curves.COLORS, strict=True))
_OTHERS = ('#332288', '#882255')


def method_colors(names: Sequence[str]) -> dict[str, str]:
  """Name -> colour: its own where the method is known, else one left over."""
  known = {name: _COLORS[name] for name in names if name in _COLORS}
  cycle = itertools.cycle(
      [c for c in curves.COLORS + _OTHERS if c not in known.values()])
  return {name: known.get(name) or next(cycle) for name in names}


def plot_cells(path: str | os.PathLike, space: space_lib.Space,
               cells: Mapping[str, space_lib.Cell]) -> None:
  """Draws cells two in a row: title -> cell."""
  titled = {_words(title): cell for title, cell in cells.items()}
  draw.draw_cells(space, titled, width=WIDTH).savefig(path, dpi=150)


def plot_pairs(
    path: str | os.PathLike, space: space_lib.Space, cells: space_lib.Cell,
    hidden_distances: Any, edit_distances: Any, num: int = 3,
) -> None:
  """Draws the pairs of different cells with closest and farthest states.

  Args:
    path: of the picture.
    space: of the cells.
    cells: [M, N].
    hidden_distances: [M, M], L2.
    edit_distances: [M, M]; pairs at 0 are left out.
    num: of pairs of each kind.

  Raises:
    ValueError: all cells are the same.
  """
  each = list(space_lib.unstack(cells))
  closest, farthest = analysis.extreme_pairs(
      hidden_distances, num, allowed=np.asarray(edit_distances) > 0)
  if not len(closest):
    raise ValueError(f'all {len(each)} cells are the same: no two to compare')
  drawn = {}
  for kind, pairs in (('closest', closest), ('farthest', farthest)):
    for rank, (i, j) in enumerate(pairs, start=1):
      name = f'{kind} states {rank}'
      drawn[f'{name}: L2 {hidden_distances[i][j]:.3g}'] = each[i]
      drawn[f'{name}: {edit_distances[i][j]} edits'] = each[j]
  plot_cells(path, space, drawn)


def plot_search(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, tuple[Any, Any]]], time: str,
) -> None:
  """Courses of searches, a panel for each measure.

  Args:
    path: of the picture.
    panels: measure, with its unit -> method -> (times [T], values [T]).
    time: what the horizontal axes count.
  """
  canvas, axes = _grid(len(panels))
  colors = method_colors(_methods(panels.values()))
  for ax, (measure, lines) in zip(axes, panels.items(), strict=False):
    for method, (times, values) in lines.items():
      ax.plot(times, values, color=colors[method], linewidth=1.4)
    curves.style(ax, measure)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel(time, fontsize=8, color=curves.INK)
  _legend(canvas, axes[0], colors)
  canvas.savefig(path, dpi=150)


def plot_perplexities(
    path: str | os.PathLike, perplexities: Mapping[str, Any],
    measure: str = 'validation perplexity with shared weights',
) -> None:
  """How good the cells are that each policy samples: density, mean, best.

  Args:
    path: of the picture.
    perplexities: method -> [M]; those that are not finite are counted in the
      legend.
    measure: what the horizontal axis shows.
  """
  canvas = Figure((WIDTH, 3.2), layout='constrained')
  ax = canvas.subplots()
  colors = method_colors(list(perplexities))
  for row, (method, values) in enumerate(perplexities.items()):
    values = np.asarray(values, np.float64)
    finite = np.log(values[np.isfinite(values)])
    failed = len(values) - len(finite)
    label = _words(method) + (f', {failed} failed' if failed else '')
    if not len(finite):
      ax.plot([], [], color=colors[method], label=label)
      continue
    label += (f': mean {np.exp(finite).mean():.4g}, '
              f'best {np.exp(finite.min()):.4g}')
    x, density = _density(finite)
    ax.fill_between(np.exp(x), density, color=colors[method], alpha=0.15,
                    linewidth=0)
    ax.plot(np.exp(x), density, color=colors[method], label=label)
    ax.plot(np.exp(finite), np.full(len(finite), -0.05 * (row + 1)), '|',
            color=colors[method], markersize=7, alpha=0.5)
  curves.style(ax, 'density of log perplexity, each scaled to its peak')
  _log_axis(ax)
  ax.set_yticklabels([])
  ax.set_xlabel(measure, fontsize=8, color=curves.INK)
  ax.legend(fontsize=8, frameon=False, labelcolor=curves.INK)
  canvas.savefig(path, dpi=150)


def plot_decisions(
    path: str | os.PathLike, space: space_lib.Space,
    reports: Mapping[str, Mapping[str, Any]],
    elsewhere: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
  """How sure each method is of each node's activation and predecessor.

  Args:
    path: of the picture.
    space: of the decisions.
    reports: method -> `analysis.decision_report`.
    elsewhere: the same from random starts, drawn dashed: on top of the others
      where a policy does not heed its state.
  """
  canvas, axes = _grid(4)
  colors = method_colors(list(reports))
  options = space.num_options
  kinds = (('activation', slice(0, None, 2), np.arange(space.num_nodes)),
           ('predecessor', slice(1, None, 2), np.arange(1, space.num_nodes)))
  measures = (('entropy', 'entropy of the {}, nats', np.log(options)),
              ('confidence', 'largest probability of the {}', 1 / options))
  for ax, ((name, title, uniform), (kind, part, nodes)) in zip(
      axes, itertools.product(measures, kinds), strict=True):
    ax.plot(nodes, uniform[part], color='#aaaaaa', linestyle=':')
    for method, report in reports.items():
      mean, sd = (np.asarray(report[f'{name}_{x}'])[part]
                  for x in ('mean', 'sd'))
      ax.fill_between(nodes, mean - sd, mean + sd, color=colors[method],
                      alpha=0.15, linewidth=0)
      ax.plot(nodes, mean, color=colors[method], marker='.', linewidth=1.3)
    for method, report in (elsewhere or {}).items():
      ax.plot(nodes, np.asarray(report[f'{name}_mean'])[part],
              color=colors[method], linestyle='--', linewidth=1)
    curves.style(ax, title.format(kind))
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
  for ax in axes[2:]:
    ax.set_xlabel('node', fontsize=8, color=curves.INK)
  _legend(canvas, axes[0], colors, uniform='#aaaaaa')
  canvas.savefig(path, dpi=150)


def plot_hidden_distances(
    path: str | os.PathLike, distances: Mapping[str, tuple[Any, Any]],
    measure: str = 'edit distance',
) -> None:
  """Distance of hidden states against distance of cells, and its mean.

  Args:
    path: of the picture.
    distances: method -> (of states [M, M], of cells [M, M], whole numbers).
    measure: of cells, for the horizontal axes.
  """
  canvas, axes = _grid(len(distances), columns=3, height=2.4)
  colors = method_colors(list(distances))
  jitter = np.random.default_rng(0)  # the same picture each time
  for ax, (method, (states, cells)) in zip(
      axes, distances.items(), strict=False):
    upper = np.triu_indices(len(states), 1)
    y, x = np.asarray(states)[upper], np.asarray(cells)[upper]
    ax.scatter(x + jitter.uniform(-0.3, 0.3, len(x)), y, s=3, linewidths=0,
               color=colors[method], alpha=0.25)
    bins = [b for b in np.unique(x) if (x == b).sum() > 1]
    ax.errorbar(bins, [y[x == b].mean() for b in bins],
                [y[x == b].std() for b in bins], color=curves.INK,
                linewidth=1.1, elinewidth=0.7, marker='.', markersize=4)
    rho = statistics.spearman(x, y)
    curves.style(ax, f'{_words(method)}: {_rho(rho)}')
    ax.set_xlabel(measure, fontsize=8, color=curves.INK)
    ax.set_ylabel('L2 of hidden states', fontsize=8, color=curves.INK)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  canvas.savefig(path, dpi=150)


def plot_projections(
    path: str | os.PathLike, states: Mapping[str, tuple[Any, Any]], *,
    perplexity: float = 20, seed: int = 0,
) -> None:
  """Hidden states in two dimensions, coloured by the loss of their cells.

  Args:
    path: of the picture.
    states: method -> (hidden [M, h], losses [M], nats).
    perplexity: of t-SNE; less where there are few states.
    seed: of t-SNE.
  """
  columns = len(states)
  canvas = Figure((min(WIDTH, 3.4 * columns + 0.9), 5.4),
                  layout='constrained')
  axes = canvas.subplots(2, columns, squeeze=False)
  losses = np.concatenate([np.asarray(x, float) for _, x in states.values()])
  finite = losses[np.isfinite(losses)]
  # A few cells that fail would leave all others one colour.
  norm = Normalize(*np.quantile(finite, [0.02, 0.98]) if finite.size else ())
  for (top, bottom), (method, (hidden, loss)) in zip(
      axes.T, states.items(), strict=True):
    found, shares = analysis.pca(hidden)
    near = analysis.tsne(hidden, seed=seed, perplexity=min(
        perplexity, (len(hidden) - 1) / 3))
    share = f'PCA, {100 * shares[:2].sum():.0f} % of variance'
    for ax, points, name in ((top, found, share), (bottom, near, 't-SNE')):
      dots = ax.scatter(*points[:, :2].T, c=loss, norm=norm, s=10,
                        cmap='viridis_r', linewidths=0, plotnonfinite=True)
      curves.style(ax, f'{_words(method)}: {name}')
      ax.set_xticklabels([])
      ax.set_yticklabels([])
  bar = canvas.colorbar(dots, ax=axes, shrink=0.6, extend='both')
  bar.set_label('validation loss, nats', fontsize=8, color=curves.INK)
  bar.ax.tick_params(labelsize=8, length=0, labelcolor=curves.INK)
  bar.outline.set_visible(False)
  canvas.savefig(path, dpi=150)


def plot_ranking(path: str | os.PathLike, shared_losses: Any,
                 true_losses: Any) -> None:
  """Each cell's loss with shared weights against that of training it alone.

  Args:
    path: of the picture.
    shared_losses: [seeds, M], nats.
    true_losses: [seeds, M], nats.
  """
  canvas = Figure((WIDTH, 3.9), layout='constrained')
  ax = canvas.subplots()
  shared, true = np.asarray(shared_losses), np.asarray(true_losses)
  truth = true.mean(0)
  for row, color in zip(shared, itertools.cycle(curves.COLORS)):
    ax.scatter(truth, row, s=14, color=color, alpha=0.6, linewidths=0,
               label=f'tau = {statistics.kendall(row, truth):.2f}')
  found = analysis.rank_report(shared, true, width=1, top=())
  title = f'{len(truth)} cells; tau of the mean {found["tau_of_mean"]:.2f}'
  if len(true) > 1:
    title += f', of two seeds alone {found["tau_ceiling"]["mean"]:.2f}'
  curves.style(ax, title)
  ax.set_xlabel(f'loss trained alone, nats (mean of {len(true)} seeds)',
                fontsize=8, color=curves.INK)
  ax.set_ylabel('loss with shared weights, nats', fontsize=8, color=curves.INK)
  ax.legend(fontsize=8, frameon=False, labelcolor=curves.INK,
            title='each seed of shared weights', title_fontsize=8,
            loc='center left', bbox_to_anchor=(1.0, 0.5))
  canvas.savefig(path, dpi=150)


def plot_strategies(
    path: str | os.PathLike, results: Mapping[str, Any], measure: str,
    references: Mapping[str, float] | None = None,
    titles: Mapping[str, str] | None = None,
) -> None:
  """What each strategy found: dots, and of several the mean and interval.

  Args:
    path: of the picture.
    results: strategy -> figures of its seeds, or of its cells; lower is
      better.
    measure: what the horizontal axis shows, with its unit.
    references: name -> value of upright lines, such as a known floor.
    titles: strategy -> its name for people.
  """
  canvas = Figure((WIDTH, 0.42 * len(results) + 1.3), layout='constrained')
  ax = canvas.subplots()
  colors = method_colors(list(results))
  for y, (method, values) in enumerate(results.items()):
    found = statistics.mean_interval(values)
    spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0]
    ax.scatter(values, y + np.asarray(spread), s=16, alpha=0.5, linewidths=0,
               color=colors[method])
    if math.isfinite(found['low']):
      ax.plot([found['low'], found['high']], [y, y], color=colors[method])
    ax.plot([found['mean']], [y], 'D', color=colors[method], markersize=6)
  for name, value in (references or {}).items():
    ax.axvline(value, color=curves.INK, linewidth=1, linestyle=':')
    ax.annotate(_words(name), (value, 1), xycoords=('data', 'axes fraction'),
                xytext=(3, -2), textcoords='offset points', fontsize=8,
                va='top', color=curves.INK)
  curves.style(ax, 'diamonds: the mean, with its 95 % interval')
  ax.set_yticks(
      range(len(results)), [(titles or {}).get(m, _words(m)) for m in results])
  ax.set_ylim(len(results) - 0.5, -0.8 if references else -0.5)
  ax.set_xlabel(measure, fontsize=8, color=curves.INK)
  canvas.savefig(path, dpi=150)


def _grid(num, columns=2, height=2.2):
  """A figure and `num` axes in it, the others hidden."""
  columns = min(columns, num)
  rows = math.ceil(num / columns)
  canvas = Figure((WIDTH * min(1, columns / 2 + 0.1), height * rows + 0.3),
                  layout='constrained')
  axes = canvas.subplots(rows, columns, squeeze=False).ravel()
  for ax in axes[num:]:
    ax.set_axis_off()
  return canvas, axes[:num]


def _legend(canvas, ax, colors, **others):
  for name, color in (colors | others).items():
    ax.plot([], [], color=color, label=_words(name))
  canvas.legend(*ax.get_legend_handles_labels(), loc='outside lower center',
                ncols=5, fontsize=8, frameon=False, labelcolor=curves.INK)


def _methods(groups):
  return list(dict.fromkeys(name for group in groups for name in group))


def _density(values):
  """A kernel estimate, [200] and [200]; a narrow peak if nothing varies."""
  spread = max(float(np.std(values)), 1e-2)
  x = np.linspace(values.min() - spread, values.max() + spread, 200)
  if len(values) < 3 or np.ptp(values) < 1e-9:
    density = stats.norm.pdf(x, values.mean(), spread / 3)
  else:
    density = stats.gaussian_kde(values)(x)
  return x, density / density.max()


def _log_axis(ax):
  """Few plain numbers on a logarithmic axis of perplexities."""
  ax.set_xscale('log')
  low, high = ax.get_xlim()
  ax.xaxis.set_major_locator(
      LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(6))
  ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}'))
  ax.xaxis.set_minor_formatter(NullFormatter())


def _rho(rho):
  return 'no variation' if math.isnan(rho) else f'rho = {rho:.2f}'


def _words(name):
  return name.replace('_', ' ')
