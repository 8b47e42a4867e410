"""What a run may cost at most, before anything is spent."""

import math
from typing import Any
from typing import NamedTuple

import ml_collections

from link_jax import client as client_lib
from link_jax import graphs
from link_jax import http_model
from link_jax import knowledge
from link_jax import rules as rules_lib
from link_jax import search
from link_jax import tools

LONGEST_VALUE_BYTES = 4 * 64
"""A parser keeps no value of more than 64 characters."""


class Bound(NamedTuple):
  """Of one rule, or of a run: no more than this can be asked.

  An endpoint's calls are the questions, those asked again whose answer cannot
  be read, and the texts whose likelihood it gives.
  """
  questions: int  # queries to the knowledge model
  calls: int  # of an endpoint
  prompt_tokens: int
  completion_tokens: int


def of_rule(rule: rules_lib.Rule, config: ml_collections.ConfigDict) -> Bound:
  """The most that the search of one rule with one selector asks."""
  s = config.search
  http = config.knowledge.kind == 'http'
  order = graphs.search_order(rule, s.order)
  generic = rules_lib.generic_bindings(rule)
  variables = [name for name in order if name not in generic]
  tries = 1 + config.knowledge.http.max_bad_answers
  questions, values, prompt, parents, longest = 0, 0, 0, 1, 0
  for i, name in enumerate(variables):
    calls = (s.factual_votes if rule.variable(name).role == 'factual'
             else s.num_calls)
    per_call = s.values_per_call if i else s.first_values_per_call
    asked = parents * calls * (1 if i == 0 else 2)  # both splits
    questions += asked
    values += asked * per_call
    known = tuple(generic.items()) + tuple(
        (v, 'x' * LONGEST_VALUE_BYTES) for v in variables[:i])
    query = knowledge.Query(rule, name, known, per_call, 0, 0)
    text = http_model.prompt_of(query, config.knowledge.http.in_words)
    # Values of the calls before stand in the list of what is not wanted.
    avoided = (calls - 1) / 2 * per_call * (LONGEST_VALUE_BYTES + 2)
    tokens = client_lib.prompt_bound({'prompt': text}) + avoided + 64
    prompt += math.ceil(asked * tries * tokens)
    longest = max(longest, tokens)
    grown = parents * calls * per_call
    parents = grown if i == 0 else min(grown, s.beam_size)
  if s.max_candidates:  # Rounds go on, and each question asks for some.
    questions, values = _questions(rule, config), s.max_candidates
    prompt = math.ceil(questions * tries * longest)
  if not http:
    return Bound(questions, 0, 0, 0)
  texts = _texts(config, values)
  return Bound(questions, questions * tries + texts,
               prompt + texts * _longest_text(rule),
               questions * tries * config.knowledge.http.max_tokens)


def _questions(rule, config):
  """At most, where values are asked for until `max_candidates` are."""
  s = config.search
  factual = any(v.role == 'factual' for v in rule.variables)
  fewest = 1 if factual else min(s.first_values_per_call, s.values_per_call)
  # A split's last question asks for what is left of its share, which is half
  # of all that is left, or all.
  last = math.ceil(math.log2(s.max_candidates)) + 2
  return min(s.max_candidates, s.max_candidates // fewest + last)


def _judges(config):
  """Scorers that are endpoints."""
  return [name for name in tools.scorer_names(config)
          if name.startswith('http:')]


def _texts(config, values):
  """Likelihoods that endpoints are asked for: the ranker's of all values, the
  others' of all statements."""
  names = _judges(config)
  ranks = config.ranker in names
  return ranks * values + (
      len(names) - ranks) * 2 * config.search.target_per_split


def _longest_text(rule):
  """Tokens at most."""
  bindings = rules_lib.generic_bindings(rule) | {
      v.name: 'x' * LONGEST_VALUE_BYTES
      for v in rule.variables if v.role != 'generic'}
  text = search.text_of(rule, bindings, rule.variables[-1].name)
  return client_lib.prompt_bound({'prompt': text.text}) + 64


def of_run(config: ml_collections.ConfigDict) -> Bound:
  """All rules, all selectors: compared ones may share no answer."""
  kinds = len(dict.fromkeys((config.selector, *config.compare)))
  rules = tools.rules_of(config).values()
  questions, calls, prompt, completion = (
      kinds * sum(column) for column in zip(
          *(of_rule(rule, config) for rule in rules), strict=True))
  probes = [{'prompt': text.text} for text in http_model.PROBES]
  judges = len(_judges(config))
  return Bound(
      questions, calls + judges * len(probes),
      prompt + judges * sum(map(client_lib.prompt_bound, probes)), completion)


def show(config: ml_collections.ConfigDict, target: Any = None
) -> list[str]:
  """For people: what will be asked at most, and what that costs.

  Raises:
    ValueError: the config cannot be run, or it is a plan for devices, which a
      run of this package does not train on.
  """
  tools.check(tools.resolved(config))
  if target is not None:
    raise ValueError(
        f'--plan={target.name}: there is no training to plan for devices; '
        '--plan alone says what will be asked')
  bound, rules = of_run(config), tools.rules_of(config)
  domains = dict.fromkeys(rule.domain for rule in rules.values())
  lines = [f'{len(rules)} rules: {", ".join(domains)}']
  if config.knowledge.kind == 'http':
    limits = tools.limits_of(config)
    cost = limits.cost(bound.prompt_tokens, bound.completion_tokens)
    held = [f'{name} {limits_value:g}' for name, limits_value in (
        ('max_calls', limits.max_calls), ('max_tokens', limits.max_tokens),
        ('max_cost', limits.max_cost)) if limits_value]
    lines.append(
        f'at most {bound.calls:,} calls, {bound.prompt_tokens:,} tokens of '
        f'prompts and {bound.completion_tokens:,} of answers, cost '
        f'{cost:,.2f}; limits: {", ".join(held) or "none"}')
  else:
    asked = {'facts': 'the embedded facts', 'lm': config.knowledge.lm.model}
    lines.append(f'at most {bound.questions:,} questions to '
                 f'{asked[config.knowledge.kind]}; no call, no cost')
  return lines
