"""What a run counts, which cells it trains, what it says of controllers."""

import json
import pathlib

import jax
import numpy as np
import pytest

from configs import nas_markov
from core_jax import folder
from core_jax import loop
from core_jax import metrics as metrics_lib
from nas_jax import analysis
from nas_jax import controller as controller_lib
from nas_jax import experiment
from nas_jax import report
from nas_jax import results
from nas_jax import search
from nas_jax import space as space_lib
from nas_jax import train


def tiny(**changes):
  config = nas_markov.get_config('tiny')
  config.update_from_flattened_dict(changes)
  return experiment.setup(config.lock())


def write_cells(path, **activations):
  """A run's `cells.json`: name -> activations of three nodes."""
  space = space_lib.enas(3)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({
      name: space_lib.to_json(
          space, space_lib.from_names(space, (0, 0, 1), names))
      for name, names in activations.items()}))


def test_random_search_costs_what_a_controller_costs_with_as_many_cells():
  run = tiny(**{'uniform.num_cells': 8})
  enas, uniform = (
      results.costs(run, method)['search'] for method in ('enas', 'uniform'))
  window, streams = 5, 8
  evaluated = 4 * 2 * 4 * streams * window  # rounds, updates, cells, tokens
  assert enas - uniform == pytest.approx(evaluated / 3)
  # Two windows measure a candidate, one a cell of a controller's update.
  equal = tiny(**{'uniform.num_cells': 8 + 16})
  assert results.costs(equal, 'uniform')['search'] == pytest.approx(enas)


def test_a_policy_that_repeats_itself_is_judged_by_each_cell_once():
  # Without a cap of its logits it can be sure.
  run = tiny(**{'analysis.num_cells': 30, 'controller.tanh_constant': 0.0})
  measures = results.make_measures(run)
  policy = controller_lib.init_params(
      experiment.make_controller(run.config, run.space),
      search.split_key(0)[1])
  policy['b_out'] = policy['b_out'].at[:, 0].add(12.0)
  policy = jax.tree.map(np.asarray, policy)
  report = results.policy_report(run, measures, policy)
  own, different = report['own'], report['different']
  assert 2 < own['num_different_cells'] < 30
  assert different['num_cells'] == own['num_different_cells']
  assert own['num_cells'] == 30
  sure = {**policy, 'b_out': policy['b_out'] + 1e4 * (
      np.arange(policy['b_out'].shape[1]) == 0)}
  once = results.policy_report(run, measures, sure)
  assert once['own']['num_different_cells'] == 1 and not once['different']


def test_random_cells_are_measured_once_for_all_controllers(monkeypatch):
  run = tiny(**{'analysis.num_permutations': 1})
  measures = results.make_measures(run)
  controller = experiment.make_controller(run.config, run.space)
  policies = [jax.tree.map(np.asarray, controller_lib.init_params(
      controller, jax.random.key(seed))) for seed in range(2)]
  random = results.uniform_tokens(run, run.config.analysis.num_cells)
  cells = space_lib.decode(run.space, random)
  measure, measured = analysis.cell_measures, []

  def note(cells, authors):
    measured.append(np.asarray(space_lib.encode(run.space, cells)))
    return measure(cells, authors)

  monkeypatch.setattr(analysis, 'cell_measures', note)
  reports = [results.policy_report(run, measures, p) for p in policies]
  assert sum(np.array_equal(tokens, random) for tokens in measured) == 1
  for policy, found in zip(policies, reports, strict=True):
    assert found['uniform'] == analysis.hidden_state_report(
        measures.score(policy, random).hidden[:, -1], cells,
        measures=measure(cells), num_permutations=1, seed=run.config.seed)


def test_random_starts_are_one_for_each_cell():
  run = tiny()
  controller = experiment.make_controller(run.config, run.space)
  starts = controller_lib.random_starts(controller, jax.random.key(0), 5)
  assert starts.h.shape == (5, controller.hidden_size)
  params = controller_lib.init_params(controller, jax.random.key(1))
  found = controller_lib.sample(
      controller, params, jax.random.key(2), 5, starts)
  assert len(np.unique(found.log_probs[:, 0], axis=0)) == 5
  alike = controller_lib.sample(controller, params, jax.random.key(2), 5)
  assert len(np.unique(alike.log_probs[:, 0], axis=0)) == 1


def test_cells_of_another_run_are_trained_beside_those_that_are_found(
    tmp_path):
  path = tmp_path / 'other' / 'cells.json'
  write_cells(path, enas=('tanh', 'relu', 'identity'))
  run = tiny(methods=('uniform',), **{
      'retrain.cells': (str(path),), 'retrain.num_seeds': 2})
  names = train.retrain_names(run)
  assert [name for name, _ in names] == [
      'uniform', 'uniform', 'given/other/enas', 'given/other/enas', 'random/0']
  found = {'derive_uniform': {
      'tokens': np.zeros((1, 5), np.int32), 'losses': np.zeros(1)}}
  tokens = train.retrained_tokens(run, found)
  # act[0], then prev and act of the other nodes.
  np.testing.assert_array_equal(tokens[2], [0, 0, 1, 1, 2])
  np.testing.assert_array_equal(tokens[3], tokens[2])


def test_no_training_has_the_seed_of_one_in_the_next_run():
  first, second = (
      {seed for _, seed in train.retrain_names(
          tiny(seed=seed, **{'retrain.num_seeds': 3}))} for seed in (0, 1))
  assert not first & second


@pytest.mark.parametrize('entry, words', [
    ('nowhere.json', "retrain.cells has 'nowhere.json'"),
    ('published', '3 entries'),  # It has twelve nodes.
])
def test_a_given_cell_that_does_not_fit_is_named(entry, words):
  with pytest.raises(ValueError, match=words):
    tiny(**{'retrain.cells': (entry,)})


def test_files_in_two_folders_of_one_name_are_refused(tmp_path):
  paths = [str(tmp_path / which / 'run0' / 'cells.json') for which in 'ab']
  for path in paths:
    write_cells(pathlib.Path(path), enas=('tanh', 'relu', 'identity'))
  with pytest.raises(ValueError, match=(
      f"^retrain.cells has '{paths[0]}' and '{paths[1]}', .*'given/run0'.* "
      'rename')):
    tiny(**{'retrain.cells': paths})


@pytest.mark.parametrize('changed', [
    {'a': ('relu', 'relu', 'relu'), 'b': ('relu', 'relu', 'tanh')},
    {'b': ('relu', 'relu', 'tanh'), 'a': ('relu', 'relu', 'identity')},
], ids=['another cell', 'another order'])
def test_a_folder_is_of_the_cells_that_it_was_given(
    changed, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'fit', lambda *args: {})
  monkeypatch.setattr(report, 'write', lambda *args, **kwargs: {})
  path = tmp_path / 'other' / 'cells.json'
  write_cells(path, a=('relu', 'relu', 'identity'), b=('relu', 'relu', 'tanh'))
  config = tiny(**{'retrain.cells': (str(path),)}).config
  train.train_and_evaluate(config, str(tmp_path / 'run'))
  train.train_and_evaluate(config, str(tmp_path / 'run'))
  write_cells(path, **changed)
  with pytest.raises(folder.FolderError, match='given_cells: .* in the folder'):
    train.train_and_evaluate(config, str(tmp_path / 'run'))


def test_a_folder_without_given_cells_has_the_config_alone(
    tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'fit', lambda *args: {})
  monkeypatch.setattr(report, 'write', lambda *args, **kwargs: {})
  config = tiny().config
  train.train_and_evaluate(config, str(tmp_path))
  assert json.loads((tmp_path / 'config.json').read_text()) == json.loads(
      config.to_json_best_effort())


def test_the_course_of_a_memory_begins_where_it_is_trained(tmp_path):
  run = tiny(methods=('enas_replay',), num_rounds=8, **{
      'memory.store_from_round': 1, 'memory.train_from_round': 3})
  with metrics_lib.MetricsWriter(tmp_path) as writer:
    # A line is the mean of two rounds: the second has 2, which is before 3.
    for done in (2, 4, 6, 8):
      writer.write(done, 'search_enas_replay', {
          'valid_loss': 1.0, 'memory_loss': float(done)})
  courses = {words.split(',')[0]: lines['enas_replay']
             for words, lines in report._courses(run, tmp_path).items()}
  assert courses == {
      'validation loss of the cells it tries': ((2, 4, 6, 8), (1.0,) * 4),
      'loss of the memory': ((6, 8), (6.0, 8.0))}
