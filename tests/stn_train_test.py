"""Self-tuning runs from config to report: files, replays, bad input."""

import csv
import gzip
import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stn_brown
from configs import stn_cifar10
from configs import stn_digits
from configs import stn_fashion
from configs import stn_linear
from configs import stn_ptb
from configs import stn_ridge
from core_jax import checkpoint
from core_jax import folder
from core_jax import loop
from core_jax import metrics
from core_jax import seeds
from core_jax import text
from stn_jax import baselines
from stn_jax import compare
from stn_jax import data
from stn_jax import experiment
from stn_jax import figures
from stn_jax import losses
from stn_jax import replay
from stn_jax import response
from stn_jax import results
from stn_jax import schedule
from stn_jax import space
from stn_jax import stages
from stn_jax import train

CONFIGS = {
    'digits': stn_digits, 'fashion': stn_fashion, 'ridge': stn_ridge,
    'linear': stn_linear, 'brown': stn_brown, 'ptb': stn_ptb,
    'cifar10': stn_cifar10}


def tiny(name, tmp_path, **changes):
  config = CONFIGS[name].get_config('tiny')
  if name == 'fashion':
    config.data_path = str(write_fashion(tmp_path / 'data'))
  config.update_from_flattened_dict(changes)
  return config.lock()


def write_fashion(path):
  """A little data set in the format of Fashion-MNIST."""
  path.mkdir()
  random = np.random.default_rng(0)
  for split, n in (('train', 200), ('t10k', 40)):
    images = random.integers(0, 256, (n, 28, 28), np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
      header = np.array([0x800 + array.ndim, *array.shape], '>i4').tobytes()
      (path / f'{split}-{kind}-ubyte.gz').write_bytes(
          gzip.compress(header + array.tobytes()))
  return path


@pytest.fixture(scope='module')
def digits_run(tmp_path_factory):
  path = tmp_path_factory.mktemp('stn') / 'run'
  config = tiny('digits', None)
  return config, path, train.train_and_evaluate(config, str(path))


def test_a_run_leaves_report_summary_schedules_and_figures(digits_run):
  config, path, summary = digits_run
  assert (path / 'report.html').stat().st_size > 100_000
  assert summary == json.loads((path / 'summary.json').read_text())
  for method in config.methods:
    rows = list(csv.DictReader((path / f'schedule_{method}.csv').open()))
    assert [int(row['step']) for row in rows] == [0, 2, 4, 6]
    assert set(rows[0]) == {'step', *config.space}
    assert math.isfinite(summary[f'{method}_test_loss'])
    assert f'final_{method}_test_loss' in summary
  assert {p.name for p in (path / 'figures').iterdir()} >= {
      'schedules.png', 'comparison.png', 'losses.png'}


def read_schedule(path, run):
  return schedule.read(
      path, run.problem.space, run.config.num_rounds,
      run.config.updates_per_round)


def test_a_schedule_holds_the_values_of_every_round(digits_run):
  config, path, summary = digits_run
  run = experiment.setup(config)
  read = read_schedule(path / 'schedule_delta_stn.csv', run)
  for name, h in run.problem.space.items():
    assert np.allclose(read[name][:2], h.start, rtol=1e-5), 'warm-up'
    assert read[name][-1] == np.float32(summary[f'delta_stn_final_{name}'])
    assert h.low <= read[name].min() <= read[name].max() <= h.high


def test_a_replay_from_the_file_equals_the_run_s_own_replay(digits_run):
  config, path, _ = digits_run
  run = experiment.setup(config)
  replayed = baselines.Trainer(run)(
      read_schedule(path / 'schedule_delta_stn.csv', run))
  rows = baselines.Journal(path).rows
  assert replayed['curve'] == [
      tuple(point) for point in rows['replay_delta_stn']['curve']]


def test_the_replay_command_trains_what_the_run_s_own_replay_did(
    digits_run, tmp_path, capsys):
  config, path, _ = digits_run
  file = str(path / 'schedule_delta_stn.csv')
  command = results.replay_command(path, 'delta_stn')
  assert command.startswith(f'{folder.python()} -m stn_jax.replay ')
  assert command.endswith(
      f' --schedule={file} --workdir={path}/replay_delta_stn')
  workdir = str(tmp_path / 'run')
  found = replay.replay(file, config, workdir)
  row = baselines.Journal(path).rows['replay_delta_stn']
  for name in ('valid_loss', 'test_loss', 'test_accuracy'):
    assert found[name] == pytest.approx(row[name], rel=1e-5)
  assert 'test_loss' in capsys.readouterr().out
  params, _ = checkpoint.load(workdir)
  assert set(params['params']) == {'dense0', 'logits'}
  # The folder knows the schedule by its values, wherever the file lies.
  moved = tmp_path / 'moved.csv'
  moved.write_text(pathlib.Path(file).read_text())
  assert replay.replay(str(moved), config, workdir)['test_loss'] == (
      found['test_loss'])
  rows = moved.read_text().splitlines()
  moved.write_text('\n'.join(rows[:-1]))
  with pytest.raises(folder.FolderError, match='schedule'):
    replay.replay(str(moved), config, workdir)


def test_a_signal_between_rounds_stops_the_trials_and_says_how_to_go_on(
    digits_run, monkeypatch):
  config, path, _ = digits_run
  lines = (path / 'trials.jsonl').read_text()
  (path / 'trials.jsonl').write_text(lines[:-20])
  make = experiment.round_batch

  def killed(run):
    batch = make(run)

    def at(step):
      if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
      return batch(step)
    return at

  monkeypatch.setattr(baselines.experiment, 'round_batch', killed)
  with pytest.raises(loop.Interrupted, match='SIGTERM: finished trials') as e:
    train.train_and_evaluate(config, str(path))
  assert e.value.exit_code == 143
  assert (path / 'trials.jsonl').read_text() == lines[:lines.rindex(
      '\n', 0, -1) + 1]
  (path / 'trials.jsonl').write_text(lines)


def test_the_same_command_again_trains_nothing_and_says_the_same(
    digits_run, monkeypatch):
  config, path, summary = digits_run
  lines = (path / 'trials.jsonl').read_text()
  # As a kill leaves it: the last trial cut short.
  (path / 'trials.jsonl').write_text(lines[:-20])
  trained = []
  call = baselines.Trainer.__call__
  monkeypatch.setattr(
      baselines.Trainer, '__call__',
      lambda self, s: trained.append(1) or call(self, s))
  again = train.train_and_evaluate(config, str(path))
  assert len(trained) == 1
  said = lambda found: {
      k: v for k, v in found.items() if not k.endswith('seconds')}
  assert said(again) == said(summary)


def test_seeds_are_compared_in_one_table(digits_run):
  _, path, summary = digits_run
  table = compare.table(seeds.read([str(path), str(path)]))
  assert table.startswith('| | cost, plain runs | seconds | ')
  assert (f'| Delta-STN | {summary["delta_stn_cost"]:g} | '
          f'{summary["delta_stn_seconds"]:.4g} ± 0 |') in table
  assert f'{summary["delta_stn_test_loss"]:.4g} ± 0' in table
  last = summary['random_1x_last_test_loss']
  assert table.splitlines()[0].endswith('| test loss, last weights |')
  assert f'| {last:.4g} ± 0 |' in table


def test_a_search_has_as_many_trials_as_the_dearest_method_costs(digits_run):
  config, path, _ = digits_run
  summary = json.loads((path / 'summary.json').read_text())
  budget = math.ceil(max(summary[f'{m}_cost'] for m in config.methods))
  rows = baselines.Journal(path).rows
  searched = [row for name, row in rows.items() if name.startswith('random/')]
  assert len(searched) == summary['random_1x_cost'] == budget
  assert summary['random_1x_seconds'] == pytest.approx(
      sum(row['seconds'] for row in searched), abs=0.02)


def test_seconds_of_a_method_are_those_of_its_stage(digits_run):
  _, path, summary = digits_run
  seconds = [row['seconds'] for row in metrics.read(path)
             if row['stage'] == 'stn']
  assert len(seconds) == 2
  assert summary['stn_seconds'] == pytest.approx(sum(seconds), abs=0.02)


def test_costs_are_the_operations_of_a_round_over_a_plain_one(tmp_path):
  """One layer x W: a plain update is x W and the gradient of W, 2 products.

  STN adds x W_r and its gradient, 4; Delta-STN's second pass is x W, x W_r
  and the gradient of W_r, 5 with its first. A round of 2 has one more x W and
  x W_r, on validation. The rest are products with h [B, 1].
  """
  config = tiny('ridge', tmp_path, methods=('delta_stn', 'stn'))
  costs = stages.costs(experiment.setup(config))
  assert (2 * 5 + 2) / 4 < costs['delta_stn'] < 3.4
  assert (2 * 4 + 2) / 4 < costs['stn'] < 2.8
  assert stages.num_trials(costs, 4) == math.ceil(4 * costs['delta_stn'])


def test_a_hidden_layer_costs_delta_stn_eight_products_for_three():
  """And the first, whose input has no gradient, five for two.

  Pass 1 is a plain update; pass 2 is W x, W_r x and W dx, and the gradients
  of W_r and of dx. Validation has W, W_r and, below the top, their inputs'.
  Layers have 64, 256 and 10 times 256 weights; products with h are a few more.
  """
  first, hidden = 64, 256 + 10
  plain = 2 * (2 * first + 3 * hidden)
  delta = 2 * (5 * first + 8 * hidden) + 2 * first + 4 * hidden
  cost = stages.costs(experiment.setup(stn_digits.get_config()))['delta_stn']
  assert delta / plain < cost < 1.06 * delta / plain


def test_the_implicit_function_costs_what_its_products_with_the_hessian_do(
    tmp_path):
  """(d2f/dw2) v of one linear layer is x v and x' of it, half a plain round.
  """
  costs = [stages.costs(experiment.setup(tiny(
      'ridge', tmp_path, methods=('implicit',), implicit_steps=n)))['implicit']
           for n in (10, 20)]
  assert costs[1] - costs[0] == pytest.approx(5, abs=0.1)


def test_every_method_runs_where_the_optimum_is_known(tmp_path):
  config = tiny('ridge', tmp_path, num_rounds=15)
  summary = train.train_and_evaluate(config, str(tmp_path / 'run'))
  for method in config.methods:
    assert math.isfinite(summary[f'{method}_valid_loss'])
  curve = baselines.Journal(tmp_path / 'run').rows['fixed']['curve']
  assert [done for done, _ in curve] == [2, 3, 5, 6, 8, 9, 11, 12, 14, 15]


def test_a_run_is_evaluated_ten_times_evenly_and_at_its_end():
  assert baselines.evaluated_rounds(2000, 10) == list(range(200, 2001, 200))
  for num_rounds in range(1, 200):
    rounds = baselines.evaluated_rounds(num_rounds, 10)
    gaps = np.diff([0, *rounds])
    assert len(rounds) == min(num_rounds, 10)
    assert rounds[-1] == num_rounds and gaps.max() - gaps.min() <= 1


def test_runs_that_diverged_are_drawn_as_absent(tmp_path):
  diverged, found = [(1, None), (2, None)], [(1, 2.0), (2, 1.0)]
  for i, curves in enumerate(({'a': diverged}, {'a': diverged, 'b': found})):
    figures.plot_losses(tmp_path / f'l{i}.png', curves, 2, 'loss')
  for i, value in enumerate((None, 0.5)):
    figures.plot_comparison(
        tmp_path / f'c{i}.png',
        [('a', 'a', 3.0, None), ('b', 'b', 1.0, value)],
        {'random search': [None, value]}, 'loss')
  assert {p.name for p in tmp_path.iterdir()} == {
      'l0.png', 'l1.png', 'c0.png', 'c1.png'}


def test_tpe_asks_within_the_bounds_and_learns_from_what_it_is_told():
  names = {'rate': space.bounded(0.5, 0.0, 0.9),
           'holes': space.integer(1, 0, 5), 'decay': space.log(1e-4),
           'kept': space.bounded(0.3, 0.0, 1.0, tuned=False)}
  sampler, late = baselines.TPE(names, seed=0), []
  for i in range(40):
    ticket, values = sampler.ask()
    assert 0 < values['rate'] < 0.9 and values['holes'] in range(5)
    assert 1e-6 <= values['decay'] <= 1e-2 and values['kept'] == 0.3
    sampler.tell(ticket, (values['rate'] - 0.2) ** 2)
    late += [values['rate']] * (i >= 20)
  assert abs(np.median(late) - 0.2) < 0.1


def test_random_search_covers_the_space_and_repeats_by_seed():
  names = {'rate': space.bounded(0.5, 0.0, 0.9),
           'holes': space.integer(1, 0, 5)}
  draw = lambda seed: [
      baselines.random_values(names, seed, i) for i in range(200)]
  assert draw(0) == draw(0) != draw(1)
  rates = [values['rate'] for values in draw(0)]
  assert min(rates) < 0.05 and max(rates) > 0.85
  assert {values['holes'] for values in draw(0)} == set(range(5))


def test_images_with_cutout_run_tiny(tmp_path):
  config = tiny('fashion', tmp_path, methods=('delta_stn',))
  summary = train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert math.isfinite(summary['delta_stn_test_loss'])


def test_two_linear_layers_run_tiny(tmp_path):
  config = tiny('linear', tmp_path, baselines=(), methods=('delta_stn',))
  summary = train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert math.isfinite(summary['delta_stn_test_loss'])


def test_the_treebank_runs_tiny(tmp_path, monkeypatch):
  """Unlike Brown's its perturbations have a width that stays."""
  counts = {}
  for i, split in enumerate(text.SPLITS):
    words = [f'w{(i + 1) * (j + 1)**2 % 29}' for j in range(300)]
    (tmp_path / f'ptb.{split}.txt').write_text(' '.join(words))
    counts[split] = 301
  (tmp_path / 'ptb.train.txt').write_text(
      ' '.join(f'w{j % 29}' for j in range(300)))
  monkeypatch.setattr(text, 'PTB_COUNTS', counts)
  config = tiny('ptb', tmp_path, data_path=str(tmp_path), methods=('stn',),
                baselines=())
  summary = train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert math.isfinite(summary['stn_test_perplexity'])
  rows = metrics.read(tmp_path / 'run')
  assert all(abs(row['sigma/alpha'] - 1) < 1e-5 for row in rows)


def test_colour_images_run_tiny(tmp_path, monkeypatch):
  """Every augmentation, norms with statistics, and files of CIFAR-10."""
  monkeypatch.setattr(data, '_CIFAR_IMAGES', 8)
  random = np.random.default_rng(0)
  for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
    rows = random.integers(0, 256, (8, 3073), np.uint8)
    rows[:, 0] = np.arange(8)
    (tmp_path / f'{name}.bin').write_bytes(rows.tobytes())
  config = tiny('cifar10', tmp_path, data_path=str(tmp_path), num_rounds=1,
                warmup_rounds=0, updates_per_round=1)
  summary = train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert math.isfinite(summary['delta_stn_test_loss'])


@pytest.mark.parametrize('name', ['brown', 'ptb', 'cifar10'])
def test_a_config_without_its_data_says_where_they_come_from(name, tmp_path):
  config = tiny(name, tmp_path, data_path=str(tmp_path))
  with pytest.raises(ValueError, match='package|ptb.train.txt|batches-bin'):
    train.train_and_evaluate(config, str(tmp_path / 'run'))


def language_run(tmp_path, num_valid):
  """Of words that repeat in a circle of 30."""
  config = tiny('brown', tmp_path, **{'optimizer.lr': 0.1})
  words = [f'w{i}' for i in range(30)]
  texts = {name: [words[i * step % 30] for i in range(n)] for name, n, step in (
      ('train', 600, 1), ('valid', num_valid, 7), ('test', 307, 11))}
  dataset = data.language(texts, config.window_tokens)
  return experiment.Setup(
      config, dataset, experiment.make_problem(config, dataset.num_classes),
      lambda outputs, batch: {})


@pytest.mark.parametrize('method', ['delta_stn', 'stn'])
def test_a_language_model_is_tuned_by_the_same_stage(method, tmp_path):
  run = language_run(tmp_path, 301)
  stage = stages.tune_stage(run, method)
  state = jax.jit(stage.init)({})
  state, metrics = jax.jit(stage.step)(state, stage.batch(0), {})
  assert all(np.isfinite(float(x)) for x in metrics.values())
  figures = experiment.make_evaluate(run)(stage.params(state), 'test')
  assert figures['perplexity'] == pytest.approx(30, rel=0.1)


def test_what_is_measured_of_stn_is_the_network_that_it_trained(tmp_path):
  """The embedding answers, and not where it decodes."""
  run = language_run(tmp_path, 40)  # 8 streams of one window.
  stage = stages.tune_stage(run, 'stn')
  state = jax.jit(stage.init)({})
  strong = jax.tree.map(lambda x: 5 * x, state.response)
  state = state.replace(response=strong)
  evaluate, found = experiment.make_evaluate(run), stage.params(state)
  wanted, _ = jax.jit(lambda batch: losses.validation_loss(
      run.problem, 'stn', state.params, strong, state.variables, batch,
      state.lam, jnp.zeros((8, len(state.lam))), jax.random.key(0)))(
          stage.batch(0)['valid'])
  assert evaluate(found, 'valid')['loss'] == pytest.approx(
      float(wanted), rel=1e-5)
  answered = response.materialise(state.params, strong, state.lam)
  other = evaluate({**found, 'params': answered, 'response': {}}, 'valid')
  assert abs(other['loss'] - wanted) > 1e-3


@pytest.mark.parametrize('changes, message', [
    (dict(methods=('hyperband',)), r"methods has \['hyperband'\]; there are"),
    (dict(baselines=('grid',)), r"baselines has \['grid'\]"),
    (dict(methods=('implicit',)), "'implicit', which needs a loss .* smooth"),
    (dict(baselines=('random',), search_times=()),
     r'search_times=\(\): name budgets'),
    (dict(search_times=(0,)), r'search_times=\(0,\): name budgets'),
    ({'model.kind': 'simple_cnn'}, 'simple_cnn.* needs model.channels'),
    ({'model.kind': 'lstm'}, "is for language, but dataset='digits' is of im"),
    ({'model.kind': 'gpt'}, "model.kind='gpt'; there are mlp, simple_cnn"),
    (dict(dataset='ridge'), "'mlp' is for images, but .* of regression; for "
     'these there are linear'),
    (dict(updates_per_round=0), 'updates_per_round=0: give 1 or more'),
    (dict(num_rounds=0), 'num_rounds=0: give 1 or more'),
    (dict(warmup_rounds=4), 'warmup_rounds=4 leaves no round'),
    (dict(valid_examples=8), 'the valid set has 8 examples, fewer'),
    (dict(dataset='mnist'), 'dataset=.mnist. is unknown; there are'),
    (dict(valid_examples=0), 'the valid set is empty'),
    (dict(batch_size=17), 'batch_size=17'),
    ({'optimizer.lr': -0.1}, 'optimizer.lr=-0.1: give 0 or more'),
])
def test_bad_input_is_named(changes, message, tmp_path):
  config = tiny('digits', tmp_path, **changes)
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(config, str(tmp_path / 'run'))


@pytest.mark.parametrize('added, message', [
    ({'cutout_holes': dict(kind='integer', start=1, low=0, high=3)},
     'cutout_holes is alone: a square needs both'),
    ({'cutout_holes': dict(kind='integer', start=1, low=0, high=3),
      'cutout_length': dict(kind='bounded', start=1.0, low=0.0, high=3.0)},
     "cutout_length: holes and pixels are whole: give it kind='integer'"),
    ({'hue': dict(kind='bounded', start=0.1, low=0.0, high=0.5)},
     r'hue needs RGB images; these have 1 channel\(s\)')])
def test_augmentation_that_cannot_be_is_named(added, message):
  config = stn_digits.get_config('tiny')
  config.space.update(added)
  with pytest.raises(space.SpaceError, match=message):
    experiment.setup(config)


def test_help_tells_of_every_flag_and_a_schedule_is_asked_for():
  run = lambda *args: subprocess.run(
      [sys.executable, '-m', 'stn_jax.replay', *args], text=True,
      cwd=pathlib.Path(__file__).parents[1], capture_output=True, check=False)
  told = run('--help').stdout
  for flag in ('config', 'schedule', 'workdir', '[no]plan'):
    assert f'--{flag}: ' in told
  assert 'name the file that a tuning run wrote' in run().stderr


def test_the_implicit_function_is_refused_for_masks():
  config = stn_ridge.get_config('dropout')
  config.methods = ('implicit',)
  with pytest.raises(ValueError, match="'implicit', which needs a loss that"):
    experiment.setup(config)


def test_flips_are_of_the_batch_and_of_its_step_alone():
  """So that both passes of Delta-STN, and a resumed run, see the same."""
  config = stn_digits.get_config('tiny')
  config.updates_per_round = 3
  plain = experiment.round_batch(experiment.setup(config))(1)
  config.flip = True
  batch = experiment.round_batch(experiment.setup(config))
  found, images = batch(1)['train']['image'], plain['train']['image']
  np.testing.assert_array_equal(found, batch(1)['train']['image'])
  np.testing.assert_array_equal(batch(1)['valid']['image'],
                                plain['valid']['image'])
  mirrored = (found == images[:, :, :, ::-1]).all((2, 3, 4))
  assert (mirrored | (found == images).all((2, 3, 4))).all()
  assert 0.2 < mirrored.mean() < 0.8
  assert (mirrored[:, 0] != mirrored[:, 1]).any()


def test_an_unknown_solver_is_named(tmp_path):
  config = tiny('ridge', tmp_path, implicit_solver='newton')
  with pytest.raises(ValueError, match="implicit_solver='newton'; there are"):
    train.train_and_evaluate(config, str(tmp_path / 'run'))


@pytest.mark.parametrize('fields, message', [
    ({'methods': ()}, 'at least one method'),
    ({'methods': ('stn', 'stn')}, 'each once'),
    ({'hyper.optimizer': 'newton'}, 'newton')])
def test_what_cannot_be_run_leaves_the_folder_to_others(
    tmp_path, fields, message):
  config = tiny('ridge', tmp_path)
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_a_bad_space_is_named():
  with pytest.raises(space.SpaceError, match="space.a.kind='wide'"):
    experiment.make_space({'a': {'kind': 'wide'}})
  with pytest.raises(space.SpaceError, match=r'space.a: .*lowest'):
    experiment.make_space(
        {'a': {'kind': 'bounded', 'start': 1.0, 'lowest': 0.0}})


def test_another_config_in_the_folder_is_refused(digits_run):
  _, path, _ = digits_run
  with pytest.raises(folder.FolderError, match='entropy_weight'):
    train.train_and_evaluate(
        tiny('digits', None, entropy_weight=0.5), str(path))


@pytest.mark.parametrize('rows, message', [
    ('', 'has no rows'), ('step,rate\n', 'has no rows'),
    ('step,other\n0,0.5\n', r"has \['other'\], the space \['rate'\]"),
    ('rate\n0.5\n', "has no column 'step'"),
    ('step,rate\n2,0.5\n4,0.5\n', 'do not rise from 0'),
    ('step,rate\n0,0.5\n0,0.5\n', 'do not rise from 0'),
    ('step,rate\n0,0.5,0.5\n', 'is no schedule'),
    ('step,rate\n0,0.99\n', 'rate=0.99 is not in'),
    ('step,rate\n0,0.9\n', r'rate=0.9 is not in \(0.0, 0.9\)')])
def test_a_foreign_schedule_is_refused(rows, message, tmp_path):
  path = tmp_path / 's.csv'
  path.write_text(rows)
  with pytest.raises(schedule.ScheduleError, match=message):
    schedule.read(path, {'rate': space.bounded(.5, 0., .9)}, 4, 2)


@pytest.mark.parametrize('value, message', [
    (5, r'holes=5 is not in range\(0, 5\)'), (1.5, 'is not a whole number')])
def test_an_integer_s_schedule_has_its_values(value, message, tmp_path):
  path = tmp_path / 's.csv'
  read = lambda: schedule.read(path, {'holes': space.integer(1, 0, 5)}, 4, 2)
  path.write_text(f'step,holes\n0,{value}\n')
  with pytest.raises(schedule.ScheduleError, match=message):
    read()
  path.write_text('step,holes\n0,0\n1,4\n')
  np.testing.assert_array_equal(read()['holes'], [0, 4, 4, 4])


def test_a_schedule_is_read_by_its_steps(tmp_path):
  """Rounds of 2 updates, replayed in rounds of 5: from updates 0, 5 and 10."""
  path = str(tmp_path / 's.csv')
  schedule.write(path, {'rate': np.arange(4, dtype=np.float32) / 10}, 2)
  read = schedule.read(path, {'rate': space.bounded(.5, -1., .9)}, 3, 5)
  np.testing.assert_array_equal(read['rate'], np.float32([0.0, 0.2, 0.3]))
