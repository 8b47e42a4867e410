"""Named streams of random numbers: no two parts of a run draw the same.

`fold_in(key, 1)` is `split(key)[1]`: what folds a small number into the key of
a seed meets what splits it, or folds a step into it. Names keep them apart.
"""

import zlib

import jax


def stream(seed: int, name: str) -> jax.Array:
  """The key of a seed's stream; the part that has it may split or fold it."""
  return jax.random.fold_in(
      jax.random.key(seed), zlib.crc32(name.encode()) & 0x7fffffff)


def number(seed: int, name: str) -> int:
  """The same for what takes a number, such as an order of examples."""
  return zlib.crc32(name.encode(), seed)
