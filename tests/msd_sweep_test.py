"""What a sweep writes of its rows."""

from msd_jax import sweep


def row(value, seed, distance, **others):
  return {'seed': seed, 'field': value, 'floor_frechet': .1,
          'students_frechet': distance, 'students_partition0_frechet': 9.,
          **others}


def test_a_table_has_mean_and_deviation_of_seeds_and_numbers_a_figure(tmp_path):
  rows = [row(1, 0, 2.), row(1, 1, 4.), row(2, 0, 1.), row(2, 1, 1.)]
  text = sweep.write(str(tmp_path), rows, 'field')
  assert text.splitlines() == [
      '| field | floor | students |', '|---|---|---|',
      '| 1 | 0.1000 ± 0.0000 | 3.0000 ± 1.4142 |',
      '| 2 | 0.1000 ± 0.0000 | 1.0000 ± 0.0000 |']
  assert (tmp_path / 'sweep.png').exists()


def test_stages_are_swept_by_name_and_compared_by_what_all_have(tmp_path):
  rows = [row('dm', 0, 2.), row('dm+adm', 0, 1., students_dm_frechet=2.5)]
  text = sweep.write(str(tmp_path), rows, 'field')
  assert '| dm+adm | 0.1000 ± 0.0000 | 1.0000 ± 0.0000 |' in text
  assert 'students_dm' not in text
  assert not (tmp_path / 'sweep.png').exists()
