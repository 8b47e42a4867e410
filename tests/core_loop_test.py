"""The loop on a line fit: one trace, exact resume, and how runs stop."""

import dataclasses
import errno
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import weakref

import chex
from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from core_jax import checkpoint
from core_jax import data
from core_jax import folder
from core_jax import loop
from core_jax import mesh as mesh_lib
from core_jax import metrics as metrics_lib
from core_jax import plan


@struct.dataclass
class State:
  step: jax.Array
  w: jax.Array


def config(**changes):
  return ml_collections.ConfigDict(dict(
      log_every_steps=1, checkpoint_every_steps=2, keep=2) | changes)


def line_stage(name='line', num_steps=6, lr=0.1, start=None, devices=None):
  """Gradient descent of w to the slope 3 of a noiseless line."""
  x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
  source = data.ArraySource({'x': x, 'y': 3 * x})

  def step(state, batch, frozen):
    loss, grad = jax.value_and_grad(
        lambda w: jnp.mean((w * batch['x'] - batch['y'])**2))(state.w)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), state.step))
    return State(state.step + 1, state.w - lr * (grad + 1e-3 * noise)), {
        'loss': loss}

  def init(frozen):
    return State(jnp.int32(0), frozen.get('w', jnp.float32(0)))

  return loop.Stage(
      name=name, num_steps=num_steps, mesh=mesh_lib.make_mesh(devices=devices),
      init=init, step=step, params=lambda state: {'w': state.w},
      batch=data.make_batches(source, 16, seed=0),
      frozen=lambda results: results[start] if start else {})


def two_stages():
  return [line_stage('one'), line_stage('two', start='one')]


def empty(step_folder, *items):
  """Damages parts of a checkpoint: every file of theirs is emptied."""
  for item in items:
    for path in (step_folder / item).rglob('*'):
      if path.is_file():
        path.write_bytes(b'')


def test_a_stage_starts_from_the_results_of_the_one_before(tmp_path):
  results = loop.fit(two_stages(), config(), str(tmp_path))
  assert abs(results['one']['w'] - 3) > abs(results['two']['w'] - 3)
  rows = metrics_lib.read(tmp_path)
  assert [row['step'] for row in rows] == list(range(1, 13))
  assert {row['stage'] for row in rows[6:]} == {'two'}


def test_a_stage_of_no_rounds_is_refused(tmp_path):
  stages = [line_stage('one'), line_stage('two', num_steps=0, start='one')]
  with pytest.raises(ValueError, match="num_steps=0 of stage 'two'.*least 1"):
    loop.fit(stages, config(), str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_one_of_several_processes_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='one of 2 processes'):
    loop.fit([], config(), str(tmp_path))


def test_the_last_checkpoint_of_each_stage_is_kept(tmp_path):
  loop.fit(two_stages(), config(), str(tmp_path))
  kept = {int(p.name) for p in (tmp_path / 'checkpoints').iterdir()}
  assert kept == {6, 10, 12}


def test_what_is_observed_is_on_disk_by_then(tmp_path):
  def observe(state, frozen, workdir):
    step = pathlib.Path(workdir) / 'checkpoints' / str(int(state.step))
    seen.append((int(state.step), (step / 'commit_success.txt').exists()))

  seen = []
  stage = loop.dataclasses.replace(line_stage(), observe=observe)
  loop.fit([stage], config(), str(tmp_path))
  assert seen == [(6, True)]


def test_the_step_is_traced_once(tmp_path):
  stage = line_stage()
  once = chex.assert_max_traces(stage.step, n=1)
  stage = loop.dataclasses.replace(stage, step=once)
  loop.fit([stage], config(), str(tmp_path))


def test_a_finished_run_only_reads_its_results(tmp_path):
  first = loop.fit(two_stages(), config(), str(tmp_path))

  def forbidden(*unused):
    raise AssertionError('trained again')

  stages = [loop.dataclasses.replace(s, step=forbidden) for s in two_stages()]
  chex.assert_trees_all_equal(first, loop.fit(stages, config(), str(tmp_path)))


def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path, caplog):
  whole = loop.fit([line_stage()], config(), str(tmp_path / 'whole'))
  broken = tmp_path / 'broken'
  for aside in ('damaged-6', 'damaged-6-2'):  # A name that is taken is not.
    loop.fit([line_stage()], config(), str(broken))
    empty(broken / 'checkpoints' / '6', 'state', 'params')
    again = loop.fit([line_stage()], config(), str(broken))
    chex.assert_trees_all_equal(whole, again)
    assert (broken / 'checkpoints' / aside).exists()
  assert 'checkpoints/6 is damaged' in caplog.text


def test_where_no_checkpoint_can_be_read_none_is_moved(tmp_path):
  loop.fit([line_stage(num_steps=4)], config(), str(tmp_path))
  rows = (tmp_path / 'metrics.jsonl').read_text()
  there = sorted((tmp_path / 'checkpoints').iterdir())
  for path in there:
    empty(path, 'state')
  with pytest.raises(
      checkpoint.CheckpointError, match='None of 2 .* the newest, 4: '):
    loop.fit([line_stage(num_steps=6)], config(), str(tmp_path))
  assert sorted((tmp_path / 'checkpoints').iterdir()) == there
  assert (tmp_path / 'metrics.jsonl').read_text() == rows


def test_what_a_stage_hands_on_is_not_held_while_the_next_one_trains(tmp_path):
  handed_on = []

  def frozen(results):
    found = results['one']
    handed_on.append(weakref.ref(found['w']))
    return found

  one, two = two_stages()

  def batch(step):
    if step:
      gc.collect()
      assert handed_on[0]() is None
    return two.batch(step)

  loop.fit(
      [one, loop.dataclasses.replace(
          two, frozen=frozen, init_only=('w',), batch=batch)],
      config(), str(tmp_path))


def test_damaged_params_of_a_finished_stage_come_from_its_state(
    tmp_path, caplog):
  first = loop.fit(two_stages(), config(), str(tmp_path))
  rows = (tmp_path / 'metrics.jsonl').read_text()
  empty(tmp_path / 'checkpoints' / '6', 'params')
  again = loop.fit(two_stages(), config(), str(tmp_path))
  chex.assert_trees_all_equal(first, again)
  assert (tmp_path / 'metrics.jsonl').read_text() == rows
  assert 'checkpoints/6 cannot be read' in caplog.text
  assert not list((tmp_path / 'checkpoints').glob('damaged*'))


@pytest.mark.parametrize(
    'field', ['log_every_steps', 'checkpoint_every_steps', 'keep'])
def test_a_run_that_would_keep_nothing_is_refused(tmp_path, field):
  with pytest.raises(ValueError, match=f'{field}=0: give 1 or more'):
    loop.fit([line_stage()], config(**{field: 0}), str(tmp_path))
  assert not (tmp_path / 'checkpoints').exists()


def test_a_checkpoint_says_where_it_is(tmp_path):
  loop.fit(two_stages()[:1], config(), str(tmp_path))
  assert checkpoint.reached(str(tmp_path)) == {
      'stage': 'one', 'step': 6, 'num_steps': 6, 'last_stage': True}
  one, two = two_stages()
  with pytest.raises(ValueError, match='no more'):
    loop.fit([one, dataclasses.replace(two, batch=_failing_at(two.batch, 3))],
             config(), str(tmp_path))
  assert checkpoint.reached(str(tmp_path))['step'] == 2


def _failing_at(batch, last):
  def failing(step):
    if step == last:
      raise ValueError('no more')
    return batch(step)
  return failing


def test_copies_of_small_arrays_are_saved_without_a_program(tmp_path, caplog):
  devices = jax.NamedSharding(mesh_lib.make_mesh(), jax.P())
  state = {str(i): jax.device_put(np.ones(8 * i), devices) for i in (1, 2)}
  with checkpoint.manager(str(tmp_path), keep=1, milestones=()) as mgr:
    with jax.log_compiles():
      checkpoint.save(
          mgr, 1, state=state, params={'w': np.ones(1)}, config=config(),
          reached={})
    checkpoint.finish(mgr)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=devices), state)
    chex.assert_trees_all_equal(
        checkpoint.restore_newest(mgr, range(2), target), state)
  assert 'compil' not in caplog.text.lower()


def test_a_stop_writes_the_line_that_is_not_yet_due(tmp_path):
  stage = line_stage(num_steps=8)

  def batch(step):
    if step == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return stage.batch(step)

  often = config(log_every_steps=8)
  with pytest.raises(loop.Interrupted):
    loop.fit([dataclasses.replace(stage, batch=batch)], often, str(tmp_path))
  stopped = int(checkpoint.reached(str(tmp_path))['step'])
  loop.fit([stage], often, str(tmp_path))
  assert [row['step'] for row in metrics_lib.read(tmp_path)] == [stopped, 8]


def test_a_disk_too_full_for_metrics_names_the_last_checkpoint(
    tmp_path, monkeypatch):
  def full(self, step, *args, **kwargs):
    if step == 4:
      raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(metrics_lib.MetricsWriter, 'write', full)
  with pytest.raises(checkpoint.CheckpointError, match='checkpoints/2. If the'):
    loop.fit([line_stage()], config(), str(tmp_path))


@pytest.mark.parametrize('num_steps', [6, 8])  # Finished, and under way.
def test_several_processes_do_not_pass_a_damaged_checkpoint(
    num_steps, tmp_path, monkeypatch):
  loop.fit([line_stage()], config(), str(tmp_path))
  empty(tmp_path / 'checkpoints' / '6', 'state', 'params')
  monkeypatch.setattr(checkpoint.hosts, 'is_alone', lambda: False)
  with pytest.raises(checkpoint.CheckpointError, match='checkpoints/6 cannot'):
    loop.fit([line_stage(num_steps=num_steps)], config(), str(tmp_path))
  assert (tmp_path / 'checkpoints' / '6').exists()


def test_a_metric_that_is_not_a_number_ends_the_run(tmp_path):
  stages = [line_stage(num_steps=200, lr=40.)]  # diverges
  with pytest.raises(FloatingPointError, match='loss is (nan|inf)') as error:
    loop.fit(stages, config(), str(tmp_path))
  last = max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert f'last good checkpoint is {tmp_path}/checkpoints/{last}' in str(
      error.value)
  params, _ = checkpoint.load(str(tmp_path))
  assert np.isfinite(params['w'])


def test_another_config_in_the_same_folder_is_refused(tmp_path):
  folder.claim(str(tmp_path), config(lr=dict(student=0.1), name='a'))
  with pytest.raises(folder.FolderError) as error:
    folder.claim(str(tmp_path), config(lr=dict(student=0.2), name='a'))
  assert 'lr.student: 0.1 in the folder, 0.2 asked for' in str(error.value)
  assert 'name' not in str(error.value)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(folder.FolderError, match='--workdir'):
    folder.claim(str(tmp_path / 'file'), config())


@pytest.mark.parametrize('kind', [str, pathlib.Path])
def test_an_address_of_a_store_is_no_folder(tmp_path, monkeypatch, kind):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(folder.FolderError, match='gs:/.*is an address'):
    folder.claim(kind('gs://bucket/run'), config())
  assert not list(tmp_path.iterdir())


def test_a_batch_that_does_not_divide_names_the_nearest_that_does():
  with pytest.raises(ValueError, match='students.batch_size=30 .* is 32'):
    mesh_lib.check_batch_size(30, mesh_lib.make_mesh(), 'students.batch_size')


def test_a_student_axis_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match='student_devices=3.*4 does'):
    mesh_lib.make_mesh(4, 3)
  assert dict(mesh_lib.make_mesh(4).shape) == {'student': 4, 'data': 2}


def test_a_plan_counts_bytes_and_runs_nothing():
  plans = dict(plan.plan(two_stages()))
  assert plans['one'].state_bytes == 8  # an int32 and a float32
  assert plans['two'].frozen_bytes == 4
  assert plans['one'].batch_bytes == 2 * 16 * 4 / 8  # over 8 devices


def script(body, workdir):
  """A program that runs a stage of this file in a process of its own."""
  return [sys.executable, '-c', textwrap.dedent('''
      from tests import conftest, core_loop_test as t
      from core_jax import loop
      ''') + textwrap.dedent(body).replace('WORKDIR', repr(str(workdir)))]


def run(command, **kwargs):
  return subprocess.run(
      command, capture_output=True, text=True, timeout=120,
      cwd=pathlib.Path(__file__).parents[1],
      env={'PATH': '/usr/bin:/bin', 'PYTHONPATH': str(
          pathlib.Path(__file__).parents[1])}, **kwargs)


def test_a_disk_that_cannot_take_more_loses_nothing(tmp_path):
  """A limit on file sizes stands for the full disk: writes really fail."""
  done = run(script('''
      import resource
      loop.fit([t.line_stage(num_steps=2)], t.config(), WORKDIR)
      resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
      loop.fit([t.line_stage(num_steps=6)], t.config(), WORKDIR)
      ''', tmp_path))
  assert 'CheckpointError: Could not write' in done.stderr, done.stderr[-2000:]
  assert 'checkpoints/2' in done.stderr
  params, _ = checkpoint.load(str(tmp_path))
  assert np.isfinite(params['w'])


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_a_signal_saves_and_says_how_to_resume(tmp_path, name):
  done = run(script(f'''
      import os, signal
      from core_jax import data
      stage = t.line_stage(num_steps=50)
      def batch(step):
        if step == 20:
          os.kill(os.getpid(), signal.{name})
        return stage.batch(step)
      signalled = loop.dataclasses.replace(stage, batch=batch)
      loop.fit([signalled], t.config(), WORKDIR)
      ''', tmp_path))
  assert f'Interrupted: {name} at step' in done.stderr, done.stderr[-2000:]
  assert f'--workdir={tmp_path}' in done.stderr
  stage = line_stage(num_steps=50)
  resumed = loop.fit([stage], config(), str(tmp_path))
  whole = loop.fit([stage], config(), str(tmp_path / 'whole'))
  chex.assert_trees_all_equal(resumed, whole)


def test_a_signal_in_the_last_step_of_the_last_stage_is_heard(tmp_path):
  stage = line_stage(num_steps=4)

  def watch(scalars):
    steps.append(scalars)
    if len(steps) == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  steps = []
  with pytest.raises(loop.Interrupted, match='SIGTERM at step 4 of 4'):
    loop.fit([dataclasses.replace(stage, watch=watch)], config(), str(tmp_path))
  assert len(steps) == 4
  loop.fit([dataclasses.replace(stage, watch=watch)], config(), str(tmp_path))
  assert len(steps) == 4  # All had been saved.


def test_a_request_to_stop_waits_for_two_steps_at_most(tmp_path):
  started, ended = [], []
  stage = line_stage(num_steps=30)

  def step(state, batch, frozen):
    state, metrics = stage.step(state, batch, frozen)
    # Slow, and on the device's own time.
    seen = jax.pure_callback(
        lambda w: (time.sleep(0.02), ended.append(1), w)[2],
        jax.ShapeDtypeStruct((), jnp.float32), state.w)
    return state.replace(w=seen), metrics | {'w': seen}

  def batch(i):
    started.append(len(ended))
    return stage.batch(i)

  loop.fit([dataclasses.replace(stage, step=step, batch=batch)],
           ml_collections.ConfigDict(dict(
               log_every_steps=30, checkpoint_every_steps=30, keep=2)),
           str(tmp_path))
  # Batches are made a few steps ahead, and not thirty.
  assert max(i - done for i, done in enumerate(started)) < 10


def test_metrics_of_a_resumed_run_have_no_step_twice(tmp_path):
  loop.fit([line_stage()], config(), str(tmp_path))
  extra = json.dumps({'step': 7, 'stage': 'line', 'loss': 1.})
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write(extra + '\n{"step": 8, "sta')
  loop.fit(
      [line_stage(), line_stage('two', 4, start='line')], config(),
      str(tmp_path))
  steps = [row['step'] for row in metrics_lib.read(tmp_path)]
  assert steps == list(range(1, 11))
