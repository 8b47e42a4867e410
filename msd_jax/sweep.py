"""Runs of one config over seeds and values of a field: a table, a figure.

  python -m msd_jax.sweep --config=configs/toy2d.py --seeds=0,1,2 \\
      --field=num_students --values=1,2,4,8 --workdir=runs/toy2d-students

Each run is a folder of its own; what is finished is only read. The runs of a
seed share the teacher of the first.
"""

import ast
from collections.abc import Sequence
import copy
import json
import pathlib
from typing import Any

from absl import flags
import numpy as np

from core_jax import cli
from core_jax import folder
from core_jax import hosts
from core_jax import seeds as seeds_lib
from msd_jax import figures
from msd_jax import given
from msd_jax import setup
from msd_jax import train

_METRICS = {'frechet': 'Fréchet distance on classifier features', 'l1': 'l1'}
"""Suffix of the figure that is compared: its name for people."""
_LINES = {
    'single_equal_batch': '1 student, equal batch',
    'single_equal_compute': '1 student, equal compute',
    'students': 'K students'}


def run_all(
    config: setup.Config,
    workdir: str,
    *,
    seeds: Sequence[int],
    field: str,
    values: Sequence[Any],
) -> list[dict[str, Any]]:
  """Summaries of the runs over seeds and values, with 'seed' and `field`.

  Raises:
    ValueError: a value that no run can have, or a folder with another run;
      nothing was trained.
  """
  cells = [
      (value, *cell) for seed in seeds for value, cell in zip(
          values, _cells(config, workdir, seed, field, values), strict=True)]
  for _, path, cell in cells:
    _check(path, cell)
  rows = []
  for value, path, cell in cells:
    if (path / 'summary.json').exists():
      summary = json.loads((path / 'summary.json').read_text())
    else:
      print(f'run: {path}', flush=True)
      summary = train.train_and_evaluate(cell, str(path))
    rows.append({**summary, field: value})
  return rows


def _cells(config, workdir, seed, field, values):
  """(folder, config) of each value at a seed; all have the first's teacher,
  unless it is what varies."""
  if field in ('seed', 'teacher_workdir'):
    raise ValueError(f'--field={field}: a sweep sets it itself; there is '
                     '--seeds, and a sweep of its own for each teacher')
  cells = []
  for value in values:
    cell = _changed(config, field, value)
    path = pathlib.Path(workdir) / f'{field}={value}-seed={seed}'
    shared = field.split('.')[0] not in given.TEACHER_FIELDS
    first = str(cells[0][0]) if cells and shared else ''
    cell.seed = seed
    cell.teacher_workdir = config.teacher_workdir or first
    cells.append((path, cell))
  return cells


def _check(path, cell):
  """Raises ValueError for what could not be trained or gone on with."""
  if path.exists():
    folder.check(str(path), cell)
  checked = copy.deepcopy(cell)
  if checked.partition == 'kmeans' and checked.teacher_workdir:
    checked.partition = 'consecutive'  # That teacher may be still to come.
  setup.make(checked)


def _changed(config, field, value):
  changed = copy.deepcopy(config)
  try:
    changed.update_from_flattened_dict({field: value})
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
        f'--field={field} with the value {value!r} does not fit the config: '
        f'{str(error).splitlines()[0]}') from error
  return changed


def samplers_of(rows: Sequence[dict[str, Any]], metric: str) -> list[str]:
  """Names of what a metric was measured of in all rows, students last."""
  return [
      name.removesuffix(f'_{metric}') for name in rows[0]
      if name.endswith(f'_{metric}') and '_partition' not in name
      and all(name in row for row in rows)]


def table(rows: Sequence[dict[str, Any]], field: str, metric: str) -> str:
  """Markdown: a row a value, a column a sampler, mean ± deviation of seeds."""
  names = samplers_of(rows, metric)
  lines = [f'| {field} | ' + ' | '.join(names) + ' |',
           '|---' * (len(names) + 1) + '|']
  for value in dict.fromkeys(row[field] for row in rows):
    cells = [
        seeds_lib.cell([
            row[f'{name}_{metric}'] for row in rows if row[field] == value])
        for name in names]
    lines.append(f'| {value} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def write(
    workdir: str, rows: Sequence[dict[str, Any]], field: str
) -> str:
  """Writes `sweep.json`, `table.md` and, of numbers, `sweep.png`.

  Returns:
    The table; without a distance in the rows a word on that, and no table.
  """
  path = pathlib.Path(workdir)
  folder.write_text(path / 'sweep.json', json.dumps(rows, indent=1))
  metric = next((m for m in _METRICS if f'students_{m}' in rows[0]), None)
  if metric is None:
    return ('The config has no classifier, so that no distance was measured: '
            'python -m msd_jax.measure gives the FID of each run.')
  text = table(rows, field, metric)
  folder.write_text(path / 'table.md', text + '\n')
  if not all(isinstance(row[field], (int, float)) for row in rows):
    return text
  references = ('floor', 'teacher')
  # A run that diverged has no figure.
  there = lambda name: [
      row for row in rows if row.get(f'{name}_{metric}') is not None]
  mean = lambda name: (
      float(np.mean([row[f'{name}_{metric}'] for row in there(name)]))
      if there(name) else None)
  figures.curves(
      str(path / 'sweep.png'),
      [{'line': _LINES.get(name, name), 'x': row[field],
        'distance': row[f'{name}_{metric}']}
       for name in samplers_of(rows, metric) if name not in references
       for row in there(name)],
      xlabel=field, ylabel=_METRICS[metric], floor=mean('floor'),
      teacher=mean('teacher'))
  return text


def _value(text):
  """'0.1' -> 0.1, 'random' -> 'random'."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def main():
  seeds = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')
  field = flags.DEFINE_string('field', 'num_students', 'Field that varies.')
  values = flags.DEFINE_list('values', None, 'Its values.', required=True)
  join = flags.DEFINE_list(
      'join', [], 'Folders of sweeps whose rows join the table and figure.')

  def sweep(config, workdir):
    hosts.check_alone('a sweep')
    rows = [
        row for other in join.value for row in json.loads(
            (pathlib.Path(other) / 'sweep.json').read_text())]
    rows += run_all(
        config, workdir, seeds=[int(s) for s in seeds.value],
        field=field.value, values=[_value(v) for v in values.value])
    print(write(workdir, rows, field.value))

  cli.run('msd_sweep', 'digits', sweep, train.show_plan)


if __name__ == '__main__':
  main()
