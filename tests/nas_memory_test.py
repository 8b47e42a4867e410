"""The ring of cells, and what each memory loss makes the policy keep."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from nas_jax import controller as controller_lib
from nas_jax import enas
from nas_jax import memory as memory_lib
from nas_jax import space as space_lib
from nas_jax import strategies

Memory = memory_lib.Memory


def test_a_ring_keeps_the_newest_and_overwrites_the_oldest():
  buffer = memory_lib.init_buffer(10, 3)
  for k in range(1, 6):
    rows = jnp.full((4, 3), k).at[:, 1].set(jnp.arange(4))
    buffer = memory_lib.push(buffer, rows)
    assert memory_lib.size(buffer) == min(4 * k, 10)
  held = np.asarray(buffer.tokens)
  assert sorted(held[:, 0]) == [3, 3, 4, 4, 4, 4, 5, 5, 5, 5]
  assert {tuple(r) for r in held if r[0] == 3} == {(3, 2, 3), (3, 3, 3)}


def test_rows_are_drawn_without_replacement_from_those_that_are_held():
  buffer = memory_lib.init_buffer(100, 1)
  buffer = memory_lib.push(buffer, 1 + jnp.arange(20)[:, None])
  counts = np.zeros(21)
  for i in range(100):
    rows = np.asarray(memory_lib.draw(buffer, jax.random.key(i), 10))[:, 0]
    assert len(set(rows)) == 10 and rows.min() > 0
    counts[rows] += 1
  assert counts[1:].min() > 25  # 50 each in the mean


@pytest.mark.parametrize('settings, words', [
    (dict(kind='relive'), 'relive'),
    (dict(kind='replay', pushed_per_round=0), 'pushed_per_round'),
    (dict(kind='replay', train_from_round=4), 'holds 0 cells'),
    (dict(kind='replay', pushed_per_round=9, batch_size=55), 'holds 54')])
def test_a_memory_that_would_train_on_nothing_is_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    Memory(**settings)


def fit(kind, tokens, controller, *, steps, lr=3e-3, batch_size=64):
  """Minimises a memory loss alone; (params, heads, loss of all tokens)."""
  memory, tx = Memory(kind), optax.adam(lr)
  params = {'policy': controller_lib.init_params(
      controller, jax.random.key(0))}
  heads = memory_lib.init_heads(kind, controller, jax.random.key(1))
  params |= {'heads': heads} if heads else {}

  def loss(params, rows):
    return memory_lib.loss(
        memory, controller, params['policy'], params.get('heads', {}), rows)

  @jax.jit
  def train(params):
    def body(carry, key):
      params, opt_state = carry
      rows = tokens[jax.random.randint(key, (batch_size,), 0, len(tokens))]
      updates, opt_state = tx.update(
          jax.grad(loss)(params, rows), opt_state)
      return (optax.apply_updates(params, updates), opt_state), None
    carry, _ = jax.lax.scan(body, (params, tx.init(params)),
                            jax.random.split(jax.random.key(2), steps))
    return carry[0]

  params = train(params)
  return params, float(loss(params, tokens))


def uniform(space, num, seed):
  return space_lib.encode(
      space, space_lib.sample(space, jax.random.key(seed), num))


def test_k_cells_are_memorised_down_to_their_entropy():
  space = space_lib.enas(6)
  tokens = uniform(space, 8, 0)
  free = controller_lib.Controller(space, 32, tanh_constant=0)
  params, loss = fit(
      'replay', tokens, free, steps=1_500, lr=1e-2, batch_size=32)
  nats = loss * space.num_decisions
  assert math.log(8) <= nats < math.log(8) + 0.15
  drawn = controller_lib.sample(
      free, params['policy'], jax.random.key(5), 200).tokens
  known = (drawn[:, None] == tokens[None]).all(-1).any(-1)
  assert known.mean() > 0.9


def test_the_squash_raises_the_floor():
  space = space_lib.enas(12)
  controller = controller_lib.Controller(space, 32)
  _, loss = fit('replay', uniform(space, 1, 0), controller, steps=400,
                lr=1e-2, batch_size=1)
  floor = -math.log(0.54756)
  assert floor - 1e-3 <= loss * space.num_decisions < floor + 0.05


def test_losses_are_of_logits_and_not_of_probabilities():
  # A softmax of probabilities of k options stays above ln(e + k - 1) - 1.
  space = space_lib.Space(2, space_lib.ACTIVATIONS)
  controller = controller_lib.Controller(space, 16, tanh_constant=0)
  tokens = jnp.array([[1, 0, 2]])
  for kind in ('replay', 'reconstruct', 'prev_action'):
    _, loss = fit(kind, tokens, controller, steps=200, lr=3e-2)
    assert loss < 0.1 < (math.log(math.e + 3) - 1) * 2 / 3


def correlation(controller, policy, tokens):
  """Spearman's rho of distances of last states and edit distances."""
  hidden = np.asarray(
      controller_lib.score(controller, policy, tokens).hidden[:, -1])
  tokens = np.asarray(tokens)
  upper = np.triu_indices(len(tokens), 1)
  far = np.linalg.norm(hidden[:, None] - hidden[None], axis=-1)[upper]
  weights = np.where(np.arange(tokens.shape[1]) % 2, 2, 1)
  edits = ((tokens[:, None] != tokens[None]) * weights).sum(-1)[upper]
  return stats.spearmanr(far, edits).statistic


def test_reconstruction_makes_hidden_states_tell_cells_apart():
  space = space_lib.enas(8)
  controller = controller_lib.Controller(space, 64)
  test = uniform(space, 100, 1)
  fresh = controller_lib.init_params(controller, jax.random.key(0))
  start = correlation(controller, fresh, test)
  found, loss = {}, {}
  for kind in ('replay', 'reconstruct'):
    params, loss[kind] = fit(
        kind, uniform(space, 4_000, 2), controller, steps=800)
    found[kind] = correlation(controller, params['policy'], test)
  uniform_nll = np.log(space.num_options[:-1]).mean()
  assert loss['reconstruct'] < 0.5 * uniform_nll
  assert found['reconstruct'] > start + 0.2
  # Independent decisions give a policy nothing to remember.
  assert found['replay'] < start + 0.1


def run(memory, rounds=3, updates=4):
  """A short search over a made-up loss; the state at its end."""
  space = space_lib.enas(3)
  controller = controller_lib.Controller(space, 8)
  strategy = enas.strategy(enas.Settings(
      controller, memory, enas.Reward(), optax.adam(1e-2)))
  supernet = strategies.Supernet(
      lambda tokens, key: 1 + jnp.mean(tokens.astype(jnp.float32), -1))
  state = strategy.init(jax.random.key(0))

  @jax.jit
  def round_(state, key, i):
    state = strategy.begin(state, key, i)
    def body(state, key):
      return strategy.update(state, key, supernet)
    return jax.lax.scan(body, state, jax.random.split(key, updates))

  for i in range(rounds):
    state, metrics = round_(state, jax.random.key(10 + i), jnp.int32(i))
  return state, metrics


def test_a_weight_of_zero_is_plain_enas_bit_for_bit():
  plain, _ = run(Memory('none'))
  small = dict(capacity=8, batch_size=2, pushed_per_round=4,
               store_from_round=0, train_from_round=1)
  for kind in ('replay', 'reconstruct', 'prev_action'):
    zero, _ = run(Memory(kind, weight=0.0, **small))
    chex.assert_trees_all_equal(plain, zero)
    on, _ = run(Memory(kind, weight=1.0, **small))
    gap = jnp.abs(on['params']['policy']['w_h']
                  - plain['params']['policy']['w_h']).max()
    assert gap > 1e-4


def test_a_memory_stores_before_it_trains():
  settings = dict(capacity=8, batch_size=2, pushed_per_round=4,
                  store_from_round=1, train_from_round=2)
  plain, _ = run(Memory('none'), rounds=2)
  stored, _ = run(Memory('replay', **settings), rounds=2)
  assert memory_lib.size(stored['buffer']) == 4
  chex.assert_trees_all_close(
      stored['params']['policy'], plain['params']['policy'], atol=1e-6)
