"""The policy over cells: an LSTM that takes one decision after another.

One function, `unroll`, samples, scores, replays and shows hidden states, so
that temperature and squash are the same wherever a probability is meant.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from nas_jax import space as space_lib

Params = dict[str, Any]

HEADS = ('per_step', 'tied')
SAMPLE = -1  # a token that `unroll` is to draw
_MASKED = -1e9


@dataclasses.dataclass(frozen=True)
class Controller:
  """Settings of the policy (ENAS; defaults of its PyTorch re-writing).

  Attributes:
    space: of the cells.
    hidden_size: h, of the LSTM and of the tokens' embedding.
    temperature: by which logits are divided.
    tanh_constant: C; logits become C tanh(.). 0 leaves them.
    heads: 'per_step', a linear head for each decision, or 'tied', one for
      activations and one for predecessors.
    init_scale: weights start in U(-x, x), biases of heads at 0.
  """
  space: space_lib.Space
  hidden_size: int = 100
  temperature: float = 5.0
  tanh_constant: float = 2.5
  heads: str = 'per_step'
  init_scale: float = 0.1

  def __post_init__(self):
    if self.heads not in HEADS:
      raise ValueError(f'heads={self.heads!r}; there are {", ".join(HEADS)}')
    if self.temperature <= 0:
      raise ValueError(f'temperature={self.temperature} is not positive')

  @property
  def max_options(self) -> int:
    return int(self.space.num_options.max())


class Start(NamedTuple):
  """Where the LSTM starts: input, hidden state and cell state, [h] each."""
  x: jax.Array
  h: jax.Array
  c: jax.Array


class Decisions(NamedTuple):
  """What the policy did at its S = 2N - 1 steps.

  Attributes:
    tokens: [S], drawn or given.
    log_prob: [S], of the token, nats.
    log_probs: [S, k], of every option; -1e9 where there is none.
    entropy: [S], of the decision given those before, nats.
    hidden: [S, h], outputs of the LSTM. The last has read all tokens but the
      last, which therefore it cannot know.
  """
  tokens: jax.Array
  log_prob: jax.Array
  log_probs: jax.Array
  entropy: jax.Array
  hidden: jax.Array


def init_params(controller: Controller, key: jax.Array) -> Params:
  """'embedding' [F + N - 1, h], 'w_x' and 'w_h' [h, 4h], 'b' [4h] and the
  heads 'w' [S or 2, h, k], 'b_out' [S or 2, k]."""
  h, space = controller.hidden_size, controller.space
  num_heads = 2 if controller.heads == 'tied' else space.num_decisions
  num_tokens = len(space.activations) + max(1, space.num_nodes - 1)
  shapes = {
      'embedding': (num_tokens, h), 'w_x': (h, 4 * h), 'w_h': (h, 4 * h),
      'b': (4 * h,), 'w': (num_heads, h, controller.max_options)}
  scale = controller.init_scale
  keys = jax.random.split(key, len(shapes))
  params = {
      name: jax.random.uniform(k, shape, minval=-scale, maxval=scale)
      for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
  params['b_out'] = jnp.zeros((num_heads, controller.max_options))
  return params


def zero_start(controller: Controller) -> Start:
  """Zeros, as in training."""
  return Start(*[jnp.zeros(controller.hidden_size)] * 3)


def random_starts(
    controller: Controller, key: jax.Array, num: int
) -> Start:
  """N(0, 1), [num, h]: whether a policy heeds its state shows where it
  begins."""
  return Start(*jax.random.normal(key, (3, num, controller.hidden_size)))


def lstm_step(
    params: Params, x: jax.Array, h: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """One step of an LSTM, gates in the order i, f, g, o: (h, c), [h] each."""
  gates = x @ params['w_x'] + h @ params['w_h'] + params['b']
  i, f, g, o = jnp.split(gates, 4)
  c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
  return jax.nn.sigmoid(o) * jnp.tanh(c), c


def squash(controller: Controller, z: jax.Array) -> jax.Array:
  """Raw outputs of a head -> logits: C tanh(z / temperature)."""
  z = z / controller.temperature
  constant = controller.tanh_constant
  return constant * jnp.tanh(z) if constant else z


def unroll(
    controller: Controller, params: Params, tokens: jax.Array, key: jax.Array,
    start: Start | None = None,
) -> Decisions:
  """Takes all decisions for one cell.

  Args:
    controller: settings.
    params: of `init_params`.
    tokens: [S]; a decision that is given, or SAMPLE for one to draw.
    key: of the draws.
    start: of the LSTM; None for zeros.
  """
  space = controller.space
  chex.assert_shape(tokens, (space.num_decisions,))
  options = jnp.asarray(space.num_options)
  num_acts = len(space.activations)

  def step(carry, inputs):
    x, h, c = carry
    t, given, num_options = inputs
    h, c = lstm_step(params, x, h, c)
    head = t % 2 if controller.heads == 'tied' else t
    z = h @ params['w'][head] + params['b_out'][head]
    there = jnp.arange(controller.max_options) < num_options
    log_probs = jax.nn.log_softmax(
        jnp.where(there, squash(controller, z), _MASKED))
    drawn = jax.random.categorical(jax.random.fold_in(key, t), log_probs)
    token = jnp.where(given == SAMPLE, drawn, given).astype(jnp.int32)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs)
    x = params['embedding'][token + num_acts * (t % 2)]
    return Start(x, h, c), Decisions(
        token, log_probs[token], log_probs, entropy, h)

  steps = jnp.arange(space.num_decisions)
  carry = zero_start(controller) if start is None else start
  return jax.lax.scan(step, carry, (steps, tokens, options))[1]


def sample(
    controller: Controller, params: Params, key: jax.Array, num: int,
    starts: Start | None = None,
) -> Decisions:
  """Draws `num` cells: Decisions with a leading axis [num].

  `starts` have that axis too; None for zeros.
  """
  blank = jnp.full(controller.space.num_decisions, SAMPLE)
  return jax.vmap(
      lambda key, start: unroll(controller, params, blank, key, start))(
          jax.random.split(key, num), starts)


def score(
    controller: Controller, params: Params, tokens: jax.Array
) -> Decisions:
  """Decisions of given cells, tokens [M, S]."""
  unused = jax.random.key(0)
  return jax.vmap(
      lambda tokens: unroll(controller, params, tokens, unused))(tokens)


def reinforce_loss(
    decisions: Decisions, advantage: jax.Array, entropy_weight: float,
    entropy_in_reward: bool = False,
) -> jax.Array:
  """Its gradient is that of -E[R] - entropy_weight H, estimated (REINFORCE).

  H sums the entropies of the decisions, each given those before it. That
  differentiates how a decision is spread, and not how often it comes to be
  taken; with `entropy_in_reward` decisions are rewarded for the entropy of
  those after them, which makes H the entropy of whole cells. (Rewarded for
  its own, which it cannot change, a decision learns nothing in the mean.)

  Args:
    decisions: of M sampled cells.
    advantage: [M], reward minus baseline; no gradient goes through it.
    entropy_weight: of a decision's entropy, nats.
    entropy_in_reward: whether later entropies are rewarded.
  """
  chex.assert_rank([decisions.log_prob, advantage], [2, 1])
  entropy, gain = decisions.entropy, advantage[:, None]
  if entropy_in_reward:
    later = entropy.sum(1, keepdims=True) - jnp.cumsum(entropy, 1)
    gain = gain + entropy_weight * later
  return -jnp.mean(jnp.sum(
      decisions.log_prob * jax.lax.stop_gradient(gain)
      + entropy_weight * entropy, -1))
