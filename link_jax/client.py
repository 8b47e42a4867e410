"""A client of OpenAI-compatible endpoints that loses no answer.

Every answer is in the cache before anything is made of it. Failures have
budgets of their own: waiting when told to (429), failures of transport and
server (connection, 5xx, a body that is no JSON), and, in http_model.py, answers
that cannot be read.
"""

import asyncio
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import random
import time
from typing import Any
from typing import NamedTuple

import aiolimiter
import httpx

from link_jax import cache as cache_lib


class EndpointError(OSError):
  """The endpoint cannot be used; the message says what to do."""


class BudgetReached(ValueError):
  """A limit of the run; what was answered is kept."""


class Request(NamedTuple):
  payload: Mapping[str, Any]
  salt: str


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Where and how fast.

  Attributes:
    base_url: what '/chat/completions' is added to.
    key_variable: names an environment variable.
    timeout_seconds: of one call.
    concurrency: calls at once.
    calls_per_second: that are begun; 0 is no limit.
    max_failures: of one request, after which none is asked; 0: after the first.
    max_rate_limits: the same of answers that say to wait.
    backoff_seconds: doubled before each further try.
  """
  base_url: str
  key_variable: str = 'OPENAI_API_KEY'
  timeout_seconds: float = 60.
  concurrency: int = 8
  calls_per_second: float = 10.
  max_failures: int = 8
  max_rate_limits: int = 100
  backoff_seconds: float = 0.5


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of the whole run; 0 is no limit. Prices are per million tokens."""
  max_calls: int = 0
  max_tokens: int = 0
  max_cost: float = 0.
  prompt_price: float = 0.
  completion_price: float = 0.

  def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
    return (prompt_tokens * self.prompt_price
            + completion_tokens * self.completion_price) / 1e6


def prompt_bound(payload: Mapping[str, Any]) -> int:
  """Tokens at most: no token of a text is shorter than a byte, and each
  message has a few of its own."""
  texts = [m['content'] for m in payload.get('messages', ())]
  texts.append(payload.get('prompt', ''))
  return sum(len(text.encode()) + 16 for text in texts)


class Client:
  """Asks one endpoint, many requests at a time."""

  def __init__(self, endpoint: Endpoint, limits: Limits,
               cache: cache_lib.Cache):
    self.endpoint, self.limits, self.cache = endpoint, limits, cache
    self._reserved = {}  # key -> (prompt tokens, completion tokens) at most
    self._stop = None
    self._not_before = 0.

  def ask(
      self, path: str, requests: Sequence[Request]) -> list[cache_lib.Reply]:
    """Answers in order, from the cache where they are there.

    Raises:
      BudgetReached: a limit would be passed. Answers under way are kept.
      EndpointError: refused, or failed too often.
    """
    keys = [cache_lib.key_of(path, r.payload, r.salt) for r in requests]
    found = {key: self.cache.get(key) for key in keys}
    missing = {key: r for key, r in zip(keys, requests, strict=True)
               if found[key] is None}
    if missing:
      asyncio.run(self._ask_all(path, missing))
      found |= {key: self.cache.get(key) for key in missing}
    return [found[key] for key in keys]

  async def _ask_all(self, path, requests):
    self._stop, self._not_before = None, 0.
    limiter = _limiter(self.endpoint.calls_per_second)
    room = asyncio.Semaphore(self.endpoint.concurrency)
    key = os.environ.get(self.endpoint.key_variable, '')
    headers = {'Authorization': f'Bearer {key}'} if key else {}
    async with httpx.AsyncClient(
        base_url=self.endpoint.base_url.rstrip('/') + '/', headers=headers,
        timeout=self.endpoint.timeout_seconds) as http:
      await asyncio.gather(*(
          self._ask_one(http, room, limiter, path, key, request)
          for key, request in requests.items()))
    if self._stop:
      raise self._stop

  async def _ask_one(self, http, room, limiter, path, key, request):
    """Until it is answered, or something stops the run: then the others'
    answers that are under way are still waited for."""
    failures = waits = 0
    while self._stop is None:
      await asyncio.sleep(max(self._not_before - time.monotonic(), 0))
      async with room, limiter:
        if self._stop or not self._reserve(key, request.payload):
          return
        try:
          response = await http.post(path.lstrip('/'), json=request.payload)
          reply, wait, problem = self._read(response)
        except (httpx.TransportError, httpx.InvalidURL) as e:
          reply, wait, problem = None, None, f'{type(e).__name__}: {e}'
        finally:
          del self._reserved[key]
        if reply is not None:
          self.cache.put(key, reply)
          return
      if self._stop:
        return
      if wait is not None:
        waits += 1
        # All wait: the limit is the endpoint's, not this request's.
        self._not_before = max(self._not_before, time.monotonic() + wait)
      else:
        failures += 1
        await asyncio.sleep(self._backoff(failures))
      if (failures > self.endpoint.max_failures
          or waits > self.endpoint.max_rate_limits):
        self._stop = EndpointError(
            f'endpoint {self.endpoint.base_url}: failed {failures} times and '
            f'told to wait {waits} times for one request, at last: {problem}. '
            'What was answered is kept: run the same command to go on')

  def _backoff(self, failures):
    most = min(self.endpoint.backoff_seconds * 2 ** failures, 60.)
    return most * (0.5 + random.random() / 2)

  def _read(self, response):
    """(reply, seconds to wait, problem): one of the first two, or neither for
    a failure that is to be tried again."""
    status = response.status_code
    if status == 429:
      return None, _retry_after(response, self.endpoint.backoff_seconds), (
          'HTTP 429')
    if status in (401, 403):
      self._stop = EndpointError(
          f'endpoint {self.endpoint.base_url}: HTTP {status}, the key was not '
          f'accepted; set the environment variable '
          f'{self.endpoint.key_variable}')
      return None, None, 'refused'
    if 400 <= status < 500 and status != 408:
      self._stop = EndpointError(
          f'endpoint {self.endpoint.base_url}: HTTP {status}: '
          f'{response.text[:200]}')
      return None, None, 'refused'
    if status != 200:
      return None, None, f'HTTP {status}'
    try:
      body = response.json()
      usage = body.get('usage') or {}
      if not isinstance(body['choices'], list) or not body['choices']:
        raise KeyError('choices')
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      return None, None, f'an answer that is no completion: {e!r}'
    return cache_lib.Reply(
        body, int(usage.get('prompt_tokens') or 0),
        int(usage.get('completion_tokens') or 0)), None, ''

  def _reserve(self, key, payload):
    """Whether one more call stays within all limits, whatever it costs."""
    used, limits = self.cache.usage(), self.limits
    most = prompt_bound(payload), int(payload.get('max_tokens') or 0)
    prompt = used.prompt_tokens + most[0] + sum(
        p for p, _ in self._reserved.values())
    completion = used.completion_tokens + most[1] + sum(
        c for _, c in self._reserved.values())
    for name, would, limit in (
        ('max_calls', used.calls + len(self._reserved) + 1, limits.max_calls),
        ('max_tokens', prompt + completion, limits.max_tokens),
        ('max_cost', limits.cost(prompt, completion), limits.max_cost)):
      if limit and would > limit:
        return self._halt(name, limit, used)
    self._reserved[key] = most
    return True

  def _halt(self, name, limit, used):
    self._stop = BudgetReached(
        f'limits.{name} = {limit:g} is reached after {used.calls} calls and '
        f'{used.prompt_tokens + used.completion_tokens} tokens. All is kept: '
        f'raise --config.limits.{name} and run the same command to go on')
    return False


def _limiter(calls_per_second):
  """Lets so many begin a second; 0: all."""
  if not calls_per_second:
    return contextlib.nullcontext()
  burst = max(calls_per_second, 1.)
  return aiolimiter.AsyncLimiter(burst, burst / calls_per_second)


def _retry_after(response, default):
  try:
    return max(float(response.headers['Retry-After']), 0.)
  except (KeyError, ValueError):
    return default
