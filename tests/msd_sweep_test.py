"""What a sweep runs, and what it writes of its rows."""

import pathlib
import sys

from absl.testing import flagsaver
import pytest

from configs import toy2d
from core_jax import folder
from msd_jax import sweep
from msd_jax import train

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize('given', ['', 'runs/published'])
def test_runs_of_a_seed_share_the_given_teacher_or_that_of_the_first(
    given, tmp_path, monkeypatch):
  ran = {}

  def record(config, path):
    ran[config.seed, config.num_students] = config.teacher_workdir
    return {'students_l1': 0.}

  monkeypatch.setattr(train, 'train_and_evaluate', record)
  config = toy2d.get_config('tiny')
  config.teacher_workdir = given
  sweep.run_all(config, str(tmp_path), seeds=[0, 1], field='num_students',
                values=[1, 2, 4])
  for seed in (0, 1):
    teachers = [ran[seed, k] for k in (1, 2, 4)]
    first = given or f'{tmp_path}/num_students=1-seed={seed}'
    assert teachers == [given, first, first]


@pytest.mark.parametrize('field, value', [
    ('students.lrr', 1e-3), ('students.lr', 'high'), ('student', 3)])
def test_a_value_that_does_not_fit_is_refused_before_anything_is_trained(
    field, value, tmp_path):
  config = toy2d.get_config('tiny').lock()
  with pytest.raises(ValueError, match=f'--field={field} with the value'):
    sweep.run_all(config, str(tmp_path), seeds=[0], field=field,
                  values=[1e-3, value])


@pytest.mark.parametrize('field, values, message', [
    ('seed', [0, 1], '--field=seed: a sweep sets it'),
    ('teacher_workdir', ['a', 'b'], '--field=teacher_workdir: a sweep sets'),
    ('num_students', [1, 80], 'num_students=80 must')])
def test_a_value_that_no_run_can_have_is_refused_before_anything_is_trained(
    field, values, message, tmp_path, monkeypatch):
  monkeypatch.delattr(train, 'train_and_evaluate')
  with pytest.raises(ValueError, match=message):
    sweep.run_all(toy2d.get_config('tiny'), str(tmp_path), seeds=[0],
                  field=field, values=values)


def test_runs_whose_teachers_differ_train_one_each(tmp_path, monkeypatch):
  taken = []
  monkeypatch.setattr(
      train, 'train_and_evaluate', lambda config, path: taken.append(
          (config.teacher.lr, config.teacher_workdir)) or {})
  sweep.run_all(toy2d.get_config('tiny'), str(tmp_path), seeds=[0],
                field='teacher.lr', values=[1e-3, 1e-4])
  assert taken == [(1e-3, ''), (1e-4, '')]


def test_a_folder_of_another_teacher_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch):
  monkeypatch.setattr(
      train, 'train_and_evaluate',
      lambda config, path: folder.claim(path, config) and {})
  sweep_of = lambda values: sweep.run_all(
      toy2d.get_config('tiny'), str(tmp_path), seeds=[0],
      field='num_students', values=values)
  sweep_of([2, 4])
  monkeypatch.delattr(train, 'train_and_evaluate')
  with pytest.raises(ValueError, match='teacher_workdir: .*num_students=1'):
    sweep_of([1, 2, 4])


def row(value, seed, distance, **others):
  return {'seed': seed, 'field': value, 'floor_frechet': .1,
          'students_frechet': distance, 'students_partition0_frechet': 9.,
          **others}


def test_a_table_has_mean_and_deviation_of_seeds_and_numbers_a_figure(tmp_path):
  rows = [row(1, 0, 2.), row(1, 1, 4.), row(2, 0, 1.), row(2, 1, 1.)]
  text = sweep.write(str(tmp_path), rows, 'field')
  assert text.splitlines() == [
      '| field | floor | students |', '|---|---|---|',
      '| 1 | 0.1 ± 0 | 3 ± 1.4 |',
      '| 2 | 0.1 ± 0 | 1 ± 0 |']
  assert (tmp_path / 'sweep.png').exists()


def test_rows_without_a_distance_are_kept(tmp_path):
  text = sweep.write(str(tmp_path), [{'seed': 0, 'field': 1}], 'field')
  assert 'no distance was measured' in text
  assert (tmp_path / 'sweep.json').exists()


def test_a_run_that_diverged_is_counted_and_not_drawn(tmp_path):
  rows = [row(1, 0, 2.), row(1, 1, None), row(2, 0, None), row(2, 1, None)]
  text = sweep.write(str(tmp_path), rows, 'field')
  assert '| 1 | 0.1 ± 0 | 2 (1 diverged) |' in text
  assert '| 2 | 0.1 ± 0 | diverged |' in text
  assert (tmp_path / 'sweep.png').exists()


def test_values_may_be_words_and_the_folder_is_the_sweep_s_own(
    tmp_path, monkeypatch):
  ran = []

  def run_all(config, workdir, **swept):
    ran.append((workdir, swept['field'], swept['values']))
    return [row(value, 0, 1.) for value in swept['values']]

  monkeypatch.setattr(sweep, 'run_all', run_all)
  monkeypatch.setattr(sweep, 'write', lambda *unused: '')
  monkeypatch.setattr(
      sys, 'argv', ['sweep', f'--config={ROOT}/configs/toy2d.py:tiny',
                    '--field=partition', '--values=random,8,0.5,[1]'])
  monkeypatch.chdir(tmp_path)
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
    sweep.main()
  assert not end.value.code
  assert ran == [
      ('runs/msd_sweep-toy2d-tiny', 'partition', ['random', 8, 0.5, [1]])]


def test_stages_are_swept_by_name_and_compared_by_what_all_have(tmp_path):
  rows = [row('dm', 0, 2.), row('dm+adm', 0, 1., students_dm_frechet=2.5)]
  text = sweep.write(str(tmp_path), rows, 'field')
  assert '| dm+adm | 0.1 | 1 |' in text
  assert 'students_dm' not in text
  assert not (tmp_path / 'sweep.png').exists()
