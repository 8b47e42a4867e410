"""What a user's own scripts do: tune an unchanged model, replay a schedule."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import stn_jax
from stn_jax import schedule
from tests import user_models

B, T, ROUNDS = 8, 2, 6


class Dropped(nn.Module):
  """As flax's examples have dropout."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
    return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


def examples(seed, channels, *lead):
  rng = np.random.default_rng(seed)
  y = rng.integers(0, 10, lead).astype(np.int32)
  noise = rng.standard_normal((*lead, 8, 8, channels))
  return {'x': (noise + y[..., None, None, None]).astype(np.float32), 'y': y}


def loss(logits, batch, hypers):
  del hypers
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])


DECAY = {'decay': stn_jax.log(1e-3)}
RATE = {'rate': stn_jax.bounded(0.2, 0.0, 0.95)}


def tuned(model, channels, space, **of_problem):
  """The problem, and its state after some rounds, by the documented lines."""
  takes_train = isinstance(model, Dropped)
  problem = stn_jax.Problem(
      model, space,
      lambda apply, batch, hypers, key: apply(
          batch['x'], *([hypers is not None] if takes_train else [])),
      loss, **of_problem)
  optimizers = stn_jax.Optimizers(
      optax.sgd(0.01), optax.sgd(0.01), optax.adam(1e-2))
  example = jax.eval_shape(lambda: examples(0, channels, B))
  state, round_ = stn_jax.self_tuning(
      problem, optimizers, example, num_rounds=ROUNDS)
  lost = []
  batch = {'train': examples(0, channels, B, T),
           'valid': examples(1, channels, B)}
  for _ in range(ROUNDS):
    state, metrics = round_(state, batch)
    lost.append(float(metrics['train_loss']))
  return problem, state, lost


@pytest.mark.parametrize(('model', 'channels', 'space', 'of_problem'), [
    (user_models.CNN(), 1, DECAY, dict(weight_decay='decay')),
    (user_models.Residual(), 3, DECAY, dict(weight_decay='decay')),
    (Dropped(), 1, RATE, dict(dropout={'Dropout_0': 'rate'}))])
def test_three_lines_make_a_model_self_tuning(
    model, channels, space, of_problem):
  problem, state, lost = tuned(model, channels, space, **of_problem)
  assert np.isfinite(lost).all() and lost[-1] < lost[0]
  name, = space
  found = schedule.from_history(problem.space, state.history)[name]
  assert found[0] == pytest.approx(space[name].start)
  assert len(np.unique(found)) == ROUNDS, 'it moves in every round'
  args = [True] if isinstance(model, Dropped) else []
  expected = jax.eval_shape(lambda key: model.init(
      key, examples(0, channels, B)['x'], *args), jax.random.key(0))
  assert jax.tree.map(np.shape, state.params) == jax.tree.map(
      np.shape, expected['params'])


def test_any_script_replays_a_schedule(tmp_path):
  """With NumPy, Flax and Optax alone; the file is written as the docs say."""
  problem, state, _ = tuned(
      Dropped(), 1, RATE, dropout={'Dropout_0': 'rate'})
  path = tmp_path / 'schedule.csv'
  stn_jax.schedule.write(path, stn_jax.schedule.from_history(
      problem.space, state.history), updates_per_round=T)

  rows = np.genfromtxt(path, delimiter=',', names=True)
  rates = [rows['rate'][np.searchsorted(rows['step'], step, 'right') - 1]
           for step in range(ROUNDS * T)]
  expected = schedule.from_history(problem.space, state.history)['rate']
  np.testing.assert_array_equal(np.float32(rates), np.repeat(expected, T))

  class Plain(nn.Module):

    @nn.compact
    def __call__(self, x, rate):
      x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
      keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - rate, x.shape)
      return nn.Dense(10)(x * keep / (1 - rate))

  model, tx = Plain(), optax.sgd(0.01)
  key = jax.random.key(0)
  params = model.init(
      {'params': key, 'dropout': key}, examples(0, 1, B)['x'], 0.)
  opt_state = tx.init(params)

  @jax.jit
  def update(params, opt_state, batch, rate, key):
    value, grads = jax.value_and_grad(lambda params: loss(model.apply(
        params, batch['x'], rate, rngs={'dropout': key}), batch, None).mean())(
            params)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, value

  lost, batch = [], examples(0, 1, B)
  for step, rate in enumerate(rates):
    params, opt_state, value = update(
        params, opt_state, batch, rate,
        jax.random.fold_in(key, step))
    lost.append(float(value))
  assert np.mean(lost[-4:]) < np.mean(lost[:4])
