"""What an endpoint answered, kept: one SQLite file a run."""

from collections.abc import Mapping
import hashlib
import json
import pathlib
import sqlite3
from typing import Any
from typing import NamedTuple


class CacheError(OSError):
  """The file cannot be read or written; the message says what to do."""


class Reply(NamedTuple):
  """An endpoint's answer and what it cost."""
  body: Mapping[str, Any]
  prompt_tokens: int
  completion_tokens: int

  @property
  def is_refusal(self) -> bool:
    return 'refused' in self.body


def refusal(problem: str) -> Reply:
  """Stands for the answer that an endpoint will not give."""
  return Reply({'refused': problem}, 0, 0)


class Usage(NamedTuple):
  """What all answers so far cost, over all processes of a run."""
  calls: int
  prompt_tokens: int
  completion_tokens: int
  refused: int = 0  # of the calls


def key_of(path: str, payload: Mapping[str, Any], salt: str) -> str:
  """A hash of the request and its salt: the seed and the number of the call,
  so that a repeated request gets an answer of its own."""
  canonical = json.dumps([path, payload, salt], sort_keys=True)
  return hashlib.sha256(canonical.encode()).hexdigest()


class Cache:
  """Answers by key; each is on disk before `put` returns.

  All of it raises CacheError where the file cannot be read or written.
  """

  def __init__(self, path: pathlib.Path | str):
    self._path = path
    try:  # One thread at a time: see client.py.
      self._db = sqlite3.connect(
          path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as e:
      raise self._unusable(e) from e
    self._execute('PRAGMA journal_mode=WAL')
    self._execute('PRAGMA synchronous=FULL')
    self._execute(
        'CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, body TEXT, '
        'prompt_tokens INTEGER, completion_tokens INTEGER)')
    self._usage = Usage(*self._execute(
        'SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), '
        'COALESCE(SUM(completion_tokens), 0), '
        """COALESCE(SUM(body LIKE '{"refused"%'), 0) FROM replies"""
    ).fetchone())

  def _execute(self, command, values=()):
    try:
      return self._db.execute(command, values)
    except sqlite3.Error as e:
      raise self._unusable(e) from e

  def _unusable(self, error):
    return CacheError(
        f'{self._path}: {error}. What was answered before is kept: make room, '
        'or let the file be written, and run the same command to go on')

  def get(self, key: str) -> Reply | None:
    row = self._execute(
        'SELECT body, prompt_tokens, completion_tokens FROM replies '
        'WHERE key = ?', (key,)).fetchone()
    return row and Reply(json.loads(row[0]), row[1], row[2])

  def put(self, key: str, reply: Reply) -> None:
    """Keeps the first answer: what was used once stays what it was."""
    cursor = self._execute(
        'INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)',
        (key, json.dumps(reply.body), reply.prompt_tokens,
         reply.completion_tokens))
    if cursor.rowcount:
      used = self._usage
      self._usage = Usage(
          used.calls + 1, used.prompt_tokens + reply.prompt_tokens,
          used.completion_tokens + reply.completion_tokens,
          used.refused + reply.is_refusal)

  def usage(self) -> Usage:
    return self._usage

  def close(self) -> None:
    self._db.close()
