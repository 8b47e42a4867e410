"""Consistency distillation and post-distillation against closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from core_jax import mesh as mesh_lib
from msd_jax import diffusion
from msd_jax import losses
from msd_jax import partition
from msd_jax import regress
from msd_jax import students
from msd_jax import turns

DEVIATION = 0.4  # of the data, N(mean of the class, DEVIATION^2)
MEANS = jnp.array([-0.5, 0.7])


def denoised(params, x, sigma, labels):
  """E[clean | x] of the data."""
  del params
  variance, noise = DEVIATION**2, sigma[:, None]**2
  return (variance * x + noise * MEANS[labels][:, None]) / (variance + noise)


def trajectory(x, sigma, lower, mean=0.):
  """The exact probability flow of a Gaussian: deviations scale together."""
  scale = jnp.sqrt((DEVIATION**2 + lower**2) / (DEVIATION**2 + sigma**2))
  return mean + (x - mean) * scale[:, None]


def test_the_consistency_function_is_its_input_at_the_lowest_level():
  network = lambda params, x, c_noise, labels: 7. * jnp.ones_like(x)
  f = diffusion.make_denoiser(network, 0.5, sigma_min=0.002)
  x = jax.random.normal(jax.random.key(0), (3, 2))
  lowest, labels = jnp.full(3, 0.002), jnp.zeros(3, jnp.int32)
  np.testing.assert_array_equal(f(None, x, lowest, labels), x)
  edm = diffusion.make_denoiser(network, 0.5)
  assert jnp.abs(edm(None, x, lowest, labels) - x).max() > 0.01
  # At sigma_max the two are one, so a student can start from the teacher.
  highest = jnp.full(3, 80.)
  np.testing.assert_allclose(
      f(None, x, highest, labels), edm(None, x, highest, labels), rtol=1e-4)


def test_heun_steps_are_of_second_order():
  """The error of a unit of the flow falls by four where steps are halved."""
  x, labels = jnp.array([[1.3]]), jnp.zeros(1, jnp.int32)

  def error(num):
    levels = jnp.linspace(2., 1., num + 1)
    y = x
    for high, low in zip(levels[:-1], levels[1:], strict=True):
      y = regress.heun_step(
          lambda x, sigma: denoised(None, x, sigma, labels), y, high[None],
          low[None])
    return jnp.abs(y - trajectory(
        x, jnp.array([2.]), jnp.array([1.]), MEANS[0])).item()

  with jax.enable_x64(True):
    orders = np.log2([error(2) / error(4), error(4) / error(8)])
  np.testing.assert_allclose(orders, 2., atol=0.15)


def consistency_run(loss_of, mesh, num_levels=12, target_decay=0.9):
  """Two students that know one number a class: the mean of the flow's end."""
  levels = diffusion.karras_sigmas(num_levels, 0.01, 10.)[::-1]

  def student(params, x, sigma, labels):
    mean = params['mean'][labels][:, None]
    scale = jnp.sqrt(
        (DEVIATION**2 + levels[0]**2) / (DEVIATION**2 + sigma**2))[:, None]
    return jnp.where(
        sigma[:, None] <= levels[0], x, mean + (x - mean) * scale)

  tx = optax.adam(2e-2)
  settings = regress.Settings(target_decay=target_decay, ema_decay=0.9)
  classes, sizes = partition.members(np.array([0, 1]))
  frozen = {'teacher': {}, 'start': {'mean': jnp.zeros(2)},
            'classes': classes, 'sizes': sizes}
  loss = loss_of(student, levels)
  init = regress.make_init(tx, settings, 2, key=jax.random.key(0))
  state = jax.jit(init)(frozen)
  return state, regress.make_step(loss, tx, settings, mesh), frozen


def consistency_loss(student, levels):
  return regress.make_consistency_loss(
      student, denoised, lambda params: losses.square_distance, levels)


def clean(step, batch_size=64):
  random = np.random.default_rng(step)
  label = np.broadcast_to(np.array([0, 1], np.int32), (batch_size, 2))
  noise = random.standard_normal((batch_size, 2, 1), np.float32)
  return {'clean': {
      'image': np.asarray(MEANS)[label][..., None] + DEVIATION * noise,
      'label': label}}


def one_device():
  return mesh_lib.make_mesh(devices=jax.devices()[:1])


def test_consistency_distillation_finds_the_flow_of_each_students_classes():
  state, step, frozen = consistency_run(consistency_loss, one_device())
  step = jax.jit(step)
  for i in range(250):
    state, metrics = step(state, clean(i), frozen)
  for average in (state.students.generator, state.students.ema,
                  state.students.target):
    np.testing.assert_allclose(average['mean'][0, 0], MEANS[0], atol=0.08)
    np.testing.assert_allclose(average['mean'][1, 1], MEANS[1], atol=0.08)
  # A class of the other student is never seen: its weight stays.
  assert state.students.generator['mean'][0, 1] == 0
  assert metrics['loss'] < 1e-3


def test_no_gradient_reaches_the_slow_target_and_it_follows():
  state, step, frozen = consistency_run(consistency_loss, one_device())
  new, _ = jax.jit(step)(state, clean(0), frozen)
  chex.assert_trees_all_close(
      new.students.target,
      jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state.students.target,
                   new.students.generator), atol=1e-6)


def test_without_decay_the_target_is_the_student_itself():
  """The first step is that of any decay, since both start as one."""
  ends = []
  for decay in (0., 0.9):
    state, step, frozen = consistency_run(
        consistency_loss, one_device(), target_decay=decay)
    ends.append(jax.jit(step)(state, clean(0), frozen)[0].students)
  assert ends[0].target is None
  chex.assert_trees_all_close(
      ends[0].generator, ends[1].generator, rtol=1e-6)


def test_eight_devices_equal_one():
  ends = []
  for mesh in (one_device(), mesh_lib.make_mesh(2)):
    state, step, frozen = consistency_run(consistency_loss, mesh)
    spec = students.State(
        step=mesh_lib.P(), key=mesh_lib.P(), students=mesh_lib.P('student'))
    step = mesh_lib.compile_step(step, mesh, spec)
    state = jax.device_put(state, mesh_lib.shardings(
        mesh, jax.tree.broadcast(spec, state)))
    batch = mesh_lib.put(clean(0), mesh, mesh_lib.P('data'))
    state, metrics = step(
        state, batch, mesh_lib.put(frozen, mesh, mesh_lib.P()))
    ends.append(jax.device_get((state.students, metrics)))
  chex.assert_trees_all_close(*ends, atol=2e-5)


def test_post_distillation_copies_each_students_own_teacher():
  """Large students that map z to a + b z; small ones of the same form."""
  affine = lambda params, x, sigma, labels: (
      params['a'] + params['b'] * x / sigma[:, None])
  mesh = one_device()
  loss = regress.make_post_loss(
      affine, affine, lambda params: losses.square_distance,
      lambda key, part: turns.draw(key, part, 64, (1,), mesh), 20.)
  tx, settings = optax.adam(3e-2), regress.Settings()
  classes, sizes = partition.members(np.array([0, 1]))
  large = {'a': jnp.array([1., -1.]), 'b': jnp.array([.5, .2])}
  frozen = {'start': {'a': jnp.float32(0), 'b': jnp.float32(0)},
            'own': {'large': large}, 'classes': classes, 'sizes': sizes}
  state = regress.make_init(tx, settings, 2, key=jax.random.key(0))(frozen)
  step = jax.jit(regress.make_step(loss, tx, settings, mesh))
  for _ in range(200):
    state, _ = step(state, {}, frozen)
  chex.assert_trees_all_close(state.students.generator, large, atol=0.02)
  assert state.students.ema is None and state.students.target is None
