"""Runs in processes that are killed; forked, so that one starts in no time."""

import os
import signal

from configs import link_default
from link_jax import facts
from link_jax import generate
from link_jax import ngram

facts.embedded()
ngram.bigram()
ngram.unigram()


def tiny(base_url=''):
  """A config of seconds, with embedded facts or against an endpoint."""
  config = link_default.get_config('tiny')
  config.compare = ()
  if base_url:
    config.knowledge.kind = 'http'
    config.knowledge.http.base_url = base_url
    config.knowledge.http.model = 'mock'
    config.only_rules = ('capital_positive', 'element_series', 'phobia_thing')
    config.search.num_calls, config.search.values_per_call = 2, 4
    config.search.first_values_per_call, config.search.beam_size = 10, 5
    config.limits.calls_per_second = 1000.
    config.limits.backoff_seconds = 0.01
  return config


def run(workdir, base_url='', die_at=None):
  """A run that kills itself after event number `die_at`, with no farewell."""
  count = 0

  def on_event(event):
    nonlocal count
    del event
    count += 1
    if count == die_at:
      os.kill(os.getpid(), signal.SIGKILL)

  generate.generate(tiny(base_url), str(workdir), on_event)
