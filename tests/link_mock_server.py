"""An OpenAI-compatible server that knows some facts and has bad days.

  python -m tests.link_mock_server --faults=1

prints its port. What it answers is a function of the request alone; how often
it fails before that, of the request and of how often it was asked.
"""

import argparse
import collections
import hashlib
import http.server
import json
import re
import threading
import time

from link_jax import facts

TABLES = {'is_capital_of': 'capital_of', 'belongs_to': 'series_of',
          'is_unit_of': 'unit_of', 'is_fear_of': 'fear_of'}
SETS = {'country': 'capital_country', 'capital': 'capital',
        'chemical element': 'sorted_element', 'series of elements': 'series',
        'unit of measurement': 'unit', 'quantity': 'quantity',
        'phobia': 'phobia', 'thing': 'feared'}
FAULTS = ('rate', 'error', 'reset', 'garbage', 'slow')


class State:
  """Counts, of all connections."""

  def __init__(self, faults, rate_limited):
    self.faults, self.rate_limited = faults, rate_limited
    self.lock = threading.Lock()
    self.seen = collections.Counter()
    self.answered = collections.Counter()
    self.failed = collections.Counter()


def digest(*parts):
  return int(hashlib.sha256('\0'.join(map(str, parts)).encode()).hexdigest(),
             16)


def values_for(prompt, key):
  """Right values first, then guesses of the right kind."""
  kind = re.search(r'can be a ([a-z ]+)\.', prompt)[1]
  count = int(re.search(r'List (\d+) ', prompt)[1])
  known = facts.embedded()
  right = []
  for name, x, y in re.findall(r'(\w+)\(([^,()]+), ([^()]+)\)', prompt):
    if name in TABLES:
      table = known.tables[TABLES[name]]
      right += table.right.get(x, ()) if len(y) == 1 else table.left.get(y, ())
  pool = sorted(known.sets[SETS[kind]])
  guesses = [pool[digest(key, i) % len(pool)] for i in range(count)]
  return list(dict.fromkeys((*right, *guesses)))[:count]


def answer(payload, key):
  """A chat completion; one in nine cannot be read, of 'mute' none can, and
  'yes' says yes."""
  prompt = payload['messages'][0]['content']
  if payload['model'] == 'yes':
    return {'choices': [{'message': {'content': '**Yes**, of course.'}}]}
  mute = payload['model'] == 'mute' or digest(key, 'bad') % 9 == 0
  text = ('I would rather not.' if mute else '\n'.join(
      f'{i}. {value}.'
      for i, value in enumerate(values_for(prompt, key), start=1)))
  return {'choices': [{'message': {'role': 'assistant', 'content': text}}],
          'usage': {'prompt_tokens': len(prompt.split()),
                    'completion_tokens': len(text.split())}}


def echo(payload):
  """A completion that echoes, with log-probabilities of a kind."""
  tokens = re.findall(r'\s*\S+', payload['prompt'])
  offsets = [m.start() for m in re.finditer(r'\s*\S+', payload['prompt'])]
  nats = [None] + [
      -1. - (digest(a, b) % 100) / 50
      for a, b in zip(tokens, tokens[1:], strict=False)]
  found = {'tokens': tokens, 'token_logprobs': nats, 'text_offset': offsets}
  match payload['model']:
    case 'null':
      found['token_logprobs'] = [None] * len(tokens)
    case 'zero':
      found['token_logprobs'] = [None] + [0.] * (len(tokens) - 1)
    case 'silent':
      found = None
  return {'choices': [{'text': payload['prompt'], 'logprobs': found}]}


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  state = None

  def log_message(self, *unused_args):
    pass

  def do_GET(self):
    s = self.state
    with s.lock:
      self.reply(200, {
          'answered': sum(s.answered.values()),
          'distinct': len(s.answered),
          'most': max(s.answered.values(), default=0),
          'failed': dict(s.failed)})

  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length']))
    payload = json.loads(body)
    key = hashlib.sha256(
        json.dumps(payload, sort_keys=True).encode()).hexdigest()
    s = self.state
    if self.headers.get('Authorization') == 'Bearer wrong':
      return self.reply(401, {'error': 'no'})
    with s.lock:
      s.seen[key] += 1
      fault = self.fault(key, s.seen[key])
      s.failed[fault] += 1
    if fault == 'rate':
      return self.reply(429, {}, {'Retry-After': '0.02'})
    if fault == 'error':
      return self.reply(500, {})
    if fault == 'garbage':
      return self.send(200, b'<html>{{{', {})
    if fault == 'reset':
      self.close_connection = True
      return self.connection.close()
    if fault == 'slow':
      time.sleep(0.05)
    with s.lock:
      s.answered[key] += 1
    return self.reply(200, echo(payload) if self.path.endswith('/completions')
                      and 'prompt' in payload else answer(payload, key))

  def fault(self, key, attempt):
    """Twice at most a request fails; `rate_limited` times more it is told to
    wait."""
    if attempt <= self.state.rate_limited:
      return 'rate'
    if not self.state.faults or attempt > 2 + self.state.rate_limited:
      return ''
    return (*FAULTS, *([''] * 5))[digest(key, attempt, 'fault') % 10]

  def reply(self, status, body, headers=None):
    self.send(status, json.dumps(body).encode(), headers or {})

  def send(self, status, body, headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):

  def handle_error(self, *unused_args):  # A killed client is no news.
    pass


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--faults', type=int, default=0)
  parser.add_argument('--rate_limited', type=int, default=0)
  args = parser.parse_args()
  Handler.state = State(args.faults, args.rate_limited)
  facts.embedded()
  server = Server(('127.0.0.1', 0), Handler)
  print(server.server_address[1], flush=True)
  server.serve_forever()


if __name__ == '__main__':
  main()
