"""Brightness alarm, panels and the ledger of what students cost."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core_jax import flops
from core_jax import mesh as mesh_lib
from core_jax import metrics as metrics_lib
from msd_jax import students
from msd_jax import turns
from msd_jax import watch


def test_the_alarm_speaks_above_its_limit_alone():
  assert not watch.brightness_alarm({'brightness_drift': 0.9}, 1.)
  assert '1.20 deviations' in watch.brightness_alarm(
      {'brightness_drift': 1.2}, 1.)
  assert not watch.brightness_alarm({'brightness_drift': 9.}, 0.)
  assert not watch.brightness_alarm({'loss': 1.}, 1.)


def test_drift_is_the_worst_students_distance_in_deviations():
  update = lambda student, part, batch, own, key, shared: (
      student, {'brightness': student, 'loss': student})
  step = students.make_step(
      update, mesh_lib.make_mesh(devices=jax.devices()[:1]))
  state = students.State(
      step=jnp.int32(0), key=jax.random.key(0),
      students=jnp.array([0.1, 0.5]))
  frozen = {'classes': np.zeros((2, 1), np.int32), 'sizes': np.ones(2, int),
            'own': {'brightness': np.array([[0., .2], [.2, .1]], np.float32)}}
  _, metrics = step(state, {}, frozen)
  np.testing.assert_allclose(metrics['brightness_drift'], 3., rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], 0.3, rtol=1e-5)


def test_the_ledger_is_of_one_student(tmp_path):
  """Two lines of 3 s and 6 GFLOP a shard, 8 devices, 4 students on 2 shards.

  3 s x 2 x 8 devices / 4 students = 12 s; 6 GFLOP x 2 x 2 shards / 4 = 6.
  """
  with metrics_lib.MetricsWriter(tmp_path) as writer:
    for step in (1, 2):
      writer.write(step, 'students', {'brightness_drift': step / 10},
                   seconds=3., gflop=6.)
  stage = types.SimpleNamespace(
      name='students', mesh=mesh_lib.make_mesh(4, 2))
  row, = watch.ledger(tmp_path, [stage], {'students': 4})
  assert row == {'stage': 'students', 'networks': 4, 'tflop': 6e-3,
                 'device_seconds': 12.}
  assert watch.worst_drift(tmp_path, 'students') == (0.2, 2)
  assert watch.worst_drift(tmp_path, 'teacher') == (0., 0)


def test_flops_of_loops_are_counted_as_often_as_they_turn():
  w = jnp.zeros((3, 4))

  def round_(x):
    return jax.lax.scan(lambda x, _: (x @ w @ w.T, None), x, length=5)[0]

  # Each turn: 2 x 3 x 4 for each of two products of a row.
  assert flops.count(jax.make_jaxpr(round_)(jnp.zeros((2, 3)))) == (
      5 * 2 * 2 * 2 * 3 * 4)


def test_panels_show_generated_images_and_what_both_scores_see(tmp_path):
  level = lambda params, x, sigma, labels: jnp.full_like(x, params)
  networks = turns.Networks(
      generator=level, fake=level, teacher=level, generator_tx=optax.sgd(0.),
      fake_tx=optax.sgd(0.))
  shape = (8, 8, 1)
  panels = watch.make_panels(networks, turns.Settings(batch_size=4), shape)
  state = types.SimpleNamespace(students=turns.Student(
      generator=jnp.array([.1, .2]), generator_opt_state=(),
      fake=jnp.array([.3, .4]), fake_opt_state=(), ema=None))
  frozen = {'teacher': jnp.float32(.5), 'sizes': np.ones(2, np.int32),
            'classes': np.zeros((2, 1), np.int32)}
  watch.draw_panels(
      lambda *args: panels.__wrapped__(*args), 'students', state, frozen,
      str(tmp_path))
  assert watch.panel_path(tmp_path, 'students').stat().st_size > 1000
  found = panels.__wrapped__(state, frozen)
  expected = {'G(z)': [.1, .2]}
  for at in watch.PANEL_LEVELS:
    expected |= {f'real, level {at}': [.5, .5], f'fake, level {at}': [.3, .4]}
  assert found.keys() == expected.keys()
  for title, levels in expected.items():
    assert found[title].shape == (8, *shape)
    np.testing.assert_allclose(
        found[title][::4, 0, 0, 0], levels, rtol=1e-5)


@pytest.mark.parametrize('x, mean, deviation', [
    ([[0., 2.]], 1., 1.), ([[.5], [.5]], .5, 0.)])
def test_brightness_is_of_all_pixels(x, mean, deviation):
  found = turns.brightness(jnp.array(x))
  assert found['brightness'] == mean and found['contrast'] == deviation
