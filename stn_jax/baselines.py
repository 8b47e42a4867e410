"""Ordinary training in the same space: fixed values, replays, searches."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import json
import math
import pathlib
import time
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from core_jax import folder
from core_jax import metrics as metrics_lib
from stn_jax import experiment
from stn_jax import problem as problem_lib
from stn_jax import schedule as schedule_lib
from stn_jax import space as space_lib
from stn_jax import updates

# Decades around its start in which a scale without bounds is searched.
_DECADES = 2


@struct.dataclass
class State:
  """Of ordinary training; arrays only."""
  step: jax.Array
  key: jax.Array
  params: Any
  opt_state: Any
  variables: Any


def make_init(run: experiment.Setup, tx, example) -> Callable[[], State]:
  """() -> State, the weights as a self-tuning run with this seed has them."""
  init_variables = problem_lib.make_init_variables(run.problem, example)

  def init():
    params_key, _, key = jax.random.split(jax.random.key(run.config.seed), 3)
    variables = dict(init_variables(params_key))
    params = variables.pop('params')
    return State(jnp.int32(0), key, params, tx.init(params), variables)

  return init


def make_round(run: experiment.Setup, tx) -> Callable[..., Any]:
  """(state, batch, values) -> (state, loss): T updates at given values.

  `batch` has fields [B, T, ...]; `values` is name -> [].
  """

  def step(state, batch, values):
    batches = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch)
    num_updates = problem_lib.num_examples(batches)
    keys = jax.random.split(
        jax.random.fold_in(state.key, state.step), num_updates)

    def body(state, inputs):
      batch, key = inputs
      size = problem_lib.num_examples(batch)
      hypers = {name: jnp.full(size, x) for name, x in values.items()}
      params, opt_state, variables, loss = updates.plain_update(
          run.problem, tx, state.params, state.opt_state, state.variables,
          batch, hypers, key)
      return state.replace(
          params=params, opt_state=opt_state, variables=variables), loss

    state, losses = jax.lax.scan(
        body, state, (batches, keys),
        unroll=num_updates if run.config.unroll else 1)
    return state.replace(step=state.step + 1), jnp.mean(losses)

  return step


def evaluated_rounds(num_rounds: int, evaluations: int) -> list[int]:
  """Rounds after which a run is evaluated, evenly spaced, the last too.

  All of them where there are fewer than `evaluations`.
  """
  return sorted({math.ceil(num_rounds * k / evaluations)
                 for k in range(1, evaluations + 1)})


class Trainer:
  """Trains the plain model by schedules; compiles once for all of them."""

  def __init__(
      self, run: experiment.Setup, on_round: Callable[[], None] = lambda: None
  ):
    """`on_round` is called before every round, and may raise to stop it."""
    tx = experiment.make_optimizers(run.config).params
    self._batch = experiment.round_batch(run)
    example = jax.tree.map(lambda x: x[:, 0], self._batch(0)['train'])
    self._init = jax.jit(make_init(run, tx, example))
    self._round = jax.jit(make_round(run, tx), donate_argnums=0)
    self._evaluate = experiment.make_evaluate(run)
    self._num_rounds = run.config.num_rounds
    self._evaluations = run.config.evaluations
    self._on_round = on_round

  def __call__(self, schedule: schedule_lib.Schedule) -> dict[str, Any]:
    """Trains by name -> [R]; figures at the end, and where validation is best.

    Returns:
      'valid_<measure>', 'test_<measure>' at the end, 'best_...' of the same
      where the validation loss was least of the `evaluated_rounds`,
      'seconds', 'curve': rows of (round, validation loss).
    """
    started, state = time.monotonic(), self._init()
    weights = lambda: {'params': state.params, 'variables': state.variables}
    evaluated = evaluated_rounds(self._num_rounds, self._evaluations)
    curve, best = [], None
    for i in range(self._num_rounds):
      self._on_round()
      values = {name: x[i] for name, x in schedule.items()}
      state, _ = self._round(state, self._batch(i)['train'], values)
      done = i + 1
      if done in evaluated:
        valid = self._evaluate(weights(), 'valid')
        curve.append((done, metrics_lib.or_null(valid['loss'])))
        if best is None or valid['loss'] < best[0]['loss']:
          best = valid, jax.tree.map(jnp.copy, weights())
    figures = {
        f'{prefix}{part}_{name}': metrics_lib.or_null(value)
        for prefix, part, means in (
            ('', 'valid', valid),
            ('', 'test', self._evaluate(weights(), 'test')),
            ('best_', 'valid', best[0]),
            ('best_', 'test', self._evaluate(best[1], 'test')))
        for name, value in means.items()}
    return figures | {
        'curve': curve, 'seconds': round(time.monotonic() - started, 2)}


def search_range(h: space_lib.Hyperparameter) -> tuple[float, float, str]:
  """(low, high, 'linear', 'int' or 'log'), closed, of a search of `h`."""
  if h.whole:
    return h.low, h.high - 1, 'int'
  if math.isinf(h.high):
    if math.isinf(h.low):
      return h.start - 3, h.start + 3, 'linear'
    return h.start / 10**_DECADES, h.start * 10**_DECADES, 'log'
  edge = 1e-3 * (h.high - h.low)
  return h.low + edge, h.high - edge, 'linear'


def random_values(
    space: space_lib.Space, seed: int, trial: int
) -> dict[str, float]:
  """The values of one trial of random search."""
  rng = np.random.default_rng((seed, trial))
  values = {}
  for name, h in space.items():
    low, high, kind = search_range(h)
    if not h.tuned:
      values[name] = h.start
    elif kind == 'int':
      values[name] = int(rng.integers(low, high + 1))
    elif kind == 'log':
      values[name] = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    else:
      values[name] = float(rng.uniform(low, high))
  return values


class TPE:
  """Optuna's tree-structured Parzen estimator in the same space."""

  def __init__(self, space: space_lib.Space, seed: int):
    import optuna  # the extra [stn]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    self._space = space
    self._study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed))

  def ask(self) -> tuple[Any, dict[str, float]]:
    """(a ticket, values of the next trial)."""
    trial, values = self._study.ask(), {}
    for name, h in self._space.items():
      low, high, kind = search_range(h)
      if not h.tuned:
        values[name] = h.start
      elif kind == 'int':
        values[name] = trial.suggest_int(name, int(low), int(high))
      else:
        values[name] = trial.suggest_float(name, low, high, log=kind == 'log')
    return trial, values

  def tell(self, ticket: Any, loss: float | None) -> None:
    """The validation loss of a trial; None where it diverged."""
    self._study.tell(ticket, 1e6 if loss is None else loss)


class Journal:
  """Finished trials of a run, one JSON line each: nothing is trained twice."""

  def __init__(self, workdir: pathlib.Path):
    self._path = workdir / 'trials.jsonl'
    self.rows = {}
    if self._path.exists():
      for line in self._path.read_text().splitlines():
        try:
          row = json.loads(line)
        except ValueError:  # Cut short by a kill: the trial is trained again.
          continue
        self.rows[row['name']] = row
      folder.write_text(
          self._path,
          ''.join(json.dumps(row) + '\n' for row in self.rows.values()))

  def get(self, name: str, train: Callable[[], Mapping[str, Any]]) -> Any:
    """The row of a trial, trained if it is not there."""
    if name not in self.rows:
      row = {'name': name, **train()}
      with self._path.open('a') as file:
        file.write(json.dumps(row) + '\n')
      self.rows[name] = row
    return self.rows[name]


def trials(
    run: experiment.Setup, trainer: Trainer,
    tuned: Mapping[str, schedule_lib.Schedule], journal: Journal,
    num_trials: int,
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Trains what config.baselines asks for: yields (name, figures).

  Args:
    run: of the config.
    trainer: of the run.
    tuned: method -> its schedule, for replays and final values.
    journal: of the run's folder.
    num_trials: of each search.
  """
  config, space = run.config, run.problem.space
  flat = lambda values: schedule_lib.constant(values, config.num_rounds)

  def trial(name, schedule):
    return name, journal.get(name, lambda: {
        'values': {n: float(x[-1]) for n, x in schedule.items()},
        **trainer(schedule)})

  if 'fixed' in config.baselines:
    yield trial('fixed', flat({n: h.start for n, h in space.items()}))
  for method, found in tuned.items():
    if 'replay' in config.baselines:
      yield trial(f'replay_{method}', found)
    if 'final' in config.baselines:
      yield trial(f'final_{method}', flat({n: x[-1] for n, x in found.items()}))
  if 'random' in config.baselines:
    for i in range(num_trials):
      yield trial(f'random/{i}', flat(random_values(space, config.seed, i)))
  if 'tpe' in config.baselines:
    sampler = TPE(space, config.seed)
    for i in range(num_trials):
      ticket, values = sampler.ask()
      name, row = trial(f'tpe/{i}', flat(values))
      sampler.tell(ticket, row['best_valid_loss'])
      yield name, row
