"""Probing a model with a run's statements."""

import json

import numpy as np
import pytest

from link_jax import entailment
from link_jax import probe


def statement(i, domain, split, positive=True):
  verb = 'is able' if positive else 'is not able'
  return {'premise': f'PersonX owns thing {i}', 'label': True,
          'conclusion': f'PersonX {verb} to use thing {i}',
          'positive': positive, 'domain': domain, 'split': split}


STATEMENTS = [
    statement(i, domain, split, positive=i % 2 == 0)
    for domain in ('places', 'times') for split in ('head', 'longtail')
    for i in range(6)]


class Model:
  """Answers the first of two, or what is right."""

  def __init__(self, name, knows):
    self.name, self._knows = name, knows

  def answer_probabilities(self, prompts, answers):
    assert all(answer.startswith(' ') for answer in answers)
    first = np.array([self._knows(p.removesuffix(' Answer:'))
                      for p in prompts]) == 0
    return np.where(first[:, None], [[.9, .1]], [[.1, .9]])


def oracle():
  labels = {p.prompt: p.label for s in STATEMENTS
            for p in entailment.of_statement(s)}
  return Model('an oracle', labels.__getitem__)


@pytest.fixture
def run(tmp_path):
  lines = ''.join(json.dumps(s) + '\n' for s in STATEMENTS)
  (tmp_path / 'statements.jsonl').write_text(lines)
  return tmp_path


def test_who_knows_is_right_everywhere(run):
  found = probe.probe(oracle(), str(run), per_domain=4, seed=0)
  assert set(found) == {probe.ALL, 'places', 'times'}
  for splits in found.values():
    for a in splits.values():
      assert (a.mean, a.all_right) == (1.0, 1.0)
  assert found['places']['head'].num_statements == 4
  assert found[probe.ALL]['longtail'].num_statements == 8


def test_who_affirms_everything_is_right_where_the_labels_do(run):
  yes = Model('yes', lambda prompt: 0)
  right = probe.answer(yes, STATEMENTS)
  # Of a denying conclusion 6 of 13 are to be affirmed, of an affirming one 7.
  for s, row in zip(STATEMENTS, right, strict=True):
    assert row.sum() == (7 if s['positive'] else 6)
  found = probe.table(STATEMENTS, right)
  assert found[probe.ALL]['head'].all_right == 0
  assert found[probe.ALL]['head'].mean == pytest.approx(6.5 / 13)


def test_table_and_figure_lie_in_the_run(run):
  found = probe.probe(oracle(), str(run), per_domain=2, seed=1)
  saved = json.loads((run / 'probe_an_oracle.json').read_text())
  assert saved[probe.ALL]['head']['all_right'] == 1.0
  assert (run / 'figures' / 'probe_an_oracle.png').stat().st_size > 5_000
  assert '| places | longtail | 2 | 1.000 | 1.000 | 1.00 |' in probe.markdown(
      found)


def test_the_same_seed_draws_the_same_statements():
  draw = lambda seed: probe.choose(STATEMENTS, 3, seed)
  assert draw(0) == draw(0) != draw(1)


def test_a_folder_without_statements_is_named(tmp_path):
  with pytest.raises(ValueError, match='give the folder of a finished run'):
    probe.read(tmp_path)
