"""The policy's probabilities, by enumeration, and its gradients."""

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


def test_reinforce_converges_to_the_exact_gradient_as_one_over_root_n():
  space = space_lib.Space(3, ('tanh', 'relu'))
  controller, params = policy(space)
  rewards = jax.random.uniform(jax.random.key(9), (space.size,))
  exact = exact_gradient(controller, params, rewards)

  def estimate(num, baseline):
    found = controller_lib.sample(
        controller, params, jax.random.key(5), num)
    places = space_lib.index(space, found.tokens)
    advantage = rewards[places] - baseline

    def loss(params):
      return controller_lib.reinforce_loss(controller_lib.score(
          controller, params, found.tokens), advantage, 0.0)
    return flat(jax.grad(loss)(params))

  error = lambda num, b=0.5: float(
      jnp.linalg.norm(estimate(num, b) - exact) / jnp.linalg.norm(exact))
  few, many = error(200), error(20_000)
  assert many < 0.08
  assert 3 < few / many < 30  # 10 by the square root
  # A baseline, or as much added to all rewards, leaves the mean.
  assert error(20_000, -1.0) < 0.4


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


@pytest.mark.parametrize('in_reward, error', [(True, 0.0), (False, 0.1)])
def test_rewarded_for_later_entropies_the_gradient_is_that_of_whole_cells(
    in_reward, error):
  controller, params = policy(scale=3.0)
  score = lambda params: controller_lib.score(controller, params, all_tokens())

  def joint(params):
    log_prob = score(params).log_prob.sum(-1)
    return jnp.sum(jnp.exp(log_prob) * log_prob)  # -H

  def expected(params):
    decisions = score(params)
    often = jax.lax.stop_gradient(jnp.exp(decisions.log_prob.sum(-1)))
    each = jax.vmap(lambda one: controller_lib.reinforce_loss(
        jax.tree.map(lambda x: x[None], one), jnp.zeros(1), 1.0, in_reward))
    return jnp.sum(often * each(decisions))

  exact, found = (flat(jax.grad(f)(params)) for f in (joint, expected))
  distance = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
  assert distance < 1e-4 if in_reward else distance > error


def train_on_bandit(losses_of, entropy_weight, steps=400):
  controller = Controller(SPACE, hidden_size=16)
  settings = enas.Reward(
      scale=1.0, entropy_weight=entropy_weight, samples_per_update=16)
  strategy = enas.strategy(enas.Settings(
      controller, memory_lib.Memory(), settings, optax.adam(2e-2)))
  supernet = strategies.Supernet(lambda tokens, key: losses_of(tokens))

  @jax.jit
  def train(state):
    def body(state, key):
      return strategy.update(state, key, supernet)[0], None
    return jax.lax.scan(
        body, state, jax.random.split(jax.random.key(1), steps))[0]

  first = strategy.init(jax.random.key(0))
  return controller, first, train(first)


def test_a_bandit_is_solved_up_to_the_cap():
  best = jnp.array([2, 0, 1, 1, 3])
  controller, _, state = train_on_bandit(
      lambda tokens: jnp.where(jnp.all(tokens == best[None], -1), 0.0, 30.0),
      0.0, steps=1500)
  log_prob = controller_lib.score(
      controller, state['params']['policy'], best[None]).log_prob.sum()
  cap = jnp.prod(largest_probability(SPACE.num_options, 2.5))
  assert jnp.exp(log_prob) > 0.9 * cap


def test_a_constant_reward_leaves_only_the_entropy():
  _, first, state = train_on_bandit(
      lambda tokens: jnp.ones(len(tokens)), 0.0, steps=20)
  chex.assert_trees_all_close(
      first['params'], state['params'], atol=1e-6)


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
