"""The graph of a rule: what may be searched, and in which order."""

from collections.abc import Sequence

import networkx as nx

from link_jax import rules as rules_lib

ORDERS = ('auto', 'conclusion_first', 'premise_first')


def rule_graph(rule: rules_lib.Rule) -> nx.Graph:
  """Variables, and one predicate for each pair of them.

  Where two share a pair, a constraint is kept before an information and that
  before the conclusion, and of one kind the last: the published code's order.
  """
  graph = nx.Graph()
  graph.add_nodes_from(v.name for v in rule.variables)
  rank = ('conclusion', 'information', 'constraint')
  for predicate in sorted(
      (rule.conclusion, *rule.premises), key=lambda p: rank.index(p.kind)):
    graph.add_edge(*predicate.arguments, predicate=predicate)
  return graph


def _constraints(rule):
  graph = nx.Graph()
  graph.add_edges_from(
      p.arguments for p in rule.premises if p.kind == 'constraint')
  return graph


def check(rule: rules_lib.Rule) -> None:
  """Raises RuleError, with the rule's name, for what cannot be searched.

  Constraints may branch, but not go round: the last value of a circle would
  have to fit two that were found apart.
  """
  def fail(field, message):
    raise rules_lib.RuleError(f'rule {rule.name!r}, {field}: {message}')

  for predicate in rule.predicates:
    if predicate.arguments[0] == predicate.arguments[1]:
      fail('premise_map', f'{predicate.symbol} joins a variable to itself')
  if not rule.generics:
    fail('variables', 'none is generic: is_generic is true of the anonymous '
         'subject')
  if len(rule.generics) == len(rule.variables):
    fail('variables', 'all are generic: there is no value to search')
  if not set(rule.generics) & set(rule.conclusion.arguments):
    fail('conclusion_map', f'{rule.conclusion.symbol} has no generic variable; '
         f'the rule has {", ".join(rule.generics)}')
  constraints = _constraints(rule)
  try:
    cycle = [a for a, _ in nx.find_cycle(constraints)]
  except (nx.NetworkXNoCycle, nx.NetworkXError):
    cycle = []
  if cycle:
    fail('premise_map', f'the constraints go round in a circle: '
         f'{" - ".join((*cycle, cycle[0]))}; leave one of them out')
  graph = rule_graph(rule)
  apart = set(graph) - nx.node_connected_component(graph, rule.generics[0])
  if apart:
    fail('variables', f'{sorted(apart)[0]} is joined to the others by no '
         'predicate')


def search_order(
    rule: rules_lib.Rule, order: str = 'auto') -> tuple[str, ...]:
  """All variables, generics first.

  Conclusion first: the conclusion's variables, then the constraints that start
  there, then the rest as declared. Premise first: the same, backwards. 'auto'
  takes the first where a variable is factual, for its one value must follow
  from others, and the second elsewhere.

  That is the published code's order of a chain. Where constraints branch, a
  variable waits until one that it is joined to has a value.
  """
  if order not in ORDERS:
    raise ValueError(f'order {order!r} is not known; there are {ORDERS}')
  generics = [
      *(a for a in rule.conclusion.arguments if a in rule.generics),
      *(g for g in rule.generics if g not in rule.conclusion.arguments)]
  wanted = [a for a in rule.conclusion.arguments if a not in rule.generics]
  constraints = _constraints(rule)
  if wanted and wanted[-1] in constraints:
    wanted += [v for v in nx.dfs_preorder_nodes(constraints, wanted[-1])
               if v not in wanted]
  wanted += [
      v.name for v in rule.variables if v.name not in wanted + generics]
  factual = any(v.role == 'factual' for v in rule.variables)
  if order == 'premise_first' or (order == 'auto' and not factual):
    wanted.reverse()
  found = generics
  while wanted:  # min takes the first of equals.
    found.append(min(wanted, key=lambda v: _distance(rule, v, found)))
    wanted.remove(found[-1])
  return tuple(found)


def _distance(rule, variable, searched):
  """0 where a fact joins it to searched variables, 2 where nothing does."""
  kinds = [p.kind for p in prompt_predicates(rule, variable, searched)]
  return 0 if 'constraint' in kinds else 1 if kinds else 2


def prompt_predicates(
    rule: rules_lib.Rule, variable: str, searched: Sequence[str]
) -> tuple[rules_lib.Predicate, ...]:
  """What a knowledge model is asked: what joins a variable to searched ones.

  The conclusion is asked of the first variable only; of later ones it would
  hand the answer over.
  """
  graph = rule_graph(rule)
  first = set(searched) <= set(rule.generics)
  edges = [graph.edges[variable, other]['predicate'] for other in searched
           if graph.has_edge(variable, other)]
  return tuple(p for p in edges if first or p.kind != 'conclusion')


def claims(
    rule: rules_lib.Rule, variable: str, searched: Sequence[str]
) -> tuple[rules_lib.Predicate, ...]:
  """What a critic is asked: all constraints that the variable completes."""
  known = {*searched, variable}
  return tuple(
      p for p in rule.premises if p.kind == 'constraint'
      and variable in p.arguments and set(p.arguments) <= known)
