"""A knowledge model and a scorer behind an OpenAI-compatible endpoint.

The prompts have the parts and the order of LINK's, in words of our own.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from link_jax import client as client_lib
from link_jax import entailment
from link_jax import knowledge as knowledge_lib
from link_jax import rules
from link_jax.likelihood import Likelihood
from link_jax.likelihood import Text

VERSION = '1'
"""Of the prompts: a run does not go on with others."""
PROBES = (Text('The capital of France is Paris.', 25),
          Text('Paris the is of capital France.', 25))
"""Of unlike likelihoods, for whoever gives any."""


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How values are asked for. LINK: 0.7, 1, 512, and 10 bad answers."""
  model: str
  temperature: float = 0.7
  top_p: float = 1.
  max_tokens: int = 512
  max_bad_answers: int = 3
  in_words: bool = False  # predicates in English, not as symbols


def prompt_of(query: knowledge_lib.Query, in_words: bool = False) -> str:
  """What a model is asked for a query."""
  # Bound variables as values, the asked one as its letter.
  shown = {**query.known, query.variable: query.variable}
  if in_words:
    task = ' and '.join(
        rules.verbalise(p.template, shown) for p in query.predicates)
  else:
    task = ' & '.join(
        rules.symbolic(p, query.known) for p in query.predicates)
  name, datatype = query.variable, query.datatype.lower()
  if query.rule.variable(query.variable).role == 'factual':
    return (f'Give the one correct value of {name} so that this is true: '
            f'{task}. {name} is a {datatype}. Answer in this form:\n1. value.')
  avoid = ', '.join((*query.accepted, *query.rejected))
  return (f'List {query.n} diverse values of {name} so that this is true: '
          f'{task}. {name} can be a {datatype}. Answer in this form, a line '
          'each:\n1. value.\n2. value.'
          + (f'\nDo not list any of these: {avoid}.' if avoid else ''))


class HttpKnowledge:
  """Asks for lists of values; answers that cannot be read are asked again."""

  def __init__(self, client: client_lib.Client, sampling: Sampling,
               parse: Callable[[str], list[str]]):
    self.name = f'http {sampling.model}'
    self.fingerprint = hashlib.sha256(
        f'{VERSION} {sampling}'.encode()).hexdigest()[:16]
    self._client, self._sampling, self._parse = client, sampling, parse

  def propose(self, queries: Sequence[knowledge_lib.Query]
              ) -> list[list[knowledge_lib.Candidate]]:
    found = [[] for _ in queries]
    open_ = list(range(len(queries)))
    for attempt in range(1 + self._sampling.max_bad_answers):
      replies = self._client.ask('chat/completions', [
          self._request(queries[i], attempt) for i in open_])
      for i, reply in zip(open_, replies, strict=True):
        taken = {*queries[i].accepted, *queries[i].rejected}
        found[i] = [knowledge_lib.Candidate(value, self.name)
                    for value in self._parse(_content(reply.body))
                    if value not in taken][:queries[i].n]
      open_ = [i for i, reply in zip(open_, replies, strict=True)
               if not found[i] and not reply.is_refusal]
      if not open_:
        break
    return found

  def _request(self, query, attempt):
    salt = f'{query.key()} {attempt}'
    seed = int(hashlib.sha256(salt.encode()).hexdigest()[:8], 16) % 2 ** 31
    s = self._sampling
    return client_lib.Request({
        'model': s.model, 'temperature': s.temperature, 'top_p': s.top_p,
        'max_tokens': s.max_tokens, 'seed': seed,
        'messages': [{'role': 'user', 'content': prompt_of(query, s.in_words)}],
    }, salt)


def _content(body):
  try:
    return body['choices'][0]['message']['content'] or ''
  except (KeyError, TypeError, IndexError):
    return ''


class HttpAnswers:
  """Answers by an endpoint's word: the one that its reply begins with has the
  probability 1, and if there is none all have 0."""

  def __init__(self, client: client_lib.Client, model: str):
    self.name, self.fingerprint = f'http {model}', f'{VERSION} {model}'
    self._client, self._model = client, model

  def answer_probabilities(
      self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """[prompts, answers], of an answer's words without the space before."""
    words = [answer.strip() for answer in answers]
    replies = self._client.ask('chat/completions', [
        client_lib.Request({
            'model': self._model, 'temperature': 0, 'max_tokens': 16,
            'messages': [{'role': 'user', 'content':
                          f'{prompt} (one word: {" or ".join(words)})'}],
        }, 'answer') for prompt in prompts])
    found = np.zeros((len(prompts), len(words)))
    for row, reply in zip(found, replies, strict=True):
      said = entailment.read_answer(_content(reply.body), words)
      if said is not None:
        row[said] = 1.
    return found


class HttpScorer:
  """Likelihoods from an endpoint that echoes the prompt's log-probabilities.

  Many endpoints take the request and leave the numbers out, or give zeros:
  that would be a ranking by chance, so such a one is refused at the start.
  """

  def __init__(self, client: client_lib.Client, model: str):
    self.name, self.fingerprint = f'http {model}', f'{VERSION} {model}'
    self._client, self._model = client, model
    self._probe()

  def _probe(self):
    sums = {one.sum for one in self.score(PROBES)}
    if 0. in sums or len(sums) == 1:
      raise self._refusal('zeros, or the same for every text')

  def _refusal(self, what):
    return client_lib.EndpointError(
        f'model {self._model!r}: no log-probabilities of prompts ({what}), so '
        'it cannot rank or measure; choose ranker and evaluators among the '
        'local scorers, or an endpoint whose /completions has echo and '
        'logprobs')

  def score(self, texts: Sequence[Text]) -> list[Likelihood]:
    replies = self._client.ask('completions', [
        client_lib.Request(
            {'model': self._model, 'prompt': text.text, 'echo': True,
             'logprobs': 1, 'max_tokens': 0, 'temperature': 0}, 'score')
        for text in texts])
    return [self._read(text, reply.body)
            for text, reply in zip(texts, replies, strict=True)]

  def _read(self, text, body):
    try:
      found = body['choices'][0]['logprobs']
      nats, offsets = found['token_logprobs'], found['text_offset']
    except (KeyError, TypeError, IndexError):
      raise self._refusal('the answer has none') from None
    # The first token has no prefix, and its number is null.
    rows = [(n, o) for n, o in list(zip(nats, offsets, strict=True))[1:]]
    if not rows or any(n is None for n, _ in rows):
      raise self._refusal('they are null')
    value = [n for n, o in rows if o >= text.value_start - 1]
    return Likelihood(sum(n for n, _ in rows), len(rows),
                      len(text.text.encode()), sum(value), len(value))
