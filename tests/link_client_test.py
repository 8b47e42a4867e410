"""The client, against answers that the tests give it in the same process."""

import asyncio
import datetime
import functools
import signal
import sqlite3
import time

import httpx
import pytest

from core_jax import folder
from link_jax import cache
from link_jax import client

LIMITS = client.Limits()
ANSWER = {'choices': [{'message': {'content': '1. Paella.'}}]}


@pytest.fixture
def ask(monkeypatch, tmp_path):
  """Asks (handler, number of requests, fields of the endpoint)."""
  kept = cache.Cache(tmp_path / 'cache.sqlite')

  def call(handler, count=1, limits=LIMITS, signals=None, **fields):
    monkeypatch.setattr(client.httpx, 'AsyncClient', functools.partial(
        httpx.AsyncClient, transport=httpx.MockTransport(handler)))
    endpoint = client.Endpoint(**{
        'base_url': 'http://host/v1', 'backoff_seconds': 1e-3,
        'calls_per_second': 0., **fields})
    requests = [
        client.Request({'model': 'm', 'messages': [], 'max_tokens': 50}, str(i))
        for i in range(count)]
    return client.Client(endpoint, limits, kept, signals).ask(
        'chat/completions', requests)

  yield call
  kept.close()


@pytest.mark.parametrize('calls_per_second', [0., 0.5, 1000.])
def test_any_pace_gets_its_answers(ask, calls_per_second):
  count = 1 if calls_per_second == 0.5 else 20
  replies = ask(lambda request: httpx.Response(200, json=ANSWER), count,
                calls_per_second=calls_per_second)
  assert [reply.body for reply in replies] == [ANSWER] * count


@pytest.mark.parametrize('told, seconds', [
    ('7', 7.), ('0.02', 0.02), ('-1', 0.), ('soon', None), ('inf', None),
    ('', None), ('Wed, 21 Oct 2015 07:28:30 GMT', 30.),
    ('Wed, 21 Oct 2015 07:28:30 -0000', 30.),
    ('Wed, 21 Oct 2015 09:29:00 +0200', 60.),
    ('Tue, 20 Oct 2015 07:28:00 GMT', 0.)])
def test_retry_after_is_seconds_or_a_date(told, seconds):
  now = datetime.datetime(2015, 10, 21, 7, 28, tzinfo=datetime.UTC)
  found = client.retry_after_seconds(httpx.Headers({'retry-after': told}), now)
  assert found == seconds


def test_without_a_word_how_long_each_wait_is_twice_the_last(ask):
  seen = []

  def busy(request):
    seen.append(request)
    return (httpx.Response(429) if len(seen) <= 7
            else httpx.Response(200, json=ANSWER))

  started = time.monotonic()
  ask(busy)
  # At least half of 2 + 4 + ... + 128 ms; seven times the first is 14 ms.
  assert time.monotonic() - started > 0.12
  with pytest.raises(client.EndpointError, match='to wait 3 times for one'):
    seen.clear()
    ask(busy, 2, max_rate_limits=2)


@pytest.mark.parametrize('error', [
    httpx.DecodingError, httpx.TooManyRedirects, httpx.ReadTimeout])
def test_whatever_fails_a_call_is_tried_again_and_named(ask, error):
  seen = []

  def fails(request, times):
    seen.append(request)
    if len(seen) <= times:
      raise error('something', request=request)
    return httpx.Response(200, json=ANSWER)

  assert len(ask(functools.partial(fails, times=2), 3)) == 3
  with pytest.raises(client.EndpointError, match=f'{error.__name__}: somethi'):
    ask(functools.partial(fails, times=99), 4, max_failures=1)


@pytest.mark.parametrize('base_url', [
    'host/v1', 'host:8000/v1', 'ftp://host/v1', 'http://', 'http://[::1/v1',
    'http://host:99999'])
def test_what_is_no_address_is_never_asked(base_url):
  with pytest.raises(ValueError, match='base_url is .* it reads https://HOST'):
    client.Endpoint(base_url)


def test_some_requests_may_be_refused_and_are_not_asked_again(ask):
  asked = []

  def filters(request):
    asked.append(request)
    return (httpx.Response(400, text='filtered') if len(asked) in (2, 3)
            else httpx.Response(200, json=ANSWER))

  one_by_one = {'concurrency': 1}
  with pytest.raises(client.EndpointError, match='filtered.*max_refused'):
    ask(filters, 4, **one_by_one)
  assert len(asked) == 2
  replies = ask(filters, 4, max_refused=1, **one_by_one)
  assert [reply.body.get('refused') for reply in replies] == [
      None, 'HTTP 400: filtered', None, None]
  assert len(asked) == 5 and ask(filters, 4) == replies and len(asked) == 5


@pytest.mark.parametrize('status', [401, 403, 404])
def test_what_is_refused_to_the_sender_is_no_answer(ask, status):
  with pytest.raises(client.EndpointError, match=f'HTTP {status}'):
    ask(lambda request: httpx.Response(status), max_refused=9)


@pytest.mark.parametrize('usage', [
    {}, {'usage': None}, {'usage': [1]}, {'usage': {'completion_tokens': None}},
    {'usage': {'prompt_tokens': 'few', 'completion_tokens': 'some'}}])
def test_an_answer_that_does_not_say_what_it_cost_costs_the_most(ask, usage):
  asked = []

  def answer(request):
    asked.append(request)
    return httpx.Response(200, json=ANSWER | usage)

  with pytest.raises(client.BudgetReached, match='max_tokens = 200 is reached'):
    ask(answer, 50, limits=client.Limits(max_tokens=200))
  assert len(asked) == 3  # of 16 at most for the prompt and 50 for the answer


def test_a_signal_is_heard_while_the_endpoint_says_to_wait(ask):
  signals = folder.StopRequest()

  def busy(request):
    signals.received = signal.SIGTERM
    return httpx.Response(429, headers={'Retry-After': '3600'})

  with pytest.raises(folder.Stopped, match='SIGTERM'):
    ask(busy, 2, signals=signals)


def test_an_answer_that_cannot_be_kept_stops_the_run(ask, monkeypatch):
  put, puts, asked = cache.Cache.put, [], []

  def full(self, key, reply):
    puts.append(key)
    if len(puts) == 2:
      raise self._unusable(sqlite3.OperationalError('disk is full'))
    put(self, key, reply)

  def answer(request):
    asked.append(request)
    return httpx.Response(200, json=ANSWER)

  monkeypatch.setattr(cache.Cache, 'put', full)
  with pytest.raises(cache.CacheError, match='disk is full. What was answered'):
    ask(answer, 3, concurrency=1)
  assert len(asked) == 2
  ask(answer, 3)
  assert len(asked) == 4  # The first was kept.


@pytest.mark.parametrize('name', ['no/such/folder/c.sqlite', 'text.sqlite'])
def test_a_file_that_is_no_cache_is_named(tmp_path, name):
  (tmp_path / 'text.sqlite').write_text('no database, but long enough' * 99)
  with pytest.raises(cache.CacheError, match=f'{name}: .* go on'):
    cache.Cache(tmp_path / name)


def test_a_notebook_can_ask(ask):
  async def cell():
    return ask(lambda request: httpx.Response(200, json=ANSWER), 2)

  assert len(asyncio.run(cell())) == 2
