"""A local language model proposes values: chosen of a set, or written."""

import dataclasses

import numpy as np
import pytest

from link_jax import facts
from link_jax import http_model
from link_jax import knowledge
from link_jax import lm_model
from link_jax import parse
from link_jax import rulefile
from link_jax import rules
from link_jax import sample
from tests import link_models


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp('llama')
  link_models.save(path, 'llama')
  return link_models.scorer(path)


@pytest.fixture(scope='module')
def rule():
  return rulefile.load(facts.DATA / 'rules.json')['food_allergy']


def query(rule, call=0, **settings):
  return knowledge.Query(
      rule, 'Z', (('P', 'PersonX'), ('A', 'shellfish')), 4, call, 0, **settings)


def make(model, **settings):
  settings = {'pool_size': 12, 'max_new_tokens': 24} | settings
  return lm_model.LmKnowledge(
      model, lm_model.Settings(**settings), facts.embedded(), parse.tolerant)


def test_the_likeliest_of_a_set_are_chosen_without_temperature(model, rule):
  asked = query(rule)
  found, = make(model, temperature=0., pool_size=999999).propose([asked])
  members = sorted(facts.embedded().members('ingredient'))
  scores = model.score([lm_model.candidate_text(asked, m) for m in members])
  best = np.argsort([-s.value_sum for s in scores], kind='stable')[:4]
  assert {c.value for c in found} == {members[i] for i in best}


def test_a_query_has_its_draw_and_another_call_another(model, rule):
  ask = make(model)
  first, second, again = ask.propose(
      [query(rule), query(rule, 1), query(rule)])
  assert first == again != second
  values = [c.value for c in first]
  assert len(set(values)) == 4
  assert set(values) <= facts.embedded().members('ingredient').keys()
  later, = ask.propose([query(rule, accepted=tuple(values[:2]))])
  assert not {c.value for c in later} & set(values[:2])


def test_what_is_weighed_is_the_fact_that_a_value_would_make(rule):
  text = lm_model.candidate_text(query(rule), 'prawn')
  assert text.text == 'It is known that prawn is one type of shellfish.'
  assert text.text[text.value_start:].startswith('prawn')
  free = knowledge.Query(rule, 'Z', (('P', 'PersonX'),), 4, 0, 0)
  assert lm_model.candidate_text(free, 'prawn').text == (
      'It is known that prawn is an ingredient.')


def test_what_is_written_is_read_as_an_endpoints_answer(model, rule):
  asked = [query(rule), query(rule, 1)]
  found = make(model, mode='write').propose(asked)
  write = sample.make_sampler(model)
  for one, q in zip(found, asked, strict=True):
    reply, = write([http_model.prompt_of(q, in_words=True) + '\n1.'],
                   [sample.call_key(0, q.key(), 'write')],
                   max_new_tokens=24, temperature=1.)
    assert [c.value for c in one] == parse.tolerant(f'1.{reply}')[:4]


def test_a_variable_without_a_set_is_named(model, rule):
  bare = dataclasses.replace(rule, variables=tuple(
      dataclasses.replace(v, source='') for v in rule.variables))
  with pytest.raises(rules.RuleError, match="food_allergy', types: Z .*write"):
    make(model).propose([query(bare)])
