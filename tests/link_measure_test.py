"""Likelihoods that sum to one, selectors that keep apart, measures with known
answers."""

import csv
import math

import numpy as np
import pytest

from link_jax import entailment
from link_jax import likelihood
from link_jax import measure
from link_jax import ngram
from link_jax import published
from link_jax import rulefile
from link_jax import selection
from tests.link_rules_test import RULE2
from tests.link_rules_test import VALUES

COUNTS = ngram.Counts({'a': 6., 'b': 3., 'c': 1.}, 10.,
                      {'a b': 4., 'a c': 1., '<s> a': 2.},
                      {'a': 5., '<s>': 2.})


@pytest.mark.parametrize('before', ['a', 'b', '<s>'])
def test_words_after_a_word_sum_to_one(before):
  known = sum(COUNTS.probability(word, before) for word in 'abc')
  # All unseen words, by length: 37 letters to the power of the length.
  unseen = sum(37. ** n * COUNTS.probability('x' * n, before)
               for n in range(190))
  # The three known words are counted as letters, too, and 'a', 'b', 'c' are.
  twice = 3 * COUNTS.probability('x', before)
  assert known + unseen - twice == pytest.approx(1, abs=1e-5)


def test_a_likelihood_is_the_sum_of_its_words_logs():
  scorer = ngram.Bigram('test', COUNTS, '0')
  one, = scorer.score([likelihood.Text('A b, ä', 5)])
  p = COUNTS.probability
  nats = [math.log(p('a', '<s>')), math.log(p('b', 'a')), math.log(p('a', 'b'))]
  assert one.sum == pytest.approx(sum(nats))
  assert (one.tokens, one.bytes, one.value_tokens) == (3, 7, 1)
  assert one.value_sum == pytest.approx(nats[2])
  assert likelihood.mean(one) == pytest.approx(sum(nats) / 3)
  assert likelihood.per_byte(one) == pytest.approx(sum(nats) / 7)


def test_the_webs_counts_know_words_and_pairs():
  for scorer in (ngram.bigram(), ngram.unigram()):
    common, rare = scorer.score(
        [likelihood.Text('the dog', 0), likelihood.Text('the axolotl', 0)])
    assert common.sum > rare.sum + 3
  real, mixed = ngram.bigram().score([
      likelihood.Text('in the united states', 0),
      likelihood.Text('states the in united', 0)])
  assert real.sum > mixed.sum + 5
  assert ngram.zipf('dog') > ngram.zipf('spotted axolotl')


def scored(scores, lengths=None):
  lengths = lengths or [5] * len(scores)
  return [selection.Scored(s, n, f'{i:04}')
          for i, (s, n) in enumerate(zip(scores, lengths, strict=True))]


def test_the_published_cut_keeps_three_quarters_of_each():
  selector = selection.Selector('compat75', beam_size=200)
  assert len(selection.step(selector, scored(range(10)), 'head')) == 8
  assert len(selection.step(selector, scored(range(400)), 'head')) == 200
  pool = scored(np.random.default_rng(0).normal(size=72).tolist())
  kept = selection.last(selector, {s: pool for s in selection.SPLITS})
  assert len(set(kept['head']) & set(kept['longtail'])) == 36
  assert kept['head'][0] == int(np.argmax([p.score for p in pool]))


@pytest.mark.parametrize('kind', ['quantile', 'length_matched'])
@pytest.mark.parametrize('size', [2, 7, 72])
def test_disjoint_selectors_share_nothing(kind, size):
  draw = np.random.default_rng(size)
  pool = scored(draw.normal(size=size).tolist(),
                draw.integers(4, 7, size=size).tolist())
  selector = selection.Selector(kind, quantile=0.5)
  kept = selection.last(selector, {s: pool for s in selection.SPLITS})
  head, tail = (kept[s] for s in selection.SPLITS)
  assert not set(head) & set(tail)
  if kind == 'length_matched':
    assert sorted(pool[i].length for i in head) == sorted(
        pool[i].length for i in tail)
  elif head:
    assert min(pool[i].score for i in head) > max(
        pool[i].score for i in tail)


def test_the_heads_penalty_is_the_mean_rouge_with_values_before():
  assert selection.rouge_l('prawn fried rice', 'prawn rice') == (
      pytest.approx(2 * 2 / 5))
  # ROUGE-L 1 and 0: mean 0.5, times 3.
  assert selection.penalised(-2., 'prawn', ['prawn', 'PersonX'], 3.) == -3.5
  assert selection.penalised(-2., 'prawn', ['prawn'], 0.) == -2.
  with pytest.raises(ValueError, match='selector.kind.*compat75'):
    selection.Selector('best')
  with pytest.raises(ValueError, match='head and tail would meet'):
    selection.Selector('quantile', 0.6)


def gaussian_rows(rng, gap, num_rules=20, size=400):
  return [
      measure.Row(f'rule{r}', 'd', split, score, 5, 3.)
      for r in range(num_rules)
      for split, mean in (('head', -3.), ('longtail', -3. - gap))
      for score in rng.normal(mean, 0.5, size).tolist()]


def test_gaussians_half_a_nat_apart():
  rows = gaussian_rows(np.random.default_rng(0), 0.5)
  found = measure.summary(rows, 0, 999, 0.1)
  assert found['delta'] == pytest.approx(0.5, abs=0.02)
  assert found['delta_low'] < 0.5 < found['delta_high']
  # P(a > b) = Phi(0.5 / sqrt(0.5)) = 0.7602
  assert found['auc'] == pytest.approx(0.7602, abs=0.01)
  # Overlap of equal Gaussians a deviation apart: 2 Phi(-1/2) = 0.617
  assert found['overlap'] == pytest.approx(0.617, abs=0.02)
  assert found['share_effective'] == 1.


def test_shuffled_labels_have_no_delta():
  rng = np.random.default_rng(1)
  rows = gaussian_rows(rng, 0.5)
  splits = rng.permutation([r.split for r in rows])
  shuffled = [r._replace(split=s) for r, s in zip(rows, splits, strict=True)]
  found = measure.delta(shuffled, 0, 999)
  assert found.low < 0 < found.high
  nothing = measure.summary([], 0, 99, 0.1)
  assert nothing['num_rules'] == 0 and math.isnan(nothing['delta'])


def test_what_length_explains_is_taken_out():
  rng = np.random.default_rng(2)
  rows = []
  for split, longer in (('head', 4.), ('longtail', 0.)):
    for _ in range(500):
      length = int(rng.integers(5, 15) + longer)
      rows.append(measure.Row(
          'r', 'd', split, 0.2 * length + rng.normal(0, 0.1), length, 3.))
  plain = measure.controlled_delta(rows, length=False, frequency=False)
  held = measure.controlled_delta(rows, length=True, frequency=False)
  assert plain == pytest.approx(0.8, abs=0.1)
  assert held == pytest.approx(0, abs=0.03)


def test_thirteen_questions_with_the_labels_of_either_kind_of_rule():
  premise = 'PersonX is allergic to shellfish'
  negative = entailment.probes(
      premise, 'PersonX is not able to eat Paella', False)
  positive = entailment.probes(premise, 'PersonX is able to eat rice', True)
  assert [p.template for p in negative] == list(range(1, 14))
  assert [sum(p.label == 0 for p in probes) for probes in (
      negative, positive)] == [6, 7]
  differ = [n.template for n, p in zip(negative, positive, strict=True)
            if n.label != p.label]
  assert differ == [9]
  assert negative[8].prompt.endswith('is PersonX able to eat Paella?')
  assert 'PersonX is able to eat Paella' in negative[11].prompt


@pytest.mark.parametrize('sentence, negated, asked', [
    ('PersonX is not able to eat it', 'PersonX is able to eat it',
     'is PersonX able to eat it?'),
    ('PersonX has never drunk ale', 'PersonX has drunk ale',
     'has PersonX drunk ale?'),
    ('PersonX has a job', 'PersonX does not have a job',
     'does PersonX have a job?'),
    ('PersonX cannot swim', 'PersonX can swim', 'can PersonX swim?'),
    ('PersonX does not have a boat', 'PersonX has a boat',
     'does PersonX have a boat?'),
    ('ObjectX was older than a can of beer',
     'ObjectX was not older than a can of beer',
     'was ObjectX older than a can of beer?')])
def test_negation_and_question_by_rule(sentence, negated, asked):
  assert entailment.negate(sentence) == negated
  assert entailment.negate(negated) == sentence.replace(
      'never', 'not').replace('cannot', 'can not')
  assert entailment.question(sentence) == asked


def test_a_conclusion_that_no_rule_negates_is_named():
  with pytest.raises(ValueError, match="'PersonX sleeps' has no auxiliary"):
    entailment.negate('PersonX sleeps')


def test_all_thirteen_right_is_rarer_than_any_one():
  right = np.random.default_rng(0).random((200, 13)) < 0.9
  found = entailment.accuracy(right)
  assert found.all_right <= min(found.templates)
  assert found.mean == pytest.approx(right.mean())
  assert entailment.read_answer(' yes, it is', ('Yes', 'No')) == 0
  assert entailment.read_answer('Perhaps', ('Yes', 'No')) is None
  statement = {'premise': 'PersonX is old',
               'conclusion': 'PersonX is not young', 'positive': False,
               'label': False}
  assert sum(p.label for p in entailment.of_statement(statement)) == 6


def test_published_files_are_read_as_they_are_written(tmp_path):
  rule = rulefile.parse('rule2', RULE2)
  beams = {'head': [VALUES, VALUES | {'B': 'rice, "fried"'}],
           'longtail': [VALUES | {'Z': 'langoustine', 'B': 'zarzuela'}]}
  for split, rows in beams.items():
    path = tmp_path / f'rule2_value_cache.csv_{split}'
    with path.open('w', newline='') as file:
      writer = csv.DictWriter(file, 'PAZB')
      writer.writeheader()
      writer.writerows(rows)
  assert published.read_rule(tmp_path, rule) == beams
  rows = published.measured(tmp_path, [rule], ngram.bigram())
  assert measure.rule_deltas(rows)['rule2'] > 0
  (tmp_path / 'rule2_value_cache.csv_head').write_text('A,Q\nx,y\n')
  with pytest.raises(ValueError, match="'Q' is no variable of rule2"):
    published.read_rule(tmp_path, rule)
  (tmp_path / 'rule2_value_cache.csv_head').write_text('A,Z\nx,y\n')
  with pytest.raises(ValueError, match="no column 'B'"):
    published.read_rule(tmp_path, rule)
