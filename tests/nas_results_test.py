"""What a run counts, which cells it trains, what it says of controllers."""

import json

import jax
import numpy as np
import pytest

from configs import nas_markov
from nas_jax import controller as controller_lib
from nas_jax import experiment
from nas_jax import results
from nas_jax import search
from nas_jax import space as space_lib
from nas_jax import train


def tiny(**changes):
  config = nas_markov.get_config('tiny')
  config.update_from_flattened_dict(changes)
  return experiment.setup(config.lock())


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
  space = space_lib.enas(3)
  cell = space_lib.from_names(space, (0, 0, 1), ('tanh', 'relu', 'identity'))
  path = tmp_path / 'other' / 'cells.json'
  path.parent.mkdir()
  path.write_text(json.dumps({'enas': space_lib.to_json(space, cell)}))
  run = tiny(methods=('uniform',), **{
      'retrain.cells': (str(path),), 'retrain.num_seeds': 2})
  names = train.retrain_names(run)
  assert [name for name, _ in names] == [
      'uniform', 'uniform', 'given/other/enas', 'given/other/enas', 'random/0']
  found = {'derive_uniform': {
      'tokens': np.zeros((1, 5), np.int32), 'losses': np.zeros(1)}}
  tokens = train.retrained_tokens(run, found)
  np.testing.assert_array_equal(tokens[2], space_lib.encode(space, cell))
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
