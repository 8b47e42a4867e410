"""The table of the paper's claims: its rows' configs, its verdicts."""

import importlib
import pathlib

import pytest

from benchmarks import msd_claims
from msd_jax import setup


@pytest.mark.parametrize('data, row', [
    (data, row) for data, rows in msd_claims.ROWS.items() for row in rows])
def test_a_rows_fields_are_those_of_the_config(data, row):
  config = importlib.import_module(f'configs.{data}').get_config().lock()
  config.update_from_flattened_dict(msd_claims.ROWS[data][row])
  assert setup.student_kinds(config)


def test_claims_are_of_rows_and_every_row_is_in_one():
  named = {name for claim in msd_claims.CLAIMS
           for name in (claim.better, claim.worse)}
  assert named == {row for rows in msd_claims.ROWS.values() for row in rows}


def test_the_table_says_where_the_trend_holds():
  text = msd_claims.table({
      'dm': {0: 2., 1: 3.}, 'dm+adm': {0: 1., 1: 1.5},
      'pairs shared': {0: 1., 1: 1.}, 'pairs filtered': {0: 2., 1: .5}})
  assert '| dm | 2.5000 ± 0.7071 |' in text
  assert '| 1.2500 ± 0.3536 | yes |' in text
  assert '| 0.2500 ± 1.0607 | on 1 of 2 seeds |' in text
  assert 'consistency' not in text
  assert msd_claims.verdict([-1., -2.]) == 'no'
  assert msd_claims.verdict([1.]) == 'yes, on one seed'


def test_what_is_finished_is_only_read_and_the_rest_is_estimated(
    tmp_path, monkeypatch, capsys):
  rows = ['dm', 'K = 2', 'K = 8', 'consistency, K = 1']
  folder = tmp_path / 'K-2-3'
  folder.mkdir()
  (folder / 'summary.json').write_text('{"students_frechet": 0.5}')
  ran, clock = [], iter(range(0, 10_000, 60))

  def record(config, path):
    ran.append(pathlib.Path(path).name)
    return {'students_frechet': 1.}

  monkeypatch.setattr(msd_claims.train, 'train_and_evaluate', record)
  monkeypatch.setattr(msd_claims.time, 'monotonic', lambda: next(clock))
  text = msd_claims.run_all('digits', rows, [3], tmp_path)
  assert ran == ['dm-3', 'K-8-3', 'consistency-K-1-3']
  assert '| K = 2 | K = 1 |' not in text and '| K = 2 | 0.5000 |' in text
  # A minute for 4 x 800 x 6 updates; 8 x 800 x 6 and 4000 are to come. Then
  # two for 57,600, so that 4,000 are eight seconds.
  assert [line.partition('; ')[2] for line in
          capsys.readouterr().out.splitlines()] == [
              '3 runs to go', '2 runs to go, about 2 min',
              '2 runs to go, about 2 min', '1 runs to go, about 0 min']
