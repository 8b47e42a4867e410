"""Bytes that the gradient of a network keeps for one image, from shapes alone.

  python -m benchmarks.kept_activations configs/imagenet64.py

With and without rematerialisation, in bfloat16 and float32; nothing is
compiled. A compiler may keep less: what is cheap it computes again.
"""

import argparse
import importlib
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from core_jax import flops
from msd_jax import networks


def gradient_costs(module: nn.Module, batch: int) -> tuple[int, int]:
  """(bytes kept between the passes, FLOPs of both) of a batch."""
  shape = (module.resolution, module.resolution, module.channels)
  params = jax.eval_shape(
      lambda key: networks.init_params(module, key, shape), jax.random.key(0))
  args = (jnp.zeros((batch, *shape)), jnp.zeros(batch),
          jnp.zeros(batch, jnp.int32))
  apply = networks.apply_fn(module)
  loss = lambda params: jnp.sum(apply(params, *args))
  pull_back = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
  kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull_back))
  return kept, flops.count(jax.make_jaxpr(jax.grad(loss))(params))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('config', help='configs/NAME.py[:variant]')
  path, _, variant = parser.parse_args().config.partition(':')
  module = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
  config = module.get_config(variant)
  for dtype, remat in itertools.product(
      ('float32', 'bfloat16'), (False, True)):
    network = networks.build(
        config.students.network, config.declared.shape,
        config.declared.num_classes, dtype=dtype, remat=remat)
    # What does not grow with the batch is the params themselves.
    (one, flop_one), (two, flop_two) = (
        gradient_costs(network, batch) for batch in (1, 2))
    print(f'{dtype}, remat {remat}: {(two - one) / 2**20:,.1f} MiB and '
          f'{(flop_two - flop_one) / 1e9:,.1f} GFLOP an image', flush=True)


if __name__ == '__main__':
  main()
