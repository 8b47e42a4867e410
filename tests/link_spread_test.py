"""Rules spread over workers: the same bytes, and a journal that stays whole.

Those marked slow start Ray: `pip install ray`, then `pytest -m slow`.
"""

from collections import Counter
import json
import os
import signal
import sys

import pytest

from link_jax import generate
from link_jax import journal
from link_jax import spread
from link_jax import tools
from tests import link_child


def output(path):
  return (path / 'statements.jsonl').read_bytes()


def events(path):
  return [json.loads(line)
          for line in (path / 'journal.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of one process."""
  path = tmp_path_factory.mktemp('whole')
  generate.generate(link_child.tiny(), str(path))
  return path


def test_a_worker_sends_what_one_process_would_have_written(whole):
  start, *done = events(whole)
  config = link_child.tiny()
  made = spread.Worker(config.to_dict(), tools.build(
      config, whole).fingerprints())
  for name in config.only_rules:
    of_rule = [e for e in done if e['rule'] == name]
    sent = made.events('quantile', name, [])
    assert json.loads(json.dumps(sent)) == of_rule
    assert made.events('quantile', name, of_rule[:-1]) == sent[-1:]
    assert made.events('quantile', name, of_rule) == []


def test_a_worker_with_other_data_is_refused(whole):
  known = {name: value for name, value in events(whole)[0].items()
           if name not in ('event', 'seed', 'rules')}
  with pytest.raises(journal.JournalError, match='other data.*: knowledge'):
    spread.Worker(link_child.tiny().to_dict(), known | {'knowledge': 'x'})


def test_what_cannot_be_spread_is_named(tmp_path, monkeypatch):
  config = link_child.tiny('http://127.0.0.1:1/v1')
  config.spread.workers = 2
  with pytest.raises(ValueError, match='spread.workers: .*limits.concurrency'):
    generate.generate(config, str(tmp_path / 'http'))
  config = link_child.tiny()
  config.spread.workers = 2
  monkeypatch.setitem(sys.modules, 'ray', None)
  with pytest.raises(ValueError, match='needs Ray: pip install ray'):
    generate.generate(config, str(tmp_path / 'without'))


@pytest.mark.slow
def test_spread_by_ray_cut_off_and_robbed_of_a_worker_it_is_the_same(
    whole, tmp_path):
  config = link_child.tiny()
  config.spread.workers = 2

  def fail(event):
    if event['event'] == 'rule':
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    generate.generate(config, str(tmp_path), fail)
  assert len(events(tmp_path)) < len(events(whole))
  left = []

  def rob(event):
    if not left:
      left.append(event)
      os.kill(_a_worker(), signal.SIGKILL)

  generate.generate(config, str(tmp_path), rob)
  assert left and output(tmp_path) == output(whole)
  count = Counter(json.dumps(e, sort_keys=True) for e in events(tmp_path))
  assert count == Counter(
      json.dumps(e, sort_keys=True) for e in events(whole))


def _a_worker():
  """The process of one of Ray's actors."""
  import psutil
  for child in psutil.Process().children(recursive=True):
    if 'ray::Worker' in ' '.join(child.cmdline()):
      return child.pid
  raise AssertionError('no worker is there')
