"""How a benchmark is measured: one process, alternating, on so many threads.

A benchmark names its sides, one of them 'ours'. A side is a function that
prepares everything and returns a `Prepared`, whose `run` does the work once
and waits for its end.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import multiprocessing
import os
import resource
import statistics
import time
from typing import Any

from core_jax import allocator

MEMORY_RUNS = 2  # The second shows what the first left behind.


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A side that is ready to run."""
  run: Callable[[], Any]
  compile_seconds: float = 0.


def compiled_by_running(run: Callable[[], Any]) -> Prepared:
  """Of what compiles when it first runs: that run's time, less the second's."""
  times = [time.perf_counter()]
  for _ in range(2):
    run()
    times.append(time.perf_counter())
  return Prepared(run, max(0., 2 * times[1] - times[0] - times[2]))


Side = Callable[[], Prepared]


@dataclasses.dataclass(frozen=True)
class Case:
  """The same work on every side.

  Attributes:
    sides: 'ours', and at least one setting of the peer. Importable functions
      and partials of them, as each is measured again in a process of its own.
    gflop: floating-point operations of one run, 1e9, as the definition has
      them and not as a side may save them.
    runs_per_call: where one call of a side does the work several times.
  """
  sides: Mapping[str, Side]
  gflop: Callable[[], float]
  runs_per_call: int = 1


@dataclasses.dataclass(frozen=True)
class Timing:
  """Milliseconds of one run: the median and the quartiles' distance."""
  median: float
  spread: float

  @classmethod
  def of(cls, seconds: list[float], runs: int) -> 'Timing':
    low, median, high = statistics.quantiles(
        [1e3 * s / runs for s in seconds], n=4, method='inclusive')
    return cls(median, high - low)


def prepare(num_threads: int) -> None:
  """Gives the process so many cores and all sides the allocator of our
  programs. Call it before importing JAX.

  XLA sizes its pool by the cores that it may use; so do others. Idle OpenMP
  threads sleep: spinning, they would slow the side that runs next.
  """
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
  os.environ['OMP_NUM_THREADS'] = str(num_threads)
  if hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:num_threads])
  allocator.keep_freed_memory()


def measure(case: Case, num_repeats: int, memory: bool) -> dict[str, Any]:
  """Measures all sides of a case; the fastest peer is the peer.

  Returns:
    ratio (peer by ours, above 1 where ours is faster), {ours,peer}_{ms,spread},
    peer (its name), peers_ms, gflop, {ours,peer}_peak_fraction,
    compile_seconds and, where asked for, {ours,peer}_memory_mb beyond what
    the imports take and ours_compile_memory_mb.
  """
  gflop, peak = case.gflop(), matmul_peak()
  prepared = {name: side() for name, side in case.sides.items()}
  timings = _alternate(prepared, num_repeats, case.runs_per_call)
  peers = {name: t for name, t in timings.items() if name != 'ours'}
  peer = min(peers, key=lambda name: peers[name].median)
  result = {'ratio': timings[peer].median / timings['ours'].median}
  for side, timing in (('ours', timings['ours']), ('peer', timings[peer])):
    result[f'{side}_ms'] = timing.median
    result[f'{side}_spread'] = timing.spread
    result[f'{side}_peak_fraction'] = gflop / timing.median * 1e3 / peak
  result |= {
      'peer': peer, 'peers_ms': {n: t.median for n, t in peers.items()},
      'gflop': gflop, 'matmul_peak_gflops': peak,
      'compile_seconds': prepared['ours'].compile_seconds}
  if memory:
    del prepared
    ours = peak_memory(case.sides['ours'])
    result |= {'ours_memory_mb': ours['run'],
               'ours_compile_memory_mb': ours['prepare'],
               'peer_memory_mb': peak_memory(case.sides[peer])['run']}
  return result


def _alternate(prepared, num_repeats, runs_per_call):
  """Name -> Timing; the sides take turns, so that a slow spell hits all."""
  seconds = {name: [] for name in prepared}
  for repeat in range(num_repeats + 1):
    for name, side in prepared.items():
      time.sleep(.05)  # Worker threads of the side before stop spinning.
      start = time.perf_counter()
      side.run()
      if repeat:  # The first run warms caches and allocators up.
        seconds[name].append(time.perf_counter() - start)
  return {name: Timing.of(s, runs_per_call) for name, s in seconds.items()}


def matmul_peak(size: int = 2048, num_repeats: int = 5) -> float:
  """The machine's float32 matrix-product rate, GFLOP/s, best of some."""
  import jax
  import jax.numpy as jnp
  a = jax.random.normal(jax.random.key(0), (size, size))
  product = jax.jit(jnp.matmul)
  best = float('inf')
  for _ in range(num_repeats + 1):
    start = time.perf_counter()
    product(a, a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size ** 3 / best / 1e9


def peak_memory(side: Side) -> dict[str, float]:
  """Peak resident MB of a side, measured in a fresh process.

  Returns:
    'prepare': of preparing it, compilation included; 'run': of running it,
    both beyond what the process holds once the side's imports are done.
  """
  context = multiprocessing.get_context('spawn')
  with context.Pool(1) as pool:
    return pool.apply(_peak_memory, (side,))


def _peak_memory(side):
  allocator.keep_freed_memory()
  side_imports = getattr(side, 'func', side).__globals__.get('warm_imports')
  if side_imports is not None:
    side_imports(side)
  before = _resident_mb('VmRSS')
  _reset_peak()
  prepared = side()
  prepare = _resident_mb('VmHWM')
  _reset_peak()
  for _ in range(MEMORY_RUNS):
    prepared.run()
  return {'prepare': prepare - before,
          'run': _resident_mb('VmHWM') - before}


def _reset_peak():
  """Lets Linux count the peak anew; elsewhere it stays that of all time."""
  try:
    with open('/proc/self/clear_refs', 'w') as f:
      f.write('5')
  except OSError:
    pass


def _resident_mb(field):
  try:
    with open('/proc/self/status') as f:
      lines = dict(line.split(':', 1) for line in f)
    return int(lines[field].split()[0]) / 1024
  except (OSError, KeyError):
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
