"""Memory and FLOPs of every stage, from compilation ahead of time."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from core_jax import loop
from core_jax import mesh as mesh_lib


def plan(
    stages: Sequence[loop.Stage], given: Mapping[str, Any] | None = None
) -> dict[str, dict[str, float]]:
  """Compiles every stage's step and runs none.

  Returns:
    Stage -> `state_bytes`, `batch_bytes`, `frozen_bytes` and
    `temporary_bytes` per device, `gflop` per device and step as the compiler
    counts them (a scan's body once), `num_steps`.
  """
  results = dict(given or {})
  plans = {}
  for stage in stages:
    frozen = _laid_out(jax.eval_shape(stage.frozen, results), stage.mesh, P())
    batch = _laid_out(stage.batch(0), stage.mesh, P('data'))
    state = loop.abstract_state(stage, frozen)
    compiled = mesh_lib.compile_step(
        stage.step, stage.mesh, stage.state_spec).lower(
            state, batch, frozen).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    plans[stage.name] = {
        'num_steps': stage.num_steps,
        'state_bytes': _local_bytes(state),
        'batch_bytes': _local_bytes(batch),
        'frozen_bytes': _local_bytes(frozen),
        'temporary_bytes': memory.temp_size_in_bytes if memory else 0,
        'gflop': cost.get('flops', 0) / 1e9 if cost else 0}
    results[stage.name] = jax.eval_shape(stage.params, state)
  return plans


def _laid_out(tree, mesh, spec):
  sharding = NamedSharding(mesh, spec)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      tree)


def _local_bytes(tree):
  """Bytes of one device's share."""
  return sum(
      jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype).size
      * x.dtype.itemsize for x in jax.tree.leaves(tree))


def show(plans: dict[str, dict[str, float]]) -> str:
  """A table for people."""
  lines = ['Per device:']
  for name, p in plans.items():
    parts = ', '.join(
        f'{key} {p[f"{key}_bytes"] / 2**20:.1f} MiB'
        for key in ('state', 'batch', 'frozen', 'temporary'))
    lines.append(
        f'  {name}: {p["num_steps"]} steps; {parts}; {p["gflop"]:.2f} GFLOP '
        "a step as the compiler counts (a loop's body once)")
  return '\n'.join(lines)
