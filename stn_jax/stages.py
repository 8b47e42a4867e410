"""A run's tuning stages, and what each costs in plain training runs."""

from collections.abc import Mapping
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import ml_collections

from core_jax import flops
from core_jax import loop
from core_jax import mesh as mesh_lib
from stn_jax import baselines
from stn_jax import experiment
from stn_jax import implicit
from stn_jax import state as state_lib
from stn_jax import tuner


def tune_stage(run: experiment.Setup, method: str) -> loop.Stage:
  """Self-tuning by one method, `num_rounds` rounds."""
  config, problem = run.config, run.problem
  mesh = mesh_lib.make_mesh()
  mesh_lib.check_batch_size(config.batch_size, mesh, 'batch_size')
  settings = state_lib.Settings(
      method, config.warmup_rounds, config.entropy_weight,
      config.tune_scales, config.rank, config.unroll, config.diagnose)
  optimizers = experiment.make_optimizers(config)
  batch = experiment.round_batch(run)
  example = jax.tree.map(lambda x: x[:, 0], batch(0)['train'])
  return loop.Stage(
      name=method,
      num_steps=config.num_rounds,
      mesh=mesh,
      init=tuner.make_init(
          problem, settings, optimizers, example, config.num_rounds,
          config.seed),
      step=(implicit.make_round(problem, settings, optimizers,
                                _solver(config))
            if method == 'implicit'
            else tuner.make_round(problem, settings, optimizers)),
      params=functools.partial(_handed_on, method),
      batch=batch,
      state_spec=P())


def _solver(config):
  if config.implicit_solver == 'neumann':
    return functools.partial(
        implicit.neumann, num_steps=config.implicit_steps,
        step_size=config.implicit_step_size)
  return functools.partial(
      implicit.conjugate_gradient, num_steps=config.implicit_steps)


def _handed_on(method, state):
  """What a run saves for others: its weights, and how it got there.

  Delta-STN's weights are those of the plain model; STN's need their response
  at lam.
  """
  found = {
      'params': state.params, 'lam': state.lam, 'rho': state.rho,
      'history': state.history}
  if method == 'stn':
    found['response'] = state.response
  # A checkpoint has no word for an empty tree.
  return found | ({'variables': state.variables} if state.variables else {})


def costs(run: experiment.Setup) -> dict[str, float]:
  """Method -> what its run costs in plain runs, in operations of the round.

  Products and convolutions count, as traced (`flops.count`), over those of a
  plain round of as many updates; diagnosis does not.
  """
  plain = _plain_flops(run)
  return {method: round(_tuned_flops(run, method) / plain, 2)
          for method in run.config.methods}


def num_trials(costs: Mapping[str, float], times: float) -> int:
  """Plain runs that make up `times` the cost of the dearest method."""
  return math.ceil(times * max(costs.values()))


def _tuned_flops(run, method):
  config = ml_collections.ConfigDict(run.config.to_dict())
  config.diagnose = False
  if method == 'implicit':
    # As many products with the Hessian, in a loop whose turns can be counted.
    config.implicit_solver = 'neumann'
  stage = tune_stage(dataclasses.replace(run, config=config), method)
  state = jax.eval_shape(stage.init, {})
  return flops.count(jax.make_jaxpr(stage.step)(state, stage.batch(0), {}))


def _plain_flops(run):
  tx = experiment.make_optimizers(run.config).params
  batch = experiment.round_batch(run)(0)['train']
  example = jax.tree.map(lambda x: x[:, 0], batch)
  state = jax.eval_shape(baselines.make_init(run, tx, example))
  values = {name: jnp.float32(h.start) for name, h in run.problem.space.items()}
  return flops.count(
      jax.make_jaxpr(baselines.make_round(run, tx))(state, batch, values))
