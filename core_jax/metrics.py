"""Metrics of a run: JSON lines, TensorBoard events and a line of progress.

Steps count up over the whole run: where a run has several stages, a later
stage goes on from the step at which the one before it ended.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any

import jax
from tqdm import tqdm

from core_jax import folder
from core_jax import hosts

try:
  import tensorboardX
except ImportError:  # the extra [tensorboard]
  tensorboardX = None

Scalar = Any  # a float, or an array of no dimensions
RESERVED = ('step', 'stage', 'seconds', 'gflop')
LINE_COLUMNS = 110


class MetricsWriter:
  """Appends to `metrics.jsonl` and, where installed, to TensorBoard's events.

  Opening drops what a killed run wrote after the step that it resumes from,
  so that no step is there twice. Only process 0 writes.
  """

  def __init__(self, workdir: str | os.PathLike, resume_step: int = 0):
    self._file = self._events = None
    if not hosts.is_first():
      return
    path = _path(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [row for row in read(workdir) if row['step'] <= resume_step]
    folder.write_text(path, ''.join(_line(row) for row in kept))
    self._file = path.open('a', buffering=1)  # each line reaches the file
    if tensorboardX is not None:
      self._events = tensorboardX.SummaryWriter(
          str(path.parent / 'tensorboard'), purge_step=resume_step + 1)

  def write(self, step: int, stage: str, scalars: Mapping[str, Scalar],
            seconds: float | None = None, gflop: float | None = None
            ) -> None:
    """Writes one line; what is not finite becomes null.

    Args:
      step: the run's step, counted over all stages.
      stage: the part of the run, such as 'teacher'.
      scalars: name to value.
      seconds: wall time since the line before, if of interest.
      gflop: what the steps since the line before took of one shard.
    """
    if self._file is None:
      return
    if clash := set(scalars) & set(RESERVED):
      raise ValueError(f'metrics named {sorted(clash)}: reserved names')
    values = _floats(scalars)
    row = {'step': int(step), 'stage': stage}
    if seconds is not None:
      row['seconds'] = round(float(seconds), 3)
    if gflop is not None:
      row['gflop'] = float(f'{gflop:.6g}')
    self._file.write(_line(row | {k: or_null(x) for k, x in values.items()}))
    if self._events is not None:
      for name, value in values.items():
        if math.isfinite(value):
          self._events.add_scalar(f'{stage}/{name}', value, int(step))
      self._events.flush()

  def close(self) -> None:
    for sink in (self._file, self._events):
      if sink is not None:
        sink.close()

  def __enter__(self):
    return self

  def __exit__(self, *unused_exc):
    self.close()


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of `metrics.jsonl`, without a last one that was cut short."""
  path = _path(workdir)
  if not path.exists():
    return []
  rows = []
  lines = path.read_text(errors='replace').splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      if number < len(lines):
        raise ValueError(f'{path}, line {number}: not JSON') from None
  return rows


def check_finite(scalars: Mapping[str, Scalar], step: int, stage: str) -> None:
  """Raises FloatingPointError that names each metric that is not finite."""
  bad = [f'{name} is {value}' for name, value in _floats(scalars).items()
         if not math.isfinite(value)]
  if bad:
    raise FloatingPointError(f'{stage}, step {step}: {", ".join(bad)}')


def progress_line(
    stage: str, step: int, num_steps: int, *, since: int, seconds: float,
    scalars: Mapping[str, Scalar]) -> str:
  """One line of progress, to be printed as it is.

  Args:
    stage: the part of the run.
    step: steps done.
    num_steps: steps in all.
    since: the step from which this process started.
    seconds: wall time that the steps from `since` to `step` took.
    scalars: metrics; the first four are shown if there is room.

  Returns:
    Stage, step/total, percent, rate, time to go, metrics; one ASCII line.
  """
  slow = step - since < seconds  # tqdm then turns to seconds per step
  line = tqdm.format_meter(
      step, max(num_steps, step, 1), seconds, initial=since,
      prefix=f'{stage} {step:>{len(str(num_steps))}}/{num_steps}',
      unit='step' if slow else ' steps', ascii=True,
      bar_format='{desc} {percentage:3.0f}%  {rate_fmt}  ETA {remaining}')
  for name, value in list(_floats(scalars).items())[:4]:
    item = f'  {name} {value:.4g}'
    if len(line) + len(item) <= LINE_COLUMNS:
      line += item
  return line.encode('ascii', 'replace').decode()


def or_null(value: float) -> float | None:
  """The value, or None where strict JSON has no word for it."""
  return value if math.isfinite(value) else None


def _path(workdir):
  return pathlib.Path(workdir) / 'metrics.jsonl'


def _line(row):
  return json.dumps(row, allow_nan=False) + '\n'


def _floats(scalars):
  """Fetches all scalars in one transfer, in their order."""
  values = jax.device_get(list(scalars.values()))
  return {name: float(x) for name, x in zip(scalars, values, strict=True)}
