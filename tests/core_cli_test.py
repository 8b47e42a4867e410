"""The command line that every main shares."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys

from absl.testing import flagsaver
import jax
import pytest

from core_jax import cli
from core_jax import folder

ROOT = pathlib.Path(__file__).parents[1]
SIGNALLED, TOO_LARGE = 7, 8  # Seeds of what befalls the training.
TOY = f'{ROOT}/configs/toy2d.py:tiny'


@pytest.fixture
def main(monkeypatch, tmp_path):
  """Runs a main whose training only records its folder; returns these."""
  monkeypatch.chdir(tmp_path)
  ran = []

  def train(config, workdir):
    ran.append(workdir)
    if config.seed == SIGNALLED:
      os.kill(os.getpid(), signal.SIGTERM)
    if config.seed == TOO_LARGE:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 GiB\nmore')

  def call(*args):
    monkeypatch.setattr(sys, 'argv', ['main', *args])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
      cli.run('toy', 'toy2d', train, lambda config, target: 'plan')
    if isinstance(end.value.code, str):
      print(end.value.code, file=sys.stderr)
    return ran

  return call


@pytest.mark.parametrize('args', [(f'--config={TOY}',), ('--config', TOY)])
def test_the_folder_is_named_by_the_config(main, args):
  assert main(*args) == ['runs/toy-toy2d-tiny']


@pytest.mark.parametrize('args', [('--config=a.py:b',), ('--config', 'a.py:b')])
def test_a_config_that_is_not_there_is_named(main, args, capsys):
  assert not main(*args)
  assert 'error: --config=a.py: no such file' in capsys.readouterr().err


def test_a_package_that_is_one_process_says_so(main, capsys):
  assert not main(f'--config={TOY}', '--distributed')
  assert 'error: --distributed: toy runs as one process' in (
      capsys.readouterr().err)


def test_a_signal_outside_of_any_loop_says_how_to_go_on(main, capsys):
  assert main(f'--config={TOY}', f'--config.seed={SIGNALLED}') == [
      'runs/toy-toy2d-tiny']
  said = capsys.readouterr().err
  assert 'SIGTERM: what is finished is kept. To go on:' in said
  assert f'--config.seed={SIGNALLED} --workdir=runs/toy-toy2d-tiny' in said


def test_a_device_out_of_memory_has_one_line_and_a_remedy(main, capsys):
  assert main(f'--config={TOY}', f'--config.seed={TOO_LARGE}')
  said, = capsys.readouterr().err.splitlines()
  assert said.startswith('error: a device is out of memory: RESOURCE_EXHAUSTED')
  assert '9 GiB. --plan says' in said


def test_a_second_process_is_kept_out_of_a_run_s_folder(main, capsys):
  """The first one lives until its standard input is closed."""
  holder = subprocess.Popen(
      [sys.executable, '-c', 'from core_jax import folder\n'
       'with folder.held("run"):\n  print("held", flush=True); input()'],
      env={'PYTHONPATH': str(ROOT)}, text=True, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE)
  with holder:
    assert holder.stdout.readline() == 'held\n'
    assert not main(f'--config={TOY}', '--workdir=run')
    holder.communicate('\n')
  assert f'error: {pathlib.Path.cwd()}/run is in use' in capsys.readouterr().err
  assert main(f'--config={TOY}', '--workdir=run') == ['run']
  assert not pathlib.Path('run').exists()  # Nothing was written to it.


def test_a_file_system_without_locks_is_good_enough(tmp_path, monkeypatch):
  def no_locks(*unused):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', no_locks)
  with folder.held(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
  assert (tmp_path / 'config.json').exists()


def test_a_folder_that_cannot_be_made_is_named(main, capsys):
  pathlib.Path('file').write_text('')
  assert not main(f'--config={TOY}', '--workdir=file')
  assert 'error: --workdir=file cannot be used' in capsys.readouterr().err


def test_a_part_of_a_run_is_resumed_by_the_command_of_the_whole(main):
  assert main(f'--config={TOY}') == ['runs/toy-toy2d-tiny']
  command = folder.resume_command('runs/toy-toy2d-tiny/num_students=1-seed=0')
  assert command.endswith(' --workdir=runs/toy-toy2d-tiny')


def test_a_command_names_the_interpreter_that_ran(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'executable', f'{tmp_path}/venv/bin/python')
  assert folder.python() == 'venv/bin/python'
  monkeypatch.setattr(sys, 'executable', '/usr/bin/python3')
  assert folder.resume_command('run').startswith('/usr/bin/python3 ')
