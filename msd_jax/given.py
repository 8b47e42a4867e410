"""What a run takes from elsewhere: a teacher that another run trained, or one
that others published."""

from collections.abc import Mapping
import json
import os
from typing import Any

from absl import logging
import flax.linen as nn
import jax
import numpy as np

from core_jax import checkpoint
from msd_jax import convert
from msd_jax import published

# What a converted network says of itself, and a run may choose for itself.
_FREE = ('dtype', 'dropout', 'remat')


TEACHER_FIELDS = (
    'dataset', 'data_path', 'sigma_data', 'teacher', 'classifier')
"""What runs that share a teacher have in common."""


def teacher_steps(config: Any) -> dict[str, int]:
  """Stage -> rounds of those before the students, in order.

  Args:
    config: a ConfigDict, or a dict as a run has saved it.
  """
  steps = {'teacher': config['teacher']['num_steps']}
  if config['classifier']:
    steps['classifier'] = config['classifier']['num_steps']
  if config['students']['network'] != config['teacher']['network'] and (
      config['score_matching']['num_steps']):
    steps['score_matching'] = config['score_matching']['num_steps']
  return steps


def results(config: Any, module: nn.Module) -> dict[str, Any]:
  """Results of config.teacher_workdir, for runs that share a teacher.

  It is the folder of a run: its teacher and classifier, and its copy of the
  teacher in the students' network where these are the same. Or a published
  teacher, a file or a folder of `msd_jax.convert`: its params alone.

  Args:
    config: of this run.
    module: the teacher's network that it asks for.

  Raises:
    ValueError: that run had other data or another teacher, or the file holds
      another network.
    FileNotFoundError: there is none, or it has not got so far.
  """
  path = config.teacher_workdir
  if not path:
    return {}
  if not os.path.exists(path):
    raise FileNotFoundError(f'teacher_workdir={path}: no such file or folder')
  if not is_run(path):
    return {'teacher': _published(path, config, module)}
  # Through JSON, as that run's config: a tuple equals the list it became.
  return _of_run(path, json.loads(config.to_json_best_effort()))


def students(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """(bundle, config) of a run that has come to its students; see `routing`.

  Raises:
    ValueError: it has not: its newest checkpoint is of a stage before.
    FileNotFoundError: it has no checkpoint.
  """
  reached = checkpoint.reached(path)
  at = f'step {reached["step"]} of {reached["num_steps"]}'
  if not reached['last_stage']:
    raise ValueError(
        f'the run {path} stands at {at} of {reached["stage"]!r}, and its '
        'students come last: run its command again, which goes on from there')
  if reached['step'] < reached['num_steps']:
    logging.warning('%s: its students stand at %s', path, at)
  return checkpoint.load(path)


def is_run(path: str) -> bool:
  """Whether the path is the folder of a run."""
  return os.path.isdir(os.path.join(path, 'checkpoints'))


def check_trained_teacher(path: str, saved: Mapping[str, Any]) -> None:
  """Raises ValueError where a run, of the config `saved`, trained none."""
  if 'teacher' not in saved:
    raise ValueError(
        f'{path} is a run of another method, which has no teacher')
  if saved['teacher_workdir']:
    raise ValueError(
        f'the run {path} took its teacher from {saved["teacher_workdir"]}: '
        'give that')


def _of_run(path, mine):
  saved = checkpoint.load_config(path)
  check_trained_teacher(path, saved)
  for field in TEACHER_FIELDS:
    if saved[field] != mine[field]:
      raise ValueError(
          f'teacher_workdir={path} was trained with {field}={saved[field]}, '
          f'this config has {mine[field]}')
  same = lambda *names: all(saved[n] == mine[n] for n in names)
  wanted = {'teacher', 'classifier'}
  if same('score_matching') and (
      saved['students']['network'] == mine['students']['network']):
    wanted.add('score_matching')
  step, found = 0, {}
  for name, num_steps in teacher_steps(saved).items():
    step += num_steps
    if name in wanted:
      found[name], _ = checkpoint.load(path, step)
  return found


def _published(path, config, module):
  """The params of a file, or of a folder that `msd_jax.convert` wrote."""
  if config.sigma_data != convert.SIGMA_DATA:
    raise ValueError(
        f'sigma_data={config.sigma_data}, but published networks have '
        f'{convert.SIGMA_DATA}')
  return published_teacher(path, module)[1]


def published_teacher(
    path: str, module: nn.Module | None = None) -> tuple[nn.Module, Any]:
  """(module, params) of a file, or of a folder that `msd_jax.convert` wrote.

  Args:
    path: of the file or folder.
    module: that it must be of; None takes what is there.

  Raises:
    ValueError: it is no denoiser, or of another network.
  """
  if os.path.isfile(path):
    return published.read_network(path, module)
  found, parts = convert.from_folder(path)
  if 'generator' in parts:
    raise ValueError(
        f'{path} holds a generator of one step; a teacher is a denoiser: one '
        'that msd_jax.convert wrote without --one_step')
  if module is not None:
    _check_network(path, found, module)
  return found, jax.tree.map(np.asarray, parts.get('params', parts.get('real')))


def _check_network(path, found, module):
  for field in module.__dataclass_fields__:
    if field in (*_FREE, 'parent', 'name'):
      continue
    theirs, ours = getattr(found, field, None), getattr(module, field)
    if theirs != ours:
      raise ValueError(
          f'teacher_workdir={path} is {type(found).__name__} with '
          f'{field}={theirs}; teacher.network and the data ask for {ours}')
