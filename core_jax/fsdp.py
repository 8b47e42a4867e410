"""Weights and optimizer states split over the 'data' axis.

Each device keeps a part of every large leaf. A network gathers the params
that it reads, and their gradient is summed and split in one go; an optimizer
works on its part alone (ZeRO, arXiv 1910.02054; FSDP, arXiv 2304.11277).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

# Of elements: what is smaller costs more to gather than it saves.
_SMALLEST = 2**10


def specs(tree: Any, mesh: Mesh, prefix: Any) -> Any:
  """PartitionSpecs of all leaves, the large ones split over 'data' too.

  Args:
    tree: arrays, or their shapes.
    mesh: with an axis 'data'.
    prefix: specs that the leaves have already; a prefix of the tree.
  """
  return jax.tree.map(
      lambda spec, x: _split(x.shape, spec, mesh.shape['data']),
      jax.tree.broadcast(prefix, tree), tree)


def _split(shape, spec, parts):
  """The longest free dimension goes over 'data', of equals the last."""
  taken = list(spec) + [None] * (len(shape) - len(spec))
  size, free = 1, []
  for i, n in enumerate(shape):
    if taken[i] is None:
      size *= n
      if n % parts == 0:
        free.append((n, i))
  if parts == 1 or size < _SMALLEST or not free:
    return spec
  taken[max(free)[1]] = 'data'
  return P(*taken)


def gather(params: Any, mesh: Mesh) -> Any:
  """Inside a step: whole params; their gradients come back split."""
  if mesh.shape['data'] == 1:
    return params
  return jax.tree.map(lambda x: _gather(mesh)(x), params)


def _gather(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  whole = jax.custom_vjp(lambda x: _laid_out(x, mesh, P()))
  split = lambda dx: _laid_out(dx, mesh, specs(dx, mesh, P()))
  whole.defvjp(
      lambda x: (whole(x), None), lambda _, dx: (split(dx),))
  return whole


def _laid_out(x, mesh, spec):
  current = jax.sharding.get_abstract_mesh()  # in shard_map: 'student' manual
  return jax.lax.with_sharding_constraint(
      x, NamedSharding(mesh if current.empty else current, spec))
