"""Runs of one config over seeds, as a table:

  python -m stn_jax.compare runs/stn-0 runs/stn-1 runs/stn-2

Each argument is the folder of a finished run of `stn_jax.main`.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import sys
from typing import Any

import numpy as np

from stn_jax import results


def read(folders: Sequence[str]) -> list[dict[str, Any]]:
  """The summaries of the runs.

  Raises:
    ValueError: a run is not finished, or two have different configs.
  """
  summaries, configs = [], {}
  for folder in folders:
    path = pathlib.Path(folder) / 'summary.json'
    try:
      summaries.append(json.loads(path.read_text()))
      config = json.loads((path.parent / 'config.json').read_text())
    except (OSError, ValueError) as e:
      raise ValueError(f'{folder} is no finished run: {e}') from e
    config.pop('seed')
    configs[folder] = config
  first = next(iter(configs))
  for folder, config in configs.items():
    if config != configs[first]:
      differ = sorted(name for name in config
                      if config[name] != configs[first].get(name))
      raise ValueError(f'{folder} and {first} differ in {differ}')
  return summaries


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
  """Markdown: a row for each run, mean and deviation over the seeds."""
  keys = list(summaries[0])
  names = [key.removesuffix('_cost') for key in keys if key.endswith('_cost')]
  measures = [key.removeprefix(f'{names[0]}_') for key in keys
              if key.startswith((f'{names[0]}_valid_', f'{names[0]}_test_'))]
  lines = [
      '| | cost, plain runs | ' + ' | '.join(
          m.replace('_', ' ') for m in measures) + ' |',
      '|---' * (len(measures) + 2) + '|']
  for name in names:
    cells = [_cell([s.get(f'{name}_{m}') for s in summaries])
             for m in measures]
    lines.append(
        f'| {results.row_title(name)} | {summaries[0][f"{name}_cost"]:g} | '
        + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _cell(values):
  """'0.123 ± 0.004', and how many diverged."""
  there = [x for x in values if x is not None]
  if not there:
    return 'diverged'
  text = f'{np.mean(there):.4g}'
  if len(there) > 1:
    text += f' ± {np.std(there, ddof=1):.2g}'
  if len(there) < len(values):
    text += f' ({len(values) - len(there)} diverged)'
  return text


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('folders', nargs='+', metavar='FOLDER')
  args = parser.parse_args()
  try:
    print(table(read(args.folders)))
  except ValueError as e:
    sys.exit(f'error: {e}')


if __name__ == '__main__':
  main()
