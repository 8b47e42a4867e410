"""What a run shows: figures, tables, report.html, summary.json."""

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
import re
import time
from typing import Any

import ml_collections
import numpy as np

from core_jax import folder
from core_jax import report as report_lib
from link_jax import figures
from link_jax import generate
from link_jax import likelihood
from link_jax import measure
from link_jax import ngram
from link_jax import search
from link_jax import tools

Statement = dict[str, Any]
_SELECTORS = {
    'compat75': 'published, 75 %',
    'quantile': 'disjoint quantiles',
    'length_matched': 'lengths matched'}
_UNITS = {'mean': 'nats a token', 'value_mean': 'nats a token of the value',
          'per_byte': 'nats a byte', 'total': 'nats',
          'value_total': 'nats of the value'}


def rows_of(statements: Sequence[Statement], scorer: str, norm: str
            ) -> list[measure.Row]:
  """The numbers of those statements that a scorer has scored."""
  found = []
  for s in statements:
    one = next((x for x in s['likelihoods'] if x['scorer'] == scorer), None)
    if one is not None:
      one = likelihood.Likelihood(
          **{name: one[name] for name in likelihood.Likelihood._fields})
      found.append(measure.Row(
          s['rule'], s['domain'], s['split'], likelihood.NORMS[norm](one),
          one.tokens, ngram.zipf(_values(s))))
  return found


def _values(statement):
  """The values that the short statement shows, the subject left out."""
  shown = [b['value'] for b in statement['bindings'][1:]
           if re.search(rf'(?<!\w){re.escape(b["value"])}(?!\w)',
                        statement['statement'])]
  return ' '.join(shown) or statement['bindings'][-1]['value']


def measured(found: Mapping[str, Sequence[Statement]],
             config: ml_collections.ConfigDict
) -> dict[tuple[str, str], dict[str, Any]]:
  """(selector, evaluator) -> figures, see measure.summary."""
  return {
      (kind, scorer): measure.summary(
          rows_of(statements, scorer, config.search.norm), config.seed,
          config.measure.num_resamples, config.measure.bin_nats)
      for kind, statements in found.items()
      for scorer in evaluators(config)}


def evaluators(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  return (*config.evaluators,
          *((config.language_model,) if config.language_model else ()))


def report(
    config: ml_collections.ConfigDict,
    found: Mapping[str, Sequence[Statement]], path: pathlib.Path,
    *, started: float) -> dict[str, Any]:
  """Measures, draws and writes; returns what `summary.json` holds."""
  config = tools.resolved(config)
  statements = [s for s in found[config.selector] if not s['shared']]
  figures_of = measured(found, config)
  for (kind, scorer), numbers in figures_of.items():
    rows = rows_of(found[kind], scorer, 'per_byte')
    numbers['auc_per_byte'] = measure.mean_auc(rows)
  usage = generate.read_usage(path)
  cost = tools.limits_of(config).cost(
      usage.prompt_tokens, usage.completion_tokens) if (
          config.knowledge.kind == 'http') else 0.
  flat = {
      f'{"_".join(key)}_{name}': value
      for key, numbers in figures_of.items() for name, value in numbers.items()}
  flat |= {'statements': len(statements), 'calls': usage.calls,
           'prompt_tokens': usage.prompt_tokens,
           'completion_tokens': usage.completion_tokens, 'cost': cost}
  summary = report_lib.write_summary(
      path, flat, seed=config.seed, steps=len(statements),
      wall_seconds=time.monotonic() - started)
  page = report_lib.write_report(
      path, title='Head and long-tail statements',
      lead=_lead(statements, config), config=config,
      command=folder.resume_command(path),
      sections=[*_distributions(statements, figures_of, config, path),
                *_by_domain(statements, config),
                *_controls(statements, figures_of, config, path),
                *_funnel(statements, config, path),
                *_examples(statements), *_rules(statements, config)])
  print(_closing(figures_of, statements, page), flush=True)
  return summary


def _lead(statements, config):
  rules = {s['rule'] for s in statements}
  domains = {s['domain'] for s in statements}
  return (f'{len(statements):,} checked statements of {len(rules)} rules in '
          f'{len(domains)} domains, ranked by {config.ranker} and judged by '
          f'{" and ".join(evaluators(config))}.')


def _closing(figures_of, statements, page):
  lines = [f'  {" ".join(key):<28} delta {x["delta"]:.3f} '
           f'[{x["delta_low"]:.3f}, {x["delta_high"]:.3f}]  '
           f'AUC {x["auc"]:.3f}, by nats a byte {x["auc_per_byte"]:.3f}'
           for key, x in figures_of.items()]
  return '\n'.join([
      f'{len(statements)} statements: {page.with_name("statements.jsonl")}',
      *lines, f'report: {page}'])


def _distributions(statements, figures_of, config, path):
  norms = {(scorer, config.search.norm): f'judged by {scorer}'
           for scorer in evaluators(config)}
  if config.language_model:  # of word pieces: see _norms
    norms[config.language_model, 'per_byte'] = (
        f'judged by {config.language_model}')
  norms[config.ranker, config.search.norm] = f'ranked by {config.ranker}'
  plot = path / 'figures' / 'histograms.png'
  figures.histograms(plot, {
      (title, _UNITS[norm]): measure.split_scores(
          rows_of(statements, scorer, norm))
      for (scorer, norm), title in norms.items()})
  table = []
  for (kind, scorer), x in figures_of.items():
    table.append([
        _selector(kind, config), scorer, x['delta'],
        f'{x["delta_low"]:.2f} to {x["delta_high"]:.2f}',
        x['share_effective'], x['auc'], x['overlap'], x['head'],
        x['longtail']])
  return [
      report_lib.Heading('Head and tail'),
      report_lib.Text(' '.join(
          _verdict(scorer, figures_of[config.selector, scorer])
          for scorer in evaluators(config))),
      *([report_lib.Figure(plot, 'Likelihood of the full statements, head '
                           'above, tail below; dashed: means')]
        if plot.exists() else []),
      report_lib.Table(
          ['selector', 'judge', 'delta', '95 %', f'> {measure.EFFECTIVE}',
           'AUC', 'overlap', 'head', 'tail'], table,
          'delta is mean(head) - mean(tail) in nats a token, a mean over rules '
          'with its bootstrap interval; then the share of rules above '
          f'{measure.EFFECTIVE}, the mean AUC of rules, and the area that the '
          'histograms share.')]


def _verdict(scorer, x):
  """Whether a judge that did not rank tells head from tail."""
  apart = x['delta'] > measure.EFFECTIVE and x['delta_low'] > 0
  return (f'By {scorer}, which did not rank them, head and tail are '
          f'{"apart" if apart else "not told apart"}: delta {x["delta"]:.2f} '
          f'nats a token ({x["delta_low"]:.2f} to {x["delta_high"]:.2f}); '
          f'above {measure.EFFECTIVE} and clear of 0 is apart.')


def _selector(kind, config):
  mark = ' (this run)' if kind == config.selector else ''
  return _SELECTORS[kind] + mark


def _by_domain(statements, config):
  rows = []
  for domain in sorted({s['domain'] for s in statements}):
    inside = [s for s in statements if s['domain'] == domain]
    line = [domain, len({s['rule'] for s in inside}), len(inside)]
    for scorer in evaluators(config):
      found = rows_of(inside, scorer, config.search.norm)
      line += [measure.delta(found, config.seed,
                             config.measure.num_resamples).mean,
               measure.mean_auc(found)]
    rows.append(line)
  columns = [f'{figure}, {scorer}' for scorer in evaluators(config)
             for figure in ('delta', 'AUC')]
  return [report_lib.Table(
      ['domain', 'rules', 'statements', *columns], rows, 'By domain')]


def _controls(statements, figures_of, config, path):
  scorer = evaluators(config)[-1]
  rows = rows_of(statements, scorer, config.search.norm)
  deltas = {}
  for domain in sorted({r.domain for r in rows}):
    deltas[domain] = measure.rule_deltas(r for r in rows if r.domain == domain)
  plots = path / 'figures'
  figures.deltas(plots / 'deltas.png', deltas, effective=measure.EFFECTIVE)
  figures.scatter(
      plots / 'controls.png',
      {'length, tokens': [(r.length, r.score, r.split) for r in rows],
       'mean Zipf frequency of the values': [
           (r.zipf, r.score, r.split) for r in rows]},
      ylabel=f'{_UNITS[config.search.norm]}, {scorer}')
  table = []
  for name in dict.fromkeys((config.ranker, *evaluators(config))):
    found = rows_of(statements, name, config.search.norm)
    means = [np.mean([getattr(r, f) for r in found if r.split == s] or [np.nan])
             for f in ('length', 'zipf') for s in ('head', 'longtail')]
    table.append([name, *means, measure.spearman(found, 'length'),
                  measure.spearman(found, 'zipf')])
  return [
      report_lib.Figure(plots / 'deltas.png',
                        f'Delta of every rule, judged by {scorer}'),
      report_lib.Heading('What else could explain it'),
      report_lib.Figure(plots / 'controls.png', 'Length and word frequency'),
      report_lib.Table(
          ['scorer', 'tokens, head', 'tokens, tail', 'Zipf, head',
           'Zipf, tail', 'rank correlation with length', 'with frequency'],
          table, "Means, and Spearman's correlations of the score within "
          'rules. A score that goes with length ranks long names, not rare '
          'ones.'),
      report_lib.Table(
          ['selector', 'judge', 'delta', 'at equal length',
           'at equal length and frequency'],
          [[_selector(kind, config), scorer, x['delta_pooled'],
            x['delta_length'], x['delta_length_zipf']]
           for (kind, scorer), x in figures_of.items()],
          'What of delta is left, by least squares within rules. A judge that '
          'counts words is frequency itself: little is left by design.'),
      *(_norms(statements, config, judge) for judge in evaluators(config))]


def _norms(statements, config, scorer):
  """Every number that can be made of a judge's likelihoods."""
  rows = []
  for norm in likelihood.NORMS:
    found = rows_of(statements, scorer, norm)
    one = measure.delta(found, config.seed, config.measure.num_resamples)
    rows.append([
        norm, one.mean, f'{one.low:.3f} to {one.high:.3f}',
        measure.mean_auc(found), measure.spearman(found, 'length'),
        measure.spearman(found, 'zipf')])
  return report_lib.Table(
      ['norm', 'delta, nats', '95 %', 'AUC', 'rank correlation with length',
       'with frequency'], rows,
      f'Norms of the likelihoods of {scorer}: mean a token and per_byte of the '
      'full statement, value_mean of the last value given its prefix, and '
      'totals. Where tokens are parts of words, a rare word is many tokens, '
      'most of them sure once the first is known, and more so where it comes '
      'again: its mean is high, and only its total, or nats a byte, is low.')


def _funnel(statements, config, path):
  rows = generate.read_funnel(path, config.selector)
  total = lambda name: sum(row[name] for row in rows)
  counts = {'proposed': total('proposed'), 'new': total('new'),
            'right datatype': total('typed'), 'facts hold': total('factual'),
            'chosen by the ranker': total('kept')}
  plot = path / 'figures' / 'funnel.png'
  figures.funnel(plot, counts)
  usage = generate.read_usage(path)
  found = Counter((s['rule'], s['split']) for s in statements)
  short = [rule for rule in tools.rules_of(config) if any(
      found[rule, split] < config.search.target_per_split
      for split in search.SPLITS)]
  return [
      report_lib.Heading('From proposals to statements'),
      report_lib.Figure(plot, 'Candidates of all variables and both splits'),
      report_lib.Text(
          f'The critic left {total("abstained"):,} claims open; they are not '
          f'accepted. Calls of an endpoint: {usage.calls:,}, refused '
          f'{usage.refused:,}, tokens: '
          f'{usage.prompt_tokens + usage.completion_tokens:,}. Of '
          f'{len(short)} rules a split has fewer than search.target_per_split '
          f'= {config.search.target_per_split} statements'
          f'{": " * bool(short)}{", ".join(short)}.')]


def _examples(statements):
  rows, seen = [], set()
  for s in statements:
    if (s['domain'], s['rule']) in seen or sum(
        1 for d, _ in seen if d == s['domain']) >= 4:
      continue
    pair = [next((t['statement'] for t in statements
                  if t['rule'] == s['rule'] and t['split'] == split), None)
            for split in ('head', 'longtail')]
    if all(pair):
      seen.add((s['domain'], s['rule']))
      rows.append([s['domain'], *pair])
  rows.sort(key=lambda row: row[0])
  return [report_lib.Table(['domain', 'head', 'long tail'], rows,
                           'Statements, the first of some rules')]


def _rules(statements, config):
  names = list(dict.fromkeys(s['rule'] for s in statements))
  deltas = {
      scorer: measure.rule_deltas(
          rows_of(statements, scorer, config.search.norm))
      for scorer in (config.ranker, *evaluators(config))}
  rows = []
  for name in names:
    inside = [s for s in statements if s['rule'] == name]
    counts = [sum(s['split'] == split for s in inside)
              for split in ('head', 'longtail')]
    rows.append([name, inside[0]['domain'], *counts,
                 *(deltas[scorer].get(name) for scorer in deltas)])
  return [
      report_lib.Heading('Rules'),
      report_lib.Table(['rule', 'domain', 'head', 'tail',
                        *(f'delta, {scorer}' for scorer in deltas)], rows,
                       'By rule; the first delta is by the scorer that ranked')]
