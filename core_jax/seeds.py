"""Finished runs of one config over seeds, read together."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import numpy as np

from core_jax import folder


def read(folders: Sequence[str]) -> list[dict[str, Any]]:
  """The summaries of the runs.

  Raises:
    ValueError: a run is not finished, or two have different configs.
  """
  summaries, configs = [], {}
  for run in folders:
    path = pathlib.Path(run) / 'summary.json'
    try:
      summaries.append(json.loads(path.read_text()))
      config = json.loads((path.parent / 'config.json').read_text())
    except (OSError, ValueError) as e:
      raise ValueError(f'{run} is no finished run: {e}') from e
    config.pop('seed')
    configs[run] = dict(folder.flat(config))
  first = next(iter(configs))
  for run, config in configs.items():
    differ = folder.differing(configs[first], config)
    if differ:
      raise ValueError(f'{run} and {first} differ in {differ}')
  return summaries


def cell(values: Sequence[float | None]) -> str:
  """'0.123 ± 0.004': mean and deviation, and how many diverged."""
  there = [x for x in values if x is not None]
  if not there:
    return 'diverged'
  text = f'{np.mean(there):.4g}'
  if len(there) > 1:
    text += f' ± {np.std(there, ddof=1):.2g}'
  if len(there) < len(values):
    text += f' ({len(values) - len(there)} diverged)'
  return text
