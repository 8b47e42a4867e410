"""Searches from config to report: one trace, exact resume, any mesh."""

import dataclasses
import json
import math
import os
import runpy
import signal

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import nas_markov
from core_jax import checkpoint
from core_jax import loop
from core_jax import mesh as mesh_lib
from core_jax import seeds
from core_jax import topology
from nas_jax import compare
from nas_jax import controller as controller_lib
from nas_jax import enas
from nas_jax import experiment
from nas_jax import memory as memory_lib
from nas_jax import space as space_lib
from nas_jax import train


def tiny(**changes):
  config = nas_markov.get_config('tiny')
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp('nas') / 'run'
  config = tiny()
  return config, path, train.train_and_evaluate(config, str(path))


def test_a_run_leaves_cells_summary_report_and_figures(finished):
  config, path, summary = finished
  assert (path / 'report.html').stat().st_size > 100_000
  assert summary == json.loads((path / 'summary.json').read_text())
  space = experiment.make_space(config.space)
  cells = json.loads((path / 'cells.json').read_text())
  assert list(cells) == list(config.methods)
  floor = math.exp(experiment.setup(config).corpus.floor)
  for method, cell in cells.items():
    space_lib.from_json(space, cell)
    assert summary[f'{method}_test_perplexity'] > floor
    assert summary[f'{method}_shared_perplexity'] <= (
        summary[f'{method}_candidates_perplexity'])
  for method in ('enas', 'enas_reconstruct'):
    assert -1 <= summary[
        f'policy_{method}_uniform_l2_edit_distance_spearman'] <= 1
  assert {p.name for p in (path / 'figures').iterdir()} >= {
      'cells.png', 'hidden.png', 'decisions.png', 'scratch.png',
      'candidates.png', 'states.png', 'search.png', 'pairs_enas.png'}


def test_a_cells_module_and_weights_have_the_perplexity_of_the_summary(
    finished):
  config, path, summary = finished
  run = experiment.setup(config)
  model = runpy.run_path(str(path / 'cell_enas.py'))['LanguageModel']()
  with np.load(path / 'cell_enas.npz') as file:
    variables = traverse_util.unflatten_dict(dict(file), sep='/')
  length = config.window_tokens * (
      (run.test.shape[1] - 1) // config.window_tokens)
  with jax.numpy_rank_promotion('allow'):
    logits, _ = model.apply(variables, run.test[:, :length].T)
    nats = optax.softmax_cross_entropy_with_integer_labels(
        logits, run.test[:, 1:length + 1].T)
  assert math.isclose(
      np.exp(nats.mean()), summary['enas_test_perplexity'], rel_tol=1e-5)


def test_the_same_command_again_says_the_same(finished):
  config, path, summary = finished
  again = train.train_and_evaluate(config, str(path))
  assert {k: v for k, v in again.items() if k != 'wall_seconds'} == {
      k: v for k, v in summary.items() if k != 'wall_seconds'}


def rounds(stage, num):
  """The stage's state after `num` rounds, and the last metrics."""
  frozen = mesh_lib.put(stage.frozen({}), stage.mesh, jax.P())
  layout = mesh_lib.shardings(stage.mesh, stage.state_spec)
  state = jax.jit(stage.init, out_shardings=layout)(frozen)
  compiled = mesh_lib.compile_step(stage.step, stage.mesh, stage.state_spec)
  metrics = {}
  for _ in range(num):
    state, metrics = compiled(state, {}, frozen)
  return state, metrics


@pytest.mark.parametrize('method', list(experiment.METHODS))
def test_one_program_serves_all_architectures(method):
  chex.clear_trace_counter()
  config = tiny()
  stage = train.search_stage(experiment.setup(config), method)
  state, metrics = rounds(dataclasses.replace(
      stage, step=chex.assert_max_traces(stage.step, n=1)), 3)
  assert int(state.step) == 3
  for name, value in metrics.items():
    assert np.isfinite(float(value)), name
  strategy = experiment.make_strategy(experiment.setup(config), method)
  tokens = strategy.sample(state.strategy, jax.random.key(0), 5)
  for row in np.asarray(tokens):
    space_lib.check_tokens(experiment.make_space(config.space), row)


@pytest.mark.parametrize('method', list(experiment.METHODS))
def test_a_derivation_begins_from_what_a_checkpoint_gives_back(
    method, tmp_path):
  run = experiment.setup(tiny())
  stage = train.search_stage(run, method)
  found = jax.device_get(stage.params(rounds(stage, 0)[0]))
  with checkpoint.manager(str(tmp_path), keep=1, milestones=()) as manager:
    checkpoint.save(
        manager, 1, state={'step': jnp.int32(1)}, params=found,
        config=run.config, reached={})
    restored = checkpoint.restore_params(manager, 1)
  init = jax.jit(train.derive_stage(run, method).init)
  np.testing.assert_array_equal(init(restored).tokens, init(found).tokens)


def test_no_part_of_a_run_draws_what_another_does():
  space = space_lib.enas(6)
  controller = controller_lib.Controller(space, 64)
  state = enas.init(enas.Settings(
      controller, memory_lib.Memory('reconstruct'), enas.Reward(),
      optax.identity()), jax.random.key(0))
  params = state['params']
  equal = np.isin(params['heads']['w'], params['policy']['w_x'])
  assert equal.mean() < 0.01  # by chance
  run = experiment.setup(tiny(methods=('uniform',)))
  later = experiment.setup(tiny(methods=('uniform',), seed=1))
  stage = train.derive_stage(later, 'uniform')
  candidates = stage.init({'strategy': {'updates': jnp.int32(0)}}).tokens
  names = train.retrain_names(run)
  found = {'derive_uniform': {
      'tokens': np.zeros((1, 5), np.int32), 'losses': np.zeros(1)}}
  random = [row for row, (name, _) in zip(
      train.retrained_tokens(run, found), names, strict=True) if '/' in name]
  assert not np.array_equal(candidates[:len(random)], random)


def test_a_round_on_eight_devices_equals_one_on_one():
  ends = []
  for devices in (jax.devices()[:1], jax.devices()):
    run = experiment.setup(tiny(), devices)
    stage = train.search_stage(run, 'enas')
    assert stage.mesh.size == len(devices)
    ends.append(jax.device_get(rounds(stage, 1)[0].params))
  chex.assert_trees_all_close(*ends, rtol=1e-4, atol=1e-6)


def test_a_run_that_was_stopped_ends_in_the_same_bits(
    finished, tmp_path, monkeypatch):
  config, path, _ = finished
  stopped, make = tmp_path / 'run', train.make_stages
  places = {'search_enas_reconstruct': 2, 'derive_enas_reconstruct': 0,
            'retrain': 0}

  def interrupted(run):
    def until(stage):
      def batch(step):
        if places.get(stage.name) == step:
          del places[stage.name]
          os.kill(os.getpid(), signal.SIGTERM)
        return {}
      return dataclasses.replace(stage, batch=batch)
    return [until(stage) for stage in make(run)]

  monkeypatch.setattr(train, 'make_stages', interrupted)
  for name in list(places):
    with pytest.raises(loop.Interrupted, match=name):
      train.train_and_evaluate(config, str(stopped))
  train.train_and_evaluate(config, str(stopped))
  assert not places
  assert (stopped / 'cells.json').read_text() == (
      path / 'cells.json').read_text()
  ours, theirs = (
      json.loads((p / 'summary.json').read_text()) for p in (stopped, path))
  assert {k: v for k, v in ours.items() if k != 'wall_seconds'} == {
      k: v for k, v in theirs.items() if k != 'wall_seconds'}


def test_the_learning_rate_decays_as_in_enas():
  fields = dict(kind='sgd', lr=20.0, clip_norm=0.25, weight_decay=0.0,
                decay=0.96, decay_from_round=14)
  tx = experiment.make_optimizer(fields, 2)
  params = {'w': jnp.ones(3)}
  state = tx.init(params)

  @jax.jit
  def advance(state):
    return tx.update({'w': jnp.full(3, 1e3)}, state, params)

  for i in range(40):
    updates, state = advance(state)
    # A clipped gradient has norm .25, whatever it was.
    rate = 20 * 0.96 ** max(i // 2 - 14, 0)
    assert math.isclose(
        float(jnp.linalg.norm(updates['w'])), 0.25 * rate, rel_tol=1e-4)


def test_an_update_that_is_not_finite_is_left_out():
  fields = dict(kind='adam', lr=1.0, clip_norm=0.25, weight_decay=0.0,
                decay=1.0, decay_from_round=0)
  tx = experiment.make_optimizer(fields, 1)
  params = {'w': jnp.ones(2)}
  state = tx.init(params)
  updates, after = tx.update({'w': jnp.array([jnp.nan, 1.0])}, state, params)
  assert not jnp.any(updates['w'])
  chex.assert_trees_all_equal(state.inner_state, after.inner_state)


@pytest.mark.parametrize('changes, words', [
    ({'methods': ('anneal',)}, 'anneal'),
    ({'space.kind': 'grid'}, 'space.kind'),
    ({'dataset': 'wikitext'}, 'dataset'),
    ({'optimizer.kind': 'rmsprop'}, 'optimizer.kind'),
    ({'rates.input': 1.0}, 'rates.input'),
    ({'derive.num_cells': 9}, 'derive.num_cells=9'),
    ({'memory.batch_size': 17}, 'buffer holds'),
    ({'child.sharing': 'edge_act', 'methods': ('darts',)}, 'edge_act'),
    ({'window_tokens': 500}, 'window_tokens=500'),
    ({'window_tokens': 0}, 'window_tokens=0 must be at least 1'),
    ({'valid_batch_size': 500}, 'valid_batch_size=500 streams'),
    ({'cells_per_update': 3}, 'cells_per_update=3 does not divide batch'),
    ({'derive.chunk': 0}, 'derive.chunk=0'),
    ({'reset_rate': 1.0}, 'reset_rate=1.0'),
    ({'retrain.rates.input': -0.1}, 'retrain.rates.input'),
    ({'retrain.optimizer.kind': 'rmsprop'}, 'retrain.optimizer.kind'),
    ({'reward.samples_per_update': 0}, 'reward.samples_per_update=0'),
    ({'evolution.tournament': 9}, 'evolution.tournament=9 is more'),
    ({'analysis.num_cells': 2}, 'analysis.num_cells=2'),
    ({'analysis.tsne_perplexity': 12.0}, 'analysis.tsne_perplexity'),
    ({'methods': ('enas', 'enas')}, 'none twice'),
    ({'methods': ()}, 'at least one method'),
])
def test_a_field_that_does_not_fit_is_named(changes, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    train.train_and_evaluate(tiny(**changes), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_a_plan_is_for_the_devices_that_it_is_given():
  target = topology.Target('two', jax.devices()[:2], 2**30)
  shown = '\n'.join(train.show_plan(tiny(methods=('uniform',)), target))
  assert shown.startswith('2 x cpu')
  for stage in ('search_uniform', 'derive_uniform', 'retrain'):
    assert f'  {stage}: ' in shown
  assert shown.count('fits: ') == 4


def test_seeds_are_compared_in_tables(finished):
  _, path, summary = finished
  found = seeds.read([str(path), str(path)])
  text = compare.search_table(found)
  assert f'{summary["enas_test_perplexity"]:.4g} ± 0' in text
  assert text.count('\n') == 1 + len(compare.rows(found))
  knowledge = compare.knowledge_table(found)
  assert 'untrained controller' in knowledge
  assert 'ENAS, reconstructing a memory' in knowledge
  assert 'p = 0.5' in compare.effect(found, 'enas_reconstruct', 'enas')
  picture = path.parent / 'all.png'
  compare.draw(str(picture), found)
  assert picture.stat().st_size > 10_000


def test_a_found_cell_is_written_as_a_module_of_its_own(finished):
  config, path, _ = finished
  cells = json.loads((path / 'cells.json').read_text())
  for method in config.methods:
    module = runpy.run_path(str(path / f'cell_{method}.py'))
    model = module['LanguageModel']()
    tokens = jnp.zeros((5, 2), jnp.int32)
    with jax.numpy_rank_promotion('allow'):
      (logits, _), variables = model.init_with_output(
          jax.random.key(0), tokens)
    assert logits.shape == (5, 2, config.markov.vocab_size)
    assert variables['params']
    names = set(cells[method]['act'])
    text = (path / f'cell_{method}.py').read_text()
    assert all(f'nn.{name}' in text or name == 'identity' for name in names)
