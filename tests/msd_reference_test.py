"""Reference curves: of which runs they are made, and who departs from them."""

import importlib
import json

import pytest

from core_jax import metrics as metrics_lib
from msd_jax import figures
from msd_jax import reference

CONFIG = {
    'seed': 0, 'dataset': 'toy', 'teacher_workdir': '', 'keep': 1,
    'teacher': {'network': {'width': 8}, 'num_steps': 4},
    'students': {'network': {'width': 8}, 'num_steps': 4}, 'classifier': None}


def finished(path, seed, teacher_workdir='', loss=None, **changes):
  """A run whose teacher's loss is 1 + seed / 10, or else `loss`."""
  path.mkdir()
  (path / 'summary.json').write_text('{}')
  (path / 'config.json').write_text(json.dumps(CONFIG | changes | {
      'seed': seed, 'teacher_workdir': str(teacher_workdir)}))
  with metrics_lib.MetricsWriter(path) as writer:
    if not teacher_workdir:
      for step in (2, 4):
        writer.write(step, 'teacher', {
            'loss': 1 + seed / 10 if loss is None else loss, 'grad_norm': 1.})
    start = 0 if teacher_workdir else 4
    for step in (2, 4):
      writer.write(start + step, 'students', {'fake_loss': step + seed})
  return str(path)


def test_a_reference_has_mean_least_and_largest_over_seeds(tmp_path):
  runs = [finished(tmp_path / str(seed), seed) for seed in (0, 1, 2)]
  found = reference.make(runs)
  assert found['seeds'] == [0, 1, 2]
  assert found['stages'] == {
      'teacher': {'loss': {
          'steps': [2, 4], 'mean': [1.1, 1.1], 'least': [1., 1.],
          'largest': [1.2, 1.2]}},
      'students': {'fake_loss': {
          'steps': [2, 4], 'mean': [3., 5.], 'least': [2., 4.],
          'largest': [4., 6.]}}}


def test_a_teacher_that_was_given_is_read_where_it_was_trained(tmp_path):
  teachers = [finished(tmp_path / f't{seed}', seed) for seed in (0, 1)]
  own = reference.make(teachers)
  runs = [finished(tmp_path / f's{seed}', seed, teachers[seed])
          for seed in (0, 1)]
  assert reference.make(runs) == own


@pytest.mark.parametrize('make, message', [
    (lambda path: [finished(path / 'a', 0)], 'two seeds'),
    (lambda path: [finished(path / 'a', 0), finished(path / 'b', 0)],
     'same seed'),
    (lambda path: [finished(path / 'a', 0), finished(
        path / 'b', 1, teacher={'network': {'width': 9}, 'num_steps': 4})],
     'differ in teacher.network.width'),
    (lambda path: [finished(path / 'a', 0), str(path / 'none')],
     'no finished run')])
def test_what_is_no_set_of_seeds_is_refused(tmp_path, make, message):
  with pytest.raises(ValueError, match=message):
    reference.make(make(tmp_path))


def test_a_departure_is_more_than_a_tenth_of_the_mean_outside(tmp_path):
  """The seeds lose 1 to 1.1, mean 1.05: up to 1.205 is theirs."""
  found = reference.make(
      [finished(tmp_path / str(seed), seed) for seed in (0, 1)])
  for loss, line in ((1.2, 'follows the reference'), (1.21, (
      'leaves the reference at step 2: loss is 1.21, that of its seeds '
      '1 to 1.1'))):
    mine = reference.courses(finished(tmp_path / f'{loss}', 0, loss=loss))
    assert reference.departures(found, mine) == {
        'teacher': line, 'students': 'follows the reference'}


def test_a_reference_is_found_for_its_config_at_any_seed(tmp_path):
  found = reference.make(
      [finished(tmp_path / str(seed), seed) for seed in (0, 1)])
  (tmp_path / 'toy.json').write_text(json.dumps(found))
  free = {'seed': 9, 'keep': 3, 'teacher_workdir': 'elsewhere'}
  assert reference.find(CONFIG | free, tmp_path) == found
  assert reference.find(CONFIG | {'dataset': 'other'}, tmp_path) is None


@pytest.mark.parametrize(
    'name', [path.stem for path in reference.SHIPPED.glob('*.json')])
def test_what_is_shipped_is_of_the_config_as_it_is(name, tmp_path):
  config = importlib.import_module(f'configs.{name}').get_config()
  found = reference.find(json.loads(config.to_json_best_effort()))
  assert found and len(found['seeds']) == 3
  mine = {stage: {
      metric: dict(zip(band['steps'], band['mean'], strict=True))
      for metric, band in metrics.items()}
      for stage, metrics in found['stages'].items()}
  assert set(reference.departures(found, mine).values()) == {
      'follows the reference'}
  picture = tmp_path / 'bands.png'
  figures.bands(str(picture), {
      stage: (metrics[metric], mine[stage][metric])
      for stage, metrics in found['stages'].items() for metric in metrics})
  assert picture.stat().st_size > 10_000
