"""The programs of link_jax, as they are called: what is wrong is one line."""

import os
import pathlib
import subprocess
import sys

import pytest

from core_jax import program

ROOT = pathlib.Path(__file__).parents[1]


def call(name, *args, path=ROOT):
  """(exit status, lines of its errors) of a program."""
  found = subprocess.run(
      [sys.executable, '-m', f'link_jax.{name}', *args], cwd=ROOT,
      env=os.environ | {'PYTHONPATH': str(path)},
      capture_output=True, text=True)
  return found.returncode, found.stderr.splitlines()


@pytest.mark.parametrize('name, args, message', [
    ('calibrate', ['--table=none'], '--table=none: there are'),
    ('meta', ['--rule=x', '--variable=B', '--out=x'], "there is no ':-'"),
    ('published', ['--folder=none', '--rules_file=none'], 'rules file none: '),
    ('probe', ['--run=none'], 'give the folder of a finished run')])
def test_an_error_is_one_line(name, args, message):
  status, lines = call(name, *args)
  assert status == 1 and len(lines) == 1
  assert lines[0].startswith('error: ') and message in lines[0]


@pytest.mark.parametrize('module, name, extra', [
    ('aiolimiter', 'main', 'link'), ('networkx', 'published', 'link'),
    ('mendeleev', 'prepare', 'prepare_link')])
def test_what_is_not_installed_is_named_with_its_extra(
    tmp_path, module, name, extra):
  (tmp_path / f'{module}.py').write_text(
      f'raise ModuleNotFoundError("No module named {module!r}")')
  status, lines = call(name, path=tmp_path)
  assert status == 1 and len(lines) == 1
  assert module in lines[0] and f'install the extra [{extra}]' in lines[0]


def test_an_error_without_a_message_for_people_keeps_its_traceback(capsys):
  with pytest.raises(SystemExit), program.one_line():
    raise ValueError('field is 0')
  assert capsys.readouterr().err == 'error: field is 0\n'
  with pytest.raises(KeyError), program.one_line():
    raise KeyError('a mistake of ours')
