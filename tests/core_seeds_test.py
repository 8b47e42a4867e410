"""Runs that differ in more than their seed are not read together."""

import json

import pytest

from core_jax import seeds


def finished_run(path, **config):
  path.mkdir()
  (path / 'summary.json').write_text('{}')
  (path / 'config.json').write_text(json.dumps({'seed': 0, **config}))
  return str(path)


@pytest.mark.parametrize('others, differ', [
    ({'a': 1, 'net': {'width': 8, 'depth': 2}}, 'net.depth'),
    ({'net': {'width': 8}}, 'a'),
    ({'a': 1, 'b': 1, 'net': {'width': 8}}, 'b')])
def test_fields_that_differ_are_named_whole(tmp_path, others, differ):
  one = finished_run(tmp_path / 'one', a=1, net={'width': 8})
  two = finished_run(tmp_path / 'two', **others)
  with pytest.raises(ValueError, match=rf"differ in \['{differ}'\]"):
    seeds.read([one, two])


def test_runs_of_one_config_are_read_together(tmp_path):
  runs = [finished_run(tmp_path / str(i), a=1) for i in range(2)]
  assert seeds.read(runs) == [{}, {}]
