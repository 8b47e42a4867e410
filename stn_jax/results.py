"""What a run shows: a table, schedules, losses by compute, the report."""

import bisect
from collections.abc import Mapping
import pathlib
import re
import shlex
import sys
import time
from typing import Any

from core_jax import folder
from core_jax import metrics as metrics_lib
from core_jax import report as report_lib
from stn_jax import baselines
from stn_jax import checks
from stn_jax import experiment
from stn_jax import figures as figures_lib
from stn_jax import schedule as schedule_lib
from stn_jax import stages

_TITLES = {
    'delta_stn': 'Delta-STN', 'stn': 'STN',
    'implicit': 'implicit function theorem', 'fixed': 'fixed at the start',
    'random': 'random search', 'tpe': 'TPE (Optuna)'}
_SEARCHED = re.compile(r'(\w+)_([\d.]+)x')  # As `compared` names them.


def title(name: str) -> str:
  """Name of a run, for people."""
  for prefix, words in (
      ('replay_', 'plain training, schedule of '),
      ('final_', 'plain training, final values of ')):
    if name.startswith(prefix):
      return words + _TITLES[name.removeprefix(prefix)]
  return _TITLES.get(name, name)


def best_so_far(
    rows: Mapping[str, Mapping[str, Any]], search: str
) -> list[Mapping[str, Any]]:
  """After each trial of a search, the row with the least validation loss."""
  best, found = None, []
  for name, row in rows.items():
    if name.split('/')[0] != search:
      continue
    loss = row['best_valid_loss']
    if loss is not None and (
        best is None or loss < best['best_valid_loss']):
      best = row
    found.append(best or row)
  return found


def compared(
    run: experiment.Setup, rows: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, float], seconds: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
  """Name -> cost in plain runs, seconds, and figures, of all compared.

  A self-tuning run counts with its last weights. A plain run with those of
  the best of its evaluations on the validation set, which it gets for free;
  'last_...' are figures of its last weights.

  Args:
    run: of the config.
    rows: of methods and trials.
    costs: of the methods, see `stages.costs`.
    seconds: of the methods, wall time.
  """
  found = {}
  for name, row in rows.items():
    if '/' in name:
      continue
    tuned = name in run.config.methods
    found[name] = {
        'cost': costs[name] if tuned else 1.0,
        'seconds': seconds[name] if tuned else row['seconds'],
        **_figures(row, '' if tuned else 'best_'), **_last(row)}
  for search in checks.SEARCHES:
    best = best_so_far(rows, search)
    times = [row['seconds'] for name, row in rows.items()
             if name.startswith(f'{search}/')]
    for share in run.config.search_times if best else ():
      budget = stages.num_trials(costs, share)
      found[f'{search}_{share:g}x'] = {
          'cost': float(budget), 'seconds': round(sum(times[:budget]), 2),
          **_figures(best[budget - 1], 'best_'), **_last(best[budget - 1])}
  return found


def _seconds(run, path):
  """method -> wall time of its stage, compilation and logging included."""
  found = dict.fromkeys(run.config.methods, 0.0)
  for row in metrics_lib.read(path):
    found[row['stage']] += row['seconds']
  return {method: round(x, 2) for method, x in found.items()}


def _last(row):
  return {f'last_{name}': value for name, value in _figures(row, '').items()}


def _figures(row, prefix):
  return {name.removeprefix(prefix): value for name, value in row.items()
          if name.startswith((f'{prefix}valid_', f'{prefix}test_'))}


def report(
    run: experiment.Setup, path: pathlib.Path,
    rows: Mapping[str, Mapping[str, Any]],
    schedules: Mapping[str, schedule_lib.Schedule],
    costs: Mapping[str, float], *, started: float,
) -> dict[str, Any]:
  """Draws and writes; returns what `summary.json` holds."""
  config = run.config
  found = compared(run, rows, costs, _seconds(run, path))
  final = {method: {f'final_{name}': x[-1] for name, x in schedule.items()}
           for method, schedule in schedules.items()}
  summary = report_lib.write_summary(
      path, {name: {**figures, **final.get(name, {})}
             for name, figures in found.items()},
      seed=config.seed, steps=config.num_rounds * len(config.methods),
      wall_seconds=time.monotonic() - started)
  pictures = _pictures(run, path, rows, schedules, found)
  page = report_lib.write_report(
      path, title=f'Self-tuning networks: {config.dataset}', lead=_lead(run),
      sections=[report_lib.Heading('Results'),
                _table(found, config.evaluations), *pictures],
      config=config, command=folder.resume_command(path))
  for name, figures in found.items():
    print(f'{row_title(name):<45} '
          f'test loss {_number(figures["test_loss"])}  '
          f'cost {figures["cost"]:.1f}  {figures["seconds"]:.0f} s')
  for method in schedules:
    print(f'To train by the schedule of {title(method)}:\n  '
          f'{replay_command(path, method)}')
  print(f'Report: {page}', flush=True)
  return summary


def replay_command(path: pathlib.Path, method: str) -> str:
  """The command line of this process, as one of `stn_jax.replay`."""
  flags, skip = [], False
  for arg in sys.argv[1:]:
    name = arg.lstrip('-').split('=')[0]
    if not skip and name != 'workdir':
      flags.append(arg)
    skip = not skip and name == 'workdir' and '=' not in arg
  return shlex.join([
      folder.python(), '-m', 'stn_jax.replay', *flags,
      f'--schedule={path / f"schedule_{method}.csv"}',
      f'--workdir={path / f"replay_{method}"}'])


def _number(value):
  return 'diverged' if value is None else f'{value:.4f}'


def _lead(run):
  names = ', '.join(run.problem.space)
  return (
      f'{names}: tuned while the model trains, by the gradient of the '
      'validation loss through the weights\' response. Compared with plain '
      'training in the same space; budgets of searches are multiples of the '
      'dearest method, in operations.')


def row_title(name: str) -> str:
  """Name of a row of the comparison, for people."""
  if searched := _SEARCHED.fullmatch(name):
    return f'{title(searched[1])}, {searched[2]} x the compute'
  return title(name)


def _table(found, evaluations):
  measures = [name.removeprefix('test_') for name in next(iter(found.values()))
              if name.startswith('test_')]
  columns = ['', 'cost, plain runs', 'seconds']
  columns += [f'{part} {name}' for name in measures
              for part in ('valid', 'test')]
  rows = [
      [row_title(name), figures['cost'], figures['seconds'],
       *(figures[f'{part}_{measure}'] for measure in measures
         for part in ('valid', 'test'))]
      for name, figures in found.items()]
  return report_lib.Table(
      columns, rows, 'Self-tuning runs count with their last weights, plain '
      f'runs with the best of {evaluations} evaluations on the validation '
      'set, which are in their seconds; cost counts training alone.')


def _unit(config):
  """Of losses, for an axis: a squared error has none."""
  squared = checks.MODELS[config.model.kind][0] == 'regression'
  return '' if squared else ', nats'


def _pictures(run, path, rows, schedules, found):
  """Draws the figures; their sections of the report."""
  config, drawn = run.config, path / 'figures'
  unit = _unit(config)
  figures_lib.plot_schedules(
      drawn / 'schedules.png', run.problem.space,
      {title(m): s for m, s in schedules.items()}, config.updates_per_round)
  sections = [report_lib.Figure(
      drawn / 'schedules.png', 'The hyperparameters while the weights '
      'trained; dotted: their bounds.')]
  losses = {
      title(name): row['curve'] for name, row in rows.items()
      if 'curve' in row and '/' not in name}
  if losses:
    losses |= _tuned_curves(run, path)
    figures_lib.plot_losses(
        drawn / 'losses.png', losses, config.updates_per_round,
        f'validation loss{unit}')
    sections.append(report_lib.Figure(
        drawn / 'losses.png', 'Validation loss; of self-tuning runs the mean '
        'over neighbouring batches, at perturbed hyperparameters.'))
  searches = {
      title(search): [row['best_test_loss'] for row in best]
      for search in checks.SEARCHES if (best := best_so_far(rows, search))}
  figures_lib.plot_comparison(
      drawn / 'comparison.png',
      [(title(name), name.removeprefix('replay_').removeprefix('final_'),
        figures['cost'], figures['test_loss'])
       for name, figures in found.items() if not _SEARCHED.fullmatch(name)],
      searches, f'test loss{unit}')
  sections.append(report_lib.Figure(
      drawn / 'comparison.png', 'Test loss against compute, in operations of '
      'a plain run; searches choose by validation loss. Plain training by a '
      'schedule or its final values is without the run that found them.'))
  return sections


def _tuned_curves(run, path):
  """method -> (round, validation loss), each the mean since the one before.

  The rounds are those in which plain runs are evaluated.
  """
  config, found = run.config, {}
  rows = metrics_lib.read(path)
  ends = baselines.evaluated_rounds(config.num_rounds, config.evaluations)
  for i, method in enumerate(config.methods):
    mine = [(row['step'] - i * config.num_rounds, row['valid_loss'])
            for row in rows if row['stage'] == method]
    bins = {}
    for step, loss in mine:
      bins.setdefault(ends[bisect.bisect_left(ends, step)], []).append(loss)
    found[title(method)] = [
        (step, sum(x) / len(x)) for step, x in sorted(bins.items())]
  return found
