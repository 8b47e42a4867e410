"""What a run has done, a line an event, on disk before the next begins."""

from collections.abc import Iterable
from collections.abc import Iterator
import json
import os
import pathlib
from typing import Any


class JournalError(ValueError):
  """The journal is of another run, or damaged; the message says how."""


class Events:
  """What has been done, in memory."""

  def __init__(self, events: Iterable[dict[str, Any]] = ()):
    self.events = list(events)

  def append(self, event: dict[str, Any]) -> None:
    self.events.append(event)

  def find(self, **fields: Any) -> dict[str, Any] | None:
    """The first event with these fields."""
    return next((e for e in self.events if all(
        e.get(name) == value for name, value in fields.items())), None)


class Journal(Events):
  """`journal.jsonl`: append-only. A last line that was cut short by a kill is
  dropped on opening; a damaged line before it is an error."""

  def __init__(self, path: pathlib.Path):
    super().__init__(_read(path))
    self.path = path
    self._file = path.open('ab')

  def append(self, event: dict[str, Any]) -> None:
    line = json.dumps(event, ensure_ascii=False, allow_nan=False) + '\n'
    self._file.write(line.encode())
    self._file.flush()
    os.fsync(self._file.fileno())
    super().append(event)

  def close(self) -> None:
    self._file.close()


def _read(path) -> Iterator[dict[str, Any]]:
  if not path.exists():
    return
  data = path.read_bytes()
  whole = data[:data.rfind(b'\n') + 1]
  if len(whole) < len(data):
    with path.open('r+b') as file:
      file.truncate(len(whole))
  for number, line in enumerate(whole.splitlines(), start=1):
    try:
      yield json.loads(line)
    except ValueError:
      raise JournalError(
          f'{path}, line {number}: not JSON. Remove what follows line '
          f'{number - 1}, and the run goes on from there') from None
