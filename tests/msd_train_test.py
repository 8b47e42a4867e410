"""Runs from config to report: every config, killed runs, bad input."""

import collections
import dataclasses
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import time

from absl.testing import flagsaver
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import digits
from configs import fashion
from configs import toy2d
import msd_jax
from msd_jax import partition
from msd_jax import setup
from msd_jax import stages
from msd_jax import train

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {'digits': digits, 'toy2d': toy2d, 'fashion': fashion}


def tiny(name, tmp_path, **changes):
  config = CONFIGS[name].get_config('tiny')
  if name == 'fashion':
    config.data_path = str(write_fashion(tmp_path / 'fashion'))
  config.update_from_flattened_dict(changes)
  return config.lock()


def write_fashion(path):
  """A little data set in the format of Fashion-MNIST."""
  path.mkdir(exist_ok=True)
  random = np.random.default_rng(0)
  for split, n in (('train', 64), ('t10k', 40)):
    images = random.integers(0, 256, (n, 28, 28), np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
      header = np.array([0x800 + array.ndim, *array.shape], '>i4').tobytes()
      (path / f'{split}-{kind}-ubyte').write_bytes(header + array.tobytes())
  return path


def command(*args):
  return [sys.executable, '-m', 'msd_jax.main', *args]


def environment(**changes):
  return {**os.environ, 'PYTHONPATH': str(ROOT), **changes}


def run(*args, **changes):
  return subprocess.run(
      command(*args), cwd=ROOT, env=environment(**changes),
      capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_runs_to_its_report_and_traces_each_step_once(
    name, tmp_path, monkeypatch):
  config = tiny(name, tmp_path)
  make_stages = stages.make_stages
  traces = collections.Counter()

  def counted(stage):
    def step(*args):
      traces[stage.name] += 1
      return stage.step(*args)
    return dataclasses.replace(stage, step=step)

  monkeypatch.setattr(
      stages, 'make_stages',
      lambda *args: [counted(stage) for stage in make_stages(*args)])
  summary = train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert set(traces.values()) == {1} and traces['students'] == 1
  metric = 'l1' if name == 'toy2d' else 'frechet'
  assert summary[f'floor_{metric}'] > 0 and summary[f'students_{metric}'] > 0
  assert json.loads((tmp_path / 'run' / 'summary.json').read_text()) == summary
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert page.count('data:image/png') >= 3  # samples, and curves of the stages
  params, saved = msd_jax.load(str(tmp_path / 'run'))
  assert saved['num_students'] == config.num_students
  images = msd_jax.generate(params, np.arange(4), jax.random.key(0))
  assert np.isfinite(images).all()


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  """The folder of a finished run."""
  path = tmp_path_factory.mktemp('first')
  train.train_and_evaluate(tiny('digits', path, baselines=()), str(path))
  return path


def test_a_teacher_of_another_run_is_taken_and_checked(
    first, tmp_path, monkeypatch):
  second = tiny('digits', tmp_path, baselines=(), num_students=2,
                partition='kmeans', teacher_workdir=str(first))
  clustered, kmeans = [], partition.balanced_kmeans
  monkeypatch.setattr(
      partition, 'balanced_kmeans',
      lambda *args: clustered.append(1) or kmeans(*args))
  summary = train.train_and_evaluate(second, str(tmp_path / 'second'))
  assert summary['steps'] == second.students.num_steps
  assert len(clustered) == 1  # for all that a run asks the router for
  router = setup.make(second).routers['students']
  assert sorted(np.bincount(router)) == [5, 5]
  alone = tiny('digits', tmp_path, partition='kmeans')
  with pytest.raises(ValueError, match='give the run that trained it'):
    setup.make(alone)
  other = tiny('digits', tmp_path, baselines=(),
               teacher_workdir=str(first), sigma_data=0.5)
  with pytest.raises(ValueError, match='sigma_data=0.75, this config has 0.5'):
    train.train_and_evaluate(other, str(tmp_path / 'third'))


def final_bits(workdir):
  """Every array of the last checkpoint, as bytes."""
  path = max((pathlib.Path(workdir) / 'checkpoints').glob('[0-9]*'),
             key=lambda p: int(p.name))
  with ocp.StandardCheckpointer() as reader:
    trees = [reader.restore(path / item) for item in ('params', 'state')]
  return path.name, [
      np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(
          x.dtype, jax.dtypes.prng_key) else x).tobytes()
      for x in jax.tree.leaves(trees)]


def test_a_run_killed_at_five_random_moments_ends_in_the_same_bits(tmp_path):
  args = ['--config=configs/digits.py:tiny', '--config.teacher.num_steps=10',
          '--config.students.num_steps=10', '--config.baselines=()',
          '--config.checkpoint_every_steps=3']
  started = time.monotonic()
  done = run(*args, f'--workdir={tmp_path}/whole')
  seconds = time.monotonic() - started
  assert done.returncode == 0, done.stderr[-2000:]
  random = np.random.default_rng(0)
  for share in random.uniform(0.1, 0.9, 5):
    process = subprocess.Popen(
        command(*args, f'--workdir={tmp_path}/killed'), cwd=ROOT,
        env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    time.sleep(share * seconds)
    process.kill()  # SIGKILL: nothing can be tidied
    process.wait()
  done = run(*args, f'--workdir={tmp_path}/killed')
  assert done.returncode == 0, done.stderr[-2000:]
  assert final_bits(tmp_path / 'killed') == final_bits(tmp_path / 'whole')


def test_another_program_restores_params_in_three_lines(first, tmp_path):
  path = max((first / 'checkpoints').glob('[0-9]*'),
             key=lambda p: int(p.name)) / 'params'
  program = f'''
import orbax.checkpoint as ocp
params = ocp.StandardCheckpointer().restore('{path}')
import jax, numpy, sys
assert jax.device_count() == 3 and 'msd_jax' not in sys.modules
assert all(type(x) is numpy.ndarray for x in jax.tree.leaves(params))
print(params['generator']['in']['kernel'].shape, params['router'].tolist())
'''
  done = subprocess.run(
      [sys.executable, '-c', program], cwd=tmp_path, text=True,
      capture_output=True, env={
          'PATH': os.environ['PATH'], 'JAX_PLATFORMS': 'cpu',
          'JAX_NUM_CPU_DEVICES': '3'})
  assert done.stdout.startswith('(4, 64, 32) [0, 0, 0, 1,'), done.stderr


@pytest.mark.parametrize('args, message', [
    (['--config=configs/nothing.py'], 'configs/nothing.py'),
    (['--config.num_student=2'], 'num_student'),
    (['--config.students.lr=fast'], 'fast'),
    (['--config.num_students=11'], 'num_students=11 must be between 1 and'),
    (['--config.dataset=cifar'], "'cifar'"),
    (['--config.dataset=fashion', '--config.data_path=/no/such'], '/no/such'),
    (['--config.partition=names'], "partition='names' is not known"),
    (['--config.students.batch_size=31'],
     'students.batch_size=31 does not divide'),
    (['surplus'], "'surplus' is not a flag"),
])
def test_bad_input_gets_one_clear_line(
    args, message, tmp_path, monkeypatch, capsys):
  if not any(arg.startswith('--config=') for arg in args):
    args = ['--config=configs/digits.py:tiny', *args]
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(
      sys, 'argv', ['main', *args, f'--workdir={tmp_path}/run'])
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
    runpy.run_module('msd_jax.main', run_name='__main__')
  said = capsys.readouterr().err
  # What Python prints at the exit, or has been printed.
  line = end.value.code if isinstance(end.value.code, str) else said
  assert end.value.code and message in line, said
  assert not (tmp_path / 'run').exists()


def test_sigterm_saves_and_prints_the_command_that_resumes(tmp_path):
  args = ['--config=configs/digits.py:tiny',
          '--config.teacher.num_steps=100000', f'--workdir={tmp_path}']
  with subprocess.Popen(
      command(*args), cwd=ROOT, env=environment(), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
    for line in process.stdout:
      if re.match(r'teacher +\d+/100000 +\d+%', line):
        break
    process.terminate()
    _, stderr = process.communicate(timeout=60)
  assert process.returncode == 128 + 15, stderr
  assert f' -m msd_jax.main {args[0]}' in stderr
  assert list((tmp_path / 'checkpoints').glob('[0-9]*'))


def test_plan_prints_bytes_and_trains_nothing(tmp_path):
  done = run('--config=configs/digits.py:tiny', '--plan',
             f'--workdir={tmp_path}/run')
  assert re.search(r'students: 4 steps; state \d', done.stdout), done.stderr
  assert not (tmp_path / 'run').exists()
