"""Reference curves: what the losses of a config did over several seeds.

  python -m msd_jax.reference RUN RUN RUN -o msd_jax/references/digits.json

takes finished runs that differ in their seed alone. The report of a run of the
same config then draws its losses over theirs, and says where they part.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import sys
from typing import Any

import numpy as np

from core_jax import folder
from core_jax import metrics as metrics_lib
from core_jax import seeds as seeds_lib
from msd_jax import given

SHIPPED = pathlib.Path(__file__).parent / 'references'
METRICS = ('loss', 'fake_loss', 'dm_gradient_abs', 'regression_loss',
           'gan_loss', 'critic_loss')
MARGIN = 0.1  # of the reference's mean, beyond its least and largest
# What changes no loss, or only its noise.
_FREE = ('seed', 'teacher_workdir', 'student_devices',
         'checkpoint_every_steps', 'keep', 'brightness_alarm', 'evaluation')
_BAND = ('steps', 'mean', 'least', 'largest')

Courses = dict[str, dict[str, dict[int, float]]]
"""Stage -> metric -> step, counted from the stage's start -> value."""


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that a reference is valid for, flat; config as in JSON."""
  return dict(folder.flat(
      {name: x for name, x in config.items() if name not in _FREE}))


def courses(workdir: Any) -> Courses:
  """The losses that a run has logged, without those of the classifier."""
  found, starts, last = {}, {}, 0
  for row in metrics_lib.read(workdir):
    start = starts.setdefault(row['stage'], last)
    last = row['step']  # A stage logs its last step.
    for name in METRICS:
      if row.get(name) is not None and row['stage'] != 'classifier':
        found.setdefault(row['stage'], {}).setdefault(
            name, {})[row['step'] - start] = row[name]
  return found


def make(runs: Sequence[str]) -> dict[str, Any]:
  """The reference of finished runs: what its file holds.

  Stages that a run took from its teacher_workdir are read there.

  Raises:
    ValueError: a run is not finished, has the seed of another, or differs in
      more than its seed; or there is but one.
  """
  if len(runs) < 2:
    raise ValueError('a reference takes runs of two seeds or more')
  configs = []
  for run in runs:
    seeds_lib.read([run])  # It has finished.
    configs.append(json.loads((pathlib.Path(run) / 'config.json').read_text()))
  numbers = [config['seed'] for config in configs]
  if len(set(numbers)) < len(runs):
    raise ValueError(f'two runs have the same seed: {numbers}')
  valid = fields(configs[0])
  for run, config in zip(runs, configs, strict=True):
    if differ := folder.differing(valid, fields(config)):
      raise ValueError(f'{run} and {runs[0]} differ in {", ".join(differ)}')
  of_runs = [_with_teacher(run, config)
             for run, config in zip(runs, configs, strict=True)]
  try:
    return {'fields': valid, 'seeds': numbers, 'stages': {
        stage: {name: _band([found[stage][name] for found in of_runs])
                for name in metrics}
        for stage, metrics in of_runs[0].items()}}
  except KeyError as e:
    raise ValueError(f'the runs have not all logged {e}') from e


def _with_teacher(run, config):
  """The courses of a run, and those of the stages that it was given."""
  found = courses(run)
  if not config['teacher_workdir']:
    return found
  before = courses(config['teacher_workdir'])
  wanted = given.teacher_steps(config).keys() - found.keys()
  return {name: before[name] for name in before if name in wanted} | found


def _band(values):
  """Courses of one metric, step -> value -> lists over steps."""
  steps = sorted(values[0])
  rows = np.array([[course[step] for step in steps] for course in values])
  short = lambda x: [float(f'{value:.5g}') for value in x]
  return dict(zip(_BAND, (
      steps, *map(short, (rows.mean(0), rows.min(0), rows.max(0)))),
                  strict=True))


def find(
    config: Mapping[str, Any], where: pathlib.Path = SHIPPED
) -> dict[str, Any] | None:
  """The reference that is valid for a config, as in JSON; None without one."""
  wanted = fields(config)
  for path in sorted(where.glob('*.json')):
    found = json.loads(path.read_text())
    if found['fields'] == wanted:
      return found
  return None


def departures(reference: Mapping[str, Any], mine: Courses) -> dict[str, str]:
  """Stage -> one line: it follows the reference, or where it first does not.

  A curve leaves the reference where it is more than `MARGIN` of the mean below
  the least or above the largest of the seeds.
  """
  lines = {}
  for stage in reference['stages'].keys() & mine.keys():
    found = [
        (step, name, mine[stage][name][step], least, largest)
        for name, band in reference['stages'][stage].items()
        for step, mean, least, largest in zip(
            *(band[part] for part in _BAND), strict=True)
        if step in mine[stage].get(name, {})
        and not least - MARGIN * mean <= mine[stage][name][step]
        <= largest + MARGIN * mean]
    lines[stage] = 'follows the reference'
    if found:
      step, name, value, least, largest = min(found)
      lines[stage] = (
          f'leaves the reference at step {step}: {name} is {value:.3g}, that '
          f'of its seeds {least:.3g} to {largest:.3g}')
  return {stage: lines[stage] for stage in mine if stage in lines}


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('runs', nargs='+', metavar='RUN')
  parser.add_argument('-o', '--output', required=True, metavar='FILE')
  args = parser.parse_args()
  try:
    found = make(args.runs)
    folder.write_text(pathlib.Path(args.output), json.dumps(found) + '\n')
  except (OSError, ValueError) as e:
    sys.exit(f'error: {e}')
  print(f'{args.output}: seeds {found["seeds"]}, '
        f'stages {", ".join(found["stages"])}')


if __name__ == '__main__':
  main()
