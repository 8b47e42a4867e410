"""A buffer of sampled cells, and losses that make the controller keep them.

The paper trains the controller on cells that it sampled before, 'which
increases the correlation of its hidden states with similarity'. Its authors'
code replays them by likelihood; the two other losses ask directly for what a
hidden state should hold.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from nas_jax import controller as controller_lib

Params = dict[str, Any]

KINDS = ('none', 'replay', 'reconstruct', 'prev_action')


@dataclasses.dataclass(frozen=True)
class Memory:
  """Settings.

  Attributes:
    kind: of loss; 'none' has no buffer.
    weight: of the loss beside REINFORCE's; 0 is 'none', bit for bit.
    capacity: cells that the buffer holds.
    batch_size: cells in one loss.
    pushed_per_round: cells that a round adds.
    store_from_round: the first round that adds.
    train_from_round: the first whose updates have the loss; a round adds
      before it updates.
  """
  kind: str = 'none'
  weight: float = 1.0
  capacity: int = 10_000
  batch_size: int = 100
  pushed_per_round: int = 1_000
  store_from_round: int = 5
  train_from_round: int = 10

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'kind={self.kind!r} of a memory; there are '
                       f'{", ".join(KINDS)}')
    if not self.on:
      return
    if self.pushed_per_round < 1 or self.capacity < self.pushed_per_round:
      raise ValueError(
          f'memory.pushed_per_round={self.pushed_per_round} must be from 1 to '
          f'memory.capacity={self.capacity}')
    stored = min(self.capacity, self.pushed_per_round * max(
        0, self.train_from_round - self.store_from_round + 1))
    if stored < self.batch_size:
      raise ValueError(
          f'at memory.train_from_round={self.train_from_round} the buffer '
          f'holds {stored} cells, and memory.batch_size={self.batch_size}: '
          'train later, store earlier, or push more')

  @property
  def on(self) -> bool:
    return self.kind != 'none' and self.weight != 0


class Buffer(NamedTuple):
  """A ring of cells.

  Attributes:
    tokens: [capacity, S].
    pushed: [], how many cells were ever added.
  """
  tokens: jax.Array
  pushed: jax.Array


def init_buffer(capacity: int, num_decisions: int) -> Buffer:
  """An empty ring."""
  return Buffer(jnp.zeros((capacity, num_decisions), jnp.int32), jnp.int32(0))


def size(buffer: Buffer) -> jax.Array:
  """[], how many cells it holds."""
  return jnp.minimum(buffer.pushed, len(buffer.tokens))


def push(buffer: Buffer, tokens: jax.Array) -> Buffer:
  """Adds tokens [M, S], M <= capacity, over the oldest."""
  chex.assert_rank(tokens, 2)
  chex.assert_axis_dimension_lteq(tokens, 0, len(buffer.tokens))
  rows = (buffer.pushed + jnp.arange(len(tokens))) % len(buffer.tokens)
  return Buffer(
      buffer.tokens.at[rows].set(tokens), buffer.pushed + len(tokens))


def draw(buffer: Buffer, key: jax.Array, num: int) -> jax.Array:
  """`num` different rows [num, S] of a ring that holds as many."""
  chex.assert_axis_dimension_gteq(buffer.tokens, 0, num)
  held = jnp.arange(len(buffer.tokens)) < size(buffer)
  rank = jnp.where(held, jax.random.uniform(key, held.shape), -1.0)
  return buffer.tokens[jax.lax.top_k(rank, num)[1]]


def init_heads(
    kind: str, controller: controller_lib.Controller, key: jax.Array
) -> Params:
  """Linear heads 'w' [S - 1, h, k], 'b' [S - 1, k] where the loss has any."""
  if kind not in ('reconstruct', 'prev_action'):
    return {}
  shape = (controller.space.num_decisions - 1, controller.hidden_size,
           controller.max_options)
  scale = controller.init_scale
  return {'w': jax.random.uniform(key, shape, minval=-scale, maxval=scale),
          'b': jnp.zeros((shape[0], shape[2]))}


def replay_loss(decisions: controller_lib.Decisions) -> jax.Array:
  """Mean negative log-likelihood of a cell's decision, nats.

  The authors apply cross-entropy to probabilities, feed predecessors as
  activations and skip the first step; this is what they meant.
  """
  return -jnp.mean(decisions.log_prob)


def reconstruction_loss(
    controller: controller_lib.Controller, heads: Params,
    decisions: controller_lib.Decisions,
) -> jax.Array:
  """Mean NLL, nats, of all decisions but the last from the last state."""
  last = decisions.hidden[:, -1]
  logits = jnp.einsum('mh,shk->msk', last, heads['w']) + heads['b'][None]
  return _mean_nll(controller, logits, decisions.tokens[:, :-1])


def previous_action_loss(
    controller: controller_lib.Controller, heads: Params,
    decisions: controller_lib.Decisions,
) -> jax.Array:
  """Mean NLL, nats, of each decision but the last from the state after it."""
  later = decisions.hidden[:, 1:]
  logits = jnp.einsum('msh,shk->msk', later, heads['w']) + heads['b'][None]
  return _mean_nll(controller, logits, decisions.tokens[:, :-1])


def _mean_nll(controller, logits, tokens):
  options = jnp.asarray(controller.space.num_options[:-1])[None, :, None]
  there = jnp.arange(controller.max_options)[None, None] < options
  log_probs = jax.nn.log_softmax(jnp.where(there, logits, -1e9))
  return -jnp.mean(jnp.take_along_axis(log_probs, tokens[..., None], -1))


def loss(
    memory: Memory, controller: controller_lib.Controller,
    params: Params, heads: Params, tokens: jax.Array,
) -> jax.Array:
  """The loss of `memory.kind` on cells [M, S] from the buffer, nats."""
  decisions = controller_lib.score(controller, params, tokens)
  match memory.kind:
    case 'replay':
      return replay_loss(decisions)
    case 'reconstruct':
      return reconstruction_loss(controller, heads, decisions)
    case 'prev_action':
      return previous_action_loss(controller, heads, decisions)
  raise ValueError(f'memory.kind={memory.kind!r} has no loss')
