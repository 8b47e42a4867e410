"""A 3x3 convolution's gradients, alone and in a loop, both ways on CPU.

python -m benchmarks.conv_in_loop: why msd_jax/conv.py has matrix products.
"""

from benchmarks import harness
from benchmarks.profile_msd import milliseconds


def main() -> None:
  harness.prepare(2)
  import jax

  from msd_jax import conv
  x = jax.random.normal(jax.random.key(0), (32, 16, 16, 32))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 32, 32))
  for name, convolve in (('XLA', conv._ordinary), ('Winograd', conv._conv3x3)):
    loss = lambda x, kernel, f=convolve: (f(x, kernel)**2).sum()
    gradients = jax.grad(loss, argnums=(0, 1))
    alone = milliseconds(gradients, x, kernel)
    looped = milliseconds(
        lambda x, kernel, g=gradients: jax.lax.map(
            lambda one: g(one, kernel), x[None]), x, kernel)
    print(f'{name:<9} alone {alone:6.1f} ms, in a loop {looped:6.1f} ms')


if __name__ == '__main__':
  main()
