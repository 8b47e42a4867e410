"""One run of several processes: the only place that knows of them.

Every process runs the same Python, on all devices of all hosts, and comes to
the same computations in the same order. Where they could differ, as signals,
clocks and files do, they agree here. One process agrees with itself, at no
cost.
"""

import collections
from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np


class FirstFailed(RuntimeError):
  """Process 0 cannot go on, so neither can this one."""


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
  """Makes this process one of several, before anything uses a device.

  By JAX's heartbeat, one that dies ends the others after 100 s; one that ends
  by an error waits 300 s for them first.

  Args:
    coordinator_address: host:port of process 0; None takes it, as the others,
      from TPU pods, SLURM and what else JAX knows, or from
      JAX_COORDINATOR_ADDRESS.
    num_processes: of all hosts.
    process_id: from 0.

  Raises:
    ValueError: one is not given, and JAX does not find it.
  """
  # It would take SIGTERM for itself; a run has its own way to stop.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(coordinator_address, num_processes, process_id)


def check_alone(what: str) -> None:
  """Raises ValueError where this is one of several processes."""
  if jax.process_count() > 1:
    raise ValueError(
        f'this is one of {jax.process_count()} processes, and {what} is of '
        'one: start it on a single host')


def check_joined() -> None:
  """Raises ValueError where there are several that did not `join`."""
  if not jax.distributed.is_initialized():
    check_alone('a run without --distributed')


def is_first() -> bool:
  """Whether this process is the one that writes and prints."""
  return is_alone() or jax.process_index() == 0


def is_alone() -> bool:
  """Whether there is one process; nothing is joined or asked for it."""
  return not jax.distributed.is_initialized() or jax.process_count() == 1


def largest(number: int) -> jax.Array | int:
  """The largest of what all processes say; each must ask as often.

  With several it is an array of the devices: to read it waits for the others.
  """
  if is_alone():
    return number
  each, reduced = _reduction()
  return reduced(jax.make_array_from_callback(
      (jax.device_count(),), each, lambda _: np.full(1, number, np.int32)))


@functools.cache
def _reduction():
  """The layout of one number for each device, and their compiled maximum."""
  mesh = Mesh(np.array(jax.devices()), ('all',))
  return NamedSharding(mesh, P('all')), jax.jit(
      jnp.max, out_shardings=NamedSharding(mesh, P()))


def make_poll(lag: int) -> Callable[[int], int]:
  """poll(number) -> the largest of what all processes said `lag` calls ago.

  All get the same answer at the same call, and 0 at the first calls. The
  devices find it behind what they have in flight, so that no host waits. One
  process has its own number at once.
  """
  if is_alone():
    return lambda number: number
  asked = collections.deque()

  def poll(number: int) -> int:
    asked.append(largest(number))
    return int(asked.popleft()) if len(asked) > lag else 0

  return poll


def on_first(function: Callable[[], Any]) -> Any:
  """What `function` returns on process 0, for which the others wait; or None.

  It must not compute on devices of other processes.

  Raises:
    FirstFailed: on the others, where it raised on process 0.
  """
  result = error = None
  if is_first():
    try:
      result = function()
    except BaseException as e:  # Stopped, too: the others wait.
      error = e
  failed = largest(error is not None)
  if error is not None:
    raise error
  if failed:
    raise FirstFailed('process 0 has failed, and says why')
  return result


def fetch(tree: Any) -> Any:
  """Arrays -> numpy, whole on every process; all must ask for the same."""
  return jax.device_get(jax.tree.map(
      lambda x: multihost_utils.process_allgather(x, tiled=True)
      if _is_elsewhere(x) else x, tree))


def _is_elsewhere(x):
  return isinstance(x, jax.Array) and not (
      x.is_fully_addressable or x.is_fully_replicated)
