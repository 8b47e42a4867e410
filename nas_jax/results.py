"""What a run shows: figures of merit, what controllers know, the report."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from nas_jax import analysis
from nas_jax import controller as controller_lib
from nas_jax import data
from nas_jax import experiment
from nas_jax import keys
from nas_jax import models
from nas_jax import search
from nas_jax import space as space_lib

_UNIFORM_SEED = 11


def num_windows(run: experiment.Setup, wanted: int) -> int:
  """Windows of the validation text in a measurement; 0 asks for all."""
  there = data.num_windows(run.text.valid, run.config.window_tokens)
  return min(wanted, there) if wanted else there


def costs(run: experiment.Setup, method: str) -> dict[str, float]:
  """Tokens trained on, a forward pass alone counted as a third.

  A mixture of all cells runs every edge, N / 2 times those of a cell, in its
  updates of the weights and of itself (DARTS). Random search evaluates cells
  at its end alone.

  Returns:
    'search' of a method with its derivation, 'scratch' of one training.
  """
  config, window = run.config, run.config.window_tokens
  train, valid = config.batch_size * window, config.valid_batch_size * window
  evaluated = 0 if method == 'uniform' else (
      config.num_rounds * config.strategy_updates
      * config.reward.samples_per_update)
  derived = experiment.num_candidates(config, method) * num_windows(
      run, config.derive.num_windows)
  search = config.num_rounds * config.shared_updates * train
  spent = search + (evaluated + derived) * valid / 3
  if method == 'darts':
    mixed = search + config.num_rounds * config.strategy_updates * valid
    spent = run.space.num_nodes / 2 * mixed + derived * valid / 3
  fields = config.retrain
  return {'search': spent,
          'scratch': fields.num_rounds * fields.updates_per_round * train}


def test_losses(
    run: experiment.Setup, model: models.Model, found: Mapping[str, Any]
) -> np.ndarray:
  """[R], nats a token of trained models on the test text."""
  window = run.config.window_tokens

  @jax.jit
  def losses(params, arch, streams):
    return jax.lax.map(
        lambda x: models.loss_on(model, *x, streams, window), (params, arch))

  return np.asarray(losses(found['params'], found['arch'], run.test))


def scratch_rows(
    run: experiment.Setup, found: Mapping[str, Any],
    names: Sequence[tuple[str, int]],
) -> dict[str, dict[str, float]]:
  """Name -> figures of what was trained from scratch, means over seeds."""
  if 'retrain' not in found:
    return {}
  rows: dict[str, dict[str, list[float]]] = {}
  tests = test_losses(run, models.recurrent(run.alone), found['retrain'])
  valids = np.asarray(found['retrain']['valid_losses'])
  for (name, _), valid, test in zip(names, valids, tests, strict=True):
    row = rows.setdefault(name, {'valid': [], 'test': []})
    row['valid'].append(float(valid))
    row['test'].append(float(test))
  if 'lstm' in found:
    size = experiment.lstm_size(run)
    model = models.lstm(
        run.corpus.vocab_size, size, run.config.retrain.init_scale)
    rows['lstm'] = {
        'valid': [float(x) for x in found['lstm']['valid_losses']],
        'test': [float(x) for x in test_losses(run, model, found['lstm'])]}
  return {name: _means(row) for name, row in rows.items()} | _best_random(
      rows)


def _means(row):
  return {f'{part}_perplexity': float(experiment.perplexity(np.mean(x)))
          for part, x in row.items()}


def _best_random(rows):
  """The random cell with the least validation loss, and their mean."""
  random = [row for name, row in rows.items() if name.startswith('random/')]
  if not random:
    return {}
  best = min(random, key=lambda row: row['valid'][0])
  everything = {part: [row[part][0] for row in random]
                for part in ('valid', 'test')}
  return {'random_best': _means(best), 'random_mean': _means(everything)}


class Measures(NamedTuple):
  """What measures what searches found, compiled once for all.

  Attributes:
    losses: (shared weights, tokens [M, S]) -> [M], nats a token of cells, as
      in deriving.
    sample: (policy's params, key, starts) -> Decisions of `num_cells` cells,
      each with a start of its own, or None.
    score: (policy's params, tokens [M, S]) -> Decisions.
    random: () -> `analysis.cell_measures` of the random cells, which may take
      minutes: once for all policies.
  """
  losses: Callable[[Any, Any], np.ndarray]
  sample: Callable[..., controller_lib.Decisions]
  score: Callable[..., controller_lib.Decisions]
  random: Callable[[], Mapping[str, np.ndarray]]


def make_measures(run: experiment.Setup) -> Measures:
  """Those of a config."""
  config = run.config
  windows = num_windows(run, config.derive.num_windows)
  controller = experiment.make_controller(config, run.space)
  losses = jax.jit(lambda shared, tokens, valid: models.losses_of(
      run.child, shared, tokens, valid, config.window_tokens, windows))
  sample = jax.jit(lambda params, key, starts: controller_lib.sample(
      controller, params, key, config.analysis.num_cells, starts))
  score = jax.jit(lambda params, tokens: controller_lib.score(
      controller, params, tokens))
  random = functools.cache(lambda: analysis.cell_measures(
      space_lib.decode(
          run.space, uniform_tokens(run, config.analysis.num_cells)),
      config.analysis.authors_measures))
  return Measures(
      lambda shared, tokens: np.asarray(
          losses(shared, tokens, run.text.valid)),
      lambda *args: jax.device_get(sample(*args)),
      lambda *args: jax.device_get(score(*args)), random)


def uniform_tokens(run: experiment.Setup, num: int) -> np.ndarray:
  """[num, S], the same random cells for every method and seed."""
  cells = space_lib.sample(run.space, jax.random.key(_UNIFORM_SEED), num)
  return np.asarray(space_lib.encode(run.space, cells))


def policy_report(
    run: experiment.Setup, measures: Measures, policy: Any,
    shared: Any = None, by_chance: np.ndarray | None = None,
) -> dict[str, Any]:
  """What a controller knows, by its own cells and by the same random ones.

  Args:
    run: of the config.
    measures: of the run.
    policy: the controller's params.
    shared: the shared weights, by which losses of its cells are measured.
    by_chance: [M], losses of the random cells by them.

  Returns:
    'own', 'different' and 'uniform': hidden-state reports of its own cells,
    of each of these once, {} where there are too few, and of random cells;
    'decisions', 'random_start': entropy and confidence; 'prefix':
    conditioning; 'hidden' [M, h] and 'losses' [M], nats or None, of the
    random cells.
  """
  fields = run.config.analysis
  controller = experiment.make_controller(run.config, run.space)
  key = keys.of_seed(run.config.seed, 'policy')
  own = measures.sample(policy, key, None)
  elsewhere = measures.sample(policy, key, controller_lib.random_starts(
      controller, keys.part(key, 'start'), fields.num_cells))
  random = measures.score(policy, uniform_tokens(run, fields.num_cells))
  losses = None if shared is None else measures.losses(shared, own.tokens)
  different = np.unique(own.tokens, axis=0, return_index=True)[1]

  def states(decisions, losses, rows=slice(None), measured=None):
    cells = space_lib.decode(run.space, decisions.tokens[rows])
    if losses is not None:
      losses = losses[rows] if np.isfinite(losses[rows]).sum() > 2 else None
    return analysis.hidden_state_report(
        decisions.hidden[rows, -1], cells, losses,
        measures=measured or analysis.cell_measures(
            cells, fields.authors_measures),
        num_permutations=fields.num_permutations, seed=run.config.seed)

  probs = lambda decisions: np.exp(decisions.log_probs)
  return {
      'own': states(own, losses),
      'different': (
          states(own, losses, different) if len(different) > 2 else {}),
      'uniform': states(random, by_chance, measured=measures.random()),
      'decisions': analysis.decision_report(probs(own)),
      'random_start': analysis.decision_report(probs(elsewhere)),
      'prefix': analysis.prefix_conditioning(
          random.tokens, probs(random)),
      'hidden': random.hidden[:, -1], 'losses': by_chance,
  }


def method_row(
    candidates: np.ndarray, by_chance: np.ndarray
) -> dict[str, float]:
  """A search's figures by its own shared weights.

  Args:
    candidates: [n], losses of what it chose among, nats.
    by_chance: [M], of random cells.

  Returns:
    Perplexities of the derived cell, and medians of the strategy's candidates
    and of random cells under the same weights.
  """
  perplexity = lambda x: float(experiment.perplexity(x))
  return {
      'shared_perplexity': perplexity(candidates.min()),
      'candidates_perplexity': perplexity(np.median(candidates)),
      'random_cells_perplexity': perplexity(np.median(by_chance))}


def collect(
    run: experiment.Setup, found: Mapping[str, Any],
    names: Sequence[tuple[str, int]],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
  """All figures of a finished run.

  Args:
    run: of the config.
    found: results of its stages.
    names: (whose cell, seed) of what was trained from scratch.

  Returns:
    Name -> figures, and method -> `policy_report`, where it has a controller.
  """
  measures = make_measures(run)
  random = uniform_tokens(run, run.config.analysis.num_cells)
  scratch = scratch_rows(run, found, names)
  by_chance = {
      method: measures.losses(found[f'search_{method}']['shared'], random)
      for method in run.config.methods}
  rows = {}
  for method in run.config.methods:
    rows[method] = {
        **method_row(np.asarray(found[f'derive_{method}']['losses']),
                     by_chance[method]),
        **scratch.pop(method, {})}
    spent = costs(run, method)
    if spent['scratch']:  # Else there is no unit.
      rows[method] |= {'cost': 1 + spent['search'] / spent['scratch']}
  for name, row in scratch.items():
    cost = run.config.retrain.random_cells if name == 'random_best' else 1
    rows[name] = {'cost': float(cost), **row}
  policies = {
      method: policy_report(
          run, measures, searched['strategy']['params']['policy'],
          searched['shared'], by_chance[method])
      for method in run.config.methods
      if 'params' in (searched := found[f'search_{method}'])['strategy']}
  if policies:
    # What a correlation is to be compared with, 0 it is not: the same
    # controller before it learnt.
    start = controller_lib.init_params(
        experiment.make_controller(run.config, run.space),
        search.split_key(run.config.seed)[1])
    policies['untrained'] = policy_report(run, measures, start)
  return rows, policies


def numbers(tree: Mapping[str, Any]) -> dict[str, Any]:
  """The same nested dicts without what is no single number."""
  return {
      name: numbers(value) if isinstance(value, Mapping) else value
      for name, value in tree.items()
      if isinstance(value, Mapping) or np.ndim(value) == 0}
