"""Rules spread over processes and machines by Ray (`pip install ray`).

Rules are independent. A worker searches and scores one after another and sends
back what it did; this process alone writes the journal, a rule at a time as
they are done, so that a run that is killed goes on, spread or not.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
from typing import Any

import ml_collections

from link_jax import journal as journal_lib
from link_jax import rules as rules_lib
from link_jax import statements
from link_jax import tools as tools_lib

Event = dict[str, Any]
RETRIES = 3  # of a rule whose worker died
OBJECTS_BYTES = 128 * 2 ** 20  # What workers send is small.


class Worker:
  """Searches and scores rules with models of its own."""

  def __init__(self, config: dict[str, Any], fingerprints: Mapping[str, str]):
    """Raises JournalError where its data are not those of the run."""
    self._config = ml_collections.ConfigDict(config)
    self._rules = tools_lib.rules_of(self._config)
    self._tools = tools_lib.build(self._config, pathlib.Path())
    if self._tools.fingerprints() != dict(fingerprints):
      differ = [name for name, one in self._tools.fingerprints().items()
                if fingerprints.get(name) != one]
      raise journal_lib.JournalError(
          f'a worker has other data than the run: {", ".join(differ)}. Install '
          'the same packages on all machines')

  def events(self, kind: str, name: str, before: Sequence[Event]
             ) -> list[Event]:
    """What is done for a rule with a selector, after what was done before."""
    made, journal = [], journal_lib.Events(before)

    def emit(event):
      journal.append(event)
      made.append(event)

    by = tools_lib.search_of(self._config, self._tools, kind)
    statements.of_rule(self._config, self._rules[name], kind, by, self._tools,
                       journal, emit)
    return made


def fill(
    config: ml_collections.ConfigDict, rules: Mapping[str, rules_lib.Rule],
    kinds: Sequence[str], fingerprints: Mapping[str, str],
    journal: journal_lib.Events, emit: Callable[[Event], None]) -> None:
  """Does what is not yet in the journal, for every selector and rule.

  Args:
    config: of the run.
    rules: by name.
    kinds: of selectors.
    fingerprints: of the run's data, which each worker must have.
    journal: what is done already.
    emit: hears of every event, those of a rule in their order.

  Raises:
    ValueError: Ray is not installed, or what a worker raised.
  """
  try:
    import ray
  except ImportError as e:
    raise ValueError(
        'spread.workers needs Ray: pip install ray, or let it be 0') from e
  before = _by_rule(journal.events, kinds, rules)
  _start(ray, config.spread)
  try:
    remote = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES)(Worker)
    pool = ray.util.ActorPool([
        remote.remote(config.to_dict(), fingerprints)
        for _ in range(config.spread.workers)])
    for events in pool.map_unordered(
        lambda worker, task: worker.events.remote(*task[0], task[1]),
        list(before.items())):
      for event in events:
        emit(event)
  except ray.exceptions.RayTaskError as e:
    raise e.cause from e
  except ray.exceptions.ActorDiedError as e:
    raise ValueError(f'spread.workers: a worker died: {e}') from e
  finally:
    ray.shutdown()


def _by_rule(events, kinds, rules):
  """(selector, rule) -> its events; none for one that is not begun."""
  found = {(kind, name): [] for kind in kinds for name in rules}
  for event in events:
    key = event.get('selector'), event.get('rule')
    if key in found:
      found[key].append(event)
  return found


def _start(ray, spread):
  """Joins the cluster at an address, or starts one on this machine."""
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # Reports to no one.
  quiet = dict(log_to_driver=False, logging_level='error')
  if spread.address:
    ray.init(spread.address, **quiet)
  else:
    ray.init('local', include_dashboard=False, num_cpus=spread.workers,
             object_store_memory=OBJECTS_BYTES, **quiet)
