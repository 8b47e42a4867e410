"""Reports on controllers and rankings whose truth is known."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import analysis
from nas_jax import controller as controller_lib
from nas_jax import space as space_lib

SPACE = space_lib.enas(5)


def some(num, space=SPACE, seed=0):
  return space_lib.sample(space, jax.random.key(seed), num)


def one_hot(cells, space=SPACE):
  """[M, S * k], a perfect memory of all decisions, each alike important."""
  tokens = space_lib.encode(space, cells)
  return np.asarray(jax.nn.one_hot(tokens, 4)).reshape(len(tokens), -1)


def report(hidden, cells, losses=None):
  return analysis.hidden_state_report(
      hidden, cells, losses, measures=analysis.cell_measures(cells),
      num_permutations=99, seed=0)


def test_a_state_that_holds_the_decisions_is_found():
  cells = some(40)
  found = report(one_hot(cells), cells)
  assert found['num_pairs'] == 780 and found['num_different_states'] == 40
  for name, sign in (('l2', 1), ('cosine', -1)):
    for measure in (
        'edit_distance', 'tree_distance', 'graph_edit_distance'):
      assert sign * found[name][measure]['spearman'] > 0.3
      assert found[name][measure]['p'] == 0.01
    for measure in ('common_connections', 'common_activations'):
      assert sign * found[name][measure]['spearman'] < -0.4


def test_a_state_that_holds_nothing_is_found():
  cells = some(40)
  noise = np.random.default_rng(0).normal(size=(40, 8))
  found = report(noise, cells)
  for name, measure in itertools.product(
      ('l2', 'cosine'), ('edit_distance', 'common_connections')):
    assert abs(found[name][measure]['spearman']) < 0.15
    assert 0 < found[name][measure]['null_sd'] < 0.1


def test_identical_states_correlate_with_nothing():
  cells = some(10)
  found = report(np.ones((10, 8)), cells)
  assert found['num_different_states'] == 1
  assert found['num_different_cells'] == 10
  assert math.isnan(found['l2']['edit_distance']['spearman'])
  assert math.isnan(found['cosine']['edit_distance']['spearman'])


def test_a_state_that_is_the_loss_predicts_it():
  cells = some(12)
  losses = np.linspace(4, 5, 12) ** 2
  losses[3] = np.inf  # it failed, and is left out
  found = report(np.nan_to_num(losses, posinf=0)[:, None], cells, losses)
  assert found['l2']['loss_difference']['spearman'] == pytest.approx(1)
  with pytest.raises(ValueError, match='2 of 12 losses are finite'):
    report(one_hot(cells), cells, [1, 2] + [np.inf] * 10)


def test_states_and_cells_are_as_many():
  with pytest.raises(AssertionError):
    report(np.ones((9, 8)), some(10))


def test_decisions_of_known_entropy():
  sure, even = [1, 0, 0, 0], [0.25] * 4
  found = analysis.decision_report([[sure, even], [even, even]])
  np.testing.assert_allclose(
      found['entropy_mean'], [math.log(4) / 2, math.log(4)])
  np.testing.assert_allclose(found['entropy_sd'], [math.log(4) / 2, 0])
  np.testing.assert_allclose(found['confidence_mean'], [0.625, 0.25])
  np.testing.assert_allclose(found['confidence_sd'], [0.375, 0])
  assert found['total_entropy'] == pytest.approx(1.5 * math.log(4))


def policy(tokens, depth, seed=0):
  """Random probabilities [M, S, k] that read `depth` decisions back."""
  tokens = np.asarray(tokens)
  found = np.empty((*tokens.shape, 4))
  for m, t in np.ndindex(tokens.shape):
    words = [seed, t, *tokens[m, max(0, t - depth):t]]
    found[m, t] = np.random.default_rng(words).dirichlet(np.ones(4))
  return found


def test_a_policy_without_memory_conditions_on_the_last_decision_alone():
  tokens = np.asarray(space_lib.encode(SPACE, some(40)))
  without = analysis.prefix_conditioning(tokens, policy(tokens, 1))
  assert without['overall'] == 0
  assert not without['largest'][2:].any()
  assert np.isnan(without['mean'][:2]).all()
  with_memory = analysis.prefix_conditioning(tokens, policy(tokens, 3))
  # t = 2 follows a forced decision, which all cells share.
  assert with_memory['num_pairs'][2] > with_memory['num_pairs'][4] > 0
  assert (with_memory['mean'][2:] > 0.1).all()
  assert 0 < with_memory['overall'] < 1


def test_an_lstm_that_drops_its_state_conditions_on_the_last_decision_alone():
  controller = controller_lib.Controller(SPACE, hidden_size=8)
  params = controller_lib.init_params(controller, jax.random.key(0))
  tokens = space_lib.encode(SPACE, some(30))
  score = jax.jit(lambda p: controller_lib.score(controller, p, tokens))

  def conditioning(params):
    return analysis.prefix_conditioning(
        tokens, np.exp(score(params).log_probs))['overall']

  assert conditioning(params) > 0
  forget = params['b'].at[8:16].set(-np.inf)  # gates i, f, g, o
  assert conditioning(
      params | {'w_h': jnp.zeros_like(params['w_h']), 'b': forget}) == 0


def test_conditioning_is_the_variation_over_pairs_with_other_prefixes():
  tokens = [[0, 1, 0], [2, 1, 0], [0, 1, 0], [2, 3, 0]]
  last = np.array([[1, 0], [0.5, 0.5], [1, 0], [0, 1]])
  probabilities = np.stack([np.full((4, 2), 0.5)] * 2 + [last], 1)
  # Pairs (0, 1) and (1, 2) share the 1; 0 and 2 have one prefix.
  found = analysis.prefix_conditioning(tokens, probabilities)
  np.testing.assert_array_equal(found['num_pairs'], [0, 0, 2])
  assert found['mean'][2] == found['largest'][2] == found['overall'] == 0.5


def test_extreme_pairs_have_distances_of_their_own():
  x = np.array([0.0, 1.0, 3.0, 4.0])
  distances = np.abs(x[:, None] - x[None])
  nearest, farthest = analysis.extreme_pairs(distances, 2)
  np.testing.assert_array_equal(nearest, [[0, 1], [1, 2]])
  np.testing.assert_array_equal(farthest, [[0, 3], [0, 2]])
  nearest, _ = analysis.extreme_pairs(distances, 1, allowed=distances > 1)
  np.testing.assert_array_equal(nearest, [[1, 2]])


def test_principal_axes_share_all_variance_and_do_not_see_rotations():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(30, 6)) * np.arange(1, 7)
  rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  coordinates, shares = analysis.pca(hidden)
  rotated, same = analysis.pca(hidden @ rotation)
  assert shares.sum() == pytest.approx(1)
  np.testing.assert_allclose(shares, same, rtol=1e-9)
  np.testing.assert_allclose(np.abs(coordinates), np.abs(rotated), rtol=1e-6)
  total = np.var(hidden, axis=0).sum()
  np.testing.assert_allclose(
      np.var(coordinates, axis=0), shares[:2] * total, rtol=1e-9)


def test_neighbours_stay_neighbours():
  rng = np.random.default_rng(0)
  hidden = np.concatenate([rng.normal(size=(15, 10)),
                           rng.normal(size=(15, 10)) + 50])
  found = analysis.tsne(hidden, perplexity=5, seed=0)
  gap = np.linalg.norm(found[:15].mean(0) - found[15:].mean(0))
  assert found.shape == (30, 2) and gap > 2 * found[:15].std(0).max()
  with pytest.raises(ValueError, match='perplexity is 30, of 30'):
    analysis.tsne(hidden, perplexity=30, seed=0)


def test_a_perfect_ranking():
  truth = np.stack([np.arange(20.0), np.arange(20.0) + 0.1])
  found = analysis.rank_report(truth[:1] * 3, truth, width=0.5)
  for name in ('tau', 'spearman', 'percentile_of_best', 'top_1', 'top_5'):
    assert found[name]['mean'] == pytest.approx(1)
  assert found['tau_ceiling'] == {'mean': pytest.approx(1), 'sd': 0}
  assert found['tau_one_truth']['mean'] == pytest.approx(1)
  assert math.isnan(found['tau_across_seeds']['mean'])
  assert math.isnan(found['tau']['sd'])


def test_random_rankings_have_the_null_of_tau():
  rng = np.random.default_rng(0)
  shared = rng.normal(size=(50, 16))
  found = analysis.rank_report(
      shared, np.arange(16.0)[None], width=1, top=(1, 99))
  null_sd = found['tau_null_sd']
  assert found['tau']['sd'] == pytest.approx(null_sd, rel=0.3)
  assert abs(found['tau']['mean']) < 4 * null_sd / math.sqrt(50)
  assert found['percentile_of_best']['mean'] == pytest.approx(0.5, abs=0.15)
  assert found['top_1']['mean'] == pytest.approx(1 / 16, abs=0.12)
  assert 'top_99' not in found and found['num_seeds'] == 50


def test_noise_of_seeds_lowers_the_ceiling():
  rng = np.random.default_rng(0)
  truth = np.arange(30.0) + rng.normal(size=(3, 30)) * 10
  found = analysis.rank_report(truth, truth, width=0.5)
  assert 0.3 < found['tau_ceiling']['mean'] < 0.9
  assert found['tau_ceiling'] == found['tau_across_seeds']
