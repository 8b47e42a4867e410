"""Runs of one config over seeds, as a table:

  python -m stn_jax.compare runs/stn-0 runs/stn-1 runs/stn-2

Each argument is the folder of a finished run of `stn_jax.main`.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import sys
from typing import Any

from core_jax import seeds
from stn_jax import results

_TITLES = {'last_test_loss': 'test loss, last weights'}


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
  """Markdown: a row for each run, mean and deviation over the seeds."""
  keys = list(summaries[0])
  names = [key.removesuffix('_cost') for key in keys if key.endswith('_cost')]
  measures = [key.removeprefix(f'{names[0]}_') for key in keys
              if key.startswith((f'{names[0]}_valid_', f'{names[0]}_test_'))]
  measures.append('last_test_loss')
  lines = [
      '| | cost, plain runs | seconds | ' + ' | '.join(
          _TITLES.get(m, m.replace('_', ' ')) for m in measures) + ' |',
      '|---' * (len(measures) + 3) + '|']
  for name in names:
    cells = [seeds.cell([s.get(f'{name}_{m}') for s in summaries])
             for m in ('seconds', *measures)]
    lines.append(
        f'| {results.row_title(name)} | {summaries[0][f"{name}_cost"]:g} | '
        + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('folders', nargs='+', metavar='FOLDER')
  args = parser.parse_args()
  try:
    print(table(seeds.read(args.folders)))
  except ValueError as e:
    sys.exit(f'error: {e}')


if __name__ == '__main__':
  main()
