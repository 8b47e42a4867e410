"""What a controller knows: its states, its decisions, and its ranking.

Reports are plain dicts of numbers and of numpy arrays with an axis of
decisions, after the protocol of 'Understanding Neural Architecture Search
Techniques' (Adam and Lorraine, 2019), with permutation tests in place of
p-values for independent pairs.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
import math
from typing import Any

import chex
import numpy as np
from scipy import special
from scipy.spatial import distance
from sklearn import manifold
import threadpoolctl

from nas_jax import similarity
from nas_jax import space as space_lib
from nas_jax import statistics

_MAX_EXACT_NODES = 6  # seconds for a hundred cells


def cell_measures(
    cells: space_lib.Cell, authors: bool = False
) -> dict[str, np.ndarray]:
  """Cells [M, N] -> name -> matrix [M, M] of how alike or unlike they are.

  The exact graph edit distance is there for cells of at most 6 nodes. With
  `authors` there are those of Adam and Lorraine's code too, 'theirs_...'.
  """
  measures = {
      'edit_distance': similarity.aligned_edit_distance(cells),
      'tree_distance': similarity.tree_distance(cells),
      'common_connections': similarity.common_connections(cells),
      'common_activations': similarity.common_activations(cells),
  }
  if authors:
    measures |= {
        'theirs_edit_distance': similarity.first_yield_distance(cells),
        'theirs_common_connections': similarity.common_connections(
            cells, constants=True),
        'theirs_common_activations': similarity.common_activations(
            cells, constants=True)}
  if cells.prev.shape[1] <= _MAX_EXACT_NODES:
    measures['graph_edit_distance'] = similarity.graph_edit_distance(cells)
  return measures


def hidden_state_report(
    hidden: Any, cells: space_lib.Cell, losses: Any = None, *,
    measures: Mapping[str, np.ndarray], num_permutations: int, seed: int,
) -> dict[str, Any]:
  """Do cells with close hidden states look or perform alike?

  An encoder of the cells has L2 rise with distances of cells and fall with
  what they share; cosine, a similarity, goes the other way.

  Args:
    hidden: [M, h], the controller's last states.
    cells: [M, N], what it had decided.
    losses: [M], nats; those that are not finite are left out.
    measures: `cell_measures` of these cells.
    num_permutations: of each Mantel test.
    seed: of the permutations.

  Returns:
    num_cells, num_pairs, num_different_cells and num_different_states (a
    policy that repeats itself relates equal states to equal cells), and under
    l2 and cosine, for each measure of cells and for loss_difference:
    spearman, pearson, the Mantel p of spearman and the sd of spearman where
    nothing is related.
  """
  hidden = np.asarray(hidden)
  chex.assert_rank(hidden, 2)
  chex.assert_equal_shape_prefix([hidden, cells.prev, cells.act], 1)
  encodings = np.concatenate([cells.prev, cells.act], 1)
  report = {'num_cells': len(hidden), 'num_pairs': math.comb(len(hidden), 2),
            'num_different_cells': len(np.unique(encodings, axis=0)),
            'num_different_states': len(np.unique(hidden, axis=0))}
  test = {'num_permutations': num_permutations, 'seed': seed}
  for name, states in (('l2', similarity.l2_distance(hidden)),
                       ('cosine', similarity.cosine_similarity(hidden))):
    report[name] = {measure: _relation(states, matrix, **test)
                    for measure, matrix in measures.items()}
    if losses is not None:
      report[name]['loss_difference'] = _relation(
          *_finite(states, np.asarray(losses, np.float64)), **test)
  return report


def _finite(states, losses):
  """States and |loss differences|, both [K, K], of cells with a loss."""
  kept = np.flatnonzero(np.isfinite(losses))
  if len(kept) < 3:
    raise ValueError(f'{len(kept)} of {len(losses)} losses are finite; a '
                     'comparison needs three: give None for no comparison')
  loss = losses[kept]
  return states[np.ix_(kept, kept)], np.abs(loss[:, None] - loss[None])


def _relation(states, matrix, *, num_permutations, seed):
  """Effect sizes over pairs, and the permutation test of the ranks."""
  upper = np.triu_indices(len(states), 1)
  ranks = statistics.mantel(
      states, matrix, num_permutations=num_permutations, seed=seed)
  return {'spearman': ranks.effect,
          'pearson': statistics.pearson(states[upper], matrix[upper]),
          'p': ranks.p, 'null_sd': ranks.null_sd}


def decision_report(probabilities: Any) -> dict[str, Any]:
  """How sure a controller is of each decision.

  Args:
    probabilities: [M, S, k], of the options at each decision of M cells; 0 for
      what is no option.

  Returns:
    entropy_mean, entropy_sd (nats), confidence_mean and confidence_sd (of the
    largest probability), each [S]; total_entropy, the mean of the sum: an
    estimate of the policy's entropy where the cells are its own samples.
  """
  probabilities = np.asarray(probabilities, np.float64)
  chex.assert_rank(probabilities, 3)
  entropy = special.entr(probabilities).sum(-1)
  confidence = probabilities.max(-1)
  return {
      'entropy_mean': entropy.mean(0), 'entropy_sd': entropy.std(0),
      'confidence_mean': confidence.mean(0),
      'confidence_sd': confidence.std(0),
      'total_entropy': float(entropy.sum(-1).mean()),
  }


def prefix_conditioning(tokens: Any, probabilities: Any) -> dict[str, Any]:
  """How much decisions before the last one change the next.

  Total variation between pi(a_t | a_<t) of two cells that share a_{t-1} and
  differ before it. It is exactly 0 for a policy that forgets its state.

  Args:
    tokens: [M, S], decisions.
    probabilities: [M, S, k], of the options at each decision, given the ones
      before; 0 for what is no option.

  Returns:
    mean and largest [S], over such pairs, in [0, 1], nan where there are none
    (as at t = 0 and 1); num_pairs [S]; overall, the mean over all pairs at
    all decisions.
  """
  tokens = np.asarray(tokens)
  probabilities = np.asarray(probabilities, np.float64)
  chex.assert_rank([tokens, probabilities], [2, 3])
  chex.assert_equal_shape_prefix([tokens, probabilities], 2)
  num_decisions = tokens.shape[1]
  mean, largest = np.full((2, num_decisions), np.nan)
  num_pairs = np.zeros(num_decisions, np.int64)
  for t in range(2, num_decisions):
    shared = distance.pdist(tokens[:, t - 1:t], 'hamming') == 0
    differ = distance.pdist(tokens[:, :t - 1], 'hamming') > 0
    variation = distance.pdist(probabilities[:, t], 'cityblock') / 2
    found = variation[shared & differ]
    num_pairs[t] = len(found)
    if len(found):
      mean[t], largest[t] = found.mean(), found.max()
  there = num_pairs > 0
  return {
      'mean': mean, 'largest': largest, 'num_pairs': num_pairs,
      'overall': float(np.average(mean[there], weights=num_pairs[there]))
                 if there.any() else math.nan,
  }


def extreme_pairs(distances: Any, num: int, allowed: Any = None
                  ) -> tuple[np.ndarray, np.ndarray]:
  """The closest and the farthest pairs, one of each distance that occurs.

  Args:
    distances: [M, M].
    num: of pairs of each kind, fewer where there are fewer distances.
    allowed: [M, M] bool, pairs to choose among, such as different cells.

  Returns:
    closest [num, 2], closest first, and farthest [num, 2], farthest first.
  """
  distances = np.asarray(distances)
  rows, columns = np.triu_indices(len(distances), 1)
  if allowed is not None:
    kept = np.asarray(allowed)[rows, columns]
    rows, columns = rows[kept], columns[kept]
  _, first = np.unique(distances[rows, columns], return_index=True)
  pairs = np.stack([rows, columns], -1)[first]
  return pairs[:num], pairs[::-1][:num]


def pca(hidden: Any, num_axes: int = 2) -> tuple[np.ndarray, np.ndarray]:
  """States [M, h] -> coordinates [M, num_axes], shares of variance [rank].

  By singular values of the centred states; shares sum to 1.
  """
  hidden = np.asarray(hidden, np.float64)
  chex.assert_rank(hidden, 2)
  u, s, _ = np.linalg.svd(hidden - hidden.mean(0), full_matrices=False)
  variance = s ** 2
  return (u * s)[:, :num_axes], variance / max(variance.sum(), 1e-300)


def tsne(hidden: Any, *, perplexity: float, seed: int) -> np.ndarray:
  """States [M, h] -> [M, 2], neighbours kept near; 0 if all are equal."""
  hidden = np.asarray(hidden, np.float64)
  if (hidden == hidden[:1]).all():
    return np.zeros((len(hidden), 2))
  if not perplexity < len(hidden):
    raise ValueError(f'perplexity is {perplexity:g}, of {len(hidden)} states; '
                     'give fewer neighbours than states')
  # Its threads spin at barriers: beside other work that is minutes, not ms.
  with threadpoolctl.threadpool_limits(1, 'openmp'):
    return manifold.TSNE(
        perplexity=perplexity, random_state=seed, init='pca').fit_transform(
            hidden)


def rank_report(shared_losses: Any, true_losses: Any, *, width: float,
                top: Sequence[int] = (1, 5, 10)) -> dict[str, Any]:
  """Do shared weights rank cells as training each by itself does?

  The truth of a cell is its mean over seeds, unless said otherwise.

  Args:
    shared_losses: [seeds, M], nats, of each cell with shared weights.
    true_losses: [seeds, M], nats, trained from scratch.
    width: nats; truths that round to the same multiple are tied for
      `sparse_tau`.
    top: sizes k for top_k_overlap; those over M are left out.

  Returns:
    tau, sparse_tau, spearman, percentile_of_best and top_<k> as mean and sd
    over the seeds of shared weights; tau_of_mean, for losses averaged over
    seeds; tau_one_truth, against single seeds of the truth, which is what
    tau_ceiling, of one seed of the truth against another, bounds;
    tau_across_seeds, of shared weights against themselves; tau_null_sd, of
    random orders. What needs two seeds is nan for one.
  """
  shared, true = (np.asarray(x, np.float64)
                  for x in (shared_losses, true_losses))
  chex.assert_rank([shared, true], 2)
  chex.assert_equal_shape_suffix([shared, true], 1)
  truth = true.mean(0)
  measures = _rank_measures(width, [k for k in top if k <= len(truth)])
  return {
      name: _mean_sd([measure(row, truth) for row in shared])
      for name, measure in measures.items()
  } | {
      'tau_of_mean': statistics.kendall(shared.mean(0), truth),
      'tau_one_truth': _spread(itertools.product(shared, true)),
      'tau_across_seeds': _spread(itertools.combinations(shared, 2)),
      'tau_ceiling': _spread(itertools.combinations(true, 2)),
      'tau_null_sd': statistics.kendall_null_sd(len(truth)),
      'num_cells': len(truth),
      'num_seeds': len(shared),
  }


def _rank_measures(width, top):
  """Name -> function of predicted and true losses [M]."""
  return {
      'tau': statistics.kendall,
      'sparse_tau': functools.partial(
          statistics.sparse_kendall, width=width),
      'spearman': statistics.spearman,
      'percentile_of_best': statistics.percentile_of_best,
  } | {f'top_{k}': functools.partial(statistics.top_k_overlap, k=k)
       for k in top}


def _mean_sd(values):
  found = statistics.mean_interval(values)
  return {'mean': found['mean'], 'sd': found['sd']}


def _spread(pairs):
  """Mean and sd of tau over pairs of rows [M]."""
  taus = [statistics.kendall(a, b) for a, b in pairs]
  if not taus:
    return {'mean': math.nan, 'sd': math.nan}
  return {'mean': float(np.mean(taus)), 'sd': float(np.std(taus))}
