"""A run that is killed, refused or cut off goes on, and ends in the same
bytes; an endpoint's answers are neither lost nor paid twice."""

import collections
import json
import multiprocessing
import pathlib
import random
import socket
import subprocess
import sys
import time

import datasets
import httpx
import pytest

from core_jax import folder
from link_jax import bounds
from link_jax import cache
from link_jax import client
from link_jax import generate
from link_jax import http_model
from link_jax import journal
from link_jax import likelihood
from link_jax import probe
from tests import link_child

ROOT = pathlib.Path(__file__).parents[1]


class Mock:
  """The server in a process of its own."""

  def __init__(self, *args):
    self.process = subprocess.Popen(
        [sys.executable, '-m', 'tests.link_mock_server', *args], cwd=ROOT,
        stdout=subprocess.PIPE, text=True)
    self.url = f'http://127.0.0.1:{int(self.process.stdout.readline())}/v1'

  def stats(self):
    return httpx.get(self.url).json()


@pytest.fixture
def serve():
  mocks = []

  def start(*args):
    mocks.append(Mock(*args))
    return mocks[-1]

  yield start
  for mock in mocks:
    mock.process.kill()
    mock.process.wait()


@pytest.fixture(scope='module')
def fork():
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tests.link_child'])
  return context


def output(workdir):
  return (pathlib.Path(workdir) / 'statements.jsonl').read_bytes()


def start(fork, *args):
  process = fork.Process(target=link_child.run, args=args)
  process.start()
  return process


def finish(fork, *args):
  process = start(fork, *args)
  process.join()
  assert process.exitcode == 0


def test_killed_at_any_event_it_ends_in_the_same_bytes(fork, tmp_path):
  link_child.run(tmp_path / 'whole')
  events = journal.Journal(tmp_path / 'whole' / 'journal.jsonl').events
  assert len(events) > 20
  chosen = random.Random(0)
  for _ in range(1, len(events)):
    process = start(fork, tmp_path / 'killed', '', 1)  # dies after each event
    process.join()
    assert process.exitcode == -9
    if chosen.random() < 0.3:  # and in the middle of a line
      with (tmp_path / 'killed' / 'journal.jsonl').open('ab') as file:
        file.write(b'{"event": "ste')
    if (tmp_path / 'killed' / 'statements.jsonl').exists():
      break
  finish(fork, tmp_path / 'killed')
  assert output(tmp_path / 'killed') == output(tmp_path / 'whole')


def test_faults_and_twenty_kills_change_no_byte_and_lose_no_answer(
    serve, fork, tmp_path):
  calm, stormy = serve(), serve('--faults=1')
  finish(fork, tmp_path / 'whole', calm.url)
  whole = calm.stats()
  assert whole['most'] == 1  # nothing is asked twice
  expected = cache.Cache(tmp_path / 'whole' / 'cache.sqlite').usage()
  assert expected.calls == whole['answered'] > 50

  chosen, kills = random.Random(1), 0
  while kills < 20:
    process = start(fork, tmp_path / 'killed', stormy.url)
    process.join(chosen.uniform(0.02, 0.25))
    if process.is_alive():
      process.kill()
      kills += 1
    process.join()
    if process.exitcode == 0:  # It was through: once more from the start.
      assert output(tmp_path / 'killed') == output(tmp_path / 'whole')
      (tmp_path / 'killed').rename(tmp_path / f'through{kills}')
      stormy.process.kill()
      stormy = serve('--faults=1')
  finish(fork, tmp_path / 'killed', stormy.url)
  assert output(tmp_path / 'killed') == output(tmp_path / 'whole')
  assert cache.Cache(
      tmp_path / 'killed' / 'cache.sqlite').usage() == expected
  failed = stormy.stats()['failed']
  assert all(failed.get(fault) for fault in ('rate', 'error', 'reset',
                                             'garbage', 'slow'))


def test_told_to_wait_spends_no_failure_and_the_bound_holds(serve, tmp_path):
  mock = serve('--rate_limited=1')
  config = link_child.tiny(mock.url)
  config.limits.max_failures = 0
  config.only_rules = ('capital_positive',)
  found = generate.generate(config, str(tmp_path))['quantile']
  assert found and mock.stats()['failed']['rate'] > 20
  used, bound = generate.read_usage(tmp_path), bounds.of_run(config)
  assert used.calls <= bound.calls
  assert used.prompt_tokens <= bound.prompt_tokens
  assert used.completion_tokens <= bound.completion_tokens


def test_a_wrong_key_stops_at_once(serve, tmp_path, monkeypatch):
  mock = serve()
  monkeypatch.setenv('OPENAI_API_KEY', 'wrong')
  started = time.monotonic()
  with pytest.raises(client.EndpointError, match='401.*OPENAI_API_KEY'):
    generate.generate(link_child.tiny(mock.url), str(tmp_path))
  assert time.monotonic() - started < 5
  assert mock.stats()['answered'] == 0


def test_a_limit_stops_a_run_that_goes_on_with_another(serve, tmp_path):
  mock = serve()
  config = link_child.tiny(mock.url)
  config.only_rules = ('capital_positive',)
  generate.generate(config, str(tmp_path / 'whole'))
  whole = generate.read_usage(tmp_path / 'whole')
  config.limits.max_calls = 7
  with pytest.raises(client.BudgetReached, match='limits.max_calls = 7 is rea'):
    generate.generate(config, str(tmp_path / 'cut'))
  assert generate.read_usage(tmp_path / 'cut').calls <= 7
  config.limits.max_calls = whole.calls
  generate.generate(config, str(tmp_path / 'cut'))
  assert output(tmp_path / 'cut') == output(tmp_path / 'whole')
  config.limits.prompt_price, config.limits.max_cost = 1., 1e-4
  with pytest.raises(client.BudgetReached, match='max_cost'):
    generate.generate(config, str(tmp_path / 'dear'))
  cost = generate.read_usage(tmp_path / 'dear').prompt_tokens / 1e6
  assert cost <= 1e-4


def test_an_endpoint_that_is_not_there_is_named(tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{free.getsockname()[1]}/v1'
  config = link_child.tiny(url)
  config.limits.max_failures = 1
  with pytest.raises(client.EndpointError, match=f'{url}: failed 2 times'):
    generate.generate(config, str(tmp_path))


def test_answers_in_no_known_form_end_a_run_that_says_so(serve, tmp_path):
  config = link_child.tiny(serve().url)
  config.knowledge.http.model = 'mute'
  for _ in range(2):  # and again when it goes on
    with pytest.raises(generate.NothingFound, match=(
        'no value in any form.*knowledge.parser')):
      generate.generate(config, str(tmp_path))
  assert not (tmp_path / 'statements.jsonl').exists()


def test_a_run_without_a_statement_says_where_they_were_lost(tmp_path):
  config = link_child.tiny()
  config.only_rules = ('capital_positive',)
  config.search.max_candidates = 1
  with pytest.raises(generate.NothingFound, match=(
      'of 2 values proposed, both splits counted, 2 had the right datatype')):
    generate.generate(config, str(tmp_path))


def make_client(url, path):
  return client.Client(
      client.Endpoint(url, calls_per_second=1000.), client.Limits(),
      cache.Cache(path))


@pytest.mark.parametrize('model, what', [
    ('null', 'null'), ('zero', 'zeros'), ('silent', 'the answer has none')])
def test_an_endpoint_without_log_probabilities_cannot_rank(
    serve, tmp_path, model, what):
  asked = make_client(serve().url, tmp_path / 'c.sqlite')
  with pytest.raises(client.EndpointError, match=f'{model}.*{what}'):
    http_model.HttpScorer(asked, model)


def test_an_endpoints_likelihood_leaves_the_first_token_out(serve, tmp_path):
  scorer = http_model.HttpScorer(
      make_client(serve().url, tmp_path / 'c.sqlite'), 'real')
  one, = scorer.score([likelihood.Text('a crab is not a nut', 16)])
  assert (one.tokens, one.bytes, one.value_tokens) == (5, 19, 1)
  assert one.sum < one.value_sum < 0


def test_an_endpoint_is_probed_by_the_word_that_it_begins_with(
    serve, tmp_path):
  config = link_child.tiny()
  generate.generate(config, str(tmp_path))
  found = probe.probe(http_model.HttpAnswers(make_client(
      serve().url, tmp_path / 'c.sqlite'), 'yes'), str(tmp_path), 1, 0)
  assert found[probe.ALL]['head'].num_statements == 4
  # It says Yes to all: right are the forms that ask for Yes and are to have it.
  right = found[probe.ALL]['head'].templates
  assert right[0] == right[1] == 1 and right[2] == right[3] == right[6] == 0


def test_the_number_of_a_call_is_a_part_of_its_key(serve, tmp_path):
  asked = make_client(serve().url, tmp_path / 'c.sqlite')
  payload = {'model': 'm', 'messages': [{
      'role': 'user', 'content': 'List 3 x. V can be a thing.'}]}
  requests = [client.Request(payload, salt) for salt in ('0', '1', '0')]
  asked.ask('chat/completions', requests)
  assert asked.cache.usage().calls == 2


def test_same_seed_same_bytes_other_seed_others(tmp_path):
  config = link_child.tiny()
  for name, seed in (('a', 0), ('b', 0), ('c', 1)):
    config.seed = seed
    generate.generate(config, str(tmp_path / name))
  assert output(tmp_path / 'a') == output(tmp_path / 'b')
  assert output(tmp_path / 'a') != output(tmp_path / 'c')


def test_a_run_of_another_config_or_other_data_is_refused(tmp_path):
  config = link_child.tiny()
  generate.generate(config, str(tmp_path))
  config.seed = 1
  with pytest.raises(folder.FolderError, match='seed: 0 in the folder'):
    generate.generate(config, str(tmp_path))
  config.seed = 0
  path = tmp_path / 'journal.jsonl'
  first, *rest = path.read_text().splitlines(keepends=True)
  event = json.loads(first)
  event['knowledge'] = 'other'
  path.write_text(json.dumps(event) + '\n' + ''.join(rest))
  with pytest.raises(journal.JournalError, match='knowledge changed'):
    generate.generate(config, str(tmp_path))
  path.write_text('no JSON\n' + ''.join(rest))
  with pytest.raises(journal.JournalError, match='line 1: not JSON'):
    generate.generate(config, str(tmp_path))


def test_hugging_face_datasets_loads_the_file_as_it_is(tmp_path):
  config = link_child.tiny()
  found = generate.generate(config, str(tmp_path))['quantile']
  loaded = datasets.load_dataset(
      'json', data_files=str(tmp_path / 'statements.jsonl'), split='train',
      cache_dir=str(tmp_path / 'cache'))
  assert len(loaded) == len(found)
  assert set(loaded['split']) == {'head', 'longtail'}
  assert loaded[0]['likelihoods'][0]['scorer'] == 'bigram'


def test_without_a_network_every_domain_has_statements(tmp_path, monkeypatch):
  def refuse(*unused_args, **unused_named):
    raise AssertionError('a socket was opened')
  monkeypatch.setattr(socket, 'socket', refuse)
  found = generate.generate(link_child.tiny(), str(tmp_path))['quantile']
  counts = collections.Counter((s['domain'], s['split']) for s in found)
  assert len(counts) == 8 and min(counts.values()) >= 2
  ids = [s['id'] for s in found]
  assert len(ids) == len(set(ids))
