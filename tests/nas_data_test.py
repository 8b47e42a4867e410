"""Sources of known entropy, and text as windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax import text
from nas_jax import data


def source(order=2):
  return data.Markov.draw(6, order, 0.3, seed=4)


@pytest.mark.parametrize('order', [1, 2])
def test_the_stationary_distribution_stays_as_it_is(order):
  found = source(order)
  context = found.stationary()
  assert context.shape == (6,) * order and abs(context.sum() - 1) < 1e-9
  after = np.sum(context[..., None] * found.probs, 0)
  np.testing.assert_allclose(after, context, atol=1e-9)


def test_the_true_model_has_the_entropy_rate_on_a_sample():
  found, n = source(), 40_000
  tokens = found.sample(n, np.random.default_rng(0))
  probs = found.probs[tokens[:-2], tokens[1:-1], tokens[2:]]
  logs = -np.log(probs)
  assert abs(logs.mean() - found.entropy_rate()) < 5 * logs.std() / n**.5
  counts = np.zeros((6, 6))
  np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
  np.testing.assert_allclose(
      counts / counts.sum(), found.stationary(), atol=0.02)


def test_a_coin_has_one_bit():
  coin = data.Markov(np.full((2, 2), 0.5))
  assert abs(coin.entropy_rate() - np.log(2)) < 1e-12
  turns = data.Markov(np.array([[0.0, 1.0], [1.0, 0.0]]))
  assert turns.entropy_rate() == 0
  np.testing.assert_allclose(turns.stationary(), 0.5)


def test_the_same_seed_gives_the_same_text():
  make = lambda seed: data.markov(5, 1, 0.5, 300, 100, seed)
  one, other, third = make(1), make(1), make(2)
  for split, size in (('train', 300), ('valid', 100), ('test', 100)):
    assert len(one.splits[split]) == size
    np.testing.assert_array_equal(one.splits[split], other.splits[split])
  assert np.any(one.splits['train'] != third.splits['train'])
  assert np.any(one.splits['valid'] != one.splits['test'])


def test_pythons_help_is_real_text():
  texts = data.python_help()
  assert {s: len(t) > 5_000 for s, t in texts.items()} == dict.fromkeys(
      text.SPLITS, True)
  words = set(texts['train'])
  assert len(words) == 1_000 and {'the', 'class', text.EOS} <= words
  assert set(texts['valid']) <= words


def test_windows_follow_one_another_and_share_one_token():
  rows = jnp.asarray(text.streams(np.arange(23, dtype=np.int32), 2, 5))
  assert rows.shape == (2, 11) and data.num_windows(rows, 5) == 2
  first, second = (data.take_window(rows, i, 5) for i in (0, 1))
  np.testing.assert_array_equal(first[:, 1], range(11, 17))
  np.testing.assert_array_equal(second[:, 0], range(5, 11))


def test_streams_begin_at_zero_where_the_text_does_and_elsewhere_by_chance():
  state = jnp.ones((4_000, 1)), jnp.ones((4_000, 3))
  after = lambda place, rate: data.carry_on(
      state, jnp.int32(place), rate, jax.random.key(0))
  assert all(not x.any() for x in after(0, 0.0))
  assert all(x.all() for x in after(1, 0.0))
  memory, hidden = after(1, 0.25)
  np.testing.assert_array_equal(jnp.tile(memory, 3), hidden)
  assert abs(memory.mean() - 0.75) < 0.03


@pytest.mark.parametrize('make, words', [
    (lambda: data.markov(1, 1, 1.0, 10, 10, 0), 'vocab_size=1'),
    (lambda: data.markov(4, 0, 1.0, 10, 10, 0), 'order=0'),
    (lambda: text.streams(np.arange(50), 10, 5), 'are 5 each'),
    (lambda: text.read_ptb('nowhere'), 'ptb.train.txt'),
])
def test_what_cannot_be_read_is_said(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_a_text_of_another_length_is_no_treebank(tmp_path):
  for split in text.SPLITS:
    (tmp_path / f'ptb.{split}.txt').write_text(' a b c \n')
  with pytest.raises(text.TextError, match='4 tokens.*929,589 were expected'):
    text.read_ptb(str(tmp_path))
