"""A finished run as summary.json, pictures and report.html."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import time
from typing import Any

import numpy as np

from core_jax import folder
from core_jax import metrics as metrics_lib
from core_jax import report as report_lib
from nas_jax import experiment
from nas_jax import export
from nas_jax import figures
from nas_jax import results
from nas_jax import similarity
from nas_jax import space as space_lib

_OTHERS = {'lstm': 'LSTM of as many parameters',
           'untrained': 'untrained controller',
           'random_best': 'best of the random cells',
           'random_mean': 'mean of the random cells'}
_COURSES = {'valid_loss': 'validation loss of the cells it tries, nats',
            'train_loss': 'training loss of the shared weights, nats',
            'entropy_nats': "entropy of the policy, nats",
            'memory_loss': 'loss of the memory, nats a decision'}

_MEASURES = {
    'edit_distance': 'edit distance', 'tree_distance': 'tree distance',
    'common_connections': 'common connections',
    'common_activations': 'common activations'}


def title(name: str) -> str:
  """Name of a row, for people."""
  if name.startswith('random/'):
    return f'random cell {int(name.split("/")[1]) + 1}'
  if name.startswith('given/'):
    return f'given: {name.removeprefix("given/")}'
  return (experiment.METHODS | _OTHERS).get(name, name)


def write(
    run: experiment.Setup, path: pathlib.Path, found: Mapping[str, Any],
    names: Sequence[tuple[str, int]], *, steps: int, started: float,
) -> dict[str, Any]:
  """Measures, draws and writes; returns what `summary.json` holds.

  Args:
    run: of the config.
    path: the run's folder.
    found: results of its stages.
    names: (whose cell, seed) of what was trained from scratch.
    steps: of all stages.
    started: by time.monotonic().
  """
  config = run.config
  rows, policies = results.collect(run, found, names)
  cells = {
      method: space_lib.decode(run.space, np.asarray(experiment.derived(
          **found[f'derive_{method}']))) for method in config.methods}
  summary = report_lib.write_summary(
      path, {**rows, 'policy': {
          method: results.numbers(x) for method, x in policies.items()}},
      seed=config.seed, steps=steps, wall_seconds=time.monotonic() - started)
  _write_cells(run, path, cells, found, names)
  sections = [
      report_lib.Heading('What was found'), _table(run, rows),
      *_pictures(run, path, found, rows, cells)]
  if policies:
    sections += [report_lib.Heading('What the controllers know'),
                 _knowledge(policies), *_portraits(run, path, policies)]
  page = report_lib.write_report(
      path, title=f'Architecture search: {config.dataset}', lead=_lead(run),
      sections=sections, config=config, command=folder.resume_command(path))
  _print(rows, policies)
  print(f'Cells: {path}/cells.json, and as Flax modules cell_*.py, their '
        'weights cell_*.npz\n'
        f'Report: {page}', flush=True)
  return summary


def _write_cells(run, path, cells, found, names):
  """All cells as JSON, and each as a module with its weights from scratch."""
  table = {method: space_lib.to_json(run.space, cell)
           for method, cell in cells.items()}
  folder.write_text(path / 'cells.json', json.dumps(table, indent=2) + '\n')
  trained = [name for name, _ in names] if 'retrain' in found else []
  for method, cell in cells.items():
    export.write_module(path / f'cell_{method}.py', run.alone, cell)
    if method in trained:
      place = trained.index(method)
      mine = {name: x[place] for name, x in found['retrain']['params'].items()}
      export.write_variables(
          path / f'cell_{method}.npz', run.alone, mine, cell)


def _print(rows, policies):
  for name, row in rows.items():
    if 'test_perplexity' in row and not name.startswith('random/'):
      print(f'{title(name):<34} test perplexity '
            f'{row["test_perplexity"]:8.3f}   cost {row["cost"]:.1f} '
            'trainings')
  for method, report in policies.items():
    found = report['uniform']['l2']['edit_distance']
    print(f'{title(method):<34} rho(hidden states, edit distance) '
          f'{found["spearman"]:+.3f}, p = {found["p"]:.3g}; entropy '
          f'{report["decisions"]["total_entropy"]:.2f} nats')


def _lead(run):
  floor = run.corpus.floor
  known = '' if floor is None else (
      f' No model can have a perplexity below {np.exp(floor):.3f} here.')
  return (
      f'{run.space.size:,} cells of {run.space.num_nodes} nodes share their '
      'weights; each method chooses among them, and what it found is trained '
      f'from scratch.{known}')


def _table(run, rows):
  columns = {
      'cost': 'cost, trainings of a cell',
      'random_cells_perplexity': 'random cells, its shared weights',
      'candidates_perplexity': 'its candidates, the same weights',
      'shared_perplexity': 'the best of these',
      'valid_perplexity': 'from scratch, valid',
      'test_perplexity': 'from scratch, test'}
  table = [[title(name), *(row.get(c, '') for c in columns)]
           for name, row in rows.items()]
  return report_lib.Table(
      ['', *columns.values()], table,
      'Perplexities. Candidates and random cells: the median of '
      f'{run.config.derive.num_cells} (of random search '
      f'{run.config.uniform.num_cells}) and '
      f'{run.config.analysis.num_cells}. A forward pass costs a third of an '
      'update.')


def _knowledge(policies):
  """Correlation of hidden states and cells, by method and by whose cells."""
  table = []
  for method, report in policies.items():
    for whose, words in (('own', 'its own'), ('uniform', 'random')):
      found = report[whose]
      table.append([
          title(method), words, found['num_different_states'],
          *(found['l2'][measure]['spearman'] for measure in _MEASURES),
          found['l2']['edit_distance']['p'],
          found['l2'].get('loss_difference', {}).get('spearman', '')])
  return report_lib.Table(
      ['', 'cells', 'different states', *_MEASURES.values(),
       'p of the first', 'loss difference'], table,
      "Spearman's rho of the L2 distance of last hidden states with measures "
      'of the cells, p by permutations (Mantel). A controller that tells '
      'cells apart has a high one with edit distance and low ones with what '
      'cells share. An untrained one is not at 0: nearly linear in what it '
      'read last.')


def _pictures(run, path, found, rows, cells):
  drawn, sections = path / 'figures', []

  def add(name, caption):
    sections.append(report_lib.Figure(drawn / f'{name}.png', caption))

  scratch = {
      name: [row['test_perplexity']] for name, row in rows.items()
      if 'test_perplexity' in row and not name.startswith('random')}
  random = [row['test_perplexity'] for name, row in rows.items()
            if name.startswith('random/')]
  if scratch:
    scratch |= {'random cells': random} if random else {}
    floor = run.corpus.floor
    figures.plot_strategies(
        drawn / 'scratch.png', scratch, 'test perplexity from scratch',
        {} if floor is None else {'floor': float(np.exp(floor))},
        {name: title(name) for name in scratch})
    add('scratch', 'Each derived cell, trained from scratch.')
  figures.plot_cells(
      drawn / 'cells.png', run.space, {title(m): c for m, c in cells.items()})
  add('cells', 'The cells that were derived.')
  figures.plot_search(drawn / 'search.png', _courses(run, path), 'round')
  add('search', 'The searches.')
  figures.plot_perplexities(drawn / 'candidates.png', {
      m: experiment.perplexity(found[f'derive_{m}']['losses'])
      for m in run.config.methods})
  add('candidates', 'The cells that each method draws at its end, by its own '
      'shared weights.')
  return sections


def _courses(run, path):
  """Measure -> method -> (rounds, values), from metrics.jsonl."""
  panels = {words: {} for words in _COURSES.values()}
  rows = metrics_lib.read(path)
  for method in run.config.methods:
    mine = [r for r in rows if r['stage'] == f'search_{method}']
    first = mine[-1]['step'] - run.config.num_rounds
    ends = [r['step'] - first for r in mine]
    begins = [0, *ends[:-1]]
    for name, words in _COURSES.items():
      # Until it is trained on, a memory may hold less than is drawn of it.
      since = run.config.memory.train_from_round * (name == 'memory_loss')
      points = [
          (end, r[name]) for begin, end, r in zip(
              begins, ends, mine, strict=True) if name in r and begin >= since]
      if points:
        panels[words][method] = tuple(zip(*points, strict=True))
  return {words: lines for words, lines in panels.items() if lines}


def _portraits(run, path, policies):
  drawn, sections = path / 'figures', []

  def add(name, caption):
    sections.append(report_lib.Figure(drawn / f'{name}.png', caption))

  cells = space_lib.decode(run.space, results.uniform_tokens(
      run, run.config.analysis.num_cells))
  edits = similarity.aligned_edit_distance(cells)
  apart = {method: similarity.l2_distance(x['hidden'])
           for method, x in policies.items()}
  figures.plot_hidden_distances(
      drawn / 'hidden.png', {m: (x, edits) for m, x in apart.items()})
  add('hidden', 'Do cells that differ more have hidden states farther apart? '
      'The same random cells for each controller.')
  figures.plot_decisions(
      drawn / 'decisions.png', run.space,
      {m: x['decisions'] for m, x in policies.items()},
      {m: x['random_start'] for m, x in policies.items()})
  add('decisions', 'How sure each controller is; dashed: from random states '
      'and inputs, drawn for each cell; dotted: no preference.')
  figures.plot_projections(
      drawn / 'states.png',
      {m: (x['hidden'], x['losses']) for m, x in policies.items()
       if x['losses'] is not None},
      perplexity=run.config.analysis.tsne_perplexity)
  add('states', 'Hidden states of the random cells, coloured by their loss '
      'with the shared weights.')
  for method in [m for m in run.config.methods if m in policies][:2]:
    figures.plot_pairs(
        drawn / f'pairs_{method}.png', run.space, cells, apart[method], edits)
    add(f'pairs_{method}', f'{title(method)}: pairs of random cells with the '
        'closest and the farthest hidden states.')
  return sections

