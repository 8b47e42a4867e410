"""A run is a folder: who owns it, and how a run in it stops cleanly."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import sys
from typing import Any

import ml_collections


class FolderError(ValueError):
  """The folder cannot hold this run; the message says why."""


def flat(
    tree: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """(field, value) of a config, such as ('student.lr', 0.1)."""
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Fields that are not the same, or in one only, of two flat configs."""
  return [name for name in sorted(old.keys() | new.keys())
          if old.get(name, ...) != new.get(name, ...)]


def local(workdir: str | os.PathLike) -> pathlib.Path:
  """The absolute path of a run's folder.

  Raises:
    FolderError: it is the address of a store, such as gs://bucket/run.
  """
  if re.match(r'\w\w+:/', os.fspath(workdir)):  # A pathlib.Path has one '/'.
    raise FolderError(
        f'--workdir={workdir} is an address, and a run needs a path: give a '
        'local folder, or one where the store is mounted')
  return pathlib.Path(workdir).absolute()


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps other processes out of a run's folder, where files can be locked.

  The folder is made, and is gone afterwards if nothing was written to it.

  Raises:
    FolderError: another process holds it, or it cannot be written.
  """
  path = local(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / '.lock').open('a')
  except OSError as e:
    raise _unusable(workdir, e) from e
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise FolderError(
          f'{path} is in use: another process runs in it. Wait for its end, or '
          'give another --workdir') from None
    except OSError:
      pass  # This file system has no locks.
    try:
      yield
    finally:
      if [file.name for file in path.iterdir()] == ['.lock']:
        (path / '.lock').unlink()
        path.rmdir()


def _unusable(workdir, error):
  return FolderError(f'--workdir={workdir} cannot be used: {error}')


def claim(workdir: str, config: ml_collections.ConfigDict) -> pathlib.Path:
  """Makes the folder and writes `config.json`, or checks the one there.

  Raises:
    FolderError: the folder belongs to a run with another config (the message
      has the fields that differ), cannot be written, or is no local path.
  """
  path = check(workdir, config)
  try:
    (path / 'figures').mkdir(exist_ok=True)
    if not (path / 'config.json').exists():
      write_text(path / 'config.json',
                 json.dumps(_as_saved(config), indent=2) + '\n')
  except OSError as e:
    raise _unusable(workdir, e) from e
  return path


def check(workdir: str, config: ml_collections.ConfigDict) -> pathlib.Path:
  """Makes the folder, and leaves it to who will `claim` it.

  Raises:
    FolderError: as `claim`.
  """
  path = local(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    if (path / 'config.json').exists():
      _compare(path, _as_saved(config))
  except OSError as e:
    raise _unusable(workdir, e) from e
  return path


def _as_saved(config):
  """Through JSON, so that a tuple equals the list it is saved as."""
  return json.loads(config.to_json_best_effort())


def _compare(path, wanted):
  try:
    saved = json.loads((path / 'config.json').read_text())
  except ValueError as e:
    raise FolderError(
        f'{path / "config.json"} is damaged ({e}). Give another --workdir, or '
        'remove the file if the config of this command is the one of the run.'
    ) from e
  old, new = dict(flat(saved)), dict(flat(wanted))
  differ = [
      f'  {name}: {old.get(name, "absent")} in the folder, '
      f'{new.get(name, "absent")} asked for'
      for name in differing(old, new)]
  if differ:
    raise FolderError(
        f'{path} holds a run with another config:\n' + '\n'.join(differ) +
        '\nGive another --workdir, or the same values to resume.')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(path)


def python() -> str:
  """This interpreter on a command line; relative where it is below here."""
  path, here = pathlib.Path(sys.executable), pathlib.Path.cwd()
  return str(path.relative_to(here) if path.is_relative_to(here) else path)


def resume_command(workdir: Any) -> str:
  """The command line of this process, with its folder spelt out."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  program = ['-m', spec.name] if spec else [sys.argv[0]]
  command = [python(), *program, *sys.argv[1:]]
  if not _workdir_is_named():
    command.append(f'--workdir={workdir}')
  return shlex.join(command)


def name_workdir(workdir: Any) -> None:
  """Puts the folder on the command line of this process, if none is there.

  For runs of several parts, each with a folder of its own in this one, which
  all are resumed by the command of the whole.
  """
  if not _workdir_is_named():
    sys.argv.append(f'--workdir={workdir}')


def _workdir_is_named():
  return any(arg.startswith(('--workdir', '-workdir')) for arg in sys.argv)


class Stopped(BaseException):
  """A signal came; what is done is kept. No error, which some would catch."""

  def __init__(self, received: signal.Signals):
    super().__init__(received.name)
    self.received = received


@dataclasses.dataclass
class StopRequest:
  """Set by a signal, read by the loop between two steps."""

  received: signal.Signals | None = None

  def check(self) -> None:
    """Raises Stopped if a signal came."""
    if self.received is not None:
      raise Stopped(self.received)


@contextlib.contextmanager
def stop_request(at_once: bool = False) -> Iterator[StopRequest]:
  """Turns SIGTERM and the first Ctrl-C into a request; a second one kills.

  Args:
    at_once: raises Stopped wherever the signal finds the program, for work
      that loses nothing by it.
  """
  request = StopRequest()

  def handle(number, frame):
    del frame
    if request.received is not None:
      raise KeyboardInterrupt
    request.received = signal.Signals(number)
    if at_once:
      request.check()

  numbers = (signal.SIGTERM, signal.SIGINT)
  try:
    before = {number: signal.signal(number, handle) for number in numbers}
  except ValueError:  # Not the main thread: nothing can be caught there.
    before = {}
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
