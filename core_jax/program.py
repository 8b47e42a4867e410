"""How a program ends that cannot go on: with one clear line."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import sys

from absl import app
from absl import logging

from core_jax import allocator

ERRORS = (FloatingPointError, OSError, ValueError)
"""What carries a message for people."""


@contextlib.contextmanager
def one_line(errors: tuple[type[Exception], ...] = ERRORS) -> Iterator[None]:
  """Ends the process with such an error's message, without a traceback, which
  --verbosity=1 shows."""
  try:
    yield
  except errors as e:
    logging.debug('Where it happened:', exc_info=True)
    print(f'error: {e}', file=sys.stderr)
    sys.exit(1)


def prepare() -> None:
  """What every program does first: it keeps freed memory, and logs warnings
  only unless the command line asks for more, as libraries tell of every file
  that they write."""
  allocator.keep_freed_memory()
  asked = {arg.lstrip('-').split('=')[0] for arg in sys.argv[1:]}
  if not asked & {'verbosity', 'v'}:
    logging.set_verbosity(logging.WARNING)


def refuse_words(argv: list[str]) -> None:
  """Ends the process if the command line has what is no flag."""
  if len(argv) > 1:
    sys.exit(f'error: {argv[1]!r} is not a flag; see --help')


def run(main: Callable[[], None]) -> None:
  """Parses the flags, then calls a small program's main."""
  def checked(argv):
    refuse_words(argv)
    prepare()
    with one_line():
      main()

  app.run(checked)
