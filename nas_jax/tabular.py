"""A tabular benchmark: every cell of a small space, trained from scratch.

  python -m nas_jax.tabular build --workdir=runs/tabular
  python -m nas_jax.tabular rank runs/small-0 runs/small-1 runs/small-2

`build` trains all cells of `configs/nas_markov.py:small` and writes the table
that the package ships. `rank` takes finished runs of that config that have
searched at random, and says how well their shared weights rank the cells.
`load` and `Table.query` are for other programs.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import io
import json
import pathlib
import runpy
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from core_jax import checkpoint
from core_jax import folder
from core_jax import loop
from nas_jax import analysis
from nas_jax import experiment
from nas_jax import figures
from nas_jax import models
from nas_jax import results
from nas_jax import space as space_lib
from nas_jax import train

SHIPPED = pathlib.Path(__file__).parent / 'tables' / 'markov3.csv'
_FIELDS = ('seed', 'tokens', 'valid_nats', 'test_nats')
# What a run must share with a table for its ranks to be compared with it.
_ORIGIN = ('dataset', 'markov', 'space', 'child', 'window_tokens')
# Truths closer than this are taken as tied by the sparse tau.
_TIE_NATS = 0.01


class TableError(ValueError):
  """A table that cannot be read; the message says why."""


@dataclasses.dataclass(frozen=True)
class Table:
  """Losses of all cells of a space, each trained by itself.

  Attributes:
    space: of the cells.
    tokens: [M, S], in the order of `space.enumerate_cells`.
    valid: [seeds, M], nats a token.
    test: [seeds, M], nats a token.
    origin: the fields of the config that it was made by.
  """
  space: space_lib.Space
  tokens: np.ndarray
  valid: np.ndarray
  test: np.ndarray
  origin: Mapping[str, Any]

  def query(self, cell: space_lib.Cell) -> dict[str, Any]:
    """valid_nats and test_nats [seeds] of one cell, and its rank, 0 the best.

    Raises:
      SpaceError: the cell is of another space.
    """
    cell = space_lib.check_cell(self.space, cell)
    place = int(space_lib.index(
        self.space, np.asarray(space_lib.encode(self.space, cell))))
    means = self.valid.mean(0)
    return {'valid_nats': self.valid[:, place],
            'test_nats': self.test[:, place],
            'rank': int((means < means[place]).sum())}


def origin(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of a config that decide a table, as JSON gives them back."""
  fields = json.loads(config.to_json_best_effort())
  return {name: fields.get(name) for name in _ORIGIN}


def load(path: str | pathlib.Path = SHIPPED) -> Table:
  """Reads a table and the JSON beside it; by default the shipped one.

  Raises:
    TableError: it is no table, or does not hold every cell for every seed.
  """
  try:
    made_by = json.loads(pathlib.Path(path).with_suffix('.json').read_text())
    space = experiment.make_space(made_by['space'])
  except (KeyError, OSError, TypeError, ValueError) as e:
    raise TableError(f'{path} is no table of cells: {e!r}') from e
  shape = space.size
  losses: dict[str, dict[int, np.ndarray]] = {'valid': {}, 'test': {}}
  try:
    with open(path, newline='') as file:
      for row in csv.DictReader(file):
        tokens = space_lib.check_tokens(
            space, [int(t) for t in row['tokens'].split()])
        place = int(space_lib.index(space, tokens))
        for part, found in losses.items():
          mine = found.setdefault(int(row['seed']), np.full(shape, np.nan))
          mine[place] = float(row[f'{part}_nats'])
  except (KeyError, OSError, TypeError, ValueError) as e:
    raise TableError(f'{path} is no table of cells: {e!r}') from e
  stacked = {part: np.stack([found[s] for s in sorted(found)])
             for part, found in losses.items() if found}
  if not stacked or np.isnan(stacked['valid']).any():
    raise TableError(f'{path} lacks cells: a table has all {shape} for each '
                     'of its seeds')
  tokens = np.asarray(space_lib.encode(
      space, space_lib.enumerate_cells(space)))
  return Table(space, tokens, stacked['valid'], stacked['test'], made_by)


def build(
    config: ml_collections.ConfigDict, workdir: str, num_seeds: int
) -> str:
  """Trains every cell `num_seeds` times; returns the table as CSV."""
  run = experiment.setup(config)
  cells = space_lib.enumerate_cells(run.space)
  tokens = np.asarray(space_lib.encode(run.space, cells))
  seeds = np.repeat(np.arange(num_seeds), len(tokens))
  # A cell's weights start otherwise for each cell too.
  starts = config.seed + np.arange(len(seeds))
  arch = jax.tree.map(lambda x: np.tile(x, (num_seeds, 1)), tuple(cells))
  model = models.recurrent(run.alone)
  stage = train.scratch_stage(
      run, 'cells', model, starts.tolist(),
      lambda found: {'arch': jax.tree.map(jnp.asarray, arch),
                     'data': run.text})
  path = folder.claim(workdir, config)
  print(f'{len(tokens)} cells, {num_seeds} seeds: {len(seeds)} trainings of '
        f'{config.retrain.num_rounds} x {config.retrain.updates_per_round} '
        f'updates; results go to {path}', flush=True)
  found = loop.fit([stage], config, str(path))['cells']
  if len(found['valid_losses']) != len(seeds):
    raise TableError(
        f'{path} has {len(found["valid_losses"]) // len(tokens)} seeds, not '
        f'{num_seeds}: give --seeds as it was, or another --workdir')
  tests = results.test_losses(run, model, found)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(_FIELDS)
  for seed, row, valid, test in zip(
      seeds, np.tile(tokens, (num_seeds, 1)), found['valid_losses'], tests,
      strict=True):
    writer.writerow([seed, ' '.join(map(str, row)), f'{valid:.5f}',
                     f'{test:.5f}'])
  return text.getvalue()


def shared_losses(workdir: str, made_by: Mapping[str, Any]) -> np.ndarray:
  """[M], nats of all cells on the whole validation text, by shared weights.

  Args:
    workdir: of a finished run that searched at random.
    made_by: `Table.origin` of the table that it is compared with.

  Raises:
    TableError: the run is not finished, had no random search, or is of
      another text or network.
  """
  path = pathlib.Path(workdir).absolute()
  try:
    config = ml_collections.ConfigDict(
        json.loads((path / 'config.json').read_text()))
    methods = config.methods
  except (AttributeError, OSError, ValueError) as e:
    raise TableError(f'{workdir} is no run of nas_jax: {e}') from e
  if 'uniform' not in methods:
    raise TableError(f"{workdir} has methods={methods}; ranks are of "
                     "'uniform', which favours no cell")
  differ = [name for name, value in origin(config).items()
            if value != made_by[name]]
  if differ:
    raise TableError(f'{workdir} and the table differ in {differ}')
  run = experiment.setup(config)
  end = config.num_rounds
  for method in config.methods:
    if method == 'uniform':
      break
    end += config.num_rounds + (
        experiment.num_candidates(config, method) // config.derive.chunk)
  try:
    shared = checkpoint.load(str(path), end)[0]['shared']
  except FileNotFoundError as e:
    raise TableError(f'{workdir} has not finished its random search') from e
  tokens = space_lib.encode(
      run.space, space_lib.enumerate_cells(run.space))
  losses = jax.jit(lambda *args: models.losses_of(
      run.child, *args, config.window_tokens))
  return np.asarray(losses(shared, tokens, run.text.valid))


def rank(
    workdirs: Sequence[str], table: Table, picture: str = ''
) -> Mapping[str, Any]:
  """How well shared weights of some runs rank the cells of the table."""
  shared = np.stack([shared_losses(path, table.origin) for path in workdirs])
  if picture:
    figures.plot_ranking(picture, shared, table.valid)
  return analysis.rank_report(shared, table.valid, width=_TIE_NATS)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog='python -m nas_jax.tabular', description=__doc__.split('\n')[0])
  commands = parser.add_subparsers(dest='command', required=True)
  make = commands.add_parser('build', help='train every cell')
  make.add_argument('--config', default='configs/nas_markov.py:small')
  make.add_argument('--workdir', default='runs/nas_jax-tabular')
  make.add_argument('--seeds', type=int, default=3)
  make.add_argument('--out', default='', help='CSV; default: in the workdir')
  compare = commands.add_parser('rank', help='rank cells by shared weights')
  compare.add_argument('runs', nargs='+', help='finished runs, one a seed')
  compare.add_argument('--table', default=str(SHIPPED))
  compare.add_argument('--picture', default='', help='PNG to draw')
  args = parser.parse_args(argv)
  try:
    if args.command == 'build':
      out = args.out or f'{args.workdir}/table.csv'
      config = read_config(args.config)
      with folder.held(args.workdir):
        text = build(config, args.workdir, args.seeds)
      folder.write_text(pathlib.Path(out), text)
      folder.write_text(pathlib.Path(out).with_suffix('.json'),
                        json.dumps(origin(config), indent=1) + '\n')
      print(f'Table: {out}')
    else:
      report = rank(args.runs, load(args.table), args.picture)
      print(json.dumps(report, indent=2))
  except loop.Interrupted as e:
    print(e, file=sys.stderr)
    sys.exit(e.exit_code)
  except (checkpoint.CheckpointError, FloatingPointError, OSError,
          ValueError) as e:
    sys.exit(f'error: {e}')


def read_config(text: str) -> ml_collections.ConfigDict:
  """'FILE.py:variant' -> its config, locked."""
  path, _, variant = text.partition(':')
  return runpy.run_path(path)['get_config'](variant).lock()


if __name__ == '__main__':
  main()
