"""Checkpoints: `state` resumes a run on any mesh, `params` loads anywhere.

`<workdir>/checkpoints/<step>/` has four items: `state`, as the step left it;
`params`, what a program downstream wants, with numpy leaves that carry no
device layout; as JSON, `config`, and `reached`, where in the run it is.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import pathlib
from typing import Any

from absl import logging
import jax
import ml_collections
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from core_jax import hosts

Manager = ocp.CheckpointManager

# Orbax has the devices that hold copies of an array write a slice each, and
# each slice of each shape is a program to compile: of small arrays, one device
# writes all.
_LEAST_SLICE_BYTES = 2**20


class CheckpointError(RuntimeError):
  """No checkpoint could be written, or read; the message says what is safe."""


def manager(workdir: str, *, keep: int, milestones: Sequence[int]) -> Manager:
  """Keeps the `keep` newest checkpoints, and those of `milestones`."""
  options = ocp.CheckpointManagerOptions(
      # The loop decides when to save: every call saves.
      save_decision_policy=policies.FixedIntervalPolicy(1),
      preservation_policy=policies.AnyPreservationPolicy([
          policies.LatestN(keep), policies.CustomSteps(tuple(milestones))]),
      cleanup_tmp_directories=True)
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  return Manager(path, options=options, handler_registry=_handlers())


def _handlers():
  arrays = ocp.type_handlers.ArrayHandler(
      min_slice_bytes_for_replica_parallel=_LEAST_SLICE_BYTES)
  return ocp.handlers.create_default_handler_registry(
      state=ocp.PyTreeCheckpointHandler(
          type_handler_registry=ocp.type_handlers.create_type_handler_registry(
              (jax.Array, arrays))))


def save(
    mgr: Manager,
    step: int,
    *,
    state: Any,
    params: Any,
    config: ml_collections.ConfigDict,
    reached: Mapping[str, Any],
) -> None:
  """Starts to save in the background; an error of the last save rises here.

  Args:
    mgr: of the run.
    step: global.
    state: on the devices.
    params: with numpy leaves.
    config: of the run.
    reached: see `reached`.

  Raises:
    CheckpointError: the disk is full or the folder not writable.
  """
  try:
    mgr.save(step, force=True, args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        params=ocp.args.StandardSave(params),
        config=ocp.args.JsonSave(config.to_dict()),
        reached=ocp.args.JsonSave(dict(reached))))
  except Exception as e:
    raise _unwritten(mgr, e) from e


def finish(mgr: Manager) -> None:
  """Waits until the last save is on disk; raises as `save` does."""
  try:
    mgr.wait_until_finished()
  except Exception as e:
    raise _unwritten(mgr, e) from e


def _unwritten(mgr, error):
  mgr.reload()  # Steps as they are on the disk.
  return CheckpointError(
      f'Could not write a checkpoint: {_first_line(error)} '
      f'{last_good(mgr)} If the disk is full, free some space in '
      f'{mgr.directory}, then run the same command again: it resumes.')


def last_good(mgr: Manager) -> str:
  """A sentence on the newest checkpoint, for messages."""
  step = mgr.latest_step()
  if step is None:
    return 'No checkpoint was saved before it.'
  return f'The last good checkpoint is {mgr.directory}/{step}.'


def _first_line(error):
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def restore_newest(mgr: Manager, steps: range, target: Any) -> Any | None:
  """The newest readable state among `steps`, laid out as `target` says.

  Those newer than it are named as damaged and set aside: once an older one
  was read, the fault is theirs and not of the memory, rights or packages.

  Args:
    mgr: of the run.
    steps: global steps to look at.
    target: ShapeDtypeStructs with shardings.

  Returns:
    The state, or None where there is no checkpoint of these steps.

  Raises:
    CheckpointError: there are some, and none can be read; or the newest
      cannot, and this is one of several processes. None was moved.
  """
  layout = ocp.args.PyTreeRestore(
      target, ocp.checkpoint_utils.construct_restore_args(target))
  damaged = []
  for step in sorted(set(steps) & set(mgr.all_steps()), reverse=True):
    try:
      state = mgr.restore(step, args=ocp.args.Composite(state=layout)).state
    except Exception as e:  # Whatever a damaged file makes a reader raise.
      _check_alone(mgr, step, e)
      damaged.append((step, e))
      continue
    for newer, error in damaged:
      _set_aside(mgr, newer, error)
    return jax.tree.map(_keys_again, state, target)
  if damaged:
    step, error = damaged[0]
    raise CheckpointError(
        f'None of {len(damaged)} checkpoints of this stage in {mgr.directory} '
        f'can be read; the newest, {step}: {_first_line(error)} All are left '
        'as they are. If memory, rights or packages have changed, put that '
        'right and run the same command again; to begin anew, give another '
        '--workdir.') from error
  return None


def _keys_again(leaf, target):
  """Keys come back as their words: our handler has no metadata of arrays."""
  if not jax.dtypes.issubdtype(target.dtype, jax.dtypes.prng_key):
    return leaf
  return jax.device_put(jax.random.wrap_key_data(leaf), target.sharding)


def _check_alone(mgr, step, error):
  """Several processes would not agree on an older step: each reads alone."""
  if not hosts.is_alone():
    raise CheckpointError(
        f'{mgr.directory}/{step} cannot be read: {_first_line(error)} If it is '
        'damaged, move it away, and run the same commands again: they go on '
        'from the one before it.') from error


def _set_aside(mgr, step, error):
  """Moves a damaged checkpoint out of the way, with a word on it."""
  path = pathlib.Path(mgr.directory) / str(step)
  names = (f'damaged-{step}{tail}' for tail in itertools.chain(
      [''], (f'-{i}' for i in itertools.count(2))))
  aside = next(
      new for name in names if not (new := path.with_name(name)).exists())
  hosts.on_first(lambda: path.rename(aside))
  mgr.reload()
  logging.warning(
      'Checkpoint %s is damaged (%s). Moved to %s; going on from the one '
      'before it.', path, _first_line(error), aside.name)


def restore_params(mgr: Manager, step: int) -> Any:
  """The params of a step, with numpy leaves."""
  return mgr.restore(step, args=ocp.args.Composite(
      params=ocp.args.StandardRestore())).params


def finished_params(mgr: Manager, step: int) -> Any | None:
  """The params of a step, or None, with a word on it where it is there."""
  if step not in mgr.all_steps():
    return None
  try:
    return restore_params(mgr, step)
  except Exception as e:  # Whatever a damaged file makes a reader raise.
    _check_alone(mgr, step, e)
    logging.warning(
        'The params of checkpoint %s/%d cannot be read (%s); its state may '
        'be. To have it written again, move it away.', mgr.directory, step,
        _first_line(e))
    return None


def load(workdir: str, step: int | None = None) -> tuple[Any, dict[str, Any]]:
  """(params, config) of a run, for programs downstream: numpy and a dict.

  Args:
    workdir: the run's folder.
    step: one of `<workdir>/checkpoints/*`; the newest by default.

  Raises:
    FileNotFoundError: the folder has no checkpoint.
  """
  path = _path(workdir, step)
  with ocp.StandardCheckpointer() as reader:
    params = reader.restore(path / 'params')
  return params, _read_json(path / 'config')


def load_config(workdir: str) -> dict[str, Any]:
  """The config of a run that has a checkpoint; errors are those of `load`."""
  return _read_json(_path(workdir) / 'config')


def reached(workdir: str) -> dict[str, Any]:
  """Where a run's newest checkpoint is; errors are those of `load`.

  Returns:
    'stage', its name; 'step' of 'num_steps' of that stage; 'last_stage', a
    bool: no stage comes after it.
  """
  return _read_json(_path(workdir) / 'reached')


def _path(workdir, step=None):
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  steps = sorted(int(p.name) for p in path.glob('[0-9]*') if p.name.isdigit())
  if not steps or (step is not None and step not in steps):
    raise FileNotFoundError(
        f'No checkpoint {"" if step is None else step} in {path}; '
        f'it has steps {steps}')
  return path / str(steps[-1] if step is None else step)


def _read_json(path):
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    return reader.restore(path)
