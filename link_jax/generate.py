"""A run: rules to checked statements, through any number of kills.

All that is done is in `journal.jsonl`, all that an endpoint said in
`cache.sqlite`. The search is a function of the config and those answers, so
that a run which is killed and started again writes the same bytes.
"""

from collections.abc import Callable
import hashlib
import json
import pathlib
from typing import Any

import ml_collections

from core_jax import folder
from link_jax import cache as cache_lib
from link_jax import journal as journal_lib
from link_jax import statements as statements_lib
from link_jax import tools as tools_lib
from link_jax.statements import Statement

OnEvent = Callable[[dict[str, Any]], None]


class NothingFound(ValueError):
  """No rule gave a statement; the message says where candidates were lost."""


def generate(
    config: ml_collections.ConfigDict, workdir: str,
    on_event: OnEvent | None = None,
    stop: folder.StopRequest | None = None) -> dict[str, list[Statement]]:
  """Searches, scores and writes `statements.jsonl`.

  Args:
    config: see configs/link_default.py.
    workdir: the run's folder; what is there is gone on with.
    on_event: hears of each event after it is on disk.
    stop: asked between steps, and by an endpoint's client while it waits.

  Returns:
    Selector -> its statements, of which those of `config.selector` are in the
    file (without any that both of its splits have).

  Raises:
    NothingFound: not one statement came of it.
    folder.Stopped: a signal came; all is kept.
  """
  config = tools_lib.resolved(config)
  tools_lib.check(config)
  rules = tools_lib.rules_of(config)
  path = folder.check(workdir, identity(config))
  tools = tools_lib.build(config, path, stop)
  folder.claim(workdir, identity(config))  # Not for what cannot be built.
  journal = journal_lib.Journal(path / 'journal.jsonl')
  try:
    return _run(config, path, rules, tools, journal, on_event, stop)
  finally:
    journal.close()
    if tools.client:
      tools.client.cache.close()


def identity(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config without what changes no statement."""
  fields = config.to_dict()
  del fields['limits'], fields['spread']
  return ml_collections.ConfigDict(fields)


def _run(config, path, rules, tools, journal, on_event, stop):
  def emit(event):
    journal.append(event)
    if on_event:
      on_event(event)
    if stop is not None:
      stop.check()

  _check_same(config, path, rules, tools, journal, emit)
  kinds = tuple(dict.fromkeys((config.selector, *config.compare)))
  if config.spread.workers:  # After it, all is in the journal.
    from link_jax import spread
    spread.fill(config, rules, kinds, tools.fingerprints(), journal, emit)
  found = {}
  for kind in kinds:
    by = tools_lib.search_of(config, tools, kind)
    found[kind] = []
    for rule in rules.values():
      found[kind] += statements_lib.of_rule(
          config, rule, kind, by, tools, journal, emit)
  written = [s for s in found[config.selector] if not s['shared']]
  if not written:
    raise NothingFound(_lost(journal, config.selector))
  lines = [json.dumps(_public(s), ensure_ascii=False) for s in written]
  folder.write_text(
      path / 'statements.jsonl', ''.join(line + '\n' for line in lines))
  return found


def _check_same(config, path, rules, tools, journal, emit):
  """The first event says what a run is made of; a resumed one must match."""
  made_of = {
      'event': 'start', 'seed': config.seed, **tools.fingerprints(),
      'rules': hashlib.sha256(repr(tuple(rules.values())).encode()).hexdigest()}
  before = journal.find(event='start')
  if before is None:
    folder.write_text(path / 'manifest.json', json.dumps(
        made_of | {'config': json.loads(config.to_json_best_effort())},
        indent=2) + '\n')
    emit(made_of)
  elif before != made_of:
    differ = [name for name in made_of if before.get(name) != made_of[name]]
    raise journal_lib.JournalError(
        f'{path} holds a run with other data: {", ".join(differ)} changed '
        'since. Give another --workdir')


def _lost(journal, selector):
  rows = _funnel(journal, selector)
  total = lambda name: sum(row[name] for row in rows)
  if not total('proposed'):
    return ('no statement: the knowledge model proposed no value in any form '
            'that is known (a JSON list, numbered lines, lines). Look at its '
            'answers in cache.sqlite, if it is an endpoint, and choose '
            'another model or knowledge.parser')
  return (f'no statement: of {total("proposed")} values proposed, both splits '
          f'counted, {total("typed")} had the right datatype and '
          f'{total("factual")} true facts, and the critic left '
          f'{total("abstained")} open. Ask for more (search.values_per_call, '
          'search.max_candidates) or give critic.kinds one that knows')


def _public(statement):
  return {k: v for k, v in statement.items() if k != 'shared'}


def read_funnel(path: pathlib.Path, selector: str) -> list[dict[str, Any]]:
  """The counts of a run's steps."""
  journal = journal_lib.Journal(path / 'journal.jsonl')
  journal.close()
  return _funnel(journal, selector)


def _funnel(journal, selector):
  return [row for event in journal.events
          if event['event'] == 'rule' and event['selector'] == selector
          for row in event['funnel']]


def read_usage(path: pathlib.Path) -> cache_lib.Usage:
  """What a run's endpoint has answered, over all its processes."""
  if not (path / 'cache.sqlite').exists():
    return cache_lib.Usage(0, 0, 0)
  cache = cache_lib.Cache(path / 'cache.sqlite')
  usage = cache.usage()
  cache.close()
  return usage
