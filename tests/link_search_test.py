"""The search, against models whose answers are known."""

from collections import Counter
import copy
import dataclasses
import json
import random

import pytest

from link_jax import critic
from link_jax import expand
from link_jax import facts
from link_jax import graphs
from link_jax import knowledge
from link_jax import relations
from link_jax import rulefile
from link_jax import rules
from link_jax import search
from link_jax import selection
from link_jax.likelihood import Likelihood
from tests.link_rules_test import RULE2

FOODS = {'shellfish': {'prawn': ['paella', 'gumbo'], 'crab': ['crab cake']},
         'nut': {'almond': ['marzipan', 'nougat'], 'pecan': ['pecan pie']}}
LENGTHS = Counter()


class Book:
  """Proposes what FOODS has, and one thing that it has not."""
  name, fingerprint = 'book', '0'

  def __init__(self):
    self.queries = []

  def propose(self, queries):
    self.queries += queries
    return [[knowledge.Candidate(v, 'book') for v in self.values(q)][:q.n]
            for q in queries]

  def values(self, query):
    known = query.known
    taken = {*query.accepted, *query.rejected}
    if query.variable == 'A':
      found = FOODS
    elif query.variable == 'Z':
      found = FOODS[known['A']]
    else:
      found = FOODS[known['A']][known['Z']]
    return [v for v in (*found, 'stone') if v not in taken]


class Judge:
  """Sure of the book, not of a stone."""
  name, fingerprint = 'judge', '0'

  def __init__(self, p=1.):
    self.p, self.claims = p, []

  def judge(self, claims):
    self.claims += claims
    return [critic.Verdict(0. if 'stone' in c.text else self.p)
            for c in claims]


class Length:
  """A text is the less likely the longer it is."""
  name, fingerprint = 'length', '0'

  def score(self, texts):
    return [Likelihood(-float(len(t.text)), 1, len(t.text), -1., 1)
            for t in texts]


def make(thresholds=None, kind='quantile', book=None, judge=None, **asking):
  given = {'num_calls': 2, 'values_per_call': 9, 'first_values_per_call': 9}
  return search.Search(
      expand.Expander(
          book or Book(), judge or Judge(),
          thresholds or critic.Thresholds(moving=False),
          expand.Asking(**(given | asking))),
      Length(), selection.Selector(kind, 0.5, 200), max_repeats=0)


@pytest.fixture
def rule():
  return rulefile.parse('rule2', copy.deepcopy(RULE2))


def test_every_statement_of_the_book_and_none_of_a_stone(rule):
  result = search.search(rule, make(kind='compat75'))
  found = {f.statement for ones in result.found.values() for f in ones}
  assert found <= {
      f'if PersonX is allergic to {a}, PersonX is not able to eat {b}'
      for a, zs in FOODS.items() for bs in zs.values() for b in bs}
  assert len(found) == 6
  assert [row['variable'] for row in result.funnel] == list('AAZZBB')


def test_head_and_tail_are_apart_by_the_ranker(rule):
  result = search.search(rule, make())
  head, tail = ([f.score for f in result.found[s]] for s in search.SPLITS)
  assert head and tail and min(head) > max(tail)
  names = [f.statement for ones in result.found.values() for f in ones]
  assert len(names) == len(set(names))


def test_steps_are_heard_of_and_counted(rule):
  events, judge = [], Judge()
  search.search(rule, make(judge=judge), events.append)
  assert [e['variable'] for e in events] == list('AZB')
  rows = events[0]['rows']
  assert rows[0]['proposed'] == 3 and rows[0]['typed'] == 2
  assert all(c.predicate is None for c in judge.claims[:3])


def test_a_first_variable_is_not_cut(rule):
  result = search.search(rule, make())
  assert result.funnel[0]['kept'] == result.funnel[0]['factual'] == 2


def test_calls_end_after_two_without_a_new_value(rule):
  book = Book()
  search.search(rule, make(book=book, num_calls=5))
  calls = Counter(q.call for q in book.queries if q.variable == 'A')
  assert dict(calls) == {0: 1, 1: 1, 2: 1}  # all at once, then nothing twice
  assert {q.accepted for q in book.queries if q.call == 1
          and q.variable == 'A'} == {('shellfish', 'nut')}


def test_one_below_the_threshold_of_confidence_is_dropped(rule):
  def number(p, **moving):
    result = search.search(rule, make(
        critic.Thresholds(**moving), judge=Judge(p)))
    return sum(map(len, result.found.values()))
  assert number(0.84, moving=False) == 0
  assert number(0.86, moving=False) > 0
  assert number(0.7, moving=True) > 0  # the ladder comes down to 0.70
  assert number(0.6, moving=True) == 0


class Silent(Judge):

  def judge(self, claims):
    return [critic.Verdict(None) if c.predicate else v for c, v in zip(
        claims, super().judge(claims), strict=True)]


def test_to_abstain_is_not_to_accept(rule):
  result = search.search(rule, make(judge=Silent()))
  assert not any(result.found.values())
  assert result.funnel[2]['abstained'] > 0


class Mute(Judge):

  def judge(self, claims):
    return [critic.Verdict(None)] * len(claims)


def test_datatypes_left_open_are_counted_as_left_open(rule):
  first = search.search(rule, make(judge=Mute())).funnel[0]
  assert (first['typed'], first['abstained']) == (0, first['new'])


def test_a_fact_needs_two_votes_and_no_denial():
  entry = copy.deepcopy(RULE2)
  entry['variables']['Z'][3] = 'factual'
  rule = rulefile.parse('rule2', entry)

  class Fickle(Book):
    def values(self, query):
      if query.variable == 'B':
        return ['paella', 'gumbo']
      if query.variable == 'Z':
        again = query.known['B'] == 'paella'
        return ['prawn'] if again else [f'prawn{query.call}']
      return ['shellfish', 'nut', 'fish', 'egg']

  book = Fickle()
  result = search.search(rule, make(book=book, num_calls=1))
  found = [f for ones in result.found.values() for f in ones]
  assert found and {dict(f.beam.bindings)['B'] for f in found} == {'paella'}
  assert graphs.search_order(rule) == tuple('PBZA')
  denied = search.search(
      rule, make(book=Fickle(), judge=Judge(0.), num_calls=1))
  assert not any(denied.found.values())


def test_a_rule_whose_facts_branch_is_searched():
  data = facts.embedded()
  entry = json.loads((facts.DATA / 'rules.json').read_text())['food_allergy']
  entry['premise_map']['is_a(Z, K)'] = '[Z] is [a K]'
  entry['variables']['K'] = ['K', 'Class', False, None]
  entry['bindings']['is_a(Z, K)'] = 'table:kind_of'
  entry['types']['K'] = 'kind_of:food'
  rule = rulefile.parse('branching', entry)
  found = search.search(rule, make(
      book=knowledge.FactsModel(data), judge=critic.FactsCritic(data))).found
  constraints = [p for p in rule.premises if p.kind == 'constraint']
  assert len(constraints) == 3 and all(found.values())
  for one in (*found['head'], *found['longtail']):
    values = dict(one.beam.bindings)
    for p in constraints:
      x, y = (values[a] for a in p.arguments)
      assert relations.parse(p.binding, data).ask(x, y).holds


def test_queries_differ_by_seed_and_call(rule):
  def key(call, seed, known='shellfish'):
    return knowledge.Query(
        rule, 'Z', (('P', 'PersonX'), ('A', known)), 5, call, seed).key()
  assert len({key(0, 0), key(1, 0), key(0, 1), key(0, 0, 'nut')}) == 4


def test_embedded_facts_are_drawn_by_seed_and_some_are_guesses():
  found = rulefile.load(facts.DATA / 'rules.json')['capital_positive']
  bindings = (('P', 'PersonX'), ('A', 'Greece'))
  model = knowledge.FactsModel(facts.embedded(), guess_share=0.5)
  query = knowledge.Query(found, 'B', bindings, 8, 0, 0)
  values, = model.propose([query])
  assert model.propose([query]) == [values]
  assert 'Athens' in [v.value for v in values] and len(values) == 5
  sure, = knowledge.FactsModel(facts.embedded()).propose([query])
  assert [v.value for v in sure] == ['Athens']


def test_where_a_value_begins_in_its_text(rule):
  bindings = {'P': 'PersonX', 'A': 'a', 'Z': 'n', 'B': 'B [A]'}
  text = search.text_of(rule, bindings, 'Z')
  assert text.text[text.value_start:].startswith('n is a ingredient in B [A]')


def test_a_rule_that_is_short_asks_again_until_its_values_are_spent(rule):
  def run(max_candidates, book, **settings):
    by = make(book=book, num_calls=1, values_per_call=1,
              first_values_per_call=1)
    return search.search(rule, dataclasses.replace(
        by, max_candidates=max_candidates, target_per_split=2, **settings))

  class Turns(Book):  # another value in each round
    def values(self, query):
      found = super().values(query)
      return random.Random(query.key()).sample(found, len(found))

  once = run(0, Turns())
  assert sum(map(len, once.found.values())) <= 2
  book = Turns()
  again = run(200, book)
  assert [len(again.found[s]) for s in search.SPLITS] == [2, 2]
  assert sum(q.n for q in book.queries) < 200  # full, so it stopped
  for most in (1, 7, 20):
    book = Turns()
    run(most, book)
    assert sum(q.n for q in book.queries) <= most
  assert len({q.key() for q in book.queries}) == len(book.queries)


def test_a_rule_that_stays_short_is_kept_dropped_or_named(rule):
  def run(on_exhausted):
    return search.search(rule, dataclasses.replace(
        make(), target_per_split=9, max_candidates=300,
        on_exhausted=on_exhausted)).found
  assert all(0 < len(ones) < 9 for ones in run('keep').values())
  assert not any(run('drop').values())
  with pytest.raises(search.Exhausted, match=(
      "rule 'rule2' gave 1 of 9 head and 1 of 9 longtail.*max_candidates")):
    run('stop')


class Words(Length):

  def score(self, texts):
    return [one._replace(tokens=len(text.text.split()))
            for one, text in zip(super().score(texts), texts, strict=True)]


def test_matched_splits_have_the_same_lengths(rule):
  by = make(kind='length_matched')
  by = dataclasses.replace(by, ranker=Words(), target_per_split=1)
  found = search.search(rule, by).found
  lengths = [sorted(len(rules.conjunction(
      rule.predicates, dict(f.beam.bindings)).split()) for f in found[split])
             for split in search.SPLITS]
  assert lengths[0] == lengths[1]
