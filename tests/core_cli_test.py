"""The command line that every main shares."""

import pathlib
import sys

from absl.testing import flagsaver
import pytest

from core_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
TOY = f'{ROOT}/configs/toy2d.py:tiny'


@pytest.fixture
def main(monkeypatch, tmp_path):
  """Runs a main whose training only records its folder; returns these."""
  monkeypatch.chdir(tmp_path)
  ran = []

  def train(config, workdir):
    ran.append(workdir)

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
