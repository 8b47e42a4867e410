"""A cell over a sequence, its architecture an argument of the program.

The highway form of ENAS: node j with parent i has u, g = s_i W_j, and
s_j = s_i + sigmoid(g) (f_j(u) - s_i). Node 0's parent is the last state h,
and it reads the input beside it. Nodes run in a scan with their states in a
buffer; the gradient is written out, so that what a step leaves for it is
known, and products of weights' gradients are taken over all steps at once.
Inside, states lie with columns last, [H, B]: products with few columns are
quicker so.
"""

import functools
from typing import NamedTuple

import chex
import jax
from jax import lax
import jax.numpy as jnp

ACTIVATIONS = {
    'tanh': jnp.tanh,
    'relu': jax.nn.relu,
    'identity': lambda u: u,
    'sigmoid': jax.nn.sigmoid,
}
# f'(u) as a function of f(u).
DERIVATIVES = {
    'tanh': lambda f: 1 - f * f,
    'relu': lambda f: (f > 0).astype(f.dtype),
    'identity': jnp.ones_like,
    'sigmoid': lambda f: f * (1 - f),
}


class Form(NamedTuple):
  """What is no array: fixed in the program.

  Attributes:
    activations: names, in the order of their numbers.
    state: what the next step gets, 'mean' or 'last'.
    max_norm: of the mean and of the state, per example; 0 for none.
  """
  activations: tuple[str, ...]
  state: str
  max_norm: float


class Weights(NamedTuple):
  """Of one cell.

  Attributes:
    recurrent: [H, 2H], of the state in node 0: candidate, then gate.
    nodes: [N - 1, H, 2H], of the other nodes.
  """
  recurrent: jax.Array
  nodes: jax.Array


class Wiring(NamedTuple):
  """The architecture.

  Attributes:
    prev: [N], int32.
    act: [N], int32.
    mean: [N], each node's share in the output.
  """
  prev: jax.Array
  act: jax.Array
  mean: jax.Array


class _Trace(NamedTuple):
  """What the steps leave for the gradient: [T, N, H, B] each."""
  states: jax.Array
  candidates: jax.Array
  gates: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(
    form: Form, wiring: Wiring, weights: Weights, inputs: jax.Array,
    h: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The cell over T steps.

  Args:
    form: the program's settings.
    wiring: the architecture.
    weights: of this cell.
    inputs: [T, B, 2H], what the tokens add to node 0: candidate, then gate.
    h: [B, H], the state before.

  Returns:
    Outputs [T, B, H] and the state after, [B, H].
  """
  return _run(form, wiring, weights, inputs, h, trace=False)[0]


def _run(form, wiring, weights, inputs, h, trace):
  num_steps, batch_size, width = inputs.shape
  chex.assert_shape(h, (batch_size, width // 2))
  chex.assert_shape(weights.recurrent, (width // 2, width))
  chex.assert_shape(
      weights.nodes, (wiring.prev.shape[0] - 1, width // 2, width))

  transposed = jax.tree.map(_transpose, weights)

  def step(h, x):
    left = _nodes(form, wiring, transposed, x, h)
    y, after = outputs(form, wiring.mean, left.states, axis=0)
    return after, (y, (left, h) if trace else None)

  h, (ys, left) = lax.scan(step, h.T, _transpose(inputs))
  return (_transpose(ys), h.T), left


def _transpose(x):
  """[..., B, H] <-> [..., H, B]."""
  return jnp.swapaxes(x, -1, -2)


def _nodes(form, wiring, transposed, x, h):
  """One step of all nodes, x [2H, B], h [H, B] -> _Trace of [N, H, B]."""
  first = _node(form, wiring.act[0], x + transposed.recurrent @ h, h)
  states = jnp.zeros((wiring.prev.shape[0], *h.shape), h.dtype)
  states = states.at[0].set(first[0])

  def node(states, inputs):
    j, i, act, w = inputs
    s = states[i]
    s, candidate, gate = _node(form, act, w @ s, s)
    return lax.dynamic_update_index_in_dim(states, s, j, 0), (candidate, gate)

  states, rest = lax.scan(node, states, (
      jnp.arange(1, states.shape[0]), wiring.prev[1:], wiring.act[1:],
      transposed.nodes))
  join = lambda one, others: jnp.concatenate([one[None], others])
  return _Trace(states, join(first[1], rest[0]), join(first[2], rest[1]))


def _node(form, act, z, parent):
  """z [2H, B], parent [H, B] -> state, candidate, gate, [H, B] each."""
  u, g = jnp.split(z, 2)
  candidate = _select(form, ACTIVATIONS, act, u)
  gate = jax.nn.sigmoid(g)
  return parent + gate * (candidate - parent), candidate, gate


def _select(form, functions, act, u):
  cases = [functions[name](u) for name in form.activations]
  return lax.select_n(act, *cases) if len(cases) > 1 else cases[0]


def outputs(
    form: Form, mean: jax.Array, states: jax.Array, axis: int = -1
) -> tuple[jax.Array, jax.Array]:
  """States [N, B, H] -> the output and the next state, [B, H] each.

  With axis=0, states [N, H, B] -> [H, B].
  """
  y = clip_norm(jnp.tensordot(mean, states, 1), form.max_norm, axis)
  if form.state == 'mean':
    return y, y
  return y, clip_norm(states[-1], form.max_norm, axis)


def clip_norm(x: jax.Array, max_norm: float, axis: int = -1) -> jax.Array:
  """Vectors along an axis longer than max_norm, to that; 0 for none.

  The square of a length from 1.8e19 on is infinite, and the vector becomes 0.
  """
  if not max_norm:
    return x
  squares = jnp.sum(x * x, axis, keepdims=True)
  too_long = squares > max_norm**2
  return x * jnp.where(
      too_long, max_norm * lax.rsqrt(jnp.where(too_long, squares, 1.)), 1.)


def _forward(form, wiring, weights, inputs, h):
  result, left = _run(form, wiring, weights, inputs, h, trace=True)
  return result, (wiring, weights, left)


def _backward(form, residuals, cotangents):
  wiring, weights, (left, before) = residuals
  d_outputs, d_last = cotangents

  def step(d_h, inputs):
    d_y, left, h = inputs
    _, pull = jax.vjp(functools.partial(outputs, form, axis=0), wiring.mean,
                      left.states)
    d_mean, d_states = pull((d_y, d_h))
    d_z, d_h = _nodes_backward(form, wiring, weights, left, h, d_states)
    return d_h, (d_z, d_mean)

  d_h, (d_z, d_mean) = lax.scan(
      step, d_last.T, (_transpose(d_outputs), left, before), reverse=True)

  def d_node(inputs):
    j, i = inputs
    of = lambda x, k: lax.dynamic_index_in_dim(x, k, 1, keepdims=False)
    return _products(of(left.states, i), of(d_z, j))

  d_weights = Weights(
      _products(before, d_z[:, 0]),
      lax.map(d_node, (jnp.arange(1, d_z.shape[1]), wiring.prev[1:])))
  d_wiring = Wiring(None, None, d_mean.sum(0))
  return d_wiring, d_weights, _transpose(d_z[:, 0]), d_h.T


def _products(x, d_z):
  """[T, H, B], [T, 2H, B] -> [H, 2H], summed over steps and columns."""
  rows = lambda x: _transpose(x).reshape(-1, x.shape[1])
  return rows(x).T @ rows(d_z)


def _nodes_backward(form, wiring, weights, left, h, d_states):
  """Cotangents of one step's states -> of z [N, 2H, B] and of h [H, B]."""

  def pull(act, d, parent, candidate, gate):
    d_u = d * gate * _select(form, DERIVATIVES, act, candidate)
    d_g = d * (candidate - parent) * gate * (1 - gate)
    return jnp.concatenate([d_u, d_g]), d * (1 - gate)

  def node(d_states, inputs):
    j, i, act, w, candidate, gate = inputs
    d_z, d_parent = pull(
        act, d_states[j], left.states[i], candidate, gate)
    return d_states.at[i].add(d_parent + w @ d_z), d_z

  d_states, d_z = lax.scan(node, d_states, (
      jnp.arange(1, d_states.shape[0]), wiring.prev[1:], wiring.act[1:],
      weights.nodes, left.candidates[1:], left.gates[1:]), reverse=True)
  d_z0, d_h = pull(wiring.act[0], d_states[0], h, left.candidates[0],
                   left.gates[0])
  return (jnp.concatenate([d_z0[None], d_z]),
          d_h + weights.recurrent @ d_z0)


run.defvjp(_forward, _backward)
