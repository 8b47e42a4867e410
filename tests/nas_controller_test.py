"""The policy's probabilities, by enumeration, and its gradients."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas_jax import controller as controller_lib
from nas_jax import enas
from nas_jax import memory as memory_lib
from nas_jax import space as space_lib
from nas_jax import strategies

SPACE = space_lib.enas(3)
Controller = controller_lib.Controller


def policy(space=SPACE, *, scale=1.0, **settings):
  controller = Controller(
      space, hidden_size=16, init_scale=scale, **settings)
  return controller, controller_lib.init_params(
      controller, jax.random.key(3))


def all_tokens(space=SPACE):
  return space_lib.encode(space, space_lib.enumerate_cells(space))


@pytest.mark.parametrize('heads', controller_lib.HEADS)
@pytest.mark.parametrize('space', [
    SPACE, space_lib.Space(4, ('tanh', 'relu'), first='tanh')],
    ids=['searched', 'fixed'])
def test_probabilities_of_all_cells_sum_to_one(space, heads):
  controller, params = policy(space, heads=heads)
  log_prob = controller_lib.score(
      controller, params, all_tokens(space)).log_prob
  assert abs(jnp.exp(log_prob.sum(-1)).sum() - 1) < 1e-5


def test_sampling_scores_as_scoring_does():
  controller, params = policy()
  drawn = controller_lib.sample(controller, params, jax.random.key(0), 50)
  scored = controller_lib.score(controller, params, drawn.tokens)
  chex.assert_trees_all_equal(drawn, scored)


def test_entropy_obeys_the_chain_rule():
  controller, params = policy()
  found = controller_lib.score(controller, params, all_tokens())
  log_prob = found.log_prob.sum(-1)
  joint = -jnp.sum(jnp.exp(log_prob) * log_prob)
  steps = jnp.sum(jnp.exp(log_prob) * found.entropy.sum(-1))
  assert abs(joint - steps) < 1e-5


def test_the_mean_gradient_of_the_log_probability_is_zero():
  controller, params = policy()

  def total(params):
    log_prob = controller_lib.score(
        controller, params, all_tokens()).log_prob.sum(-1)
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_prob)) * log_prob)

  for leaf in jax.tree.leaves(jax.grad(total)(params)):
    assert jnp.abs(leaf).max() < 1e-6


def flat(tree):
  return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def exact_gradient(controller, params, rewards):
  def expected(params):
    log_prob = controller_lib.score(
        controller, params, all_tokens(controller.space)).log_prob.sum(-1)
    return -jnp.sum(jnp.exp(log_prob) * rewards)
  return flat(jax.grad(expected)(params))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def expected_gradient(
    controller, params, tokens, advantage, entropy_weight=0.0,
    entropy_in_reward=False):
  """Of `reinforce_loss`: over all cells, each as often as it is drawn."""

  def expected(params):
    decisions = controller_lib.score(controller, params, tokens)
    often = jax.lax.stop_gradient(jnp.exp(decisions.log_prob.sum(-1)))
    each = jax.vmap(lambda one, gain: controller_lib.reinforce_loss(
        jax.tree.map(lambda x: x[None], one), gain[None], entropy_weight,
        entropy_in_reward))
    return jnp.sum(often * each(decisions, advantage))

  return flat(jax.grad(expected)(params))


def distance(found, exact):
  return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))


def test_no_baseline_changes_the_expected_gradient():
  # Nor do all rewards that are higher by as much.
  controller, params = policy()
  rewards = jax.random.uniform(jax.random.key(9), (SPACE.size,))
  exact = exact_gradient(controller, params, rewards)
  for baseline in (0.0, 0.5, -3.0):
    found = expected_gradient(
        controller, params, all_tokens(), rewards - baseline)
    assert distance(found, exact) < 1e-4


def test_reinforce_converges_to_the_exact_gradient_as_one_over_root_n():
  space = space_lib.Space(3, ('tanh', 'relu'))
  controller, params = policy(space)
  rewards = jax.random.uniform(jax.random.key(9), (space.size,))
  exact, every = (exact_gradient(controller, params, rewards),
                  all_tokens(space))

  @functools.partial(jax.jit, static_argnums=0)
  def estimate(num):
    tokens = controller_lib.sample(
        controller, params, jax.random.key(5), num).tokens
    cells = (tokens[:, None] == every[None]).all(-1)

    def loss(params):
      return controller_lib.reinforce_loss(controller_lib.score(
          controller, params, tokens), cells @ rewards - 0.5, 0.0)
    return flat(jax.grad(loss)(params))

  error = lambda num: distance(estimate(num), exact)

  few, many = error(200), error(20_000)
  assert many < 0.08
  assert 3 < few / many < 30  # 10 by the square root


def updates(losses, **settings):
  """Of ENAS' strategy, a cell each: states, cells, gradients."""
  strategy = enas.strategy(enas.Settings(
      Controller(SPACE, hidden_size=8), memory_lib.Memory(),
      enas.Reward(**settings), optax.trace(0.0)))  # Keeps the gradient.

  @jax.jit
  def update(state, key, loss):
    drawn = []
    supernet = strategies.Supernet(
        lambda tokens, key: drawn.append(tokens) or loss[None])
    state, _ = strategy.update(state, key, supernet)
    return state, drawn[0], flat(state['opt_state'].trace)

  states, cells, gradients = [strategy.init(jax.random.key(0))], [], []
  for i, loss in enumerate(losses):
    state, tokens, gradient = update(
        states[-1], jax.random.key(i), jnp.float32(loss))
    states.append(state)
    cells.append(tokens)
    gradients.append(gradient)
  return states, cells, gradients


@jax.jit
def gradient_of_one(state, tokens, advantage, entropy_weight=0.0):
  """Of the loss of cells that the state's policy drew."""
  controller = Controller(SPACE, hidden_size=8)
  return flat(jax.grad(lambda params: controller_lib.reinforce_loss(
      controller_lib.score(controller, params, tokens), advantage[None],
      entropy_weight))(state['params']['policy']))


def test_the_first_reward_is_its_own_baseline_and_teaches_nothing():
  states, _, (first, second) = updates([0.0, 1.0], entropy_weight=0.0)
  assert states[1]['baseline'] == 80
  assert not jnp.any(first) and jnp.any(second)


@pytest.mark.parametrize('decay', [0.95, 0.99, 0.999])
def test_a_baseline_updated_before_its_use_rescales_the_gradient(decay):
  # R - b_new = decay (R - b_old): ENAS' code updates first, we do after.
  (_, old, new), (_, cell), (_, gradient) = updates(
      [0.0, 1.0], entropy_weight=0.0, baseline_decay=decay)
  advantage = 80 / math.e - new['baseline']
  assert math.isclose(
      advantage, decay * (80 / math.e - old['baseline']), rel_tol=1e-5)
  theirs = gradient_of_one(old, cell, advantage)
  assert distance(theirs, decay * gradient) < 1e-4


def largest_probability(num_options, constant):
  """Of one decision of k options under C tanh."""
  return 1 / (1 + (num_options - 1) * np.exp(-2 * constant))


def test_the_squash_caps_probabilities():
  for k, cap in ((4, 0.98019), (11, 0.93687)):
    assert abs(largest_probability(k, 2.5) - cap) < 1e-5
  options = space_lib.enas(12).num_options
  for constant, joint in ((2.5, 0.54756), (2.25, 0.37459)):
    caps = largest_probability(options, constant)
    assert abs(jnp.prod(caps) - joint) < 1e-4
  controller, params = policy(scale=1e3)
  found = controller_lib.sample(controller, params, jax.random.key(0), 200)
  caps = largest_probability(SPACE.num_options, 2.5)
  assert jnp.all(jnp.exp(found.log_prob) <= caps[None] * (1 + 1e-6))


def test_a_forced_decision_has_probability_one_and_no_entropy():
  controller, params = policy()
  found = controller_lib.sample(controller, params, jax.random.key(0), 20)
  assert not jnp.any(found.log_prob[:, 1]) and not jnp.any(found.tokens[:, 1])
  assert not jnp.any(found.entropy[:, 1])


def test_options_that_are_not_there_are_never_drawn_and_get_no_gradient():
  space = space_lib.enas(6)
  controller, params = policy(space)
  found = jax.jit(lambda key: controller_lib.sample(
      controller, params, key, 100_000).tokens)(jax.random.key(2))
  assert jnp.all(found < jnp.asarray(space.num_options)[None])
  grad = jax.grad(lambda params: controller_lib.score(
      controller, params, found[:50]).log_prob.sum())(params)['b_out']
  there = np.arange(controller.max_options) < space.num_options[:, None]
  assert not np.any(np.asarray(grad)[~there])


def test_a_fresh_policy_is_uniform_random_search():
  controller = Controller(space_lib.enas(12))
  params = controller_lib.init_params(controller, jax.random.key(0))
  entropy = controller_lib.sample(
      controller, params, jax.random.key(1), 50).entropy.sum(-1).mean()
  assert abs(entropy - (12 * math.log(4) + math.lgamma(12))) < 1e-3


def test_the_state_is_propagated_to_later_decisions():
  controller, params = policy(space_lib.enas(4))
  tokens = jnp.zeros((2, 7), jnp.int32).at[1, 0].set(1)
  found = controller_lib.score(controller, params, tokens).log_probs
  for t in (2, 4, 6):  # the tokens just before are the same
    assert jnp.abs(found[0, t] - found[1, t]).max() > 1e-4


def test_the_last_state_knows_all_tokens_but_the_last():
  controller, params = policy()
  base = jnp.array([1, 0, 2, 1, 3], jnp.int32)
  for t, change in ((0, 2), (2, 0), (3, 0), (4, 0)):
    pair = jnp.stack([base, base.at[t].set(change)])
    last = controller_lib.score(controller, params, pair).hidden[:, -1]
    same = bool(jnp.all(last[0] == last[1]))
    assert same == (t == 4), t


@pytest.mark.parametrize('in_reward', [True, False])
def test_rewarded_for_later_entropies_the_gradient_is_that_of_whole_cells(
    in_reward):
  controller, params = policy(scale=3.0)

  def joint(params):
    log_prob = controller_lib.score(
        controller, params, all_tokens()).log_prob.sum(-1)
    return jnp.sum(jnp.exp(log_prob) * log_prob)  # -H

  found = expected_gradient(
      controller, params, all_tokens(), jnp.zeros(SPACE.size), 1.0, in_reward)
  error = distance(found, flat(jax.grad(joint)(params)))
  assert error < 1e-4 if in_reward else error > 0.1


def test_entropies_are_of_all_options_and_not_of_the_one_drawn():
  controller, params = policy()
  found = controller_lib.score(controller, params, all_tokens())
  often = np.exp(found.log_prob.sum(-1))
  mean = lambda each: often @ np.asarray(each)
  p = np.exp(found.log_probs)
  np.testing.assert_allclose(
      found.entropy, -(p * found.log_probs).sum(-1), rtol=1e-5, atol=1e-6)
  # ENAS' own code takes -p log p of the option drawn: -sum p^2 log p, not H.
  drawn = mean(-np.exp(found.log_prob) * found.log_prob)
  np.testing.assert_allclose(
      drawn, mean(-(p**2 * found.log_probs).sum(-1)), rtol=1e-4, atol=1e-6)
  free = SPACE.num_options > 1
  assert np.all(drawn[free] < 0.9 * mean(found.entropy)[free])


def test_a_bandit_is_solved_up_to_the_cap():
  best = jnp.array([2, 0, 1, 1, 3])
  controller = Controller(SPACE, hidden_size=16)
  strategy = enas.strategy(enas.Settings(
      controller, memory_lib.Memory(),
      enas.Reward(scale=1.0, entropy_weight=0.0, samples_per_update=16),
      optax.adam(2e-2)))
  supernet = strategies.Supernet(lambda tokens, key: jnp.where(
      jnp.all(tokens == best[None], -1), 0.0, 30.0))

  @jax.jit
  def train(state):
    return jax.lax.scan(
        lambda state, key: (strategy.update(state, key, supernet)[0], None),
        state, jax.random.split(jax.random.key(1), 1500))[0]

  state = train(strategy.init(jax.random.key(0)))
  log_prob = controller_lib.score(
      controller, state['params']['policy'], best[None]).log_prob.sum()
  cap = jnp.prod(largest_probability(SPACE.num_options, 2.5))
  assert jnp.exp(log_prob) > 0.9 * cap


def test_a_constant_reward_leaves_only_the_entropy():
  states, cells, gradients = updates([1.0, 1.0], entropy_weight=0.01)
  for state, cell, gradient in zip(
      states[:-1], cells, gradients, strict=True):
    alone = gradient_of_one(state, cell, jnp.float32(0), 0.01)
    assert distance(gradient, alone) < 1e-5


def test_a_loss_that_overflows_is_rewarded_with_zero():
  settings = enas.Reward(scale=80.0)
  losses = jnp.array([0.0, jnp.inf, jnp.nan, 1e3, jnp.log(40.0)])
  found = enas.reward(settings, losses)
  np.testing.assert_allclose(found, [80.0, 0, 0, 0, 2.0], rtol=1e-6)
  assert np.all(np.isfinite(jax.vmap(jax.grad(
      lambda x: enas.reward(settings, x)))(losses)))


@pytest.mark.parametrize('settings, words', [
    (dict(heads='shared'), 'heads'), (dict(temperature=0), 'temperature')])
def test_settings_that_mean_nothing_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    Controller(SPACE, **settings)
