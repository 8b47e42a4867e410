"""A config's text, child network and strategies: what its stages share."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib.util
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from core_jax import mesh as mesh_lib
from core_jax import text
from nas_jax import child as child_lib
from nas_jax import controller as controller_lib
from nas_jax import darts
from nas_jax import data
from nas_jax import enas
from nas_jax import memory as memory_lib
from nas_jax import models
from nas_jax import search
from nas_jax import space as space_lib
from nas_jax import strategies

Config = ml_collections.ConfigDict

METHODS = {
    'enas': "ENAS' controller",
    'enas_replay': 'ENAS, replaying a memory',
    'enas_reconstruct': 'ENAS, reconstructing a memory',
    'enas_prev_action': 'ENAS, telling the last action',
    'uniform': 'random search',
    'evolution': 'regularised evolution',
    'halving': 'successive halving',
    'darts': 'first-order DARTS',
}


_BETWEEN_SEEDS = 1_000_003
# Field -> the least that it can be.
_LEAST = {
    'batch_size': 1, 'valid_batch_size': 1, 'window_tokens': 1,
    'cells_per_update': 1, 'num_rounds': 1, 'shared_updates': 1,
    'strategy_updates': 1, 'controller.hidden_size': 1,
    'memory.batch_size': 1, 'evolution.tournament': 1,
    'uniform.num_cells': 1, 'derive.num_cells': 1,
    'derive.chunk': 1, 'derive.num_windows': 0, 'retrain.num_rounds': 0,
    'retrain.updates_per_round': 1, 'retrain.num_seeds': 1,
    'retrain.random_cells': 0, 'analysis.num_cells': 3,
    'analysis.num_permutations': 1}


@dataclasses.dataclass(frozen=True)
class Setup:
  """What the stages of a config have in common.

  Attributes:
    config: of the run.
    corpus: text.
    child: the network over shared weights.
    text: the same text as streams, numpy.
    test: streams to test on, [B', L''].
    given: name -> cell, trained beside those that are found.
    devices: of the run; None stands for all of all hosts.
  """
  config: Config
  corpus: data.Corpus
  child: child_lib.Child
  text: search.Data
  test: np.ndarray
  given: Mapping[str, space_lib.Cell]
  devices: Sequence[jax.Device] | None = None

  def mesh(self, num_models: int = 1) -> jax.sharding.Mesh:
    """Of the devices, for models that are trained side by side."""
    return mesh_lib.make_mesh(num_models, devices=self.devices)

  @property
  def space(self) -> space_lib.Space:
    return self.child.space

  @property
  def alone(self) -> child_lib.Child:
    """The network of a cell that is trained from scratch."""
    fields = self.config.retrain
    return dataclasses.replace(
        self.child, sharing='node', norm=fields.norm,
        init_scale=fields.init_scale)


def setup(
    config: Config, devices: Sequence[jax.Device] | None = None) -> Setup:
  """Reads the text and builds what all stages need.

  Args:
    config: of the run.
    devices: to run on or to plan for; all, if None.

  Raises:
    ValueError: a field that does not fit, by name.
  """
  check(config)
  space = make_space(config.space)
  given = given_cells(config, space)
  corpus = data.load(config)
  child = child_lib.Child(space, corpus.vocab_size, **config.child)
  rows = lambda split, field: text.streams(
      corpus.splits[split], config[field], config.window_tokens, field)
  return Setup(
      config, corpus, child,
      search.Data(rows('train', 'batch_size'),
                  rows('valid', 'valid_batch_size')),
      rows('test', 'valid_batch_size'), given, devices)


def check(config: Config) -> None:
  """Raises ValueError for the first field that cannot be, by name."""
  fields = config.to_dict()
  for path, least in _LEAST.items():
    value = fields
    for name in path.split('.'):
      value = value[name]
    if value < least:
      raise ValueError(f'{path}={value} must be at least {least}')
  if config.batch_size % config.cells_per_update:
    raise ValueError(
        f'cells_per_update={config.cells_per_update} does not divide '
        f'batch_size={config.batch_size}: each cell has as many streams')
  for block in ('derive', 'uniform'):
    if config[block].num_cells % config.derive.chunk:
      raise ValueError(
          f'{block}.num_cells={config[block].num_cells} is not a multiple of '
          f'derive.chunk={config.derive.chunk}')
  if config.evolution.tournament > config.evolution.population:
    raise ValueError(
        f'evolution.tournament={config.evolution.tournament} is more than '
        f'evolution.population={config.evolution.population}')
  methods = list(config.methods)
  if not methods or len(set(methods)) < len(methods):
    raise ValueError(f'methods={methods} must name at least one method, and '
                     'none twice')
  if config.analysis.authors_measures and not importlib.util.find_spec(
      'networkx'):
    raise ValueError("analysis.authors_measures needs networkx: pip install "
                     "-e '.[nas]'")
  if not 0 < config.analysis.tsne_perplexity < config.analysis.num_cells:
    raise ValueError(
        f'analysis.tsne_perplexity={config.analysis.tsne_perplexity} must be '
        f'between 0 and analysis.num_cells={config.analysis.num_cells}')


def make_space(fields: Mapping[str, Any]) -> space_lib.Space:
  """config.space -> the space; 'enas' has `num_nodes` too."""
  fields = dict(fields)
  kind = fields.pop('kind')
  if kind not in space_lib.SPACES:
    raise space_lib.SpaceError(
        f'space.kind={kind!r}; there are {", ".join(space_lib.SPACES)}')
  if kind != 'enas':
    fields.pop('num_nodes', None)
  return space_lib.SPACES[kind](**fields)


def make_rates(
    fields: Mapping[str, float], path: str = 'rates'
) -> child_lib.Rates | None:
  """config.rates, or of another path, -> Rates; None: nothing is dropped."""
  rates = child_lib.Rates(**fields)
  for name in rates._fields:
    check_rate(fields, name, f'{path}.')
  return rates if any(rates) else None


def check_rate(
    fields: Mapping[str, Any], name: str, prefix: str = ''
) -> float:
  """fields[name], a probability below 1."""
  if not 0 <= fields[name] < 1:
    raise ValueError(f'{prefix}{name}={fields[name]} is not in [0, 1)')
  return fields[name]


def make_optimizer(
    fields: Mapping[str, Any], updates_per_round: int,
    path: str = 'optimizer',
) -> optax.GradientTransformation:
  """Clipping, weight decay, SGD or Adam with a rate that decays by rounds.

  An update that is not finite is left out.

  Args:
    fields: kind, lr, clip_norm, weight_decay, decay (a round) and
      decay_from_round, before which the rate is constant.
    updates_per_round: of this optimizer.
    path: of the fields in the config.
  """
  kinds = {'sgd': optax.sgd, 'adam': optax.adam}
  if fields['kind'] not in kinds:
    raise ValueError(f'{path}.kind={fields["kind"]!r}; there are '
                     f'{", ".join(kinds)}')
  lr = optax.exponential_decay(
      fields['lr'], updates_per_round, fields['decay'],
      transition_begin=fields['decay_from_round'] * updates_per_round,
      staircase=True)
  parts = [kinds[fields['kind']](lr)]
  if fields['weight_decay']:
    parts.insert(0, optax.add_decayed_weights(fields['weight_decay']))
  if fields['clip_norm']:
    parts.insert(0, optax.clip_by_global_norm(fields['clip_norm']))
  return _finite(*parts)


def _finite(*parts):
  """The chain of parts, which leaves an update out that is not finite."""
  return optax.apply_if_finite(optax.chain(*parts), np.iinfo(np.int32).max)


def make_memory(config: Config, method: str) -> memory_lib.Memory:
  """config.memory with the kind of the method."""
  kind = method.removeprefix('enas').removeprefix('_') or 'none'
  return memory_lib.Memory(kind, **config.memory)


def make_controller(config: Config, space: space_lib.Space
                    ) -> controller_lib.Controller:
  """config.controller; `lr` is its optimizer's."""
  fields = dict(config.controller)
  fields.pop('lr')
  return controller_lib.Controller(space, **fields)


def make_strategy(run: Setup, method: str) -> strategies.Strategy:
  """The strategy of a method's name."""
  config, space = run.config, run.space
  reward = enas.Reward(**config.reward)
  num_evaluated = reward.samples_per_update
  match method:
    case 'uniform':
      return strategies.uniform(space)
    case 'evolution':
      return strategies.evolution(
          space, num_evaluated=num_evaluated, **config.evolution)
    case 'halving':
      return strategies.halving(
          space, config.halving.num_cells,
          config.num_rounds * config.strategy_updates, num_evaluated)
    case 'darts':
      darts.check(run.child)
      tx = _finite(
          optax.add_decayed_weights(config.darts.weight_decay),
          optax.adam(config.darts.lr))
      return strategies.differentiable(
          lambda key: darts.init_alpha(run.child, key),
          lambda alpha: space_lib.encode(
              space, darts.discretise(space, alpha)), tx)
  if method not in METHODS:
    raise ValueError(
        f'methods has {method!r}; there are {", ".join(METHODS)}')
  return enas.strategy(enas.Settings(
      make_controller(config, space), make_memory(config, method), reward,
      optax.adam(config.controller.lr)))


def num_candidates(config: Config, method: str) -> int:
  """How many cells a method chooses among at its end."""
  return config['uniform' if method == 'uniform' else 'derive'].num_cells


def training_seed(config: Config, i: int) -> int:
  """Of training i of a cell; runs of the next seeds have none of these."""
  return config.seed + _BETWEEN_SEEDS * i


def given_cells(config: Config, space: space_lib.Space
                ) -> dict[str, space_lib.Cell]:
  """retrain.cells -> name -> cell, in their order.

  Raises:
    ValueError: a file or a cell that does not fit, or two files whose cells
      would have one name.
  """
  cells, entries = {}, {}
  for entry in config.retrain.cells:
    try:
      if entry == 'published':
        whose, found = entry, {entry: space_lib.published()}
      else:
        table = json.loads(pathlib.Path(entry).read_text())
        whose = pathlib.Path(entry).parent.name
        found = {f'{whose}/{name}': space_lib.from_json(space, cell)
                 for name, cell in dict(table).items()}
      cells |= {f'given/{name}': space_lib.check_cell(space, cell)
                for name, cell in found.items()}
    except (OSError, TypeError, ValueError) as e:
      raise ValueError(
          f"retrain.cells has {entry!r}, which is neither 'published' nor a "
          f'cells.json with cells of this space: {e}') from e
    if whose in entries:
      raise ValueError(
          f'retrain.cells has {entries[whose]!r} and {entry!r}, and the cells '
          f"of both would be 'given/{whose}': leave one out, or rename the "
          'folder that it is in')
    entries[whose] = entry
  return cells


def perplexity(loss: Any) -> Any:
  """Nats a token -> perplexity; infinite where it overflows."""
  with np.errstate(over='ignore'):
    return np.exp(np.asarray(loss, np.float64))


def derived(tokens: Any, losses: Any) -> Any:
  """Of candidates [n, S] with losses [n] the best's tokens, [S]."""
  return tokens[jnp.argmin(losses)]


def lstm_size(run: Setup) -> int:
  """Hidden size of the LSTM with as many parameters as a found cell."""
  return models.equal_lstm(
      run.corpus.vocab_size, child_lib.count_params(run.alone))
