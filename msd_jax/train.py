"""A run from its config to its report."""

from collections.abc import Iterator
import time
from typing import Any

from clu import parameter_overview
import jax

from core_jax import cli
from core_jax import folder
from core_jax import hosts
from core_jax import loop
from core_jax import plan
from core_jax import topology
from msd_jax import data
from msd_jax import distillation
from msd_jax import given
from msd_jax import mlp
from msd_jax import networks
from msd_jax import partition
from msd_jax import results as results_lib
from msd_jax import setup
from msd_jax import stages


def train_and_evaluate(
    config: setup.Config, workdir: str
) -> dict[str, Any] | None:
  """Trains what is not yet trained, measures all, writes the report.

  Args:
    config: see configs/digits.py.
    workdir: the run's folder.

  Returns:
    What `summary.json` holds; None on other processes than the first.
  """
  started = time.monotonic()
  run = setup.make(config)
  found = given.results(config, run.teacher)
  todo = stages.make_stages(run, found)
  path = folder.local(workdir)
  # Once all of the config is checked.
  hosts.on_first(lambda: folder.claim(workdir, config))
  if hosts.is_first():
    print(announcement(run, todo, path), flush=True)
  params = loop.fit(
      todo, config, str(path), found, several_processes=True)
  return hosts.on_first(lambda: results_lib.report(
      run, params, path, todo=todo, started=started))


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
      for stage in setup.student_stages(config, run.routers)
      if stage.name in names)
  steps = ', '.join(f'{stage.name} {stage.num_steps}' for stage in todo)
  return (
      f'{config.dataset}: {len(dataset.train)} examples to train, '
      f'{len(dataset.test)} to test, {dataset.num_classes} classes, '
      f'shape {dataset.shape}\n'
      f'{cli.describe_devices(run.mesh)}\n'
      f'teacher {counts["teacher"]:,} parameters, {config.num_students} '
      f'students of {counts["student"]:,}\n'
      f'{_partition(run)}\n'
      f'steps: {steps}\n'
      f'{carried}'
      f'results go to {path}')


def _partition(run):
  return (f'partition {run.config.partition}: '
          f'{partition.balance(run.routers["students"])}')


def show_plan(
    config: setup.Config, target: topology.Target | None = None
) -> Iterator[str]:
  """Lines on memory and FLOPs of the stages, from compilation alone.

  Args:
    config: of the run.
    target: devices that are not here; None plans for those that are.
  """
  # A data set that is declared need not be here.
  run = setup.make(config, target and target.devices, data.declared(config))
  found = given.results(config, run.teacher)
  plans = plan.plan(stages.make_stages(run, found), found)
  devices = target.name if target else cli.describe_devices(run.mesh)
  yield f'{devices}, mesh {dict(run.mesh.shape)}'
  yield _partition(run)
  yield from plan.show(plans, target and target.hbm_bytes, knobs(run))


def knobs(run: setup.Setup) -> dict[str, list[str]]:
  """What to change where a stage does not fit; see `plan.show`."""
  compute, students = run.config.compute, run.config.num_students
  state = [] if compute.fsdp else ['compute.fsdp=True']
  if run.mesh.shape['student'] < students:
    state.append(f'student_devices={students}, or more devices')
  else:
    state.append('a larger slice')
  temporary = []
  if not isinstance(run.student, mlp.ResidualMLP):  # It knows neither.
    if not compute.remat:
      temporary.append('compute.remat=True')
    if compute.dtype == 'float32':
      temporary.append("compute.dtype='bfloat16'")
  temporary.append(f'compute.microbatches={2 * compute.microbatches}')
  return {'state': state, 'temporary': temporary}
