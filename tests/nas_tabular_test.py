"""The shipped table of all cells of three nodes, and how one is made."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from configs import nas_markov
from nas_jax import data
from nas_jax import space as space_lib
from nas_jax import tabular
from nas_jax import train


def test_the_shipped_table_has_every_cell_for_three_seeds():
  table = tabular.load()
  assert table.valid.shape == table.test.shape == (3, 128)
  floor = data.load(nas_markov.get_config('small')).floor
  # On a sample the floor itself varies by some hundredths of a nat.
  assert table.valid.min() > floor - 0.03
  assert table.valid.max() < np.log(20)
  # Seeds agree on what is good, and the two texts do.
  one, two, _ = table.valid
  assert np.corrcoef(one, two)[0, 1] > 0.8
  assert np.corrcoef(table.valid.mean(0), table.test.mean(0))[0, 1] > 0.95


def test_a_query_tells_losses_and_rank():
  table = tabular.load()
  best = int(np.argmin(table.valid.mean(0)))
  cell = space_lib.decode(table.space, table.tokens[best])
  found = table.query(cell)
  assert found['rank'] == 0
  np.testing.assert_array_equal(found['valid_nats'], table.valid[:, best])
  with pytest.raises(space_lib.SpaceError, match='another space'):
    table.query(space_lib.published())


def test_isomorphic_cells_are_as_good_as_each_other():
  table = tabular.load()
  classes = {}
  for i, cell in enumerate(space_lib.unstack(
      space_lib.decode(table.space, table.tokens))):
    classes.setdefault(space_lib.canonical(cell), []).append(i)
  pairs = [c for c in classes.values() if len(c) > 1]
  assert len(classes) == 104 and len(pairs) == 24
  means = table.valid.mean(0)
  within = np.mean([np.ptp(means[c]) for c in pairs])
  assert within < 0.5 * means.std()


def tiny():
  config = nas_markov.get_config('tiny')
  config.methods = ('uniform',)
  config.space.num_nodes = 2
  config.retrain.update(num_rounds=1, updates_per_round=2)
  return config.lock()


def test_a_table_is_built_and_shared_weights_are_ranked_by_it(tmp_path):
  config = tiny()
  text = tabular.build(config, str(tmp_path / 'table'), 2)
  rows = list(csv.DictReader(text.splitlines()))
  assert len(rows) == 2 * 16 and rows[0]['tokens'] == '0 0 0'
  path = tmp_path / 'table.csv'
  path.write_text(text)
  path.with_suffix('.json').write_text(json.dumps(tabular.origin(config)))
  table = tabular.load(path)
  assert np.all(np.abs(table.valid - np.log(6)) < 0.3)
  train.train_and_evaluate(config, str(tmp_path / 'run'))
  picture = tmp_path / 'ranking.png'
  report = tabular.rank([str(tmp_path / 'run')], table, str(picture))
  assert -1 <= report['tau']['mean'] <= 1 and report['num_cells'] == 16
  assert picture.stat().st_size > 10_000
  other = dataclasses.replace(
      table, origin=table.origin | {'window_tokens': 6})
  with pytest.raises(tabular.TableError, match="differ in .'window_tokens'"):
    tabular.rank([str(tmp_path / 'run')], other)


@pytest.mark.parametrize('text, words', [
    ('', 'lacks cells|no table'), ('seed,tokens\n0,0 0\n', 'no table'),
    ('seed,tokens,valid_nats,test_nats\n0,0 0 0 0 0,1,1\n', 'lacks cells')])
def test_what_is_no_table_is_refused(text, words, tmp_path):
  path = tmp_path / 'table.csv'
  path.write_text(text)
  path.with_suffix('.json').write_text(json.dumps(tabular.load().origin))
  with pytest.raises(tabular.TableError, match=words):
    tabular.load(path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(tabular.TableError, match='is no run'):
    tabular.shared_losses(str(tmp_path), tabular.load().origin)
