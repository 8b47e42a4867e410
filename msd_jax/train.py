"""A run from its config to its report."""

import time
from typing import Any

from clu import parameter_overview
import jax

from core_jax import cli
from core_jax import folder
from core_jax import loop
from core_jax import plan
from msd_jax import distillation
from msd_jax import given
from msd_jax import networks
from msd_jax import results as results_lib
from msd_jax import setup
from msd_jax import stages


def train_and_evaluate(config: setup.Config, workdir: str) -> dict[str, Any]:
  """Trains what is not yet trained, measures all, writes the report.

  Args:
    config: see configs/digits.py.
    workdir: the run's folder.

  Returns:
    What `summary.json` holds.
  """
  started = time.monotonic()
  run = setup.make(config)
  path = folder.claim(workdir, config)
  found = given.results(config, run.teacher)
  todo = stages.make_stages(run, found)
  if jax.process_index() == 0:
    print(announcement(run, todo, path), flush=True)
  params = loop.fit(todo, config, str(path), found)
  return results_lib.report(
      run, params, path, todo=todo, started=started)


def announcement(run: setup.Setup, todo: list[loop.Stage], path: Any) -> str:
  """What a run will do, for people, before it does it."""
  config, dataset = run.config, run.dataset
  counts = {
      name: parameter_overview.count_parameters(jax.eval_shape(
          lambda key, m=module: networks.init_params(m, key, dataset.shape),
          jax.random.key(0)))
      for name, module in (('teacher', run.teacher), ('student', run.student))}
  names = {stage.name for stage in todo}
  carried = ''.join(
      f'{distillation.describe(run, stage)}\n'
      for stage in setup.student_stages(config, setup.routers(run))
      if stage.name in names)
  steps = ', '.join(f'{stage.name} {stage.num_steps}' for stage in todo)
  return (
      f'{config.dataset}: {len(dataset.train)} examples to train, '
      f'{len(dataset.test)} to test, {dataset.num_classes} classes, '
      f'shape {dataset.shape}\n'
      f'{cli.describe_devices(run.mesh)}\n'
      f'teacher {counts["teacher"]:,} parameters, {config.num_students} '
      f'students of {counts["student"]:,}\n'
      f'steps: {steps}\n'
      f'{carried}'
      f'results go to {path}')


def show_plan(config: setup.Config) -> str:
  """Memory and FLOPs of the stages, from compilation alone."""
  run = setup.make(config)
  found = given.results(config, run.teacher)
  plans = plan.plan(stages.make_stages(run, found), found)
  return f'{cli.describe_devices(run.mesh)}\n{plan.show(plans)}'
