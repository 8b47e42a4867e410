"""What `core_jax.allocator` brings: python -m benchmarks.kept_memory.

A language model's decoder and its gradient, 700 words of 10,000, with the C
library's own settings and with memory kept, each in a process of its own.
"""

import multiprocessing
import resource
import statistics
import time

from core_jax import allocator

WORDS, WIDTH, VOCABULARY, REPEATS = 700, 100, 10_000, 20


def measure(keep: bool) -> tuple[float, float]:
  """(milliseconds, page faults) of a call, the medians."""
  if keep:
    allocator.keep_freed_memory()
  import jax
  import optax
  hidden, embedding = (
      jax.random.normal(jax.random.key(i), (n, WIDTH))
      for i, n in enumerate((WORDS, VOCABULARY)))
  words = jax.random.randint(jax.random.key(2), (WORDS,), 0, VOCABULARY)
  step = jax.jit(jax.grad(
      lambda hidden, embedding:
          optax.softmax_cross_entropy_with_integer_labels(
              hidden @ embedding.T, words).mean(), (0, 1)))
  jax.block_until_ready(step(hidden, embedding))
  rows = []
  for _ in range(REPEATS):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter()
    jax.block_until_ready(step(hidden, embedding))
    rows.append((
        1e3 * (time.perf_counter() - start),
        resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))
  return tuple(statistics.median(column) for column in zip(*rows, strict=True))


def main() -> None:
  context = multiprocessing.get_context('spawn')
  for name, keep in (('as it is', False), ('kept', True)):
    with context.Pool(1) as pool:
      ms, faults = pool.apply(measure, (keep,))
    print(f'{name:10} {ms:7.1f} ms, {faults:,.0f} page faults a call')


if __name__ == '__main__':
  main()
