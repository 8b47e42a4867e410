"""Statements of one rule: found, scored, and put into the form of the file."""

from collections.abc import Callable
import hashlib
from typing import Any

import ml_collections

from link_jax import facts as facts_lib
from link_jax import journal as journal_lib
from link_jax import rules as rules_lib
from link_jax import search
from link_jax import tools as tools_lib

Statement = dict[str, Any]


def of_rule(
    config: ml_collections.ConfigDict, rule: rules_lib.Rule, kind: str,
    by: search.Search, tools: tools_lib.Tools, journal: journal_lib.Events,
    emit: Callable[[dict[str, Any]], None]) -> list[Statement]:
  """A rule's statements with their likelihoods, from the journal or made.

  Args:
    config: of the run.
    rule: whose statements.
    kind: the selector's.
    by: the search with that selector.
    tools: score.
    journal: what is done already.
    emit: hears of what is done now, and adds it to the journal.
  """
  done = journal.find(event='rule', rule=rule.name, selector=kind)
  if done is None:
    def on_step(event):
      emit(event | {'selector': kind})
    result = search.search(rule, by, on_step)
    statements = [
        _statement(rule, split, found, tools)
        for split, ones in result.found.items() for found in ones]
    done = {'event': 'rule', 'rule': rule.name, 'selector': kind,
            'statements': statements, 'funnel': result.funnel}
    emit(done)
  scores = {name: _scores(config, rule, kind, name, done['statements'], tools,
                          journal, emit) for name in tools.scorers}
  return [
      s | {'likelihoods': [
          {'scorer': name, **rows[i]} for name, rows in scores.items()
          if rows[i]]}
      for i, s in enumerate(done['statements'])]


def _scores(config, rule, kind, name, statements, tools, journal, emit):
  """A row of numbers for each statement, or None where it is not scored."""
  key = {'event': 'scores', 'rule': rule.name, 'selector': kind,
         'scorer': name}
  done = journal.find(**key)
  if done is None:
    chosen = _chosen(config, name, statements)
    texts = [_text(rule, statements[i]) for i in chosen]
    rows = [None] * len(statements)
    if texts:
      for i, one in zip(chosen, tools.scorers[name].score(texts), strict=True):
        rows[i] = one._asdict()
    done = key | {'rows': rows}
    emit(done)
  return done['rows']


def _chosen(config, name, statements):
  """All; of a slow language model the first of each split."""
  if name != config.language_model:
    return list(range(len(statements)))
  return [i for split in search.SPLITS for i in [
      i for i, s in enumerate(statements)
      if s['split'] == split][:config.language_model_per_split]]


def _text(rule, statement):
  bindings = {b['variable']: b['value'] for b in statement['bindings']}
  return search.text_of(rule, bindings, statement['bindings'][-1]['variable'])


def _statement(rule, split, found, tools):
  """What the file says of a statement, but for its likelihoods."""
  bindings = dict(found.beam.bindings)
  glosses = (facts_lib.glosses() if any(
      source.startswith('wordnet') for e in found.beam.evidence
      for source in e.sources) else {})
  return {
      'id': hashlib.sha256(
          f'{rule.name}\0{found.statement}'.encode()).hexdigest()[:16],
      'rule': rule.name, 'domain': rule.domain, 'split': split,
      'bindings': [{'variable': name, 'value': value}
                   for name, value in found.beam.bindings],
      'premise': rules_lib.premise(rule, bindings),
      'conclusion': rules_lib.verbalise(rule.conclusion.template, bindings),
      'statement': found.statement,
      'full_statement': rules_lib.conjunction(rule.predicates, bindings),
      'label': True, 'positive': rule.positive,
      'evidence': [
          {'claim': e.claim, 'p': e.p, 'sources': list(e.sources),
           'texts': [glosses[s] for s in e.sources if s in glosses]}
          for e in found.beam.evidence],
      'checked': 'facts' if found.beam.fact_ps else 'types only',
      'rank_score': found.score, 'shared': found.shared,
      'provenance': tools.knowledge.name}
