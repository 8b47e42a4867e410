"""What the steps of a stage say: to the metrics' file, and to people."""

import time
from typing import Any

import jax
import numpy as np

from core_jax import checkpoint
from core_jax import hosts
from core_jax import metrics as metrics_lib


class StepLog:
  """What the steps of a stage say, to the metrics' file and to people."""

  def __init__(
      self, run: Any, stage: Any, writer: metrics_lib.MetricsWriter, *,
      offset: int, first: int, gflop: float, started: float):
    """Begins with no steps.

    Args:
      run: its config, checkpoint manager `mgr` and `workdir`.
      stage: the `loop.Stage`.
      writer: of the run's metrics.
      offset: steps of the stages before.
      first: steps of this one that were there.
      gflop: of a step, on one shard.
      started: by `time.monotonic`; the first step's time counts from here.
    """
    self._run, self._stage, self._writer = run, stage, writer
    self._offset, self._first, self._gflop = offset, first, gflop
    self._started = started
    self._logged = time.monotonic()
    self._recent = []

  def add(self, metrics: Any, in_flight: int) -> None:
    """Takes a step's metrics, and waits where more steps are in flight."""
    self._recent.append(metrics)
    if len(self._recent) > in_flight:
      jax.block_until_ready(self._recent[-1 - in_flight])

  def tell(self, done: int, *, saved: bool, stopped: bool) -> None:
    """Writes where a line is due or the run stops; checks and prints there,
    before a save, and at the first step.

    Args:
      done: steps of the stage.
      saved: whether its state is to be saved next.
      stopped: whether the run was asked to stop.

    Raises:
      FloatingPointError: a metric is not finite.
      checkpoint.CheckpointError: the line cannot be written.
    """
    stage, is_first = self._stage, done == self._first + 1
    due = (stopped or done == stage.num_steps
           or done % self._run.config.log_every_steps == 0)
    if not (due or saved or is_first):
      return
    scalars = _means(self._recent)
    if due:
      self._write(done, scalars)
    _check_finite(self._run, stage, done, scalars)
    if due and (warning := stage.watch(scalars)):
      _print(f'warning: {stage.name} {done}: {warning}')
    seconds = time.monotonic() - self._started
    if is_first:  # It compiled, which says nothing of the rate.
      _print(f'{stage.name} {done}/{stage.num_steps}  first step in '
             f'{seconds:.1f} s')
      self._started = time.monotonic()
    else:
      _print(metrics_lib.progress_line(
          stage.name, done, stage.num_steps, since=self._first + 1,
          seconds=seconds, scalars=scalars))

  def _write(self, done, scalars):
    now = time.monotonic()
    try:
      self._writer.write(
          self._offset + done, self._stage.name, scalars,
          seconds=now - self._logged, gflop=len(self._recent) * self._gflop)
    except OSError as e:
      checkpoint.finish(self._run.mgr)
      raise checkpoint.CheckpointError(
          f'Could not write metrics in {self._run.workdir}: {e}. '
          f'{checkpoint.last_good(self._run.mgr)} If the disk is full, free '
          'some space, then run the same command again: it resumes.') from e
    self._recent, self._logged = [], now


def _means(recent):
  """Metrics of the steps since the last line, on the devices -> their means."""
  rows = jax.device_get(recent)
  return {
      name: float(np.mean([row[name] for row in rows], dtype=np.float64))
      for name in sorted(rows[0], key=lambda name: ('loss' not in name, name))}


def _check_finite(run, stage, done, scalars):
  try:
    metrics_lib.check_finite(scalars, done, stage.name)
  except FloatingPointError as e:
    checkpoint.finish(run.mgr)
    raise FloatingPointError(
        f'{e}; stopped without saving. {checkpoint.last_good(run.mgr)} Lower '
        "the stage's lr, or look at the metrics before that step in "
        'metrics.jsonl.') from e


def _print(line):
  if hosts.is_first():
    print(line, flush=True)
