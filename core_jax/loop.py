"""The loop: everything about training that is not the paper."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import itertools
import signal
import time
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
import ml_collections
import numpy as np

from core_jax import allocator
from core_jax import checkpoint
from core_jax import data
from core_jax import flops
from core_jax import folder
from core_jax import fsdp
from core_jax import hosts
from core_jax import mesh as mesh_lib
from core_jax import metrics as metrics_lib
from core_jax import step_log

_OBSERVE_SECONDS = 60.  # At least, between two looks at a state.
_IN_FLIGHT = 2  # Steps; a request to stop waits for these.


def no_batch(step: int) -> dict[str, np.ndarray]:
  """The batch of a stage that draws all it needs from its key."""
  del step
  return {}


@dataclasses.dataclass(frozen=True)
class Stage:
  """One compiled program of a run, and what goes in and out of it.

  Attributes:
    name: as in metrics, figures and the results of the run.
    num_steps: rounds.
    mesh: to run on, with the axes that `state_spec` names.
    init: frozen -> state, a dataclass of arrays with a `step`; compiled.
    step: (state, batch, frozen) -> (state, metrics); pure, compiled once.
      What makes a state not finite should make a metric so, such as the norm
      of its gradient: a state is saved once its metrics were checked.
    params: state -> what the run hands on; saved as numpy, and read back with
      lists for tuples.
    batch: step -> all rows, numpy; a function of the step alone.
    frozen: results of the stages before -> weights that `init` and `step`
      only read, a dict.
    state_spec: PartitionSpecs, a prefix of the state's tree.
    fsdp: splits the large leaves of state and frozen over 'data' too.
    init_only: names in frozen that `step` does not get.
    of_students: names in frozen with an axis of students in front.
    watch: metrics of a log line -> a warning for people, '' where all is well.
    observe: (state, frozen, workdir), to draw; called at the end and, now and
      then, at a checkpoint.
  """

  name: str
  num_steps: int
  mesh: jax.sharding.Mesh
  init: Callable[[Any], Any]
  step: Callable[[Any, Any, Any], tuple[Any, dict[str, jax.Array]]]
  params: Callable[[Any], Any]
  batch: Callable[[int], Any] = no_batch
  frozen: Callable[[Mapping[str, Any]], Any] = lambda results: {}
  state_spec: Any = P()
  fsdp: bool = False
  init_only: tuple[str, ...] = ()
  of_students: tuple[str, ...] = ()
  watch: Callable[[dict[str, float]], str] = lambda scalars: ''
  observe: Callable[[Any, Any, str], None] | None = None


class Interrupted(Exception):
  """The run was asked to stop, and has saved; the message tells how to go on.
  """

  def __init__(self, message: str, exit_code: int):
    super().__init__(message)
    self.exit_code = exit_code


class _Results(Mapping):
  """Stage -> its params, numpy.

  What is saved is read when it is asked for: held, what one large stage hands
  on would be memory that the next one lacks.
  """

  def __init__(self, mgr: checkpoint.Manager, given: Mapping[str, Any]):
    self._mgr = mgr
    self._found = dict(given)
    self._steps = {}

  def read(self, name: str, step: int) -> None:
    """From the checkpoint of a step, whenever the stage is asked for."""
    self._steps[name] = step

  def hold(self, name: str, params: Any) -> None:
    self._found[name] = params

  def __getitem__(self, name: str) -> Any:
    if name in self._found:
      return self._found[name]
    return checkpoint.restore_params(self._mgr, self._steps[name])

  def __iter__(self) -> Iterator[str]:
    return iter(self._found | self._steps)

  def __len__(self) -> int:
    return len(self._found | self._steps)


@dataclasses.dataclass
class _Run:
  """What every stage of a run shares."""

  config: ml_collections.ConfigDict
  mgr: checkpoint.Manager
  stop: folder.StopRequest
  workdir: str
  last_stage: str


def fit(
    stages: Sequence[Stage],
    config: ml_collections.ConfigDict,
    workdir: str,
    given: Mapping[str, Any] | None = None,
    *,
    several_processes: bool = False,
) -> dict[str, Any]:
  """Runs the stages one after the other, resuming what `workdir` holds.

  Checkpoints are numbered through the run: a stage starts where the one
  before it ends, and the last one of every stage is kept.

  Args:
    stages: in order; a later one may read the results of all before it.
    config: log_every_steps, checkpoint_every_steps, keep.
    workdir: the run's folder.
    given: results of stages that another run has been through.
    several_processes: whether the caller, too, can be one of several; they
      share the file system of `workdir`.

  Returns:
    Name of the stage -> its params, numpy; and what was given.

  Raises:
    ValueError: a stage of no rounds, whose checkpoint would be that of the
      stage before it; a field below 1; or this is one of several processes
      that the caller does not expect.
    Interrupted: SIGTERM or Ctrl-C; all is saved.
    FloatingPointError: a metric is not finite; the last checkpoint is good.
    checkpoint.CheckpointError: a full disk, or no checkpoint can be read.
  """
  if several_processes:
    hosts.check_joined()
  else:
    hosts.check_alone('this run')
  for field in ('log_every_steps', 'checkpoint_every_steps', 'keep'):
    if config[field] < 1:
      raise ValueError(f'{field}={config[field]}: give 1 or more')
  for stage in stages:
    if stage.num_steps < 1:
      raise ValueError(
          f'num_steps={stage.num_steps} of stage {stage.name!r}: a stage takes '
          'at least 1 round')
  ends = list(itertools.accumulate(stage.num_steps for stage in stages))
  with checkpoint.manager(workdir, keep=config.keep, milestones=ends) as mgr, \
      folder.stop_request() as stop:
    run = _Run(config, mgr, stop, workdir, stages[-1].name)
    results = _Results(mgr, given or {})
    for stage, end in zip(stages, ends, strict=True):
      results.read(stage.name, end)
      if checkpoint.finished_params(mgr, end) is None:
        params = _train(
            run, stage, end - stage.num_steps, stage.frozen(results))
        allocator.release_freed_memory()
        if params is not None:
          results.hold(stage.name, params)
        if number := int(hosts.largest(_received(run))):
          _interrupt(run, stage, stage.num_steps, number)
    return dict(results)


def abstract_frozen(stage: Stage, frozen: Any) -> Any:
  """Shapes, dtypes and layouts of what the stage takes from those before."""
  return _abstract(stage, frozen, {
      name: P('student') if name in stage.of_students else P()
      for name in frozen})


def abstract_state(stage: Stage, frozen: Any) -> Any:
  """Shapes, dtypes and layouts of the stage's state; nothing is computed."""
  return _abstract(
      stage, jax.eval_shape(stage.init, frozen), stage.state_spec)


def _abstract(stage, tree, spec):
  spec = fsdp.specs(tree, stage.mesh, spec) if stage.fsdp else spec
  return mesh_lib.laid_out(tree, stage.mesh, spec)


def read_by_step(stage: Stage, frozen: Any) -> Any:
  """What the step reads of what the stage takes."""
  return {name: x for name, x in frozen.items() if name not in stage.init_only}


def traced_step(stage: Stage, state: Any, batch: Any, frozen: Any) -> Any:
  """The stage's step, `jax.stages.Traced` for the layouts of these."""
  specs = jax.tree.map(lambda x: x.sharding.spec, (state, frozen))
  return mesh_lib.compile_step(stage.step, stage.mesh, *specs).trace(
      state, batch, frozen)


def abstract_batch(stage: Stage) -> Any:
  """Shapes, dtypes and layouts of a batch."""
  return mesh_lib.laid_out(stage.batch(0), stage.mesh, P('data'))


def _start(run, stage, offset, frozen, target):
  """The state to go on from: restored, or born on the mesh."""
  steps = range(offset + 1, offset + stage.num_steps + 1)
  state = checkpoint.restore_newest(run.mgr, steps, target)
  if state is not None:
    return state
  layout = jax.tree.map(lambda x: x.sharding, target)
  return jax.jit(stage.init, out_shardings=layout)(_put(stage, frozen))


def _put(stage, frozen):
  layout = abstract_frozen(stage, frozen)
  return mesh_lib.put_whole(frozen, jax.tree.map(lambda x: x.sharding, layout))


def _compile(stage, target, frozen):
  """The step as a program, and the GFLOP of one call.

  To be called before there is a state: a compiler may take as much memory.
  """
  traced = traced_step(
      stage, target, abstract_batch(stage),
      read_by_step(stage, abstract_frozen(stage, frozen)))
  return traced.lower().compile(), flops.count(traced.jaxpr) / 1e9


def _train(run, stage, offset, frozen):
  """Trains one stage from where it stands to its end.

  Returns:
    Its params, numpy, where they could not be read; None if they are saved.
  """
  started = time.monotonic()
  target = abstract_state(stage, frozen)
  compiled, gflop = _compile(stage, target, frozen)
  # What tracing has kept, and the programs of the stage before.
  jax.clear_caches()
  allocator.release_freed_memory()
  state = _start(run, stage, offset, frozen, target)
  first = int(state.step)
  if first == stage.num_steps:
    # Its state was there and its params were not; nothing is written anew.
    return hosts.fetch(stage.params(state))
  frozen = _put(stage, read_by_step(stage, frozen))
  # The state is there, and what it was born from is free.
  allocator.release_freed_memory()
  poll = hosts.make_poll(_IN_FLIGHT)
  with metrics_lib.MetricsWriter(run.workdir, offset + first) as writer, \
      contextlib.closing(
          data.prefetch(stage.batch, first, stage.num_steps)) as batches:
    log = step_log.StepLog(
        run, stage, writer, offset=offset, first=first, gflop=gflop,
        started=started)
    observed = time.monotonic()
    for i, batch in batches:
      batch = mesh_lib.put(batch, stage.mesh, P('data'))
      # The order within one turn is a contract: update, check and log, save.
      state, metrics = compiled(state, batch, frozen)
      log.add(metrics, in_flight=_IN_FLIGHT)
      done = i + 1
      last, stopped = done == stage.num_steps, poll(_received(run))
      due = last or stopped or done % run.config.checkpoint_every_steps == 0
      log.tell(done, saved=due, stopped=bool(stopped))
      if due:
        _save(run, stage, offset, done, state)
        if stage.observe and (last or (not stopped and hosts.largest(
            time.monotonic() - observed > _OBSERVE_SECONDS))):
          _observe(run, stage, state, frozen)
          observed = time.monotonic()
      if stopped and not last:
        _interrupt(run, stage, done, stopped)
  checkpoint.finish(run.mgr)
  return None


def _save(run, stage, offset, done, state):
  # What a step leaves free would lie beside what writing it takes.
  allocator.release_freed_memory()
  checkpoint.save(
      run.mgr, offset + done, state=state,
      params=hosts.fetch(stage.params(state)), config=run.config, reached={
          'stage': stage.name, 'step': done, 'num_steps': stage.num_steps,
          'last_stage': stage.name == run.last_stage})


def _observe(run, stage, state, frozen):
  # It may compile, beside the state, but not beside a save.
  checkpoint.finish(run.mgr)
  allocator.release_freed_memory()
  stage.observe(state, frozen, run.workdir)


def _received(run):
  """The number of the signal that this process received, or 0."""
  return int(run.stop.received or 0)


def _interrupt(run, stage, done, number):
  checkpoint.finish(run.mgr)
  name = signal.Signals(number).name
  raise Interrupted(
      f'{name} at step {done} of {stage.num_steps} of {stage.name!r}: '
      f'saved. To go on:\n  {folder.resume_command(run.workdir)}',
      exit_code=128 + number)
