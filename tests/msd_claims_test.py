"""The table of the paper's claims: its rows' configs, its verdicts."""

import pathlib

import pytest

from benchmarks import msd_claims
from configs import digits
from msd_jax import setup


@pytest.mark.parametrize('row', msd_claims.ROWS)
def test_a_rows_fields_are_those_of_the_config(row):
  config = digits.get_config().lock()
  config.update_from_flattened_dict(msd_claims.ROWS[row])
  assert setup.student_kinds(config)


def test_claims_are_of_rows_and_every_row_is_in_one():
  named = {name for claim in msd_claims.CLAIMS
           for name in (claim.better, claim.worse)}
  assert named == set(msd_claims.ROWS)


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


def test_what_is_finished_is_only_read(tmp_path):
  folder = pathlib.Path(tmp_path, 'small-with-TSM-3')
  folder.mkdir()
  (folder / 'summary.json').write_text('{"students_frechet": 0.5}')
  assert msd_claims.run_row('small, with TSM', 3, tmp_path, {}) == {
      'students_frechet': 0.5}
