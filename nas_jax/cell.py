"""A cell over a sequence, its architecture an argument of the program.

The highway form of ENAS: node j with parent i has u, g = s_i W_j, and
s_j = s_i + sigmoid(g) (f_j(u) - s_i). Node 0's parent is the last state h,
and it reads the input beside it. Nodes run in a scan with their states in a
buffer [N, B, H]; the gradient is written out, so that what a step leaves for
it is known, and products of weights' gradients are taken over all steps at
once.
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
  """What the steps leave for the gradient: [T, N, B, H] each."""
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

  def step(h, x):
    left = _nodes(form, wiring, weights, x, h)
    y, after = _outputs(form, wiring.mean, left.states)
    return after, (y, (left, h) if trace else None)

  h, (outputs, left) = lax.scan(step, h, inputs)
  return (outputs, h), left


def _nodes(form, wiring, weights, x, h):
  """One step of all nodes -> _Trace of [N, B, H]."""
  first = _node(form, wiring.act[0], x + h @ weights.recurrent, h)
  states = jnp.zeros((wiring.prev.shape[0], *h.shape), h.dtype)
  states = states.at[0].set(first[0])

  def node(states, inputs):
    j, i, act, w = inputs
    s = states[i]
    s, candidate, gate = _node(form, act, s @ w, s)
    return lax.dynamic_update_index_in_dim(states, s, j, 0), (candidate, gate)

  states, rest = lax.scan(node, states, (
      jnp.arange(1, states.shape[0]), wiring.prev[1:], wiring.act[1:],
      weights.nodes))
  join = lambda one, others: jnp.concatenate([one[None], others])
  return _Trace(states, join(first[1], rest[0]), join(first[2], rest[1]))


def _node(form, act, z, parent):
  """z [B, 2H], parent [B, H] -> state, candidate, gate, [B, H] each."""
  u, g = jnp.split(z, 2, axis=-1)
  candidate = _select(form, ACTIVATIONS, act, u)
  gate = jax.nn.sigmoid(g)
  return parent + gate * (candidate - parent), candidate, gate


def _select(form, functions, act, u):
  cases = [functions[name](u) for name in form.activations]
  return lax.select_n(act, *cases) if len(cases) > 1 else cases[0]


def _outputs(form, mean, states):
  """States [N, B, H] -> the output and the next state, [B, H] each."""
  y = clip_norm(jnp.tensordot(mean, states, 1), form.max_norm)
  if form.state == 'mean':
    return y, y
  return y, clip_norm(states[-1], form.max_norm)


def clip_norm(x: jax.Array, max_norm: float) -> jax.Array:
  """Rows of x [B, H] longer than max_norm, shortened to it; 0 for none."""
  if not max_norm:
    return x
  squares = jnp.sum(x * x, -1, keepdims=True)
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
    _, pull = jax.vjp(functools.partial(_outputs, form), wiring.mean,
                      left.states)
    d_mean, d_states = pull((d_y, d_h))
    d_z, d_h = _nodes_backward(form, wiring, weights, left, h, d_states)
    return d_h, (d_z, d_mean)

  d_h, (d_z, d_mean) = lax.scan(
      step, d_last, (d_outputs, left, before), reverse=True)
  parents = left.states[:, wiring.prev[1:]]
  d_weights = Weights(
      jnp.einsum('tbh,tbk->hk', before, d_z[:, 0]),
      jnp.einsum('tnbh,tnbk->nhk', parents, d_z[:, 1:]))
  d_wiring = Wiring(None, None, d_mean.sum(0))
  return d_wiring, d_weights, d_z[:, 0], d_h


def _nodes_backward(form, wiring, weights, left, h, d_states):
  """Cotangents of one step's states -> of z [N, B, 2H] and of h [B, H]."""

  def pull(act, d, parent, candidate, gate):
    d_u = d * gate * _select(form, DERIVATIVES, act, candidate)
    d_g = d * (candidate - parent) * gate * (1 - gate)
    return jnp.concatenate([d_u, d_g], -1), d * (1 - gate)

  def node(d_states, inputs):
    j, i, act, w, candidate, gate = inputs
    d_z, d_parent = pull(
        act, d_states[j], left.states[i], candidate, gate)
    return d_states.at[i].add(d_parent + d_z @ w.T), d_z

  d_states, d_z = lax.scan(node, d_states, (
      jnp.arange(1, d_states.shape[0]), wiring.prev[1:], wiring.act[1:],
      weights.nodes, left.candidates[1:], left.gates[1:]), reverse=True)
  d_z0, d_h = pull(wiring.act[0], d_states[0], h, left.candidates[0],
                   left.gates[0])
  return (jnp.concatenate([d_z0[None], d_z]),
          d_h + d_z0 @ weights.recurrent.T)


run.defvjp(_forward, _backward)
