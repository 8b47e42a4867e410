"""A run from its config to its report: tune, export, compare."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import pathlib
import time
from typing import Any

from clu import parameter_overview
import jax

from core_jax import cli
from core_jax import folder
from core_jax import loop
from core_jax import mesh as mesh_lib
from core_jax import metrics as metrics_lib
from core_jax import plan
from core_jax import topology
from stn_jax import baselines
from stn_jax import checks
from stn_jax import experiment
from stn_jax import problem as problem_lib
from stn_jax import results as results_lib
from stn_jax import schedule as schedule_lib
from stn_jax import stages


def train_and_evaluate(
    config: experiment.Config, workdir: str
) -> dict[str, Any]:
  """Tunes, exports the schedules, trains the baselines, writes the report.

  Args:
    config: see configs/stn_digits.py.
    workdir: the run's folder.

  Returns:
    What `summary.json` holds.

  Raises:
    loop.Interrupted: SIGTERM or Ctrl-C; what is finished is saved.
  """
  started = time.monotonic()
  run = experiment.setup(config)
  tuning = [stages.tune_stage(run, method) for method in config.methods]
  costs = stages.costs(run)
  path = folder.claim(workdir, config)  # Not for what cannot be run.
  print(announcement(run, costs, path), flush=True)
  tuned = loop.fit(tuning, config, str(path))
  schedules = {}
  for method, found in tuned.items():
    schedules[method] = schedule_lib.from_history(
        run.problem.space, found['history'])
    schedule_lib.write(
        path / f'schedule_{method}.csv', schedules[method],
        config.updates_per_round)
  journal = baselines.Journal(path)
  rows = _tuned_rows(run, tuned, journal)
  with folder.stop_request() as stop:
    trainer = baselines.Trainer(run, functools.partial(_check_stop, stop, path))
    rows |= _trial_rows(
        run, trainer, schedules, journal, _search_trials(run, costs))
  return results_lib.report(
      run, path, rows, schedules, costs, started=started)


def _check_stop(stop, path):
  """Raises Interrupted if a signal came; the trial in hand begins anew."""
  if stop.received is not None:
    raise loop.Interrupted(
        f'{stop.received.name}: finished trials are kept. To go on:\n  '
        f'{folder.resume_command(path)}', 128 + stop.received.value)


def _search_trials(run, costs):
  """Trials of each search that the config asks for."""
  searches = set(checks.SEARCHES) & set(run.config.baselines)
  return stages.num_trials(
      costs, max(run.config.search_times)) if searches else 0


def _tuned_rows(run, tuned, journal):
  """method -> its figures at the end."""
  evaluate = experiment.make_evaluate(run)

  def measure(found):
    figures = {}
    for part in ('valid', 'test'):
      figures |= {f'{part}_{name}': metrics_lib.or_null(x)
                  for name, x in evaluate(found, part).items()}
    return figures

  return {method: journal.get(method, lambda found=found: measure(found))
          for method, found in tuned.items()}


def _trial_rows(run, trainer, schedules, journal, num_trials):
  """Trial -> its figures; prints a line for each."""
  config = run.config
  total = (('fixed' in config.baselines)
           + len(schedules) * sum(
               b in config.baselines for b in ('replay', 'final'))
           + num_trials * sum(
               b in config.baselines for b in checks.SEARCHES))
  rows, started = {}, time.monotonic()
  for name, row in baselines.trials(
      run, trainer, schedules, journal, num_trials):
    rows[name] = row
    seconds = time.monotonic() - started
    left = seconds / len(rows) * (total - len(rows))
    print(f'trial {len(rows)}/{total} {name}: valid {_show(row, "valid")}, '
          f'test {_show(row, "test")}, {row["seconds"]:.0f} s, '
          f'ETA {left / 60:.0f} min', flush=True)
  return rows


def _show(row, part):
  value = row[f'best_{part}_loss']
  return 'diverged' if value is None else f'{value:.4f}'


def announcement(
    run: experiment.Setup, costs: Mapping[str, float], path: pathlib.Path
) -> str:
  """What a run will do, for people, before it does it."""
  config = run.config
  example = jax.tree.map(
      lambda x: x[:, 0], experiment.round_batch(run)(0)['train'])
  shapes = jax.eval_shape(
      problem_lib.make_init_variables(run.problem, example),
      jax.random.key(0))
  count = parameter_overview.count_parameters(shapes['params'])
  sizes = ', '.join(
      f'{len(next(iter(part.values()))):,} to {use}' for use, part in zip(
          ('train', 'tune', 'test'), run.dataset.parts.values(), strict=True))
  names = ', '.join(
      f'{name} {h.start:g}' for name, h in run.problem.space.items())
  return (
      f'{config.dataset}: {sizes}\n'
      f'{cli.describe_devices(mesh_lib.make_mesh())}\n'
      f'{config.model.kind} of {count:,} parameters; tuned from {names}\n'
      f'{", ".join(config.methods)}: {config.num_rounds} rounds of '
      f'{config.updates_per_round} training updates and one of the '
      'hyperparameters; cost in plain runs: '
      f'{", ".join(f"{name} {x:g}" for name, x in costs.items())}\n'
      f'then {", ".join(config.baselines) or "no baselines"}; results go to '
      f'{path}')


def show_plan(
    config: experiment.Config, target: topology.Target | None = None
) -> Iterator[str]:
  """Lines on memory and FLOPs of the stages, from compilation alone."""
  run = experiment.setup(config)
  mesh = mesh_lib.make_mesh(devices=target and target.devices)
  tuning = [dataclasses.replace(stages.tune_stage(run, method), mesh=mesh)
            for method in config.methods]
  yield cli.describe_devices(mesh)
  yield from plan.show(plan.plan(tuning), target and target.hbm_bytes)
