"""Random streams of a run: no part draws what another does, nor another seed.

`split(key, n)[i]` and `fold_in(key, i)` are one key, so that parts which fold
small numbers into the seed's key meet those which split it; and parts which
add to the seed meet those of the next seed.
"""

import jax

_ABOVE_SPLITS = 1_000
_PARTS = ('search', 'derive', 'random_cells', 'policy', 'start', 'heads')


def part(key: jax.Array, name: str) -> jax.Array:
  """The key of a part of what `key` is for."""
  return jax.random.fold_in(key, _ABOVE_SPLITS + _PARTS.index(name))


def of_seed(seed: int, name: str) -> jax.Array:
  """The key of a part of a run."""
  return part(jax.random.key(seed), name)
