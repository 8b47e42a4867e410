"""Rules as published are read, ordered and put in words; others are refused by
name."""

import copy
import json
import random
import subprocess
import sys

import pytest

from link_jax import entailment
from link_jax import facts
from link_jax import graphs
from link_jax import http_model
from link_jax import knowledge
from link_jax import meta
from link_jax import rulefile
from link_jax import rules

# The example of the published README (INK-USC/LINK, MIT), typed again.
RULE2 = {
    'premise_map': {
        'is_allergic_to(P, A)': '[P] is allergic to [A]',
        'is_ingredient_in(Z, B)': '[Z] is a ingredient in [B]',
        'is_one_type_of(Z, A)': '[Z] is one type of [A]'},
    'conclusion_map': {
        'is_not_able_to_eat(P, B)': '[P] is not able to eat [B]'},
    'variables': {
        'P': ['P', 'Person', True, None],
        'A': ['A', 'Food Allergen', False, None],
        'B': ['B', 'Name of a dish or food', False, None],
        'Z': ['Z', 'Ingredient', False, None]},
    'domain': 'food and physical conditions'}
VALUES = {'P': 'PersonX', 'A': 'shellfish', 'Z': 'prawn', 'B': 'Paella'}


@pytest.fixture
def rule2():
  return rulefile.parse('rule2', copy.deepcopy(RULE2))


def test_the_published_rule_has_its_graph_and_both_orders(rule2):
  edges = {frozenset(e): d['predicate'].kind
           for *e, d in graphs.rule_graph(rule2).edges(data=True)}
  assert edges == {
      frozenset('PB'): 'conclusion', frozenset('PA'): 'information',
      frozenset('ZB'): 'constraint', frozenset('ZA'): 'constraint'}
  assert graphs.search_order(rule2, 'conclusion_first') == tuple('PBZA')
  assert graphs.search_order(rule2, 'premise_first') == tuple('PAZB')
  assert graphs.search_order(rule2) == tuple('PAZB')
  assert [v.role for v in rule2.variables] == [
      'generic', 'information', 'information', 'constraint']
  assert not rule2.positive


def test_a_factual_variable_is_searched_conclusion_first():
  entry = copy.deepcopy(RULE2)
  entry['variables']['Z'][3] = 'factual'
  rule = rulefile.parse('rule2', entry)
  assert graphs.search_order(rule) == tuple('PBZA')
  entry['variables']['A'][3] = 'factual'  # information outranks it
  assert rulefile.parse('rule2', entry).variable('A').role == 'information'


BRANCHING = copy.deepcopy(RULE2)
BRANCHING['premise_map']['grows_in(Z, C)'] = '[Z] grows in [C]'
BRANCHING['variables']['C'] = ['C', 'Country', False, None]


def test_where_constraints_branch_all_wait_for_what_they_are_joined_to():
  rule = rulefile.parse('branching', BRANCHING)
  assert graphs.search_order(rule, 'conclusion_first') == tuple('PBZAC')
  assert graphs.search_order(rule, 'premise_first') == tuple('PAZCB')


def forest(edges):
  """P concludes of A; facts join A to others along the edges of a tree."""
  names = sorted({name for edge in edges for name in edge})
  return rulefile.parse('forest', {
      'premise_map': {'has(P, B)': '[P] has [B]'} | {
          f'f{i}({x}, {y})': f'[{x}] is of [{y}]'
          for i, (x, y) in enumerate(edges)},
      'conclusion_map': {'wants(P, A)': '[P] wants [A]'},
      'variables': {'P': ['P', 'Person', True, None]} | {
          name: [name, 'Thing', False, None] for name in names}})


def test_any_tree_of_constraints_has_an_order_without_leaps():
  rng = random.Random(0)
  for size in range(2, 9):
    edges = [(rng.choice('ABCDEFGHI'[:i]), 'ABCDEFGHI'[i])
             for i in range(1, size)]
    rule = forest(edges)
    for order in graphs.ORDERS:
      found = graphs.search_order(rule, order)
      assert sorted(found) == sorted(v.name for v in rule.variables)
      assert all(graphs.prompt_predicates(rule, name, found[:i])
                 for i, name in enumerate(found) if i)


def test_a_chain_is_searched_as_published_one_way_and_the_other():
  edges = [('A', 'D'), ('D', 'C'), ('C', 'B')]
  assert graphs.search_order(
      forest(edges), 'conclusion_first') == tuple('PADCB')
  assert graphs.search_order(forest(edges)) == tuple('PBCDA')


def test_the_conclusion_is_asked_of_the_first_variable_only(rule2):
  for order in ('conclusion_first', 'premise_first'):
    names = graphs.search_order(rule2, order)
    for i, name in enumerate(names[1:], start=1):
      kinds = [p.kind for p in graphs.prompt_predicates(
          rule2, name, names[:i])]
      assert ('conclusion' in kinds) == (
          i == 1 and order == 'conclusion_first')


def test_statements_in_words(rule2):
  assert rules.conjunction(rule2.predicates, VALUES) == (
      'PersonX is allergic to shellfish and prawn is a ingredient in Paella '
      'and prawn is one type of shellfish and '
      'PersonX is not able to eat Paella')
  assert rules.statement(rule2, VALUES) == (
      'if PersonX is allergic to shellfish, '
      'PersonX is not able to eat Paella')


def test_a_value_keeps_its_letters(rule2):
  values = VALUES | {'B': 'Baked Beans', 'Z': 'Z [A] B'}
  text = rules.conjunction(rule2.predicates, values)
  assert 'Z [A] B is a ingredient in Baked Beans' in text
  query = knowledge.Query(
      rule2, 'Z', tuple((k, values[k]) for k in 'PAB'), 5, 0, 0)
  assert 'is_ingredient_in(Z, Baked Beans)' in http_model.prompt_of(query)


def test_articles_follow_the_value():
  assert rules.verbalise('[P] is [a B]', {'P': 'PersonX', 'B': 'otter'}) == (
      'PersonX is an otter')


def test_words_do_not_depend_on_hash_seeds(tmp_path):
  (tmp_path / 'rules.json').write_text(json.dumps({'rule2': RULE2}))
  code = ('from link_jax import rulefile, rules, graphs; '
          f'r = rulefile.load({str(tmp_path / "rules.json")!r})["rule2"]; '
          f'print(rules.conjunction(r.predicates, {VALUES!r}), '
          'graphs.search_order(r))')
  said = {subprocess.run(
      [sys.executable, '-c', code], check=True, capture_output=True,
      env={'PYTHONHASHSEED': seed, 'PYTHONPATH': ':'.join(sys.path)}).stdout
          for seed in ('0', '7')}
  assert len(said) == 1


def variant(**changes):
  entry = copy.deepcopy(RULE2)
  for field, value in changes.items():
    entry[field] = entry[field] | value
  return entry


CYCLE = {'joins(A, B)': '[A] joins [B]'}
LONG_CYCLE = {
    'grows_in(Z, C)': '[Z] grows in [C]', 'eats(C, B)': '[C] eats [B]'}
C = {'C': ['C', 'Country', False, None]}


@pytest.mark.parametrize('entry, message', [
    (variant(premise_map=CYCLE), 'go round in a circle'),
    (variant(premise_map=LONG_CYCLE, variables=C),
     'in a circle: .*; leave one of them out'),
    (variant(premise_map={'is_old(P)': '[P] is old'}),
     r'is_old\(P\) has 1 argument; a predicate has two'),
    (variant(conclusion_map={'dies(P, B)': '[P] dies of [B]'}),
     'conclusion_map: has 2 conclusions'),
    (variant(variables={'P': ['P', 'Person', False, None]}), 'none is generic'),
    ({'premise_map': {}, 'conclusion_map': {'meets(P, Q)': '[P] meets [Q]'},
      'variables': {v: [v, 'Person', True, None] for v in 'PQ'}},
     'all are generic: there is no value'),
    (variant(premise_map={'is_in(Z, Q)': '[Z] is in [Q]'}),
     "'Q' is not among the variables"),
    (variant(premise_map={'is_ingredient_in(Z, B)': '[Z] is in [C]'}),
     r'has no slot \[B\]|has a slot \[C\]'),
    (variant(variables=C), 'C is joined to the others by no predicate'),
    (variant(variables={'A': ['A', 'Food', False]}), 'not .name, datatype'),
    (variant(variables={'A': ['A', 'Food', 1, None]}), 'is_generic 1'),
    (variant(variables={'A': ['A', 'Food', False, 'fact']}), "nodetype 'fact'"),
    (variant() | {'bindings': {'is_red(Z, B)': 'differs'}}, 'no predicate of'),
    (variant() | {'bindings': {'is_ingredient_in(Z, B)': 5}},
     'bindings: .* has 5, not a text'),
    (variant() | {'types': {'A': ['food']}}, "types: A has ..food.., not"),
    ({k: v for k, v in RULE2.items() if k != 'variables'},
     'variables: is missing'),
    (variant() | {'domains': ''}, 'domains: is not known')])
def test_a_rule_that_cannot_be_searched_is_refused_by_name(entry, message):
  with pytest.raises(rules.RuleError, match=f'(?s)rule2.*{message}'):
    rulefile.parse('rule2', entry)


@pytest.mark.parametrize('text, message', [
    ('[]', 'not a JSON object'), ('{"a": 1', 'not a JSON object'),
    ('{"a": {}, "a": {}}', "'a' is there twice")])
def test_a_file_that_holds_no_rules_is_refused(tmp_path, text, message):
  (tmp_path / 'rules.json').write_text(text)
  with pytest.raises(rules.RuleError, match=message):
    rulefile.load(tmp_path / 'rules.json')
  with pytest.raises(rules.RuleError, match='absent.json'):
    rulefile.load(tmp_path / 'absent.json')


@pytest.mark.parametrize('binding, message', [
    ('table:ingredients', 'no table .ingredients.; there are .*ingredient_of'),
    ('less:born:height', 'no number .height.'),
    ('less:born:died:x', "'x' is no"),
    ('is_a', 'binding .is_a. is not known; there are table:NAME')])
def test_a_binding_to_what_is_not_there_is_refused(binding, message):
  entry = variant() | {'bindings': {'is_ingredient_in(Z, B)': binding}}
  with pytest.raises(rules.RuleError, match=message):
    knowledge.check_bindings(rulefile.parse('rule2', entry), facts.embedded())


def test_the_embedded_rules_are_forty_and_can_all_be_negated():
  found = rulefile.load(facts.DATA / 'rules.json').values()
  assert len(found) >= 40 and len({r.domain for r in found}) == 4
  for rule in found:
    knowledge.check_bindings(rule, facts.embedded())
    values = {v.name: f'value{v.name}' for v in rule.variables} | (
        rules.generic_bindings(rule))
    conclusion = rules.verbalise(rule.conclusion.template, values)
    assert entailment.analyse(conclusion).denied != rule.positive
    assert entailment.analyse(entailment.negate(conclusion)).denied == (
        rule.positive)


META = ('will_fear(Person P, Animal B) :- fears_all(Person P, Class A) & '
        'is_one_type_of(Animal B, Class A)')


def test_a_meta_rule_becomes_a_rule_for_each_category(tmp_path):
  entry = meta.parse(META)
  assert entry['premise_map']['fears_all(P, A)'] == '[P] fears all [A]'
  assert entry['variables']['P'] == ['P', 'Person', True, None]
  entry['bindings'] = {'is_one_type_of(B, A)': 'table:kind_of'}
  found = meta.expand('fear', entry, 'B', ['bird', 'sea monster'])
  assert list(found) == ['fear_bird', 'fear_sea_monster']
  assert found['fear_bird']['types'] == {'B': 'kind_of:bird'}
  (tmp_path / 'rules.json').write_text(json.dumps(found))
  read = rulefile.load(tmp_path / 'rules.json')
  knowledge.check_bindings(read['fear_bird'], facts.embedded())
  members = facts.embedded().members('kind_of:bird')
  assert 'penguin' in members and 'cobra' not in members
  assert 'duck' in meta.classes_below('bird')


@pytest.mark.parametrize('text, message', [
    ('fears(Person P, Animal B)', "no ':-'"),
    ('fears(P, Animal B) :- p(Person P, Animal B)', 'does not read'),
    ('f(Person P, Animal B) :- p(Person P, Dog B)', 'both')])
def test_a_meta_rule_that_reads_otherwise_is_refused(text, message):
  with pytest.raises(rules.RuleError, match=message):
    meta.parse(text)
