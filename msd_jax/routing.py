"""One-step generation: each label goes to the student that knows its class."""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from core_jax import data as core_data
from msd_jax import diffusion
from msd_jax import networks
from msd_jax import turns

_ARRAYS = ('generator', 'router', 'sigma_max', 'sigma_data', 'sigma_min')


def bundle(
    generators: Any,
    module: nn.Module,
    router: np.ndarray,
    *,
    sigma_max: float,
    sigma_data: float,
    sigma_min: float = 0.,
    ema_decay: float | None = None,
) -> dict[str, Any]:
  """What a run saves and `generate` takes: params that explain themselves.

  Args:
    generators: params [K, ...].
    module: whose params they are.
    router: int32 [Y], the student of every label, -1 for none of these.
    sigma_max: of the noise that the generators take.
    sigma_data: of their preconditioning.
    sigma_min: the same; above 0 for consistency models.
    ema_decay: of the average that the generators are, per update; 0: they are
      none; None: not known, saved as NaN.
  """
  return {
      'generator': generators,
      'router': jnp.asarray(router, jnp.int32),
      'sigma_max': jnp.float32(sigma_max),
      'sigma_data': jnp.float32(sigma_data),
      'sigma_min': jnp.float32(sigma_min),
      'ema_decay': jnp.float32(jnp.nan if ema_decay is None else ema_decay),
      'network': networks.describe(module)}


def generate(
    params: dict[str, Any],
    labels: Any,
    key: jax.Array,
    *,
    block_size: int = 64,
) -> jax.Array:
  """Images of `labels` by one forward pass of one student each.

  The noise of image i depends on the key and on i alone, so an image does not
  change with the company that it is made in. Any labels of the same number
  run in the same compiled program.

  Args:
    params: as saved in `checkpoints/<step>/params`.
    labels: int [B].
    key: typed PRNG key.
    block_size: images that one student makes at a time; each student that is
      asked fills its last block up.

  Returns:
    float32 [B, H, W, C] in about [-1, 1] (points: [B, 2]).

  Raises:
    ValueError: a label out of range, or of a student that is not there.
  """
  labels = _check(params, labels)
  module = networks.from_description(params['network'])
  arrays = {name: params[name] for name in _ARRAYS}
  if not len(labels):
    return jnp.zeros((0, *networks.example_shape(module)))
  return _generate(module, min(block_size, len(labels)), arrays, labels, key)


def generate_on_each(
    params: dict[str, Any], mesh: jax.sharding.Mesh, block_size: int = 64
) -> Callable[[np.ndarray, jax.Array], jax.Array]:
  """`generate` of a batch of its own on every device of a mesh, at once.

  Args:
    params: as `generate` takes them; copied to each device.
    mesh: of n devices.
    block_size: see `generate`.

  Returns:
    (labels int [n, B], typed PRNG keys [n]) -> images [n, B, ...], with the
    errors of `generate`.
  """
  module = networks.from_description(params['network'])
  whole, split = P(), P(mesh.axis_names)
  arrays = jax.device_put(
      {name: params[name] for name in _ARRAYS}, NamedSharding(mesh, whole))

  # Nothing here sums over devices, which is all that is checked.
  @jax.jit
  @functools.partial(
      jax.shard_map, mesh=mesh, in_specs=(whole, split, split),
      out_specs=split, check_vma=False)
  def each(arrays, labels, keys):
    size = min(block_size, labels.shape[1])
    return _generate(module, size, arrays, labels[0], keys[0])[None]

  def call(labels, keys):
    shape = np.shape(labels)
    return each(arrays, _check(params, np.ravel(labels)).reshape(shape), keys)

  return call


def _check(params, labels):
  """int32 [B]; ValueError for labels that no student here can be asked."""
  labels = check_labels(labels, params['router'].shape[0])
  absent = np.flatnonzero(np.asarray(params['router'])[labels] < 0)
  if absent.size:
    raise ValueError(
        f'labels[{absent[0]}] = {labels[absent[0]]} is a class of another '
        'student; msd_jax.open_students takes a folder of several')
  return labels


def check_labels(labels: Any, num_classes: int) -> np.ndarray:
  """int [B] -> int32 [B]; ValueError where one is out of range."""
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
        f'labels must be integers of shape [B], not {labels.dtype} '
        f'{list(labels.shape)}')
  return core_data.check_labels(labels, num_classes, 'generate')


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(module, block_size, arrays, labels, key):
  noise = _noise(module, jnp.arange(len(labels)), key)
  return route(
      _one_step(module, arrays), arrays['generator'],
      arrays['router'][labels], noise, labels, block_size)


def generate_rows(
    params: dict[str, Any], labels: np.ndarray, rows: np.ndarray,
    key: jax.Array, block_size: int,
) -> np.ndarray:
  """Some of the images that `generate` makes of `labels`, by one student.

  Args:
    params: of one student, K = 1.
    labels: int32 [B], checked.
    rows: int [n], those that the student is asked for, n above 0.
    key: typed PRNG key.
    block_size: images made at a time.

  Returns:
    float32 [n, ...].
  """
  module = networks.from_description(params['network'])
  arrays, parts = {name: params[name] for name in _ARRAYS}, []
  size = min(block_size, len(labels))
  for start in range(0, len(rows), size):
    # The last block repeats its last row: one shape, one compilation.
    part = rows[np.minimum(np.arange(start, start + size), len(rows) - 1)]
    parts.append(_generate_block(module, arrays, labels[part], part, key))
  return np.concatenate(parts)[:len(rows)]


@functools.partial(jax.jit, static_argnums=0)
def _generate_block(module, arrays, labels, rows, key):
  generator = jax.tree.map(lambda x: x[0], arrays['generator'])
  return _one_step(module, arrays)(
      generator, _noise(module, rows, key), labels)


def _one_step(module, arrays):
  """(generator, noise, labels) -> images of one student."""
  denoised = diffusion.make_denoiser(
      networks.apply_fn(module), arrays['sigma_data'], arrays['sigma_min'])
  return lambda generator, noise, labels: turns.generated(
      denoised, generator, noise, labels, arrays['sigma_max'])


def _noise(module, rows, key):
  """Of the images `rows` int [n] of a call: [n, ...], each by its own key."""
  shape = networks.example_shape(module)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(rows)
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def route(
    one_student: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    student: jax.Array,
    noise: jax.Array,
    labels: jax.Array,
    block_size: int,
) -> jax.Array:
  """Runs each row through the student that it names, in blocks.

  Rows are sorted by student and laid into blocks of one student each. At
  most B / block_size + K blocks are needed, whatever the labels are, so
  shapes are fixed; a block that stays empty is skipped.

  Args:
    one_student: (params, noise [b, ...], labels [b]) -> images [b, ...].
    params: [K, ...].
    student: int32 [B], the student of each row.
    noise: [B, ...].
    labels: int32 [B].
    block_size: b.

  Returns:
    Images [B, ...], in the order of the rows.
  """
  num_rows = student.shape[0]
  num_students = jax.tree.leaves(params)[0].shape[0]
  num_blocks = -(-num_rows // block_size) + num_students
  counts = jnp.zeros(num_students, jnp.int32).at[student].add(1)
  blocks = -(-counts // block_size)  # [K]: how many each student fills
  first_block = jnp.cumsum(blocks) - blocks
  first_row = jnp.cumsum(counts) - counts  # in sorted order
  order = jnp.argsort(student)  # stable
  rank = jnp.arange(num_rows) - first_row[student[order]]
  slot = first_block[student[order]] * block_size + rank
  # Row of every slot; num_rows stands for 'none' and is dropped on the way out.
  rows = jnp.full(num_blocks * block_size, num_rows).at[slot].set(order)
  rows = rows.reshape(num_blocks, block_size)
  owner = jnp.searchsorted(jnp.cumsum(blocks), jnp.arange(num_blocks), 'right')

  def run_block(inputs):
    rows, owner = inputs

    def run():
      own = jax.tree.map(lambda x: x[owner], params)
      return one_student(
          own, noise.at[rows].get(mode='clip'),
          labels.at[rows].get(mode='clip'))

    return jax.lax.cond(
        owner < num_students, run,
        lambda: jnp.zeros((block_size, *noise.shape[1:]), noise.dtype))

  images = jax.lax.map(run_block, (rows, owner))
  images = images.reshape(-1, *noise.shape[1:])
  return jnp.zeros_like(noise).at[rows.reshape(-1)].set(images, mode='drop')
