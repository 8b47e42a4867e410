"""What a config must be before anything is read or computed."""

import importlib.util

import ml_collections

from stn_jax import data
from stn_jax import implicit
from stn_jax import space as space_lib
from stn_jax import state as state_lib

BASELINES = ('fixed', 'replay', 'final', 'random', 'tpe')
SEARCHES = ('random', 'tpe')
# Network -> what it is for, and its fields in config.model.
MODELS = {
    'mlp': ('images', ('widths',)),
    'simple_cnn': ('images', ('channels',)),
    'alexnet': ('images', ()),
    'vgg16': ('images', ()),
    'resnet18': ('images', ('width',)),
    'lstm': ('language', ('width', 'num_layers')),
    'linear': ('regression', ())}
CUTOUT = ('cutout_holes', 'cutout_length')
_COUNTS = ('num_rounds', 'updates_per_round', 'batch_size', 'log_every_steps',
           'checkpoint_every_steps', 'evaluations')
_COLOURED = ('saturation', 'hue')


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for the first field that makes no sense, by name."""
  for field, known in (
      ('methods', state_lib.METHODS), ('baselines', BASELINES)):
    unknown = sorted(set(config[field]) - set(known))
    if unknown:
      raise ValueError(f'{field} has {unknown}; there are {", ".join(known)}')
  if not config.methods or len(set(config.methods)) < len(config.methods):
    raise ValueError(f'methods={config.methods} must name at least one method, '
                     'and each once')
  for field in _COUNTS:
    if config[field] < 1:
      raise ValueError(f'{field}={config[field]}: give 1 or more')
  for field in ('optimizer', 'hyper'):
    if not config[field].lr >= 0:
      raise ValueError(f'{field}.lr={config[field].lr}: give 0 or more')
  _check_fit(config)
  _check_implicit(config)
  _check_searches(config)


def _check_fit(config):
  """Whether data, network and fields go together."""
  kind, name = config.model.kind, config.dataset
  if kind not in MODELS:
    raise ValueError(f'model.kind={kind!r}; there are {", ".join(MODELS)}')
  if name not in data.DATASETS:
    raise data.DataError(
        f'dataset={name!r} is unknown; there are {", ".join(data.DATASETS)}')
  (wanted, model_fields), (found, fields) = MODELS[kind], data.DATASETS[name]
  if wanted != found:
    raise ValueError(
        f'model.kind={kind!r} is for {wanted}, but dataset={name!r} is of '
        f'{found}; for these there are '
        + ', '.join(m for m, (of, _) in MODELS.items() if of == found))
  lacks = [f for f in fields if f not in config] + [
      f'model.{f}' for f in model_fields if f not in config.model]
  if lacks:
    raise ValueError(
        f'dataset={name!r} with model.kind={kind!r} needs {", ".join(lacks)}, '
        'which the config has not: start from one of configs/ that has')


def _check_implicit(config):
  if 'implicit' not in config.methods:
    return
  if 'implicit_steps' not in config:
    raise ValueError(
        "methods has 'implicit', which needs a loss that is smooth in every "
        'hyperparameter: see configs/stn_ridge.py')
  if config.implicit_solver not in implicit.SOLVERS:
    raise ValueError(
        f'implicit_solver={config.implicit_solver!r}; there are '
        f'{", ".join(implicit.SOLVERS)}')


def _check_searches(config):
  if set(SEARCHES) & set(config.baselines) and (
      not config.search_times or min(config.search_times) <= 0):
    raise ValueError(
        f'search_times={config.search_times}: name budgets of a search, in '
        'costs of the dearest method, such as (1, 4)')
  if 'tpe' in config.baselines and not importlib.util.find_spec('optuna'):
    raise ValueError(
        "baselines has 'tpe', which needs Optuna: pip install "
        "-e '.[stn]'")


def check_augmentation(
    space: space_lib.Space, num_channels: int
) -> None:
  """Raises SpaceError for what cannot change images of so many channels."""
  there = [name for name in CUTOUT if name in space]
  if len(there) == 1:
    raise space_lib.SpaceError(
        f'{there[0]} is alone: a square needs both of {" and ".join(CUTOUT)}')
  for name in there:
    if not space[name].whole:
      raise space_lib.SpaceError(
          f"{name}: holes and pixels are whole: give it kind='integer'")
  for name in _COLOURED:
    if name in space and num_channels != 3:
      raise space_lib.SpaceError(
          f'{name} needs RGB images; these have {num_channels} channel(s)')
