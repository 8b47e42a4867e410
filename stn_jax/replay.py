"""Trains the plain model by a schedule that a tuning run wrote:

  python -m stn_jax.replay --config=configs/stn_digits.py \\
      --schedule=runs/stn_jax-default/schedule_stn.csv

The config may be another than that of the tuning run, as long as its space
has the same names. Checkpoints with the weights go to --workdir (default:
runs/stn_replay-<config>), figures to its summary.json. Killed, the same
command goes on.
"""

from collections.abc import Iterator
import dataclasses
import time
from typing import Any

from absl import flags
import jax
from jax.sharding import PartitionSpec as P

from core_jax import cli
from core_jax import folder
from core_jax import loop
from core_jax import mesh as mesh_lib
from core_jax import metrics as metrics_lib
from core_jax import plan
from core_jax import report
from core_jax import topology
from core_jax.fingerprint import fingerprint
from stn_jax import baselines
from stn_jax import experiment
from stn_jax import schedule as schedule_lib


def stage(
    run: experiment.Setup, schedule: schedule_lib.Schedule
) -> loop.Stage:
  """Ordinary training, the hyperparameters of every round from a schedule."""
  config = run.config
  mesh = mesh_lib.make_mesh()
  mesh_lib.check_batch_size(config.batch_size, mesh, 'batch_size')
  tx = experiment.make_optimizers(config).params
  batch = experiment.round_batch(run)
  init = baselines.make_init(
      run, tx, jax.tree.map(lambda x: x[:, 0], batch(0)['train']))
  train = baselines.make_round(run, tx)

  def step(state, batch, frozen):
    values = {name: x[state.step] for name, x in frozen['schedule'].items()}
    state, loss = train(state, batch, values)
    return state, {'train_loss': loss}

  return loop.Stage(
      name='replay', num_steps=config.num_rounds, mesh=mesh,
      init=lambda frozen: init(), step=step, params=_handed_on,
      batch=lambda step: batch(step)['train'],
      frozen=lambda results: {'schedule': dict(schedule)}, state_spec=P())


def _handed_on(state):
  found = {'params': state.params}
  # A checkpoint has no word for an empty tree.
  return found | ({'variables': state.variables} if state.variables else {})


def replay(
    schedule_path: str, config: experiment.Config, workdir: str
) -> dict[str, Any]:
  """Trains, measures and writes; returns what `summary.json` holds."""
  started = time.monotonic()
  run, schedule = _read(schedule_path, config)
  replayed = stage(run, schedule)
  # The schedule is part of what a folder's run is, wherever its file lies.
  path = folder.claim(workdir, experiment.Config(
      {**config.to_dict(), 'schedule': fingerprint(schedule)}))
  found = loop.fit([replayed], config, str(path))['replay']
  evaluate, figures = experiment.make_evaluate(run), {}
  for part in ('valid', 'test'):
    figures |= {f'{part}_{name}': metrics_lib.or_null(x)
                for name, x in evaluate(found, part).items()}
  summary = report.write_summary(
      path, figures, seed=config.seed, steps=config.num_rounds,
      wall_seconds=time.monotonic() - started)
  print('\n'.join(f'{name} {x:.4g}' for name, x in figures.items()
                  if x is not None))
  print(f'Weights and figures: {path}', flush=True)
  return summary


def _read(schedule_path, config):
  run = experiment.setup(config)
  return run, schedule_lib.read(
      schedule_path, run.problem.space, config.num_rounds,
      config.updates_per_round)


def show_plan(
    schedule_path: str, config: experiment.Config,
    target: topology.Target | None = None,
) -> Iterator[str]:
  """Lines on memory and FLOPs, from compilation alone."""
  mesh = mesh_lib.make_mesh(devices=target and target.devices)
  one = dataclasses.replace(
      stage(*_read(schedule_path, config)), mesh=mesh)
  return plan.show(plan.plan([one]), target and target.hbm_bytes)


def main() -> None:
  path = flags.DEFINE_string(
      'schedule', None, 'The CSV file that a tuning run wrote.')
  flags.register_validator(
      path, bool, 'name the file that a tuning run wrote, such as '
      'runs/stn_jax-default/schedule_stn.csv')
  cli.run(
      'stn_replay', 'stn_digits',
      lambda config, workdir: replay(path.value, config, workdir),
      lambda config, target: show_plan(path.value, config, target))


if __name__ == '__main__':
  main()
