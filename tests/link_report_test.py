"""A run from its config to its page, and what stops it before it begins."""

import json
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from configs import link_default
from core_jax import folder
from link_jax import bounds
from link_jax import generate
from link_jax import ngram
from link_jax import results
from link_jax import run
from link_jax import tools


def test_tiny_run_leaves_a_page_that_shows_head_and_tail(tmp_path, capsys):
  config = link_default.get_config('tiny')
  summary = run.run(config, str(tmp_path))
  said = capsys.readouterr().out
  assert '4 rules' in said and 'no call, no cost' in said
  assert f'report: {tmp_path / "report.html"}' in said
  lines = (tmp_path / 'statements.jsonl').read_text().splitlines()
  assert summary['statements'] == len(lines) >= 12
  assert summary['quantile_unigram_delta'] > 0.3
  assert summary['calls'] == 0
  page = (tmp_path / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == 4
  for word in ('Head and tail', 'published, 75 %', 'From proposals',
               'capital', 'By unigram, which did not rank them, head and tail '
               'are apart: delta', 'Of 0 rules a split has fewer'):
    assert word in page
  statement = json.loads(lines[0])
  assert {x['scorer'] for x in statement['likelihoods']} == {
      'bigram', 'unigram'}
  assert statement['evidence'][0]['texts']
  again = run.run(config, str(tmp_path))  # all is there: only measured again
  assert again['quantile_unigram_delta'] == summary['quantile_unigram_delta']


def test_the_lines_of_python_in_the_docs_make_statements(
    tmp_path, monkeypatch, capsys):
  root = pathlib.Path(__file__).parents[1]
  code, = [block for block in re.findall(
      r'```python\n(.*?)```', (root / 'docs' / 'link.md').read_text(), re.S)
      if 'make_statements' in block]
  (tmp_path / 'link_jax').symlink_to(root / 'link_jax')
  monkeypatch.chdir(tmp_path)
  exec(code, {})
  said = capsys.readouterr().out.splitlines()
  assert {line.split()[0] for line in said} == {'head', 'longtail'}
  assert all("['wordnet:" in line for line in said)
  lines = (tmp_path / 'runs/link-food/statements.jsonl').read_text()
  assert len(lines.splitlines()) == len(said)


def test_a_signal_stops_between_events_and_the_run_goes_on(tmp_path):
  config = link_default.get_config('tiny')
  stop = folder.StopRequest()

  def on_event(event):
    if event['event'] == 'rule':
      stop.received = signal.SIGTERM

  with pytest.raises(folder.Stopped):
    generate.generate(config, str(tmp_path / 'cut'), on_event, stop)
  generate.generate(config, str(tmp_path / 'cut'))
  generate.generate(config, str(tmp_path / 'whole'))
  assert (tmp_path / 'cut' / 'statements.jsonl').read_bytes() == (
      tmp_path / 'whole' / 'statements.jsonl').read_bytes()


@pytest.mark.parametrize('field, value, message', [
    ('selector', 'best', 'selector.kind'), ('ranker', 'unigram', 'own ranking'),
    ('search.norm', 'median', 'norm .median.'),
    ('search.quantile', 0.7, 'would meet'),
    ('search.on_exhausted', 'raise', 'on_exhausted is .raise.; there are'),
    ('search.max_candidates', -1, 'max_candidates is -1'),
    ('search.first_values_per_call', 0, 'first_values_per_call is 0, but must'),
    ('critic.step_percent', 0, 'critic.step_percent is 0'),
    ('measure.bin_nats', 0., 'measure.bin_nats is 0'),
    ('limits.concurrency', 0, 'limits.concurrency is 0'),
    ('limits.calls_per_second', -1., 'limits.calls_per_second is -1'),
    ('limits.max_cost', float('nan'), 'limits.max_cost is nan'),
    ('knowledge.kind', 'oracle', 'knowledge.kind'),
    ('knowledge.kind', 'http', 'base_url and model'),
    ('knowledge', {'kind': 'http', 'http': {'base_url': 'host:80/v1',
                                            'model': 'm'}}, 'is no address'),
    ('knowledge', {'kind': 'lm', 'lm': {'mode': 'talk'}}, 'lm.mode is .talk.'),
    ('knowledge', {'kind': 'lm', 'lm': {'model': '/no'}}, 'model at ./no'),
    ('knowledge.parser', 'xml', 'knowledge.parser'),
    ('critic.kinds', (), 'nothing would be checked'),
    ('critic.kinds', ('nli',), "'nli' is not known"),
    ('evaluators', (), 'nobody would judge'),
    ('only_rules', ('none',), "'none' is no rule"),
    ('rules', '/absent.json', 'absent.json')])
def test_a_wrong_field_is_named(tmp_path, field, value, message):
  config = link_default.get_config('tiny')
  if isinstance(value, dict):
    config[field].update(value)
  else:
    config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    generate.generate(config, str(tmp_path / 'run'))
  # The folder is free for the right config.
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_the_bound_of_a_rule_by_hand():
  config = link_default.get_config('http')
  config.knowledge.http.base_url, config.knowledge.http.model = 'x', 'y'
  config.search.num_calls, config.search.beam_size = 2, 3
  config.search.first_values_per_call = 5
  config.knowledge.http.max_bad_answers = 1
  rule = tools.rules_of(config)['food_allergy']
  # A: 1 parent; Z: 2 x 5 parents, not cut; B: 3. Two calls, two splits.
  questions = 1 * 2 + 10 * 2 * 2 + 3 * 2 * 2
  bound = bounds.of_rule(rule, config)
  assert (bound.questions, bound.calls) == (questions, 2 * questions)
  assert bound.completion_tokens == 2 * questions * 1024
  config.search.max_candidates = 101
  # 20 of 5 values and more, and the rest of a share halved 7 times, and 2.
  assert bounds.of_rule(rule, config).questions == 20 + 7 + 2


@pytest.mark.parametrize('said, shown', [
    ('if PersonX is fond of a nut, PersonX eats a doughnut', 'nut doughnut'),
    ('if PersonX is glad, PersonX eats a doughnut', 'doughnut'),
    ('if PersonX is glad, PersonX is', 'doughnut')])  # The last, if none is.
def test_the_frequency_of_a_statement_is_of_the_values_that_it_shows(
    said, shown):
  values = {'P': 'PersonX', 'A': 'nut', 'B': 'doughnut'}
  row, = results.rows_of([{
      'rule': 'r', 'domain': 'd', 'split': 'head', 'statement': said,
      'bindings': [{'variable': name, 'value': value}
                   for name, value in values.items()],
      'likelihoods': [{'scorer': 'unigram', 'sum': -1., 'tokens': 1, 'bytes': 1,
                       'value_sum': -1., 'value_tokens': 1}]}],
      'unigram', 'mean')
  assert row.zipf == ngram.zipf(shown)


def test_likelihoods_of_an_endpoint_are_calls_too():
  config = link_default.get_config('http')
  config.knowledge.http.base_url, config.knowledge.http.model = 'x', 'y'
  config.search.max_candidates, config.language_model = 100, ''
  config.only_rules, config.compare = ('food_allergy',), ()
  config.ranker, config.evaluators = 'bigram', ('unigram',)
  local = bounds.of_run(config)
  config.ranker = 'http:ranks'
  ranked = bounds.of_run(config)
  assert ranked.calls == local.calls + 100 + 2  # each value, and two probes
  config.evaluators = ('http:judges',)
  judged = bounds.of_run(config)
  assert judged.calls == ranked.calls + 2 * config.search.target_per_split + 2
  assert local.prompt_tokens < ranked.prompt_tokens < judged.prompt_tokens
  assert judged.completion_tokens == local.completion_tokens


def test_the_command_says_what_a_run_will_ask(capsys):
  flags = ['--config=configs/link_default.py:tiny', '--plan']
  said = subprocess.run(
      [sys.executable, '-m', 'link_jax.main', *flags], text=True,
      cwd=pathlib.Path(__file__).parents[1], capture_output=True, check=True)
  rules, asked = said.stdout.splitlines()
  assert ' rules: ' in rules and asked.startswith('at most ')


@pytest.mark.parametrize('kind, message', [
    ('oracle', "knowledge.kind is 'oracle'"), ('http', 'base_url and model')])
def test_nothing_is_planned_that_cannot_be_run(kind, message):
  config = link_default.get_config('tiny')
  config.knowledge.kind = kind
  with pytest.raises(ValueError, match=message):
    bounds.show(config)


def test_an_unknown_variant_is_refused():
  with pytest.raises(ValueError, match="there are ':tiny' and ':http'"):
    link_default.get_config('large')
