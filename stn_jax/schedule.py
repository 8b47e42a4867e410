"""Schedules: what the hyperparameters were, update by update, as a file.

A CSV file with a row for each round: `step`, the first weight update of the
round, and each hyperparameter in its own units. Any training script replays
it without this package:

  rows = numpy.genfromtxt('schedule.csv', delimiter=',', names=True)
  rate = rows['dropout1'][numpy.searchsorted(rows['step'], step, 'right') - 1]
"""

from collections.abc import Mapping
import math
import os
import pathlib

import jax
import numpy as np

from core_jax import folder
from stn_jax import space as space_lib

Schedule = Mapping[str, np.ndarray]


class ScheduleError(ValueError):
  """A file that is no schedule of this space."""


def from_history(
    space: space_lib.Space, history: np.ndarray
) -> dict[str, np.ndarray]:
  """lam of every round [R, n] -> name -> values float32 [R]."""
  values = jax.device_get(space_lib.constrain(space, history))
  return {name: np.asarray(x, np.float32) for name, x in values.items()}


def constant(values: Mapping[str, float], num_rounds: int
             ) -> dict[str, np.ndarray]:
  """The same values for all rounds: name -> [R]."""
  return {name: np.full(num_rounds, x, np.float32)
          for name, x in values.items()}


def write(
    path: str | os.PathLike, schedule: Schedule, updates_per_round: int
) -> None:
  """Writes the CSV file; float32 values come back in the same bits."""
  rows = [','.join(('step', *schedule))]
  columns = [np.arange(_num_rounds(schedule)) * updates_per_round,
             *schedule.values()]
  rows += [','.join((str(step), *(f'{x:.9g}' for x in values)))
           for step, *values in zip(*columns, strict=True)]
  folder.write_text(pathlib.Path(path), '\n'.join(rows) + '\n')


def read(
    path: str | os.PathLike, space: space_lib.Space, num_rounds: int,
    updates_per_round: int,
) -> dict[str, np.ndarray]:
  """Reads a schedule for a run: name -> float32 [R].

  A round takes the values of the row with the last step that is not after its
  own first, so the run that wrote the file may have had rounds of another
  length. A run longer than the schedule keeps its last values.

  Raises:
    ScheduleError: there are no rows, their steps do not rise from 0, or a
      hyperparameter is missing, unknown, or leaves its range.
  """
  rows = _read_rows(path)
  steps = rows['step']
  if steps[0] != 0 or not (np.diff(steps) > 0).all():
    raise ScheduleError(f'{path}: its steps do not rise from 0')
  names = set(rows.dtype.names) - {'step'}
  if names != set(space):
    raise ScheduleError(
        f'{path} has {sorted(names)}, the space {sorted(space)}: give the '
        '--config of the run that wrote it')
  starts = np.arange(num_rounds) * updates_per_round
  index = np.searchsorted(steps, starts, 'right') - 1
  schedule = {name: rows[name][index].astype(np.float32) for name in space}
  for name, values in schedule.items():
    _check_range(space, name, values, path)
  return schedule


def _read_rows(path):
  try:
    lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
    rows = np.atleast_1d(np.genfromtxt(
        lines, delimiter=',', names=True, autostrip=True)) if (
            len(lines) > 1) else []
  except (OSError, ValueError) as e:
    raise ScheduleError(f'{path} is no schedule: {e}') from e
  if not len(rows):
    raise ScheduleError(f'{path} is no schedule: it has no rows')
  if 'step' not in (rows.dtype.names or ()):
    raise ScheduleError(f"{path} is no schedule: it has no column 'step'")
  return rows


def _check_range(space, name, values, where):
  """Raises ScheduleError for a value that its hyperparameter cannot have."""
  h = space[name]
  # A range is open; a value above 0 may have rounded to it.
  low = np.less if math.isfinite(h.high) and not h.whole else np.less_equal
  bad = ~(low(h.low, values) & ((values < h.high) | math.isinf(h.high)))
  if bad.any():
    raise ScheduleError(
        f'{where}: {name}={values[bad][0]:g} is not in '
        + (f'range({h.low:g}, {h.high:g})' if h.whole
           else f'({h.low}, {h.high})'))
  if h.whole and (part := values != np.round(values)).any():
    raise ScheduleError(
        f'{where}: {name}={values[part][0]:g} is not a whole number')


def _num_rounds(schedule):
  return len(next(iter(schedule.values())))
