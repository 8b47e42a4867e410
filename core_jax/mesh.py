"""The device mesh, and the one place where a step is compiled."""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

_EVERYWHERE = P()


def make_mesh(
    num_students: int = 1,
    student_devices: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh ('student', 'data') of all devices.

  Args:
    num_students: K, the length of the student axis of the state; 1 where the
      method has none.
    student_devices: devices along 'student'; 0 takes the largest number that
      divides both K and the number of devices.
    devices: defaults to all devices of all hosts.

  Raises:
    ValueError: `student_devices` does not divide K or the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  size = student_devices or math.gcd(num_students, len(devices))
  if num_students % size or len(devices) % size:
    raise ValueError(
        f'student_devices={size} must divide num_students={num_students} and '
        f'the {len(devices)} devices; '
        f'{math.gcd(num_students, len(devices))} does')
  # make_mesh alone gives Explicit axes, which need jax.set_mesh everywhere.
  return jax.make_mesh(
      (size, len(devices) // size), ('student', 'data'),
      axis_types=(AxisType.Auto,) * 2, devices=devices)


def check_batch_size(
    batch_size: int, mesh: Mesh, field: str, microbatches: int = 1
) -> None:
  """Raises ValueError where `batch_size` does not divide over 'data'.

  Each of the microbatches does, if there are several.
  """
  parts = mesh.shape['data'] * microbatches
  if batch_size < 1 or batch_size % parts:
    nearest = max(parts, parts * round(batch_size / parts))
    times = f' in {microbatches} microbatches' if microbatches > 1 else ''
    raise ValueError(
        f'{field}={batch_size} does not divide over the {mesh.shape["data"]} '
        f"devices of the mesh's 'data' axis{times}; the nearest that does is "
        f'{nearest}')


def shardings(mesh: Mesh, specs: Any) -> Any:
  """A tree of PartitionSpecs -> the same tree of NamedShardings."""
  return jax.tree.map(
      lambda spec: NamedSharding(mesh, spec), specs,
      is_leaf=lambda x: isinstance(x, P))


def laid_out(tree: Any, mesh: Mesh, specs: Any) -> Any:
  """Shapes and dtypes of a tree, on the mesh as `specs`, a prefix, say."""
  return jax.tree.map(
      lambda s, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.tree.broadcast(shardings(mesh, specs), tree), tree)


def put(tree: Any, mesh: Mesh, spec: P) -> Any:
  """Arrays that each host holds whole -> global ones, laid out by `spec`."""
  sharding = NamedSharding(mesh, spec)
  return put_whole(tree, jax.tree.map(lambda _: sharding, tree))


def put_whole(tree: Any, layout: Any) -> Any:
  """Arrays that each host holds whole -> global ones with these shardings."""
  return jax.tree.map(
      lambda x, sharding: jax.make_array_from_process_local_data(
          sharding, np.asarray(x), np.shape(x)), tree, layout)


def split_rows(x: jax.Array, mesh: Mesh) -> jax.Array:
  """Inside a step: lays the rows of [B, ...] out over the 'data' axis."""
  if mesh.shape['data'] == 1:
    return x
  current = jax.sharding.get_abstract_mesh()  # in shard_map: 'student' manual
  sharding = NamedSharding(mesh if current.empty else current, P('data'))
  return jax.lax.with_sharding_constraint(x, sharding)


def update_students(
    update: Callable[..., tuple[Any, Any]], mesh: Mesh
) -> Callable[..., tuple[Any, Any]]:
  """`update(student, inputs, *shared)` for each of K students, in place.

  Devices along 'student' take equal shares of the K students; a device goes
  through its share one by one. (A vmap would turn a convolution by K kernels
  into a grouped one, slow everywhere.) 'data' stays with the compiler.

  The loop carries all students, and the new state of one takes the place of
  its old one: the results of a map would be a second [K, ...].

  Args:
    update: (student, inputs, *shared) -> (student, result), pytrees without
      the axis K; the student keeps its shapes and dtypes.
    mesh: has an axis 'student' that divides K.

  Returns:
    (students [K, ...], inputs [K, ...], *shared) -> (students, results).
  """

  def local(students, inputs, *shared):
    def turn(students, row):
      k, own = row
      student, result = update(
          jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(
              x, k, keepdims=False), students), own, *shared)
      return jax.tree.map(
          lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, k, 0),
          students, student), result

    num_local = jax.tree.leaves(students)[0].shape[0]
    return jax.lax.scan(turn, students, (jnp.arange(num_local), inputs))

  def updated(students, inputs, *shared):
    return jax.shard_map(
        local, mesh=mesh, axis_names={'student'}, out_specs=P('student'),
        in_specs=(*[P('student')] * 2, *[P()] * len(shared)))(
            students, inputs, *shared)

  return updated


def vary_like(tree: Any, reference: jax.Array) -> Any:
  """`tree` on every device of the axes along which `reference` differs.

  What is the same for all students must say so where a scan carries it on
  beside what is not.
  """
  axes = tuple(jax.typeof(reference).manual_axis_type.varying)
  cast = lambda x: jax.lax.pcast(x, axes, to='varying')
  return jax.tree.map(cast, tree) if axes else tree


def compile_step(
    step: Callable[..., Any], mesh: Mesh, state_spec: Any,
    frozen_spec: Any = _EVERYWHERE,
) -> Callable[..., Any]:
  """Compiles `step(state, batch, frozen) -> (state, metrics)`.

  The state is donated and keeps its layout; rows of the batch are split over
  'data'; frozen weights are an argument, by default replicated, not donated.
  """
  state = shardings(mesh, state_spec)
  everywhere = NamedSharding(mesh, P())
  return jax.jit(
      step,
      in_shardings=(state, NamedSharding(mesh, P('data')),
                    shardings(mesh, frozen_spec)),
      out_shardings=(state, everywhere),
      donate_argnums=0)
