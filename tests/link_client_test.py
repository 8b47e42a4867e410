"""The client, against answers that the tests give it in the same process."""

import functools

import httpx
import pytest

from link_jax import cache
from link_jax import client

ANSWER = {'choices': [{'message': {'content': '1. Paella.'}}]}


@pytest.fixture
def ask(monkeypatch, tmp_path):
  """Asks (handler, number of requests, fields of the endpoint)."""
  kept = cache.Cache(tmp_path / 'cache.sqlite')

  def call(handler, count=1, **fields):
    monkeypatch.setattr(client.httpx, 'AsyncClient', functools.partial(
        httpx.AsyncClient, transport=httpx.MockTransport(handler)))
    endpoint = client.Endpoint(**{
        'base_url': 'http://host/v1', 'backoff_seconds': 1e-3,
        'calls_per_second': 0., **fields})
    requests = [client.Request({'model': 'm', 'messages': []}, str(i))
                for i in range(count)]
    return client.Client(endpoint, client.Limits(), kept).ask(
        'chat/completions', requests)

  yield call
  kept.close()


@pytest.mark.parametrize('calls_per_second', [0., 0.5, 1000.])
def test_any_pace_gets_its_answers(ask, calls_per_second):
  count = 1 if calls_per_second == 0.5 else 20
  replies = ask(lambda request: httpx.Response(200, json=ANSWER), count,
                calls_per_second=calls_per_second)
  assert [reply.body for reply in replies] == [ANSWER] * count
