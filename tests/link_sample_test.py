"""Values written token by token, and chosen of a list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from link_jax import lm
from link_jax import sample
from link_jax import weights
from tests import link_models
from tests.link_models import STATEMENTS
from tests.link_models import TEXTS
from tests.link_models import byte_level_bpe
from tests.link_models import our_logits
from tests.link_models import scorer


@pytest.fixture(scope='module', params=['gpt2', 'llama'])
def folder(request, tmp_path_factory):
  """A folder as transformers saves it; the model in torch stands beside it."""
  path = tmp_path_factory.mktemp(request.param)
  return path, link_models.save(path, request.param)


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  path = tmp_path_factory.mktemp('llama')
  link_models.save(path, 'llama')
  return path


def test_decoding_with_a_cache_equals_the_whole_pass(folder):
  model = weights.load(folder[0])
  ids = byte_level_bpe().encode(STATEMENTS[0]).ids[:12]
  whole = our_logits(model, ids)[0]
  cache = lm.empty_cache(model.config, 1, 16)
  places = jnp.arange(16)[None, None]
  hidden = jax.jit(lm.hidden, static_argnums=1)
  for start, stop in ((0, 5), (5, 6), (6, 12)):
    positions = jnp.arange(start, stop)[None]
    x, cache = hidden(
        model.params, model.config, jnp.array([ids[start:stop]]), positions,
        places <= positions[:, :, None], cache, start)
    np.testing.assert_allclose(
        lm.logits(model.params, x)[0], whole[start:stop], atol=1e-4)


def test_greedy_replies_are_those_of_transformers(folder):
  path, theirs = folder
  tokenizer = byte_level_bpe()
  prompts = [STATEMENTS[0], 'It is']
  expected = []
  for prompt in prompts:
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out = theirs.generate(
        ids, max_new_tokens=20, do_sample=False, pad_token_id=1,
        attention_mask=torch.ones_like(ids))[0, ids.shape[1]:]
    expected.append(tokenizer.decode(out.tolist()))
  got = sample.make_sampler(scorer(path))(
      prompts, [jax.random.key(0)] * 2, max_new_tokens=20, temperature=0.)
  assert got == expected


def test_a_reply_depends_on_its_call_alone(llama):
  write = sample.make_sampler(scorer(llama))
  keys = [sample.call_key(0, 'rule2', 'B', i) for i in range(3)]
  settings = dict(max_new_tokens=8, temperature=1.)
  prompts = [STATEMENTS[0], 'It is', STATEMENTS[9]]
  together = write(prompts, keys, **settings)
  assert together == [
      write([p], [k], **settings)[0]
      for p, k in zip(prompts, keys, strict=True)]
  assert len(set(write(['It is'] * 3, keys, **settings))) == 3


def test_a_reply_ends_at_the_stop_token():
  """Logits that always want token 1, in a model that stops there."""
  config = lm.Config(4, 1, 2, 1, 1, 2, 2, 8, 1e-5, 10., True)
  params = jax.tree.map(
      jnp.zeros, lm.shapes(config), is_leaf=lambda x: isinstance(x, tuple))
  params['embedding'] = jnp.ones((4, 2))
  params['norm']['scale'] = jnp.ones(2)
  params['head'] = jnp.zeros((4, 2)).at[1].set(1.)
  batch = sample._Batch(
      np.zeros((1, 4), np.int32), np.array([2]), np.zeros((1, 2), np.uint32),
      np.zeros(1), np.ones(1), np.array([3]), np.full((1, 4), -1, np.int32))
  for stops, expected in (((1,), [-1] * 4), ((2,), [1, 1, 1, -1])):
    _, reply = sample.make_generate(config, stops)((), batch, params)
    np.testing.assert_array_equal(reply, [expected])


def test_draws_follow_the_softmax_inside_the_nucleus():
  p = np.array([.1, .5, .15, .25])
  keys = jax.random.split(jax.random.key(0), 20_000)
  draws = jax.vmap(lambda k: sample.draw(k, jnp.log(p), 1., .7))(keys)
  # 0.5 and 0.25 reach 0.7; the others are out.
  np.testing.assert_allclose(
      np.bincount(draws, minlength=4) / len(keys), [0, 2 / 3, 0, 1 / 3],
      atol=.015)
  squared = jax.vmap(lambda k: sample.draw(k, jnp.log(p), .5, 1.))(keys)
  np.testing.assert_allclose(
      np.bincount(squared) / len(keys), p**2 / (p**2).sum(), atol=.015)


def test_candidates_are_drawn_without_replacement_by_their_probability():
  log_p = np.log([.5, .3, .2])
  keys = jax.random.split(jax.random.key(0), 1000)
  drawn = np.array([sample.gumbel_top_k(log_p, 2, k) for k in keys])
  assert (drawn[:, 0] != drawn[:, 1]).all()
  # P(0 then 1) = .5 * .3 / .5, P(1 then 0) = .3 * .5 / .7.
  pairs = (drawn * [3, 1]).sum(1)
  np.testing.assert_allclose((pairs == 1).mean(), .3, atol=.045)
  np.testing.assert_allclose((pairs == 3).mean(), .15 / .7, atol=.045)


def test_at_temperature_0_candidates_are_the_likeliest(llama):
  model = scorer(llama)
  sums = [x.value_sum for x in model.score(TEXTS)]
  chosen = sample.choose(model, TEXTS, 4, sample.call_key(0, 'x'), 0.)
  assert [c.index for c in chosen] == list(np.argsort(sums)[::-1][:4])
  assert len(sample.choose(model, TEXTS, 99, jax.random.key(0))) == len(TEXTS)
