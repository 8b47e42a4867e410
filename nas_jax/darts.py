"""The continuous relaxation of DARTS over the same shared weights.

Every node is a mixture of what all its choices of a parent and an activation
would give (Liu et al. 2019, eq. 2; there the softmax is over activations and
parents are summed, here it is over both, so that a sharp mixture is a cell).
Weights do not depend on the activation: sharing is 'edge' or 'node'.
"""

import math

import chex
import jax
from jax import lax
import jax.numpy as jnp

from nas_jax import cell as cell_lib
from nas_jax import child as child_lib
from nas_jax import softmax
from nas_jax import space as space_lib

Child = child_lib.Child


def init_alpha(child: Child, key: jax.Array, scale: float = 1e-3) -> jax.Array:
  """Logits of all choices, N(0, scale^2).

  Returns:
    [1 + N(N-1)/2, F]: node 0's activations, then for each edge, counted by
    its target, the activations at its end.
  """
  n, num_acts = child.space.num_nodes, len(child.space.activations)
  shape = (1 + n * (n - 1) // 2, num_acts)
  return scale * jax.random.normal(key, shape)


def rows(node: int) -> slice:
  """Where a node's choices lie in alpha: a row for each parent."""
  if node == 0:
    return slice(0, 1)
  first = 1 + node * (node - 1) // 2
  return slice(first, first + node)


def probabilities(child: Child, alpha: jax.Array) -> list[jax.Array]:
  """Of each node's choices, [parents, F]; node 0 has one row."""
  _check(child, alpha)
  found = []
  for j in range(child.space.num_nodes):
    choices = alpha[rows(j)]
    found.append(jax.nn.softmax(choices.reshape(-1)).reshape(choices.shape))
  if child.space.first is not None:
    fixed = jnp.arange(alpha.shape[1]) == child.space.first_index()
    found[0] = fixed[None].astype(alpha.dtype)
  return found


def _check(child, alpha):
  if child.sharing == 'edge_act':
    raise ValueError(
        "sharing='edge_act' gives each activation its weights, a mixture all "
        "of them at once: use 'edge' or 'node'")
  n = child.space.num_nodes
  chex.assert_shape(
      alpha, (1 + n * (n - 1) // 2, len(child.space.activations)))


def mixed_negative_log_likelihood(
    child: Child, params: child_lib.Params, alpha: jax.Array,
    tokens: jax.Array, h: jax.Array, *,
    rates: child_lib.Rates | None = None, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """As `child.negative_log_likelihood`, of the mixture of all cells.

  Args:
    child: settings.
    params: shared weights.
    alpha: [1 + N(N-1)/2, F], logits of the choices.
    tokens: [T + 1, B], int32.
    h: [B, H], the state before.
    rates: of dropout; None for evaluation.
    key: of dropout; None for evaluation.

  Returns:
    [T, B] in nats, of tokens[1:], and the state after, [B, H].
  """
  mixture = probabilities(child, alpha)
  mean = shares(child, mixture)

  def run(recurrent, inputs, h):
    def step(h, x):
      first = x + h @ recurrent
      return _outputs(child, mean, _nodes(
          child, params['w'], mixture, first, h))

    h, outputs = lax.scan(jax.checkpoint(step), h, inputs)
    return outputs, h

  outputs, h = child_lib.around(
      child, params, run, tokens[:-1], h, rates, key)
  return softmax.negative_log_likelihood(
      outputs, params['embedding'], params['bias'], tokens[1:]), h


def _nodes(child, w, mixture, z, h):
  """States of one step, [N, B, H]; z [B, 2H] is what node 0 reads."""
  states = _mix(child, mixture[0], z[None], h[None])[None]
  for j in range(1, child.space.num_nodes):
    if child.sharing == 'node':
      z = states @ w[j - 1]
    else:
      first = child_lib.edge(j, 0)
      z = jnp.einsum('ibh,ihk->ibk', states, w[first:first + j])
    new = _mix(child, mixture[j], z, states)
    states = jnp.concatenate([states, new[None]])
  return states


def _mix(child, p, z, parents):
  """sum_{i, f} p_if (s_i + sigmoid(g_i) (f(u_i) - s_i)).

  Args:
    child: settings.
    p: [I, F].
    z: [I, B, 2H], candidates u and gates g of each parent.
    parents: [I, B, H].

  Returns:
    [B, H].
  """
  u, g = jnp.split(z, 2, axis=-1)
  of_parent = lambda p: p[:, None, None]
  candidates = sum(
      of_parent(p[:, f]) * cell_lib.ACTIVATIONS[name](u)
      for f, name in enumerate(child.space.activations))
  parents = of_parent(p.sum(-1)) * parents
  return (parents + jax.nn.sigmoid(g) * (candidates - parents)).sum(0)


def _outputs(child, mean, states):
  y, h = cell_lib.outputs(child.form, mean, states)
  return h, y


def shares(child: Child, mixture: list[jax.Array]) -> jax.Array:
  """[N], each node's share in the output.

  A leaf is a node that no node reads; a node of a mixture is one as far as
  all later nodes read others.
  """
  n = child.space.num_nodes
  if child.output == 'all' or n == 1:
    averaged = jnp.ones(n).at[0].set(float(n == 1))
  else:
    averaged = jnp.stack([
        math.prod(1 - mixture[j][i].sum() for j in range(i + 1, n))
        for i in range(n)])
  return averaged / averaged.sum()


def discretise(child: Child, alpha: jax.Array) -> space_lib.Cell:
  """Each node's parent and activation of the largest weight, [N]."""
  prev, act = [], []
  for p in probabilities(child, alpha):
    best = jnp.argmax(p)
    prev.append(best // p.shape[1])
    act.append(best % p.shape[1])
  return space_lib.Cell(jnp.stack(prev).astype(jnp.int32),
                        jnp.stack(act).astype(jnp.int32))


def from_cell(child: Child, cell: space_lib.Cell) -> jax.Array:
  """Logits, 0 and -inf, of which the mixture is one cell [N]."""
  n, num_acts = child.space.num_nodes, len(child.space.activations)
  nodes = jnp.arange(n)
  chosen = jnp.where(
      nodes == 0, 0, 1 + child_lib.edge(nodes, jnp.asarray(cell.prev)))
  alpha = jnp.full((1 + n * (n - 1) // 2, num_acts), -jnp.inf)
  return alpha.at[chosen, jnp.asarray(cell.act)].set(0.0)
