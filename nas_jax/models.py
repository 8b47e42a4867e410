"""What is trained from scratch: a found cell alone, or an LSTM beside it."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from core_jax import mesh as mesh_lib
from nas_jax import child as child_lib
from nas_jax import data
from nas_jax import softmax
from nas_jax import space as space_lib

Params = dict[str, jax.Array]


class Model(NamedTuple):
  """A language model as functions.

  Attributes:
    init: key -> params.
    state: batch size -> state [B, ...].
    nll: (params, arch, tokens [T + 1, B], state, rates, key) -> (nats
      [T, B], state); `arch` is a cell, or nothing.
  """
  init: Callable[[jax.Array], Params]
  state: Callable[[int], Any]
  nll: Callable[..., tuple[jax.Array, Any]]


def recurrent(child: child_lib.Child) -> Model:
  """A network whose cell is an argument.

  By `child.sharing` the weights are those that all cells share or, 'node',
  those of one cell alone.
  """

  def nll(params, arch, tokens, h, rates, key):
    return child_lib.negative_log_likelihood(
        child, params, space_lib.Cell(*arch), tokens, h, rates=rates, key=key)

  return Model(
      lambda key: child_lib.init_params(child, key),
      lambda batch_size: child_lib.initial_state(child, batch_size), nll)


def lstm(vocab_size: int, hidden_size: int, init_scale: float) -> Model:
  """One layer, tied softmax, dropped out as a cell's network is."""
  h = hidden_size
  shapes = {'embedding': (vocab_size, h), 'w': (2 * h, 4 * h)}

  def init(key):
    params = {
        name: jax.random.uniform(
            jax.random.fold_in(key, i), shape, minval=-init_scale,
            maxval=init_scale)
        for i, (name, shape) in enumerate(shapes.items())}
    return params | {
        'bias': jnp.zeros(vocab_size), 'b': jnp.zeros(4 * h)}

  def nll(params, arch, tokens, state, rates, key):
    del arch
    kept = child_lib.masks(
        (vocab_size, h), tokens.shape[1], (h, 4 * h), rates, key)
    x = params['embedding'][tokens[:-1]]
    x = x * kept['embedding'][tokens[:-1]][..., None] * kept['input'][None]
    inputs = x @ params['w'][:h] + params['b'][None, None]
    recurrent = params['w'][h:] * kept['weight']

    def step(state, x):
      hidden, memory = state
      i, f, g, o = jnp.split(x + hidden @ recurrent, 4, -1)
      memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
      hidden = jax.nn.sigmoid(o) * jnp.tanh(memory)
      return (hidden, memory), hidden

    state, outputs = jax.lax.scan(step, state, inputs)
    nats = softmax.negative_log_likelihood(
        outputs * kept['output'][None], params['embedding'], params['bias'],
        tokens[1:])
    return nats, state

  return Model(init, lambda size: (jnp.zeros((size, h)),) * 2, nll)


def count_lstm(vocab_size: int, hidden_size: int) -> int:
  """Parameters of `lstm`."""
  h = hidden_size
  return vocab_size * (h + 1) + 8 * h * h + 4 * h


def equal_lstm(vocab_size: int, num_params: int) -> int:
  """The largest hidden size whose LSTM has at most so many parameters."""
  h = 1
  while count_lstm(vocab_size, h + 1) <= num_params:
    h += 1
  return h


def loss_on(
    model: Model, params: Any, arch: Any, streams: jax.Array,
    window_tokens: int, num_windows: int = 0,
) -> jax.Array:
  """[], nats a token on the first windows of streams [B, L]; 0 for all."""

  def body(h, i):
    window = data.take_window(streams, i, window_tokens)
    nll, h = model.nll(params, arch, window, h, None, None)
    return h, nll.mean()

  count = num_windows or data.num_windows(streams, window_tokens)
  start = mesh_lib.vary_like(
      model.state(len(streams)), jax.tree.leaves(params)[0])
  return jax.lax.scan(body, start, jnp.arange(count))[1].mean()


def losses_of(
    child: child_lib.Child, params: Params, tokens: jax.Array,
    streams: jax.Array, window_tokens: int, num_windows: int = 0,
) -> jax.Array:
  """[M], nats a token by shared weights, of cells given by tokens [M, S].

  `streams`, `window_tokens` and `num_windows` are those of `loss_on`.
  """
  model = recurrent(child)
  return jax.lax.map(
      lambda row: loss_on(
          model, params, space_lib.decode(child.space, row), streams,
          window_tokens, num_windows), tokens)
