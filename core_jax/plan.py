"""Memory and FLOPs of every stage, from compilation ahead of time."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import jax

from core_jax import flops
from core_jax import loop

_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """Of one stage's step, per device.

  Attributes:
    num_steps: of the stage.
    state_bytes, batch_bytes, frozen_bytes: what it is given.
    temporary_bytes: activations, gradients and the rest, as compiled; None
      where the compiler gave up, and says in `needed_bytes` alone what it
      would have taken.
    needed_bytes: all at once; at least the state and what it is born from.
    gflop: of a step, see `flops.count`.
    state_parts: bytes of the largest parts of the state, by name.
  """

  num_steps: int
  state_bytes: int
  batch_bytes: int
  frozen_bytes: int
  temporary_bytes: int | None
  needed_bytes: int
  gflop: float
  state_parts: dict[str, int]


def plan(
    stages: Sequence[loop.Stage], given: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, StagePlan]]:
  """Compiles every stage's step and runs none; names and plans, one by one."""
  results = dict(given or {})
  for stage in stages:
    frozen = loop.abstract_frozen(
        stage, jax.eval_shape(stage.frozen, results))
    state = loop.abstract_state(stage, frozen)
    yield stage.name, _plan_stage(stage, state, frozen)
    results[stage.name] = jax.eval_shape(stage.params, state)


def _plan_stage(stage, state, frozen):
  batch = loop.abstract_batch(stage)
  at_birth = _local_bytes(state) + _local_bytes(frozen)
  frozen = loop.read_by_step(stage, frozen)
  traced = loop.traced_step(stage, state, batch, frozen)
  given = [_local_bytes(tree) for tree in (state, batch, frozen)]
  try:
    memory = traced.lower().compile().memory_analysis()
    temporary = memory.temp_size_in_bytes
    needed = sum(given) + temporary
  except jax.errors.JaxRuntimeError as error:
    temporary, needed = None, _wanted_bytes(error)
  return StagePlan(
      stage.num_steps, *given, temporary, max(needed, at_birth),
      flops.count(traced.jaxpr) / stage.mesh.shape['data'] / 1e9,
      _parts(state))


def _wanted_bytes(error):
  """Of a program that does not fit: the compiler says 'Used 17.3G of ...'."""
  found = re.search(r'Used ([\d.]+)([KMGT]) of', str(error))
  if 'RESOURCE_EXHAUSTED' not in str(error) or not found:
    raise error
  return int(float(found[1]) * _UNITS[found[2]])


def _local_bytes(tree):
  """Bytes of one device's share."""
  return sum(
      jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype).size
      * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _parts(state):
  """The fields of the state, and of what its fields hold, that weigh most."""
  def split(name, tree):
    fields = getattr(tree, '__dataclass_fields__', None)
    if fields is None:
      return {name: _local_bytes(tree)}
    return {k: v for field in fields
            for k, v in split(field, getattr(tree, field)).items()}
  parts = {name: n for name, n in split('state', state).items() if n >= 2**10}
  return dict(sorted(parts.items(), key=lambda item: -item[1]))


def show(
    plans: Iterable[tuple[str, StagePlan]], hbm_bytes: int | None = None,
    knobs: Mapping[str, Iterable[str]] | None = None) -> Iterator[str]:
  """For people, a stage as soon as it is compiled.

  Args:
    plans: of the stages, see `plan`.
    hbm_bytes: memory of a device; None says nothing on whether it fits.
    knobs: what to change where it does not: 'state' and 'temporary' -> texts,
      the best first.
  """
  yield 'Per device:'
  for name, p in plans:
    yield (f'  {name}: {p.num_steps} steps; {_sizes(p)}; '
           f'{p.gflop:,.2f} GFLOP a step')
    if p.state_bytes >= 2**20:
      yield '    state: ' + ', '.join(
          f'{part} {_size(n)}' for part, n in p.state_parts.items())
    if hbm_bytes:
      yield '    ' + _verdict(p, hbm_bytes, knobs or {})


def _sizes(p):
  sizes = {'state': p.state_bytes, 'batch': p.batch_bytes,
           'frozen': p.frozen_bytes, 'temporary': p.temporary_bytes}
  return ', '.join(f'{key} {_size(n)}' for key, n in sizes.items())


def _size(num_bytes):
  return 'unknown' if num_bytes is None else f'{num_bytes / 2**20:,.1f} MiB'


def _verdict(p, hbm_bytes, knobs):
  share = f'{_size(p.needed_bytes)} of {_size(hbm_bytes)}'
  # The compiler gives up by its own measure, a little less than the chip has.
  if p.temporary_bytes is not None and p.needed_bytes <= hbm_bytes:
    return f'fits: {share}'
  given = p.state_bytes + p.frozen_bytes
  order = ('temporary', 'state')
  if given > p.needed_bytes - given:
    order = order[::-1]
  advice = [text for key in order for text in knobs.get(key, ())]
  return f'DOES NOT FIT: {share}' + (
      f'; turn, in this order: {"; ".join(advice)}' if advice else '')
