"""Memory that is kept between steps."""

import subprocess
import sys

import pytest

# 64 MB twice: what is kept is written without faults of the kernel.
_FAULTS = '''
import ctypes, resource
from core_jax import allocator
print(allocator.keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = libc.malloc(ctypes.c_size_t(64 << 20))
  ctypes.memset(ctypes.c_void_p(block), 1, 64 << 20)
  libc.free(block)
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
'''


# Freed below another block, which keeps the heap's end where it is.
_RELEASED = '''
import ctypes, psutil
from core_jax import allocator
print(allocator.keep_freed_memory())
libc, process = ctypes.CDLL(None), psutil.Process()
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
block, other = (libc.malloc(ctypes.c_size_t(64 << 20)) for _ in range(2))
ctypes.memset(ctypes.c_void_p(block), 1, 64 << 20)
libc.free(block)
kept = process.memory_info().rss
allocator.release_freed_memory()
print(kept - process.memory_info().rss)
'''


def _run(source):
  return subprocess.run(
      [sys.executable, '-c', source], text=True, check=True,
      stdout=subprocess.PIPE).stdout.split()


def test_a_block_that_was_freed_is_used_again_without_page_faults():
  taken, faults = _run(_FAULTS)
  if taken == 'False':
    pytest.skip('the C library is not glibc')
  assert int(faults) < 100


def test_what_is_kept_is_given_back_on_demand():
  taken, released = _run(_RELEASED)
  if taken == 'False':
    pytest.skip('the C library is not glibc')
  assert int(released) > 60 << 20


def test_programs_keep_it():
  source = (
      'from absl import app; app.run = lambda main: main(["x"])\n'
      'from core_jax import allocator, program\n'
      'allocator.keep_freed_memory = lambda: print("kept")\n'
      'program.run(lambda: print("ran"))\n')
  assert _run(source) == ['kept', 'ran']
