"""Imports run one way: read from the files themselves."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
METHODS = sorted(
    p.name for p in ROOT.glob('*_jax') if p.is_dir() and p.name != 'core_jax')
# What each package may import of ours; a method: itself and the core.
MAY_IMPORT = {'core_jax': {'core_jax'}, 'configs': {'configs'}} | {
    name: {name, 'core_jax'} for name in METHODS}
OURS = {*MAY_IMPORT, 'benchmarks', 'tests'}


def imported(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('package', MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package):
  wrong = [
      (path.name, name) for path in (ROOT / package).rglob('*.py')
      for name in imported(path)
      if name.split('.')[0] in OURS - MAY_IMPORT[package]]
  assert not wrong


def test_networks_and_losses_import_nothing_of_the_run():
  for file in ('losses', 'diffusion', 'mlp', 'layers', 'unet', 'songunet',
               'classifier'):
    names = imported(ROOT / 'msd_jax' / f'{file}.py')
    ours = {n for n in names if n.startswith(('msd_jax', 'core_jax'))}
    assert ours <= {
        'msd_jax.diffusion.expand', 'msd_jax.conv', 'msd_jax.conv.conv3x3',
        'msd_jax.layers'}, (file, ours)


def test_only_programs_read_flags():
  readers = [
      path.relative_to(ROOT) for package in MAY_IMPORT
      for path in (ROOT / package).rglob('*.py')
      if any(name.startswith('absl') and 'flags' in name
             for name in imported(path))]
  assert {str(path) for path in readers} == {
      'core_jax/cli.py', 'link_jax/calibrate.py', 'link_jax/meta.py',
      'link_jax/prepare.py', 'link_jax/probe.py', 'link_jax/published.py',
      'msd_jax/sweep.py', 'stn_jax/replay.py'}
