"""The notebooks run, at a size of seconds."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def source(path):
  """The code of a notebook, less the cells that fetch and install."""
  cells = [''.join(cell['source']) for cell in json.loads(path.read_text())[
      'cells'] if cell['cell_type'] == 'code']
  return '\n'.join(cell for cell in cells if not cell.startswith(
      ('!', 'REPOSITORY'))).replace("get_config('')", "get_config('tiny')")


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
  os.symlink(ROOT / 'configs', tmp_path / 'configs')
  assert "get_config('tiny')" in source(path)
  subprocess.run(
      [sys.executable, '-c', source(path)], cwd=tmp_path, check=True,
      env={**os.environ, 'MPLBACKEND': 'agg', 'PYTHONPATH': str(ROOT)})
