"""The continuous relaxation of cells (DARTS), over the same shared weights.

Each node is a mixture of all that it could be: of every earlier node as its
parent with every activation. DARTS has a softmax over activations for each
edge and sums over edges; here one softmax is over both, so that a mixture
with all its weight in one place is that cell exactly.
"""

from typing import Any
from typing import NamedTuple

import chex
import jax
from jax import lax
import jax.numpy as jnp

from nas_jax import cell as cell_lib
from nas_jax import child as child_lib
from nas_jax import softmax
from nas_jax import space as space_lib

_INIT_SCALE = 1e-3  # of alpha in DARTS


Alpha = dict[str, jax.Array]  # a dict, as checkpoints give it back


class Mixture(NamedTuple):
  """Of what each node is made; the probabilities of a node sum to 1.

  Attributes:
    first: [F], of node 0's activation.
    edges: [E, F], of the edge and the activation at its end, edges counted by
      targets as `child.edge` does.
  """
  first: jax.Array
  edges: jax.Array


def check(child: child_lib.Child) -> None:
  """Raises ValueError where the weights depend on the activation too.

  A mixture of them would cost F times as much.
  """
  if child.sharing == 'edge_act':
    raise ValueError("child.sharing='edge_act' has no relaxation; take 'edge' "
                     "or 'node'")


def init_alpha(child: child_lib.Child, key: jax.Array) -> Alpha:
  """Nearly even logits 'first' [F] and 'edges' [E, F] of a `Mixture`.

  'first' is not read where node 0's activation is fixed.
  """
  num_nodes, num_acts = child.space.num_nodes, len(child.space.activations)
  draw = lambda i, *shape: _INIT_SCALE * jax.random.normal(
      jax.random.fold_in(key, i), shape)
  return {'first': draw(0, num_acts),
          'edges': draw(1, num_nodes * (num_nodes - 1) // 2, num_acts)}


def edges_of(j: int) -> slice:
  """Places of the edges that end in node j."""
  return slice(j * (j - 1) // 2, j * (j + 1) // 2)


def mixture(space: space_lib.Space, alpha: Alpha) -> Mixture:
  """Logits -> probabilities."""
  num_acts = len(space.activations)
  chex.assert_shape(alpha['edges'], (None, num_acts))
  first = (jax.nn.one_hot(space.first_index(), num_acts) if space.first
           else jax.nn.softmax(alpha['first']))
  edges = [
      jax.nn.softmax(alpha['edges'][edges_of(j)], (0, 1))
      for j in range(1, space.num_nodes)]
  return Mixture(first, jnp.concatenate(edges or [alpha['edges']]))


def discretise(space: space_lib.Space, alpha: Alpha) -> space_lib.Cell:
  """Of each node the parent and activation of the largest weight (DARTS)."""
  found = mixture(space, alpha)
  prev, act = [jnp.int32(0)], [jnp.argmax(found.first)]
  for j in range(1, space.num_nodes):
    mine = found.edges[edges_of(j)]
    prev.append(jnp.argmax(mine.max(1)))
    act.append(jnp.argmax(mine[prev[-1]]))
  stack = lambda x: jnp.stack(x).astype(jnp.int32)
  return space_lib.Cell(stack(prev), stack(act))


def shares(child: child_lib.Child, found: Mixture) -> jax.Array:
  """[N], of the nodes in the mean: by how surely nothing reads a node."""
  num_nodes = child.space.num_nodes
  if child.output == 'all' and num_nodes > 1:
    averaged = jnp.ones(num_nodes).at[0].set(0.0)
    return averaged / averaged.sum()
  unread = jnp.ones(num_nodes)
  for j in range(1, num_nodes):
    unread = unread.at[:j].multiply(1 - found.edges[edges_of(j)].sum(1))
  return unread / unread.sum()


def mixed_negative_log_likelihood(
    child: child_lib.Child, params: child_lib.Params, found: Mixture,
    tokens: jax.Array, h: jax.Array, *,
    rates: child_lib.Rates | None = None, key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`child.negative_log_likelihood` of a mixture of cells.

  Args:
    child: settings.
    params: shared weights.
    found: of `mixture`.
    tokens: [T + 1, B].
    h: [B, H], the state before.
    rates: of dropout; None for evaluation.
    key: of dropout; None for evaluation.

  Returns:
    [T, B] in nats, of tokens[1:], and the state after, [B, H].
  """
  mean = shares(child, found)

  def run(recurrent, inputs, h):
    def step(h, x):
      states = _states(child, params['w'], found, x + h @ recurrent, h)
      y, h = cell_lib.outputs(child.form, mean, states)
      return h, y

    h, outputs = lax.scan(jax.checkpoint(step), h, inputs)
    return outputs, h

  outputs, h = child_lib.around(
      child, params, run, tokens[:-1], h, rates, key)
  return softmax.negative_log_likelihood(
      outputs, params['embedding'], params['bias'], tokens[1:]), h


def _states(child, weights, found, z, h):
  """All nodes of one step, [N, B, H], from node 0's z [B, 2H]."""
  states = [_mixed(child, found.first[None], z[None], h[None])]
  for j in range(1, child.space.num_nodes):
    parents = jnp.stack(states)
    if child.sharing == 'node':
      z = parents @ weights[j - 1]
    else:
      z = jnp.einsum('ibh,ihk->ibk', parents, weights[edges_of(j)])
    states.append(_mixed(child, found.edges[edges_of(j)], z, parents))
  return jnp.stack(states)


def _mixed(child, probs, z, parents: Any):
  """Parents [I, B, H], z [I, B, 2H], probs [I, F] -> a state [B, H]."""
  u, g = jnp.split(z, 2, -1)
  acts = jnp.stack([
      cell_lib.ACTIVATIONS[name](u) for name in child.space.activations])
  candidates = jnp.einsum('if,fibh->ibh', probs, acts)
  kept = probs.sum(1)[:, None, None] * parents
  return jnp.sum(kept + jax.nn.sigmoid(g) * (candidates - kept), 0)
