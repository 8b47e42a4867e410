"""A run of two processes, and a run of one on as many devices."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np

from configs import toy2d
from core_jax import loop
from msd_jax import setup
from msd_jax import stages

ROOT = pathlib.Path(__file__).parents[1]
# Other than ':tiny': little to compile, and a stage to be stopped within.
CHANGES = {'teacher.network.depth': 1, 'students.network.depth': 1,
           'score_matching.num_steps': 0, 'teacher.num_steps': 300,
           'log_every_steps': 50, 'checkpoint_every_steps': 100}


@contextlib.contextmanager
def two_processes(workdir):
  """Of one run, with a device each; neither outlives the block."""
  with socket.socket() as found:
    found.bind(('localhost', 0))
    port = found.getsockname()[1]
  environment = {
      **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '1',
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}'}
  processes = [
      subprocess.Popen(
          [sys.executable, '-m', 'msd_jax.main',
           '--config=configs/toy2d.py:tiny', f'--workdir={workdir}',
           *(f'--config.{name}={value}' for name, value in CHANGES.items()),
           '--distributed', '--num_processes=2', f'--process_id={i}'],
          env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE,
          stderr=subprocess.PIPE) for i in range(2)]
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def test_two_processes_stop_together_and_go_on_to_the_params_of_one(tmp_path):
  workdir = tmp_path / 'two'
  with two_processes(workdir) as (first, second):
    assert any('first step' in line for line in first.stdout)
    second.send_signal(signal.SIGTERM)  # The other one has to hear of it.
    errors = [process.communicate(timeout=900)[1]
              for process in (first, second)]
  assert [first.returncode, second.returncode] == [128 + signal.SIGTERM] * 2, (
      errors)
  assert all('SIGTERM at step' in error for error in errors)
  steps = {int(path.name) for path in (workdir / 'checkpoints').iterdir()}
  assert 1 < max(steps) < CHANGES['teacher.num_steps']
  assert not (workdir / 'summary.json').exists()

  with two_processes(workdir) as (first, second):
    said = [process.communicate(timeout=900) for process in (first, second)]
  assert [first.returncode, second.returncode] == [0, 0], said
  assert 'on 2 host(s)' in said[0][0]
  assert not [line for line in said[1][0].splitlines() if 'Gloo' not in line]
  for name in ('summary.json', 'report.html', 'metrics.jsonl'):
    assert (workdir / name).exists()

  config = toy2d.get_config('tiny')
  config.update_from_flattened_dict(CHANGES)
  run = setup.make(config, jax.devices()[:2])
  one = lambda workdir: loop.fit(stages.make_stages(run), config, str(workdir))
  expected = one(tmp_path / 'one')
  jax.tree.map(np.testing.assert_array_equal, one(workdir), expected)
