"""Eight devices on a CPU, no silent broadcast of ranks, quick compilation."""

import tempfile

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Programs here are many and run for milliseconds: compiling is what takes time.
jax.config.update('jax_disable_most_optimizations', True)
_cache = tempfile.TemporaryDirectory(prefix='jax-tests-')
jax.config.update('jax_compilation_cache_dir', _cache.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(autouse=True, scope='module')
def no_programs_of_other_files():
  """Compiled programs would fill the memory: a worker came to 9 GB."""
  yield
  jax.clear_caches()
