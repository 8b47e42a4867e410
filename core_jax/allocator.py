"""Memory that the C library keeps between steps, for speed on CPU."""

import ctypes
import sys

# Of glibc's malloc.h; its parameters are of type int.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_NEVER = -1
_MAPPED_BYTES = 2**31 - 1  # From this size on a block is still given back.


def keep_freed_memory() -> bool:
  """Has malloc keep what is freed for the next block, up to 2 GiB each.

  On CPU XLA allocates a program's temporaries anew in every call. glibc maps
  blocks above 32 MB each time and unmaps them again, and the kernel hands out
  every page of 4 kB with a fault: a third of the time of an LSTM's decoder and
  its gradient (`benchmarks.kept_memory`). Values do not change. Call it early:
  threads that have allocated before keep heaps of their own.

  Returns:
    Whether the C library has taken it: glibc alone knows how.
  """
  mallopt = _of_glibc('mallopt')
  if mallopt is None:
    return False
  # One heap, since those of threads cannot hold more than 64 MB.
  return all(mallopt(*setting) for setting in (
      (_ARENA_MAX, 1), (_MMAP_THRESHOLD, _MAPPED_BYTES),
      (_TRIM_THRESHOLD, _NEVER)))


def release_freed_memory() -> None:
  """Gives back what was freed and kept so far, such as a compiler's memory."""
  trim = _of_glibc('malloc_trim')
  if trim is not None:
    trim(ctypes.c_size_t(0))


def _of_glibc(name):
  """A function of the C library; None where that is another one."""
  if not sys.platform.startswith('linux'):
    return None
  return getattr(ctypes.CDLL(None), name, None)
