"""A run from its config to its report: search, derive, train from scratch."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from core_jax import cli
from core_jax import folder
from core_jax import loop
from core_jax import mesh as mesh_lib
from core_jax import plan
from core_jax import topology
from core_jax.fingerprint import fingerprint
from nas_jax import child as child_lib
from nas_jax import derive
from nas_jax import experiment
from nas_jax import keys
from nas_jax import models
from nas_jax import report
from nas_jax import results as results_lib
from nas_jax import retrain
from nas_jax import search
from nas_jax import space as space_lib

# What a finished search hands on of its strategy's state.
_NOT_HANDED_ON = ('opt_state', 'buffer')


def search_stage(run: experiment.Setup, method: str) -> loop.Stage:
  """Search by one method, `num_rounds` rounds."""
  config = run.config
  mesh = run.mesh()
  for field in ('batch_size', 'valid_batch_size'):
    mesh_lib.check_batch_size(config[field], mesh, field)
  strategy = experiment.make_strategy(run, method)
  tx = experiment.make_optimizer(config.optimizer, config.shared_updates)
  settings = search.Settings(
      config.shared_updates, config.strategy_updates, config.window_tokens,
      config.cells_per_update, experiment.make_rates(config.rates),
      experiment.check_rate(config, 'reset_rate'))
  return loop.Stage(
      name=f'search_{method}',
      num_steps=config.num_rounds,
      mesh=mesh,
      init=search.make_init(
          run.child, strategy, tx, config.batch_size, config.seed),
      step=search.make_round(run.child, strategy, settings, tx, mesh),
      params=_handed_on,
      frozen=lambda results: {'data': run.text})


def _handed_on(state):
  kept = {name: x for name, x in state.strategy.items()
          if name not in _NOT_HANDED_ON}
  return {'shared': state.params, 'strategy': kept}


def derive_stage(run: experiment.Setup, method: str) -> loop.Stage:
  """Candidates of a finished search, `derive.chunk` a step."""
  config = run.config
  fields = config.derive
  num_cells = experiment.num_candidates(config, method)
  windows = results_lib.num_windows(run, fields.num_windows)
  return loop.Stage(
      name=f'derive_{method}',
      num_steps=num_cells // fields.chunk,
      mesh=run.mesh(),
      init=derive.make_init(
          experiment.make_strategy(run, method), num_cells, config.seed),
      step=derive.make_step(
          run.child, fields.chunk, config.window_tokens, windows),
      params=lambda state: {'tokens': state.tokens, 'losses': state.losses},
      frozen=lambda results: {
          **results[f'search_{method}'], 'valid': run.text.valid})


def retrain_names(run: experiment.Setup) -> list[tuple[str, int]]:
  """(whose cell, seed) of all cells that are trained from scratch."""
  config, fields = run.config, run.config.retrain
  chance = [f'random/{i}' for i in range(fields.random_cells)]
  names = [*config.methods, *run.given, *chance]
  # A random cell is a draw by itself: one seed each.
  return [(name, experiment.training_seed(config, i)) for name in names
          for i in range(1 if name in chance else fields.num_seeds)]


def retrained_tokens(
    run: experiment.Setup, results: dict[str, Any]
) -> jax.Array:
  """Tokens [R, S] of the cells of `retrain_names`."""
  config = run.config
  random = space_lib.encode(run.space, space_lib.sample(
      run.space, keys.of_seed(config.seed, 'random_cells'),
      max(1, config.retrain.random_cells)))
  rows = []
  for name, _ in retrain_names(run):
    if name in run.given:
      rows.append(space_lib.encode(run.space, run.given[name]))
    elif name.startswith('random/'):
      rows.append(random[int(name.split('/')[1])])
    else:
      rows.append(experiment.derived(**results[f'derive_{name}']))
  return jnp.stack(rows)


def retrain_stage(run: experiment.Setup) -> loop.Stage:
  """The derived cells, and random ones, from scratch and side by side."""
  seeds = [seed for _, seed in retrain_names(run)]

  def frozen(results):
    cells = space_lib.decode(run.space, retrained_tokens(run, results))
    return {'arch': tuple(cells), 'data': run.text}

  return scratch_stage(
      run, 'retrain', models.recurrent(run.alone), seeds, frozen)


def lstm_stage(run: experiment.Setup) -> loop.Stage:
  """An LSTM with as many parameters, `retrain.num_seeds` times."""
  config = run.config
  seeds = [experiment.training_seed(config, i)
           for i in range(config.retrain.num_seeds)]
  model = models.lstm(
      run.corpus.vocab_size, experiment.lstm_size(run),
      config.retrain.init_scale)
  return scratch_stage(run, 'lstm', model, seeds, lambda results: {
      'arch': jnp.zeros(len(seeds)), 'data': run.text})


def scratch_stage(
    run: experiment.Setup, name: str, model: models.Model,
    seeds: Sequence[int], frozen: Callable[[Any], Any],
) -> loop.Stage:
  """Trains len(seeds) models from scratch by `config.retrain`."""
  fields = run.config.retrain
  mesh = run.mesh(len(seeds))
  tx = experiment.make_optimizer(
      fields.optimizer, fields.updates_per_round, 'retrain.optimizer')
  settings = retrain.Settings(
      fields.updates_per_round, run.config.window_tokens,
      experiment.make_rates(fields.rates, 'retrain.rates'),
      experiment.check_rate(run.config, 'reset_rate'))
  return loop.Stage(
      name=name,
      num_steps=fields.num_rounds,
      mesh=mesh,
      init=retrain.make_init(
          model, tx, run.config.batch_size, tuple(seeds)),
      step=retrain.make_round(model, settings, tx, mesh),
      params=lambda state: {
          'params': state.runs.best_params, 'arch': state.runs.arch,
          'valid_losses': state.runs.best_loss},
      frozen=frozen,
      state_spec=retrain.State(P(), P('student')))


def make_stages(run: experiment.Setup) -> list[loop.Stage]:
  """Search and derivation for each method, then training from scratch."""
  config = run.config
  stages = []
  for method in config.methods:
    stages += [search_stage(run, method), derive_stage(run, method)]
  if config.retrain.num_rounds:
    stages.append(retrain_stage(run))
    if config.retrain.lstm:
      stages.append(lstm_stage(run))
  return stages


def train_and_evaluate(
    config: experiment.Config, workdir: str
) -> dict[str, Any]:
  """Searches, derives, trains what was found, writes the report.

  Args:
    config: see configs/nas_markov.py.
    workdir: the run's folder.

  Returns:
    What `summary.json` holds.
  """
  started = time.monotonic()
  run = experiment.setup(config)
  stages = make_stages(run)
  path = folder.claim(workdir, _identity(run))
  print(announcement(run, stages), f'results go to {path}', sep='\n',
        flush=True)
  found = loop.fit(stages, config, str(path))
  return report.write(
      run, path, found, retrain_names(run),
      steps=sum(s.num_steps for s in stages), started=started)


def _identity(run):
  """The config and, where cells are given, what their files hold."""
  if not run.given:
    return run.config
  # In their order, by which results are told apart.
  cells = [{name: cell} for name, cell in run.given.items()]
  return experiment.Config(
      {**run.config.to_dict(), 'given_cells': fingerprint(cells)})


def announcement(
    run: experiment.Setup, stages: Sequence[loop.Stage]
) -> str:
  """What a run will do, for people, before it does it."""
  config, child = run.config, run.child
  sizes = ', '.join(f'{len(x):,} to {use}' for use, x in zip(
      ('train', 'search by', 'test'), run.corpus.splits.values(),
      strict=True))
  floor = ('' if run.corpus.floor is None else
           f'; no model is below {np.exp(run.corpus.floor):.3f} in perplexity')
  return (
      f'{config.dataset}: {run.corpus.vocab_size:,} words; {sizes} tokens'
      f'{floor}\n'
      f'{cli.describe_devices(run.mesh())}\n'
      f'{run.space.size:,} cells of {run.space.num_nodes} nodes share '
      f'{child_lib.count_params(child):,} parameters, hidden size '
      f'{child.hidden_size}\n'
      f'{", ".join(config.methods)}: {config.num_rounds} rounds of '
      f'{config.shared_updates} updates of the weights and '
      f'{config.strategy_updates} of the strategy, then '
      f'{config.derive.num_cells} cells to derive one\n'
      f'{sum(s.num_steps for s in stages)} steps in '
      f'{len(stages)} stages: {", ".join(s.name for s in stages)}')


def show_plan(
    config: experiment.Config, target: topology.Target | None = None
) -> Iterator[str]:
  """Lines on memory and FLOPs of the stages, from compilation alone."""
  run = experiment.setup(config, target and target.devices)
  yield cli.describe_devices(run.mesh())
  yield from plan.show(
      plan.plan(make_stages(run)), target and target.hbm_bytes)
