"""A run from its config to its report."""

import time
from typing import Any

import ml_collections

from core_jax import folder
from link_jax import bounds
from link_jax import generate
from link_jax import results
from link_jax import tools


def run(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Makes what is not yet made, measures all, writes the report.

  Args:
    config: see configs/link_default.py.
    workdir: the run's folder.

  Returns:
    What `summary.json` holds.

  Raises:
    folder.Stopped: SIGTERM or Ctrl-C; all is saved.
  """
  started = time.monotonic()
  plan = bounds.show(config)  # Raises for what cannot be run.
  path = folder.local(workdir)
  print(*plan, f'results go to {path}', sep='\n', flush=True)
  # An endpoint's answers are paid: those under way are waited for.
  with folder.stop_request(
      at_once=config.knowledge.kind != 'http') as stop:
    found = generate.generate(config, workdir, _Progress(config), stop)
  return results.report(config, found, path, started=started)


class _Progress:
  """A line for every tenth rule and for the end of each selector."""

  def __init__(self, config):
    self._total, self._done = len(tools.rules_of(config)), {}
    self._started = time.monotonic()

  def __call__(self, event):
    if event['event'] != 'rule':
      return
    kind = event['selector']
    done = self._done[kind] = self._done.get(kind, 0) + 1
    if done % 10 == 0 or done == self._total:
      seconds = time.monotonic() - self._started
      print(f'{kind} {done}/{self._total} rules  {seconds:.0f} s', flush=True)
