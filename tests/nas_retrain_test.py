"""Training from scratch, on a source whose least loss is known."""

import jax
import jax.numpy as jnp
import numpy as np

from core_jax import mesh as mesh_lib
from core_jax import text
from nas_jax import child as child_lib
from nas_jax import data
from nas_jax import experiment
from nas_jax import models
from nas_jax import retrain
from nas_jax import search
from nas_jax import space as space_lib


def test_a_trained_cell_comes_within_1_percent_of_the_floor():
  source = data.Markov.draw(4, order=1, concentration=0.5, seed=0)
  rng, window, batch_size = np.random.default_rng(0), 10, 16
  streams = search.Data(*[
      text.streams(source.sample(num, rng), batch_size, window)
      for num in (8_000, 4_000)])
  space = space_lib.enas(3)
  cell = space_lib.from_names(space, (0, 0, 1), ('tanh', 'relu', 'identity'))
  model = models.recurrent(child_lib.Child(
      space, 4, 16, sharing='node', init_scale=0.1))
  tx = experiment.make_optimizer(dict(
      kind='adam', lr=1e-2, clip_norm=0.25, weight_decay=0.0, decay=0.7,
      decay_from_round=2), 100)
  state = retrain.make_init(model, tx, batch_size, (0,))(
      {'arch': jax.tree.map(lambda x: jnp.asarray(x)[None], tuple(cell))})
  step = jax.jit(retrain.make_round(
      model, retrain.Settings(100, window), tx,
      mesh_lib.make_mesh(devices=jax.devices()[:1])))
  losses = []
  for _ in range(5):
    state, metrics = step(state, {}, {'data': streams})
    losses.append(float(metrics['valid_loss']))
  # What the source itself has on this sample, some hundredths off its rate.
  rows = streams.valid
  floor = -np.log(source.probs[rows[:, :-1], rows[:, 1:]]).mean()
  assert abs(floor - source.entropy_rate()) < 0.03
  assert floor - 0.005 < min(losses) < floor + np.log(1.01)
  assert np.log(4) > floor + np.log(1.3)  # A model that knows nothing.
