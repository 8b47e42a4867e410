"""Floating-point operations of a program, from its jaxpr."""

from collections.abc import Iterator
import math
from typing import Any

import jax
from jax.extend import core


def count(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
  """FLOPs of matrix products and convolutions, 2 to a multiplication and sum.

  Compilers count a loop's body once; here a scan counts as often as it turns.
  A `while` counts once, since no one knows, and a `cond` as its dearest
  branch. Inside a shard_map shapes, and so the count, are those of one shard.
  What nothing reads does not count, since no compiler keeps it.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  variables = lambda xs: (x for x in xs if not isinstance(x, core.Literal))
  read, total = set(variables(jaxpr.outvars)), 0
  for equation in reversed(jaxpr.eqns):
    if equation.effects or not read.isdisjoint(equation.outvars):
      read.update(variables(equation.invars))
      total += _of_equation(equation)
  return total


def _of_equation(equation):
  name = equation.primitive.name
  if name == 'dot_general':
    return _of_product(equation)
  if name == 'conv_general_dilated':
    return _of_convolution(equation)
  inner = [count(jaxpr) for jaxpr in _inner(equation.params)]
  if name == 'cond':
    return max(inner)
  return sum(inner) * (equation.params['length'] if name == 'scan' else 1)


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  is_jaxpr = lambda x: isinstance(x, (core.ClosedJaxpr, core.Jaxpr))
  for leaf in jax.tree.leaves(list(params.values()), is_leaf=is_jaxpr):
    if is_jaxpr(leaf):
      yield leaf


def _of_product(equation):
  (contracted, _), _ = equation.params['dimension_numbers']
  left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  return 2 * math.prod(out) * math.prod(left[i] for i in contracted)


def _of_convolution(equation):
  kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
  _, inputs, *window = equation.params['dimension_numbers'].rhs_spec
  return 2 * math.prod(out) * kernel[inputs] * math.prod(
      kernel[i] for i in window)
