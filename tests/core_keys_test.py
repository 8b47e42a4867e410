"""Streams of different names and seeds share no draw."""

import itertools

import jax

from core_jax import keys

NAMES = ('teacher', 'dm', 'adm', 'evaluation', 'dm/real/0', 'dm/real/1')


def test_a_stream_depends_on_seed_and_name_alone():
  bits = lambda seed, name: jax.random.key_data(
      keys.stream(seed, name)).tobytes()
  pairs = list(itertools.product(range(3), NAMES))
  assert len({bits(*pair) for pair in pairs}) == len(pairs)
  assert len({keys.number(*pair) for pair in pairs}) == len(pairs)
  assert bits(1, 'dm') == bits(1, 'dm')
  assert keys.number(0, 'dm') == 1934336441  # a resumed run's, in any process


def test_a_stream_is_no_step_and_no_part_of_its_seeds_key():
  key = jax.random.key(0)
  near = [*jax.random.split(key, 50),
          *(jax.random.fold_in(key, i) for i in range(50))]
  near = {jax.random.key_data(k).tobytes() for k in near}
  assert not near & {jax.random.key_data(keys.stream(0, name)).tobytes()
                     for name in NAMES}
