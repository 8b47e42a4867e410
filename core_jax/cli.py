"""What every method's `main` does, but for the method."""

from collections.abc import Callable
from collections.abc import Iterable
import contextlib
import os
import pathlib
import re
import sys
from typing import Any

from absl import app
from absl import flags
from clu import platform
import jax
import ml_collections
from ml_collections import config_flags

from core_jax import checkpoint
from core_jax import folder
from core_jax import hosts
from core_jax import loop
from core_jax import program
from core_jax import topology

Config = ml_collections.ConfigDict
# The flags below are those of the program, and --help tells of them.
flags.disclaim_key_flags()

_ERRORS = (checkpoint.CheckpointError, hosts.FirstFailed, *program.ERRORS)


def run(
    package: str,
    default: str,
    train: Callable[[Config, str], Any],
    show_plan: Callable[[Config, topology.Target | None], Iterable[str]],
    *,
    several_processes: bool = False,
) -> None:
  """Parses the flags, then trains or plans; one clear line for an error.

  Args:
    package: whose main this is.
    default: name of its embedded config.
    train: (config, workdir) -> anything.
    show_plan: (config, devices to plan for or None for those present) ->
      lines on memory and FLOPs, as they are found.
    several_processes: whether `train` can be one of several.
  """
  try:  # It reads the command line at once.
    config = config_flags.DEFINE_config_file(
        'config', _config_path(package, default), 'The experiment, a file of '
        'configs/; --config.field=value changes a field of it.')
  except (AttributeError, KeyError) as e:
    sys.exit(_unknown_field(e))
  workdir = flags.DEFINE_string(
      'workdir', None, "The run's folder; the same command in the same folder "
      'resumes. Default: runs/<package>-<config>.')
  plan = flags.DEFINE(
      flags.ArgumentParser(), 'plan', None,
      'Print memory and FLOPs per device, and run nothing: --plan of the '
      'devices that are here, --plan=v5e:4x4 (v4, v5p, v6e) of a TPU slice '
      'that is not, --plan=h100 of one such GPU.', boolean=True)
  join = _define_join(package, several_processes)

  def main(argv):
    program.refuse_words(argv)
    program.prepare()
    _use_compilation_cache()
    with program.one_line(_ERRORS):
      experiment = config.value
      experiment.to_dict()  # Where the file could not be read, raises here.
      if plan.value not in (None, 'false'):  # --noplan is 'false'.
        for line in show_plan(experiment, _target(plan.value)):
          print(line, flush=True)
        return
      join()
      path = workdir.value or _default_workdir(package)
      folder.name_workdir(path)
      platform.work_unit().set_task_status(f'{package}: {path}')
      with _stop_is_told(path), _memory_is_named():
        with contextlib.ExitStack() as stack:
          hosts.on_first(lambda: stack.enter_context(folder.held(path)))
          train(experiment, path)

  app.run(main, flags_parser=_parse)


@contextlib.contextmanager
def _stop_is_told(path):
  """Ends the process at a signal, and says how to go on.

  Loops that have something to save hear signals themselves.
  """
  try:
    with folder.stop_request(at_once=True):
      yield
  except loop.Interrupted as e:
    print(e, file=sys.stderr)
    sys.exit(e.exit_code)
  except folder.Stopped as e:
    print(f'{e}: what is finished is kept. To go on:\n'
          f'  {folder.resume_command(path)}', file=sys.stderr)
    sys.exit(128 + e.received)


@contextlib.contextmanager
def _memory_is_named():
  """A device out of memory is no bug of the program, and has a remedy."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise ValueError(
        f'a device is out of memory: {str(e).splitlines()[0]}. --plan says '
        'what each stage takes; smaller batches, and where the config has '
        'them compute.microbatches, remat and fsdp, need less') from e


def _define_join(package, several_processes):
  """Defines the flags of several processes; returns what heeds them."""
  distributed = flags.DEFINE_bool(
      'distributed', False, 'This is one of several processes, started by this '
      'command on each host of a TPU pod or by SLURM; elsewhere the three '
      'flags below say which. All must see the same --workdir.')
  address = flags.DEFINE_string(
      'coordinator_address', None, 'host:port of process 0.')
  num_processes = flags.DEFINE_integer('num_processes', None, 'Of all hosts.')
  process_id = flags.DEFINE_integer('process_id', None, 'From 0.')

  def join():
    if distributed.value:
      if not several_processes:
        raise ValueError(f'--distributed: {package} runs as one process')
      hosts.join(address.value, num_processes.value, process_id.value)

  return join


def _target(name):
  """What --plan[=NAME] plans for; None stands for the devices present."""
  if name == 'true':
    return None
  # The devices are only described, and libtpu must not look for real ones.
  jax.config.update('jax_platforms', 'cpu')
  # What is compiled never runs, and without haste the TPU compiler takes a
  # large network several times as long.
  jax.config.update('jax_exec_time_optimization_effort', -1.)
  return topology.describe(name)


def _parse(argv):
  """Command line -> what is no flag in it; one line for a wrong flag."""
  path = _flag(argv, 'config').split(':')[0]
  if path and not pathlib.Path(path).is_file():
    found = pathlib.Path('configs').glob('[a-z]*.py')
    there = ', '.join(sorted(str(path) for path in found))
    sys.exit(f'error: --config={path}: no such file'
             + (f'; there are {there}' if there else ''))
  if path:  # It may import another of its folder, wherever this runs.
    sys.path.append(str(pathlib.Path(path).resolve().parent.parent))
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as e:
    sys.exit(_unknown_field(e))
  except flags.Error as e:
    # A config that raises comes with a traceback, its own words at the end.
    words = str(e).strip().splitlines()[-1].strip()
    sys.exit(f'error: {re.sub(r"^[a-zA-Z.]*Error: ", "", words)}')


def _unknown_field(error):
  """ml_collections' words, which end with the field that was meant."""
  words = str(error).replace('\\n', '. ').replace('\\', '').replace("'", '')
  words = words.strip('"')
  return f'error: the config has no field {words}'


def _flag(argv, name):
  """The value of --name=value or --name value, '' where there is none."""
  found = ''
  for i, arg in enumerate(argv):
    flag, equals, value = arg.partition('=')
    if flag in (f'-{name}', f'--{name}'):
      found = value if equals else ''.join(argv[i + 1:i + 2])
  return found


def _config_path(package, name):
  """Beside the packages in a checkout, within the core once installed."""
  core = pathlib.Path(__file__).parent
  for path in (core.parent / 'configs', core / 'configs'):
    if (path / f'{name}.py').exists():
      return os.path.relpath(path / f'{name}.py')
  raise FileNotFoundError(f'{package} was installed without its configs')


def _default_workdir(package):
  """runs/<package>-<config>, from the command line's --config."""
  name = _flag(sys.argv, 'config') or 'default'
  stem = pathlib.Path(name.split(':')[0]).stem
  variant = ''.join(f'-{v}' for v in name.split(':')[1:])
  return os.path.join('runs', f'{package}-{stem}{variant}')


def _use_compilation_cache():
  """Keeps compiled programs between runs, unless the user has decided."""
  if jax.config.jax_compilation_cache_dir is None:
    cache = os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache'))
    jax.config.update(
        'jax_compilation_cache_dir', os.path.join(cache, 'distil_jax'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def describe_devices(mesh: jax.sharding.Mesh) -> str:
  """One line for people."""
  kinds = sorted({d.device_kind for d in mesh.devices.flat})
  return (f'{mesh.size} x {", ".join(kinds)} on {jax.process_count()} host(s), '
          f'mesh {dict(mesh.shape)}')

