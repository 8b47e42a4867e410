"""Runs of one config over seeds, as the tables of the paper's claims:

  python -m nas_jax.compare runs/nas-0 runs/nas-1 runs/nas-2 --picture=all.png

Each argument is the folder of a finished run of `nas_jax.main`.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import re
import sys
from typing import Any

import numpy as np

from core_jax import seeds
from nas_jax import figures
from nas_jax import report
from nas_jax import statistics

Summaries = Sequence[Mapping[str, Any]]

_RESAMPLES = 10_000
_POLICY = 'policy_'
_END = '_uniform_l2_edit_distance_spearman'
_SEARCH = {'candidates_perplexity': 'candidates, shared weights',
           'shared_perplexity': 'the best of them',
           'valid_perplexity': 'from scratch, valid',
           'test_perplexity': 'from scratch, test'}


def rows(summaries: Summaries) -> list[str]:
  """Names of what was compared, methods first."""
  ends = re.compile('(.*)_(cost|shared_perplexity)')
  found = [match[1] for name in summaries[0] if (match := ends.fullmatch(name))]
  return [name for name in dict.fromkeys(found)
          if not name.startswith('random/')]


def search_table(summaries: Summaries) -> str:
  """Markdown: what each method found, and how surely it beats chance.

  'Difference' is of test perplexities from scratch to random search's, with
  its 95 % bootstrap interval, the share of resamples in which the method is
  better, and the p of exchanging signs.
  """
  head = ['', 'cost', *_SEARCH.values(), 'difference to random search',
          'better', 'p']
  lines = [_line(head), _line(['---'] * len(head))]
  chance = [s.get('uniform_test_perplexity') for s in summaries]
  for name in rows(summaries):
    mine = [s.get(f'{name}_test_perplexity') for s in summaries]
    cells = [seeds.cell([s[f'{name}_{c}'] for s in summaries])
             if f'{name}_{c}' in summaries[0] else '' for c in _SEARCH]
    lines.append(_line([
        report.title(name), _cost(summaries[0], name), *cells,
        *_against(mine, chance, name)]))
  return '\n'.join(lines)


def _cost(summary, name):
  cost = summary.get(f'{name}_cost')
  return '' if cost is None else f'{cost:.1f}'


def _against(mine, chance, name):
  if name == 'uniform' or None in mine or None in chance:
    return '', '', ''
  found = statistics.paired_comparison(
      mine, chance, num_resamples=_RESAMPLES, seed=0)
  return (f'{found["difference"]:+.3f} ({found["low"]:+.3f} to '
          f'{found["high"]:+.3f})', f'{found["probability_better"]:.2f}',
          f'{found["p"]:.2g}')


def knowledge_table(summaries: Summaries) -> str:
  """Markdown: what hidden states know of cells, by Spearman's rho of L2.

  The same random cells for every controller and seed; in brackets on how many
  seeds p < .05 by permutations, of those with at least three cells.
  """
  names = [name.removeprefix(_POLICY).removesuffix(_END)
           for name in summaries[0]
           if name.startswith(_POLICY) and name.endswith(_END)]
  measures = {'uniform_l2_edit_distance': 'edit distance',
              'uniform_l2_tree_distance': 'tree distance',
              'uniform_l2_common_connections': 'common connections',
              'uniform_l2_common_activations': 'common activations',
              'uniform_l2_loss_difference': 'loss difference',
              'uniform_l2_graph_edit_distance': 'graph edit distance',
              'uniform_cosine_edit_distance': 'cosine, edit distance',
              'own_l2_edit_distance': 'its own cells: edit distance',
              'different_l2_edit_distance': 'its own, each once',
              'uniform_l2_theirs_edit_distance': 'edit distance, first found'}
  measures = {
      measure: words for measure, words in measures.items()
      if any(f'{_POLICY}{name}_{measure}_p' in s
             for name in names for s in summaries)}
  head = ['', *measures.values(), 'conditioning', 'entropy, nats']
  lines = [_line(head), _line(['---'] * len(head))]
  for name in names:
    get = lambda key, name=name: [
        s.get(f'{_POLICY}{name}_{key}') for s in summaries]
    cells = []
    for measure in measures:
      effects, ps = get(f'{measure}_spearman'), get(f'{measure}_p')
      known = [p for p in ps if p is not None]
      cells.append(
          f'{seeds.cell([x for x in effects if x is not None])} '
          f'({sum(p < 0.05 for p in known)} of {len(known)})'
          if known else '')
    lines.append(_line([
        report.title(name), *cells, seeds.cell(get('prefix_overall')),
        seeds.cell(get('decisions_total_entropy'))]))
  return '\n'.join(lines)


def effect(summaries: Summaries, one: str, other: str) -> str:
  """A sentence: by how much rho with edit distance differs; '' if unknown."""
  a, b = ([s.get(f'{_POLICY}{name}{_END}') for s in summaries]
          for name in (one, other))
  if None in a or None in b:
    return ''
  found = statistics.paired_comparison(
      np.negative(a), np.negative(b), num_resamples=_RESAMPLES, seed=0)
  return (f'rho(hidden states, edit distance): {report.title(one)} over '
          f'{report.title(other)} by {-found["difference"]:+.3f} '
          f'({-found["high"]:+.3f} to {-found["low"]:+.3f}), p = '
          f'{found["p"]:.2g}')


def draw(path: str, summaries: Summaries) -> None:
  """A picture of test perplexities from scratch, a dot for each seed."""
  found = {
      name: [s[f'{name}_test_perplexity'] for s in summaries]
      for name in rows(summaries) if f'{name}_test_perplexity' in summaries[0]}
  figures.plot_strategies(
      path, found, 'test perplexity from scratch',
      titles={name: report.title(name) for name in found})


def _line(cells):
  return f'| {" | ".join(str(c) for c in cells)} |'


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('folders', nargs='+', metavar='FOLDER')
  parser.add_argument('--picture', default='', help='PNG to draw')
  args = parser.parse_args()
  try:
    summaries = seeds.read(args.folders)
  except ValueError as e:
    sys.exit(f'error: {e}')
  print(search_table(summaries), knowledge_table(summaries), sep='\n\n')
  if args.picture:
    draw(args.picture, summaries)
  for name in rows(summaries):
    if name != 'enas' and (words := effect(summaries, name, 'enas')):
      print(f'\n{words}')


if __name__ == '__main__':
  main()
