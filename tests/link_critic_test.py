"""Parsers, critics and their thresholds."""

import math

import numpy as np
import pytest

from link_jax import calibrate
from link_jax import critic
from link_jax import facts
from link_jax import measure
from link_jax import parse
from link_jax import relations
from link_jax import rules

REPLY = '\n'.join((
    '1. Prawn risotto.', '2. Paella', '3. Common prawn fried rice.', '4. A/B.',
    '5. Tacos (fish).', '6. Dish: Gumbo.', '7. a, b.', '8. St. John.'))
PUBLISHED = ['Prawn risotto', 'Common prawn fried rice', 'Tacos', 'Gumbo', 'a']


def test_the_published_parser_loses_a_line_without_a_period():
  assert parse.published(REPLY) == PUBLISHED
  assert parse.tolerant(REPLY) == [PUBLISHED[0], 'Paella', *PUBLISHED[1:]]


@pytest.mark.parametrize('reply, values', [
    ('Here you are: ["Paella", "Sushi", 3]', ['Paella', 'Sushi']),
    ('- paella\n- sushi\n', ['paella', 'sushi']),
    ('paella\nsushi', ['paella', 'sushi']),
    ('1) crab_cake - a dish', ['a dish']), ('I cannot.', []), ('', []),
    ('1. ' + 'x' * 65 + '.', []), ('1. Paella.\n2. Paella.', ['Paella'])])
def test_values_of_replies_in_many_forms(reply, values):
  assert parse.tolerant(reply) == values


def test_the_datatypes_threshold_comes_down_to_the_first_that_passes():
  ladder = critic.Thresholds()
  assert ladder.datatype([0.9, 0.1]) == 85
  assert ladder.datatype([0.85]) == 85
  assert [ladder.datatype([c]) for c in (0.84, 0.79, 0.72, 0.66, 0.64)] == [
      80, 75, 70, 65, 65]
  assert critic.Thresholds(moving=False).datatype([0.1]) == 85


def test_the_facts_threshold_goes_up_with_the_best_of_a_call():
  ladder = critic.Thresholds()
  assert ladder.first_fact == 0
  assert ladder.fact(0, [0.5, 0.71]) == 70
  assert ladder.fact(70, [0.2]) == 70
  assert ladder.fact(70, [0.99]) == 85
  assert ladder.fact(0, [0.85]) == 85  # floats would floor it to 0.80


def test_confidence_is_the_mean_over_steps():
  sure = critic.accumulated([0.9, 0.7])
  assert sure == pytest.approx(0.8) and not critic.passes(sure, 85)
  assert critic.passes(critic.accumulated([0.85, 0.85, 0.85]), 85)


class Answers:
  name, fingerprint = 'answers', '0'

  def answer_probabilities(self, prompts, answers):
    assert answers == [' yes', ' no']
    return np.array([[0.3, 0.1] if 'crab' in p else [0., 0.] for p in prompts])


def claim(x, y, binding='table:kind_of'):
  predicate = rules.Predicate(
      'is', ('X', 'Y'), '[X] is [Y]', 'constraint', binding)
  return critic.fact_claim(predicate, {'X': x, 'Y': y})


def test_a_language_models_yes_and_no_are_made_to_sum_to_one():
  verdicts = critic.YesNoCritic(Answers()).judge(
      [claim('crab', 'shellfish'), claim('oak', 'tree')])
  assert verdicts[0].p == pytest.approx(0.75)
  assert verdicts[1].p is None


def test_lookup_says_yes_no_or_nothing():
  judge = critic.FactsCritic(facts.embedded()).judge
  yes, no, unknown, unbound = judge([
      claim('stone crab', 'shellfish'), claim('almond', 'shellfish'),
      claim('flogiston', 'shellfish'), claim('stone crab', 'shellfish', '')])
  assert (yes.p, no.p, unknown.p, unbound.p) == (1., 0., None, None)
  assert yes.evidence[0].startswith('wordnet:')


def test_sets_and_relations_of_facts_are_made_once():
  data = facts.embedded()
  assert data.members('kind_of:bird') is data.members('kind_of:bird')
  assert relations.parse('~table:kind_of', data) is relations.parse(
      '~table:kind_of', data)


def test_who_abstains_leaves_it_to_the_next():
  both = critic.FirstOf(
      [critic.FactsCritic(facts.embedded()), critic.YesNoCritic(Answers())])
  sure, asked, open_ = both.judge([
      claim('stone crab', 'shellfish'), claim('crab', 'flogiston'),
      claim('oak', 'flogiston')])
  assert (sure.p, open_.p) == (1., None)
  assert asked.p == pytest.approx(0.75)


def test_self_consistency_needs_the_votes():
  assert critic.consistent(['1492', '1492', '1493'], 2) == '1492'
  assert critic.consistent(['1492', '1493'], 2) is None
  assert critic.consistent([], 1) is None


def test_relations_enumerate_what_they_hold_true():
  data = facts.embedded()
  for binding, x in (('table:capital_of', 'Athens'), ('~table:kind_of', 'wine'),
                     ('less:died:born', 'Ludwig van Beethoven'),
                     ('less:melts:melts:30', 'iron'),
                     ('not_table:borders', 'France'),
                     ('less:population:population:x3', 'Wuppertal')):
    relation = relations.parse(binding, data)
    ys = list(relation.given_left(x))
    assert ys and all(relation.ask(x, y).holds for y in ys[:200]), binding
    for y in ys[:5]:
      assert x in set(relation.given_right(y))
  assert relations.parse('table:capital_of', data).ask(
      'Athens', 'Italy').holds is False


def test_lookup_is_calibrated_and_a_coin_is_not():
  data = facts.embedded()
  claims, labels = calibrate.labelled(
      data, 'kind_of', '[X] is one type of [Y]', 64, 0)
  assert labels.count(True) == labels.count(False) == 32
  found = calibrate.report(critic.FactsCritic(data), claims, labels)
  assert found['auc'] == 1. and found['brier'] == 0.
  assert found['accepted_true_at_85'] == 1.
  assert found['accepted_false_at_65'] == 0.

  class Coin:
    def judge(self, claims):
      return [critic.Verdict(0.5)] * len(claims)

  found = calibrate.report(Coin(), claims, labels)
  assert found['auc'] == 0.5 and found['brier'] == 0.25


def test_a_critics_calibration_on_labelled_claims():
  found = measure.critic_auc(
      [True, True, False, False], [0.9, 0.4, 0.6, None])
  # Of the two pairs right over wrong one is in order.
  assert found['auc'] == 0.5 and found['abstained'] == 0.25
  assert found['brier'] == pytest.approx((0.01 + 0.36 + 0.36) / 3)
  assert math.isnan(measure.critic_auc([True], [None])['auc'])
