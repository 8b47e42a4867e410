"""What MSD's paper claims, tried on small images.

  python -m benchmarks.msd_claims --data=digits

Runs every row over the seeds, each a folder of its own; what is finished is
only read, so the same command goes on. Rows of a seed share its teacher and
classifier. Writes `claims.md` and `claims.json` beside the runs, and says what
time is left, by the rows that it has trained. The paper's figures are FIDs on
ImageNet-64; only their order is compared.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib
import json
import pathlib
import re
import sys
import time
from typing import Any

import ml_collections
import numpy as np

from core_jax import allocator
from core_jax import checkpoint
from core_jax import folder
from core_jax import loop
from core_jax import program
from msd_jax import diffusion
from msd_jax import make_pairs
from msd_jax import setup
from msd_jax import train

FIRST = 'dm'  # The row that trains the teacher, and large students to copy.
NUM_PAIRS = 2000


def main_rows(
    rounds: int, adm_rounds: int, small: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """The rows of every data set: K, equal compute, DM + ADM, TSM.

  Args:
    rounds: of each student.
    adm_rounds: of them with the GAN, in 'dm+adm'.
    small: fields of the small students.
  """
  return {
      FIRST: {'students.num_steps': rounds},
      'K = 1': {'students.num_steps': rounds, 'num_students': 1},
      'K = 1, four times the rounds': {
          'students.num_steps': 4 * rounds, 'num_students': 1},
      'dm+adm': {
          'student_stages': 'dm+adm', 'adm.num_steps': adm_rounds,
          'students.num_steps': rounds - adm_rounds},
      'small, with TSM': {**small},
      'small, without TSM': {**small, 'score_matching.num_steps': 0},
  }


SMALL = {'students.network.width': 16, 'students.lr': 1e-3,
         'students.fake_lr': 1e-3, 'students.num_steps': 600}
REGRESSION = {'students.ratio': 1, 'regression.weight': 0.25,
              'students.num_steps': 800}
# Config -> row -> fields other than in it; {first}, {pairs}: folders.
ROWS = {
    'fashion': main_rows(200, 80, {'students.network.width': 160}),
    'digits': main_rows(800, 300, SMALL) | {
        'K = 2': {'students.num_steps': 800, 'num_students': 2},
        'K = 8': {'students.num_steps': 800, 'num_students': 8},
        'K = 4, batch of 32': {
            'students.num_steps': 800, 'students.batch_size': 32},
        'partition by k-means': {
            'students.num_steps': 800, 'partition': 'kmeans'},
        'partition at random': {
            'students.num_steps': 800, 'partition': 'random'},
        'small, post-distilled': {
            **SMALL, 'score_matching.num_steps': 0, 'student_stages': 'post',
            'post.workdir': '{first}', 'post.num_steps': 4000,
            'post.lr': 1e-3},
        'pairs shared': {**REGRESSION, 'regression.pairs': '{pairs}'},
        'pairs filtered': {**REGRESSION, 'regression.pairs': '{pairs}',
                           'regression.filter_pairs': True},
        'consistency, K = 1': {
            'student_stages': 'consistency', 'num_students': 1,
            'students.network.width': 16, 'consistency.num_steps': 4000,
            'consistency.lr': 1e-3},
        'consistency, K = 4': {
            'student_stages': 'consistency', 'students.network.width': 16,
            'consistency.num_steps': 4000, 'consistency.lr': 1e-3},
    },
}


@dataclasses.dataclass(frozen=True)
class Claim:
  """One row is better (of less distance) than another, says the paper."""
  better: str
  worse: str
  paper: str


CLAIMS = (
    Claim(FIRST, 'K = 1', '2.37 against 2.60'),
    Claim('K = 2', 'K = 1', '2.49 against 2.60'),
    Claim(FIRST, 'K = 2', '2.37 against 2.49'),
    Claim('K = 8', FIRST, '2.32 against 2.37'),
    Claim('K = 4, batch of 32', 'K = 1', '2.53 against 2.60'),
    Claim(FIRST, 'K = 1, four times the rounds',
          'nothing: one student at the compute of four is not in it'),
    Claim(FIRST, 'partition by k-means', '2.37 against 2.39'),
    Claim('partition by k-means', 'partition at random', '2.39 against 2.45'),
    Claim('dm+adm', FIRST, '1.20 against 2.37'),
    Claim('small, with TSM', 'small, without TSM',
          "without, it 'fails to converge'"),
    Claim('small, with TSM', 'small, post-distilled',
          '2.88 (with ADM) against 11.67'),
    Claim('pairs shared', 'pairs filtered', 'filtering costs modes and FID'),
    Claim('consistency, K = 4', 'consistency, K = 1',
          'l1 in the plane falls with K'),
)


def row_path(row: str, seed: int, workdir: pathlib.Path) -> pathlib.Path:
  """The folder of a row's run."""
  return workdir / f'{re.sub("[^a-zA-Z0-9+]+", "-", row)}-{seed}'


def row_config(
    data: str, row: str, seed: int, workdir: pathlib.Path, variant: str = ''
) -> ml_collections.ConfigDict:
  """The config of a row at a seed.

  Args:
    data: of ROWS.
    row: of ROWS[data].
    seed: of the run.
    workdir: of all rows.
    variant: of the config.
  """
  places = {'first': row_path(FIRST, seed, workdir),
            'pairs': workdir / f'pairs-{seed}'}
  config = importlib.import_module(f'configs.{data}').get_config(variant)
  config.seed, config.baselines = seed, ()
  if row != FIRST:
    config.teacher_workdir = str(places['first'])
  config.update_from_flattened_dict({
      name: value.format(**places) if isinstance(value, str) else value
      for name, value in ROWS[data][row].items()})
  return config.lock()


def finished(path: pathlib.Path) -> dict[str, Any] | None:
  """The summary of a run; None where it has not ended."""
  summary = path / 'summary.json'
  return json.loads(summary.read_text()) if summary.exists() else None


def run_row(
    config: ml_collections.ConfigDict, path: pathlib.Path) -> dict[str, Any]:
  """The summary of a row, which is trained if it is not there."""
  folder.claim(str(path), config)  # A row that has changed is another run.
  summary = finished(path)
  if summary is not None:
    return summary
  if config.regression.weight:
    make_pairs.make_pairs(
        config.teacher_workdir, config.regression.pairs, num=NUM_PAIRS,
        num_shards=1, shards=range(1), seed=config.seed, batch_size=500,
        settings=diffusion.Sampler(
            num_steps=18, sigma_min=config.sigma_min,
            sigma_max=config.sigma_max))
  return train.train_and_evaluate(config, str(path))


def updates(config: ml_collections.ConfigDict) -> int:
  """Of all networks of all students: what a row's time goes by, about."""
  total = 0
  for kind in setup.student_kinds(config):
    settings = setup.stage_settings(config, kind)
    total += config.num_students * settings.num_steps * (
        1 + settings.get('ratio', 0))
  return total


def table(found: Mapping[str, Mapping[int, float]]) -> str:
  """Markdown: the rows, then the claims, each with its verdict.

  Args:
    found: row -> seed -> distance.
  """
  lines = ['| row | distance |', '|---|---|']
  for row, values in found.items():
    lines.append(f'| {row} | {_mean(list(values.values()))} |')
  lines += ['', '| better | worse | the paper | difference | holds |',
            '|---|---|---|---|---|']
  for claim in CLAIMS:
    if claim.better not in found or claim.worse not in found:
      continue
    seeds = found[claim.better].keys() & found[claim.worse].keys()
    differences = [found[claim.worse][s] - found[claim.better][s]
                   for s in sorted(seeds)]
    if differences:
      lines.append(
          f'| {claim.better} | {claim.worse} | {claim.paper} | '
          f'{_mean(differences)} | {verdict(differences)} |')
  return '\n'.join(lines)


def verdict(differences: Sequence[float]) -> str:
  """'yes' or 'no' where all seeds agree, otherwise how many do."""
  wins = sum(difference > 0 for difference in differences)
  if wins in (0, len(differences)):
    word = 'yes' if wins else 'no'
    return word if len(differences) > 1 else f'{word}, on one seed'
  return f'on {wins} of {len(differences)} seeds'


def _mean(values):
  spread = f' ± {np.std(values, ddof=1):.4f}' if len(values) > 1 else ''
  return f'{np.mean(values):.4f}{spread}'


def run_all(
    data: str, rows: Sequence[str], seeds: Sequence[int],
    workdir: pathlib.Path, variant: str = '') -> str:
  """All rows over all seeds; the table is written after each."""
  cells = [(row, seed, row_config(data, row, seed, workdir, variant))
           for seed in seeds for row in rows]
  todo = {(row, seed): updates(config) for row, seed, config in cells
          if finished(row_path(row, seed, workdir)) is None}
  found, text = {row: {} for row in rows}, ''
  seconds = done = 0
  for row, seed, config in cells:
    left = sum(todo.values())
    print(f'row: {row}, seed {seed}; {len(todo)} runs to go'
          + (f', about {seconds / done * left / 60:.0f} min' if done else ''),
          flush=True)
    started = time.monotonic()
    found[row][seed] = run_row(
        config, row_path(row, seed, workdir))['students_frechet']
    if (row, seed) in todo:
      seconds += time.monotonic() - started
      done += todo.pop((row, seed))
    there = {row: values for row, values in found.items() if values}
    text = table(there)
    folder.write_text(workdir / 'claims.md', text + '\n')
    folder.write_text(workdir / 'claims.json', json.dumps(there, indent=1))
  return text


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.msd_claims', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', default='digits', choices=sorted(ROWS))
  parser.add_argument('--workdir', default='', help='runs/claims-DATA')
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument(
      '--rows', default='', help=f'joined by ;, {FIRST!r} first; all')
  args = parser.parse_args()
  rows = args.rows.split(';') if args.rows else list(ROWS[args.data])
  if unknown := set(rows) - set(ROWS[args.data]):
    parser.error(f'--rows: {sorted(unknown)} are not rows of {args.data}; '
                 f'there are {"; ".join(ROWS[args.data])}')
  workdir = pathlib.Path(args.workdir or f'runs/claims-{args.data}')
  seeds = [int(seed) for seed in args.seeds.split(',')]
  folder.name_workdir(workdir)
  allocator.keep_freed_memory()
  with program.one_line((*program.ERRORS, checkpoint.CheckpointError)):
    try:
      with folder.held(workdir):
        print(run_all(args.data, rows, seeds, workdir.absolute()))
    except loop.Interrupted as stop:
      print(stop, file=sys.stderr)
      sys.exit(stop.exit_code)


if __name__ == '__main__':
  main()
