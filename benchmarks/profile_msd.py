"""Where a round's time goes: python -m benchmarks.profile_msd.

Times the parts of one `msd_round` alone and multiplies by how often
`students.update_student` runs them: ratio - 1 generations, a gradient of
the generator, two forward passes of the scores, `ratio` gradients of the fake
score, ratio + 1 optimizer updates. The gradient again without attention gives
attention's share.
"""

import argparse
import statistics
import time

from benchmarks import harness
from benchmarks import msd


def milliseconds(function, *args, repeats=5) -> float:
  """Median of a compiled call, after one that compiles."""
  import jax
  compiled = jax.jit(function)
  jax.block_until_ready(compiled(*args))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    seconds.append(time.perf_counter() - start)
  return 1e3 * statistics.median(seconds)


def parts(size: str, **changes) -> dict[str, float]:
  """Milliseconds of a forward pass, a gradient and an optimizer update."""
  import jax
  import jax.numpy as jnp

  from msd_jax import teacher
  from msd_jax import unet
  network = unet.ADM(**(msd.network_config(size) | changes))
  batch_size, _ = msd.SIZES[size]
  args = (jax.random.normal(jax.random.key(0), (
      batch_size, *msd.image_shape(size))), jnp.zeros(batch_size),
          jnp.zeros(batch_size, jnp.int32))
  params = jax.jit(network.init)(jax.random.key(0), *args)
  tx = teacher.make_optimizer(
      lr=msd.LEARNING_RATE, warmup_steps=0, clip_norm=10., weight_decay=.01)
  loss = lambda params: jnp.mean((network.apply(params, *args) - 1.)**2)
  return {
      'forward': milliseconds(network.apply, params, *args),
      'gradient': milliseconds(jax.grad(loss), params),
      'update': milliseconds(
          tx.update, params, tx.init(params), params)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--threads', type=int, default=2)
  args = parser.parse_args()
  harness.prepare(args.threads)
  for size in msd.SIZES:
    ms = parts(size)
    plain = parts(size, attention_resolutions=())
    ratio = msd.RATIO
    rows = {
        'generation, no gradient': (ratio - 1, ms['forward']),
        'generator, with gradient': (1, ms['gradient']),
        'teacher and fake score of the DM gradient': (2, ms['forward']),
        'fake score, with gradient': (ratio, ms['gradient']),
        'clip and AdamW': (ratio + 1, ms['update'])}
    total = sum(n * t for n, t in rows.values())
    print(f'{size}: {total:.0f} ms a round, as the sum of its parts')
    for name, (n, t) in rows.items():
      print(f'  {name:<42} {n} x {t:7.1f} ms  {n * t / total:4.0%}')
    share = 1 - plain['gradient'] / ms['gradient']
    print(f'  of a gradient, attention takes {share:.0%}', flush=True)


if __name__ == '__main__':
  main()
