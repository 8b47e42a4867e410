"""3x3 convolution as matrix products on CPU, as itself elsewhere.

Inside a loop XLA's CPU backend leaves its fast convolutions behind: at
[32, 16, 16, 32] the gradients take 206 ms in a `lax.map` and 6.5 ms outside
(benchmarks/conv_in_loop.py), and a round of distillation is made of loops.
Matrix products stay fast there. Winograd's minimal filtering F(2x2, 3x3)
(Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', 2015,
section 4.1) writes the convolution and both of its gradients as sixteen of
them, with 2.25 times fewer multiplications, of

  y = A^T [(G g G^T) * (B^T d B)] A    for each 4x4 tile d, at stride 2.

It takes even heights and widths.
"""

from collections.abc import Callable
import functools
from typing import Any

import chex
import jax
from jax.experimental import xla_metadata
import jax.numpy as jnp


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with stride 1 and zero padding ('SAME').

  Args:
    x: images [B, H, W, C].
    kernel: [3, 3, C, D], of the dtype of x.

  Returns:
    [B, H, W, D].
  """
  chex.assert_rank(x, 4)
  chex.assert_shape(kernel, (3, 3, x.shape[-1], None))
  if x.shape[1] % 2 or x.shape[2] % 2:
    return _ordinary(x, kernel)
  return _conv3x3(*_varying_alike(x, kernel))


def _varying_alike(*arrays):
  """Under shard_map: marks each as varying where one of them varies.

  Its transpose is the sum over devices that the gradient of what is replicated
  needs, which a custom gradient would have to do by hand.
  """
  varying = [jax.typeof(a).manual_axis_type.varying for a in arrays]
  missing = [tuple(frozenset().union(*varying) - own) for own in varying]
  return [jax.lax.pcast(a, axes, to='varying') if axes else a
          for a, axes in zip(arrays, missing, strict=True)]


def _ordinary(x, kernel):
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _ordinary_gradients(x, kernel, dy):
  _, vjp = jax.vjp(_ordinary, x, kernel)
  return vjp(dy)


@jax.custom_vjp
def _conv3x3(x, kernel):
  return jax.lax.platform_dependent(
      x, kernel, cpu=_winograd, default=_ordinary)


def _conv3x3_fwd(x, kernel):
  return _conv3x3(x, kernel), (x, kernel)


def _conv3x3_bwd(residuals, dy):
  return jax.lax.platform_dependent(
      *residuals, dy, cpu=_winograd_gradients, default=_ordinary_gradients)


_conv3x3.defvjp(_conv3x3_fwd, _conv3x3_bwd)


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function` as a call that the compiler does not inline.

  XLA's CPU runtime compares each operation of a computation with all before
  it. Inlined, the 16 products of hundreds of convolutions are one list, and
  comparing takes longer than all else in a compilation of ImageNet-64's round.
  """
  @jax.jit
  @functools.wraps(function)
  def inlining_within(*args):
    with xla_metadata.set_xla_metadata(inlineable=None):
      return function(*args)

  @functools.wraps(function)
  def call(*args):
    with xla_metadata.set_xla_metadata(inlineable='false'):
      return inlining_within(*args)

  return call


@_called
def _winograd(x, kernel):
  # Sixteen separate products: one batched product would need its operands
  # stacked, which copies four times the image.
  products = [tile @ weight for tile, weight in
              zip(_input_tiles(x), _kernel_tiles(kernel), strict=True)]
  return _join_tiles(products, (*x.shape[:3], kernel.shape[-1]))


@_called
def _winograd_gradients(x, kernel, dy):
  """The gradients of sum(y * dy) by x and by the kernel."""
  # dy feeds some thirty fusions: without the barrier each computes it again.
  dy = jax.lax.optimization_barrier(dy)
  dx = _winograd(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
  products = [
      tile.T @ d_tile for tile, d_tile in
      zip(_input_tiles(x), _output_gradient_tiles(dy), strict=True)]
  return dx, _join_kernel_tiles(products)


def _kernel_tiles(kernel):
  """G g G^T, with G of equation 10: [3, 3, C, D] -> 16 arrays [C, D]."""
  def transform(g):
    ends, middle = .5 * (g[0] + g[2]), .5 * g[1]
    return g[0], ends + middle, ends - middle, g[2]
  return _transform_2d(transform, kernel)


def _join_kernel_tiles(products):
  """G^T m G, the transpose of the above: 16 arrays [C, D] -> [3, 3, C, D]."""
  def transform(m):
    total, difference = .5 * (m[1] + m[2]), .5 * (m[1] - m[2])
    return m[0] + total, difference, total + m[3]
  tiles = [products[4 * p:4 * p + 4] for p in range(4)]
  taps = jnp.stack(_transform_2d(transform, tiles))
  return taps.reshape(3, 3, *taps.shape[1:])


def _input_tiles(x):
  """B^T d B of each 4x4 tile: [B, H, W, C] -> 16 arrays [B*H/2*W/2, C]."""
  _, h, w, c = x.shape
  # The barrier stands after the padding: padding inside the sixteen fusions
  # would be a branch per element.
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = jax.lax.optimization_barrier(x)
  tiles = [[x[:, i:i + h:2, j:j + w:2] for j in range(4)] for i in range(4)]
  transform = lambda d: (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])
  return [tile.reshape(-1, c) for tile in _transform_2d(transform, tiles)]


def _output_gradient_tiles(dy):
  """A dy A^T of each 2x2 tile: [B, H, W, D] -> 16 arrays [B*H/2*W/2, D]."""
  tiles = [[dy[:, i::2, j::2] for j in range(2)] for i in range(2)]
  transform = lambda d: (d[0], d[0] + d[1], d[0] - d[1], -d[1])
  return [tile.reshape(-1, dy.shape[-1])
          for tile in _transform_2d(transform, tiles)]


def _join_tiles(products, shape):
  """A^T m A of each tile: 16 arrays [B*H/2*W/2, D] -> shape [B, H, W, D]."""
  b, h, w, d = shape
  tiles = [[product.reshape(b, h // 2, w // 2, d)
            for product in products[4 * p:4 * p + 4]] for p in range(4)]
  transform = lambda m: (m[0] + m[1] + m[2], m[1] - m[2] - m[3])
  y00, y01, y10, y11 = _transform_2d(transform, tiles)
  rows = [jnp.stack(row, axis=3) for row in ((y00, y01), (y10, y11))]
  return jnp.stack(rows, axis=2).reshape(shape)


def _transform_2d(transform, tiles):
  """A linear map of short lists, along the columns of a grid, then the rows."""
  columns = [transform(column) for column in zip(*tiles, strict=True)]
  return [y for row in zip(*columns, strict=True)
          for y in transform(row)]
