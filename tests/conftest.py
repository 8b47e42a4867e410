"""Eight devices on a CPU, no silent broadcast of ranks, quick compilation."""

import os
import tempfile

import jax
import pytest

_cache = tempfile.TemporaryDirectory(prefix='jax-tests-')
# Of processes that tests start, too. Programs here are many and run for
# milliseconds: compiling is what takes time, a third of it in the emitters that
# the flag turns off.
os.environ['XLA_FLAGS'] = ' '.join(
    (os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters=false'))
for _name, _value in {
    'jax_platforms': 'cpu',
    'jax_disable_most_optimizations': True,
    'jax_compilation_cache_dir': _cache.name,
    'jax_persistent_cache_min_compile_time_secs': 0.1}.items():
  jax.config.update(_name, _value)
  os.environ[_name.upper()] = str(_value)
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(autouse=True, scope='module')
def no_programs_of_other_files():
  """Compiled programs would fill the memory: a worker came to 9 GB."""
  yield
  jax.clear_caches()
