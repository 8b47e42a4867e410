"""A client of OpenAI-compatible endpoints that loses no answer.

Every answer is in the cache before anything is made of it. Failures have
budgets of their own: waiting when told to (429), failures of transport and
server (connection, 5xx, a body that is no JSON), requests refused one by one
(400), and, in http_model.py, answers that cannot be read.
"""

import asyncio
from collections.abc import Coroutine
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import datetime
import email.utils
import math
import os
import random
import time
from typing import Any
from typing import NamedTuple

import aiolimiter
import httpx

from core_jax import folder
from link_jax import cache as cache_lib

_OF_ONE_REQUEST = (400, 413, 422)
"""Statuses that may mean one request and not its sender."""
_NAP_SECONDS = 0.5
"""A wait is cut in pieces, between which a signal is heard."""


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
    max_refused: chats of the whole run that may be refused; each counts as an
      answer without a value.
    backoff_seconds: doubled before each further try.

  Raises:
    ValueError: base_url is no address.
  """
  base_url: str
  key_variable: str = 'OPENAI_API_KEY'
  timeout_seconds: float = 60.
  concurrency: int = 8
  calls_per_second: float = 10.
  max_failures: int = 8
  max_rate_limits: int = 100
  max_refused: int = 0
  backoff_seconds: float = 0.5

  def __post_init__(self):
    try:
      url = httpx.URL(self.base_url)
      is_address = (url.scheme in ('http', 'https') and url.host
                    and (url.port or 0) < 2 ** 16)
    except httpx.InvalidURL:
      is_address = False
    if not is_address:
      raise ValueError(f'base_url is {self.base_url!r}, which is no address of '
                       'an endpoint: it reads https://HOST/v1, or http://')


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


def most_tokens(payload: Mapping[str, Any]) -> tuple[int, int]:
  """Of the prompt and of the answer."""
  return prompt_bound(payload), int(payload.get('max_tokens') or 0)


def _used(body, name, most):
  """Tokens, as an answer says; one that does not say costs the most."""
  try:
    return int(body['usage'][name])
  except (KeyError, OverflowError, TypeError, ValueError):
    return most


class _Outcome(NamedTuple):
  """Of one call: a reply, or what was wrong; `wait` is how many seconds the
  endpoint said."""
  reply: cache_lib.Reply | None = None
  problem: str = ''
  told_to_wait: bool = False
  wait: float | None = None


class Client:
  """Asks one endpoint, many requests at a time."""

  def __init__(self, endpoint: Endpoint, limits: Limits,
               cache: cache_lib.Cache,
               signals: folder.StopRequest | None = None):
    self.endpoint, self.limits, self.cache = endpoint, limits, cache
    self._signals = signals or folder.StopRequest()
    self._reserved = {}  # key -> (prompt tokens, completion tokens) at most
    self._stop = None
    self._not_before = 0.

  def ask(
      self, path: str, requests: Sequence[Request]) -> list[cache_lib.Reply]:
    """Answers in order, from the cache where they are there.

    Raises:
      BudgetReached: a limit would be passed. Answers under way are kept.
      EndpointError: refused, or failed too often.
      cache.CacheError: an answer could not be kept.
      folder.Stopped: a signal came. Answers under way are kept.
    """
    keys = [cache_lib.key_of(path, r.payload, r.salt) for r in requests]
    found = {key: self.cache.get(key) for key in keys}
    missing = {key: r for key, r in zip(keys, requests, strict=True)
               if found[key] is None}
    if missing:
      _run(self._ask_all(path, missing))
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
    self._signals.check()

  async def _ask_one(self, http, room, limiter, path, key, request):
    """Until it is answered, or something stops the run: then the others'
    answers that are under way are still waited for."""
    failures = waits = 0
    while not self._is_over():
      await self._sleep_until(lambda: self._not_before)
      async with room, limiter:
        if self._is_over() or not self._reserve(key, request.payload):
          return
        try:
          response = await http.post(path.lstrip('/'), json=request.payload)
          found = self._read(request, response)
        except httpx.RequestError as e:
          found = _Outcome(problem=f'{type(e).__name__}: {e}')
        finally:
          del self._reserved[key]
        if found.reply is not None:
          self._keep(key, found.reply)
          return
      failures += not found.told_to_wait
      waits += found.told_to_wait
      if self._stop or self._is_too_often(failures, waits, found.problem):
        return
      if found.told_to_wait:
        wait = self._backoff(waits) if found.wait is None else found.wait
        # All wait: the limit is the endpoint's, not this request's.
        self._not_before = max(self._not_before, time.monotonic() + wait)
      else:
        then = time.monotonic() + self._backoff(failures)
        await self._sleep_until(lambda then=then: then)

  def _is_over(self):
    return self._stop is not None or self._signals.received is not None

  async def _sleep_until(self, moment):
    """`moment` is asked for after each nap: it may have been put off."""
    while not self._is_over() and (left := moment() - time.monotonic()) > 0:
      await asyncio.sleep(min(left, _NAP_SECONDS))

  def _keep(self, key, reply):
    try:
      self.cache.put(key, reply)
    except cache_lib.CacheError as e:
      self._stop = e

  def _is_too_often(self, failures, waits, problem):
    if (failures <= self.endpoint.max_failures
        and waits <= self.endpoint.max_rate_limits):
      return False
    self._stop = EndpointError(
        f'endpoint {self.endpoint.base_url}: failed {failures} times and '
        f'told to wait {waits} times for one request, at last: {problem}. '
        'What was answered is kept: run the same command to go on')
    return True

  def _backoff(self, times):
    most = min(self.endpoint.backoff_seconds * 2. ** min(times, 30), 60.)
    return most * (0.5 + random.random() / 2)

  def _read(self, request, response):
    status = response.status_code
    if status == 429:
      return _Outcome(
          problem='HTTP 429', told_to_wait=True, wait=retry_after_seconds(
              response.headers, datetime.datetime.now(datetime.UTC)))
    if status in (401, 403):
      self._stop = EndpointError(
          f'endpoint {self.endpoint.base_url}: HTTP {status}, the key was not '
          f'accepted; set the environment variable '
          f'{self.endpoint.key_variable}')
      return _Outcome(problem='refused')
    if 400 <= status < 500 and status != 408:
      return self._refused(request, status, response.text[:200])
    if status != 200:
      return _Outcome(problem=f'HTTP {status}')
    try:
      body = response.json()
      if not isinstance(body['choices'], list) or not body['choices']:
        raise KeyError('choices')
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      return _Outcome(problem=f'an answer that is no completion: {e!r}')
    most = most_tokens(request.payload)
    return _Outcome(cache_lib.Reply(
        body, _used(body, 'prompt_tokens', most[0]),
        _used(body, 'completion_tokens', most[1])))

  def _refused(self, request, status, text):
    """What no further try would change: of the whole run, or of this request
    alone, such as by a filter of contents."""
    problem = f'HTTP {status}: {text}'
    # Without a score there is no rank, but without a value there are others.
    alone = status in _OF_ONE_REQUEST and 'messages' in request.payload
    if alone and self.cache.usage().refused < self.endpoint.max_refused:
      return _Outcome(cache_lib.refusal(problem))
    hint = ('. If it refuses this request alone, as a filter of contents does, '
            'raise limits.max_refused, the number of requests that may stay '
            'without an answer, and run the same command to go on'
            ) if alone else ''
    self._stop = EndpointError(
        f'endpoint {self.endpoint.base_url}: {problem}{hint}')
    return _Outcome(problem='refused')

  def _reserve(self, key, payload):
    """Whether one more call stays within all limits, whatever it costs."""
    used, limits = self.cache.usage(), self.limits
    most = most_tokens(payload)
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


def _run(coroutine: Coroutine) -> None:
  """asyncio.run, in a thread of its own where a notebook's loop runs."""
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    asyncio.run(coroutine)
    return
  with futures.ThreadPoolExecutor(1) as thread:
    thread.submit(asyncio.run, coroutine).result()


def _limiter(calls_per_second):
  """Lets so many begin a second; 0: all."""
  if not calls_per_second:
    return contextlib.nullcontext()
  burst = max(calls_per_second, 1.)
  return aiolimiter.AsyncLimiter(burst, burst / calls_per_second)


def retry_after_seconds(
    headers: Mapping[str, str], now: datetime.datetime) -> float | None:
  """What Retry-After says, in seconds or as a date (RFC 9110, 10.2.3); None
  where there is nothing that reads so."""
  told = headers.get('Retry-After', '')
  try:
    seconds = float(told)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(told)
    except ValueError:
      return None
    if date.tzinfo is None:
      date = date.replace(tzinfo=datetime.UTC)
    seconds = (date - now).total_seconds()
  return max(seconds, 0.) if math.isfinite(seconds) else None
