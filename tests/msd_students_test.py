"""The DM round: what it learns, in what order, alone and on a mesh."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core_jax import mesh as mesh_lib
from msd_jax import diffusion
from msd_jax import networks
from msd_jax import partition
from msd_jax import students
from msd_jax import turns

# A teacher of two classes: N(-0.5, 0.4^2) and N(0.7, 0.2^2), exact denoisers.
TEACHER = {'mean': jnp.array([-0.5, 0.7]), 'log': jnp.log(jnp.array([.4, .2]))}


def denoised(params, x, sigma, labels):
  """E[clean | x] of a Gaussian for each class; x [B, 1]."""
  mean = params['mean'][labels][:, None]
  variance = jnp.exp(2 * params['log'][labels])[:, None]
  noise = sigma[:, None]**2
  return (variance * x + noise * mean) / (variance + noise)


def generator(params, x, sigma, labels):
  """The map from noise to N(mean, deviation^2) of each class."""
  z = x / sigma[:, None]
  return params['mean'][labels][:, None] + z * jnp.exp(
      params['log'][labels])[:, None]


def gaussian_round(mesh, router, ratio=5):
  tx = optax.adam(1e-2)
  parts = turns.Networks(generator, denoised, denoised, tx, tx)
  settings = turns.Settings(batch_size=512, ratio=ratio, sigma_max=20.)
  classes, sizes = partition.members(router)
  start = {'mean': jnp.zeros(2), 'log': jnp.log(jnp.full(2, 0.3))}
  frozen = {'teacher': TEACHER, 'start': start, 'classes': classes,
            'sizes': sizes}
  init = students.make_init(
      parts, len(sizes), key=jax.random.key(0), ema=False)
  state = init({**frozen, 'teacher': start})  # the fake score is of the start
  return state, students.make_round(parts, settings, (1,), mesh), frozen


def one_device():
  return mesh_lib.make_mesh(devices=jax.devices()[:1])


def test_students_find_their_classes_of_a_gaussian_teacher():
  state, round_, frozen = gaussian_round(one_device(), np.array([0, 1]))
  state, _ = jax.jit(lambda s: jax.lax.scan(
      lambda s, _: round_(s, {}, frozen), s, length=600))(state)
  found = state.students.generator
  for k in range(2):
    np.testing.assert_allclose(
        found['mean'][k, k], TEACHER['mean'][k], atol=0.05)
    np.testing.assert_allclose(
        jnp.exp(found['log'][k, k]), jnp.exp(TEACHER['log'][k]), atol=0.05)
    # A class of the other student is never drawn: its weights stay.
    assert found['mean'][k, 1 - k] == 0


def test_a_round_starts_with_no_gradient_where_fake_and_teacher_are_one():
  state, round_, frozen = gaussian_round(one_device(), np.array([0, 0]))
  state = state.replace(students=state.students.replace(
      fake=jax.tree.map(lambda x: x[None], TEACHER)))
  _, metrics = jax.jit(round_)(state, {}, frozen)
  assert metrics['dm_gradient_abs'] < 1e-6  # One formula, fused in two ways.


def test_the_fake_score_learns_ratio_times_a_round():
  state, round_, frozen = gaussian_round(one_device(), np.array([0, 0]), 3)
  state, _ = jax.jit(round_)(state, {}, frozen)
  counts = [optax.tree.get(opt, 'count') for opt in (
      state.students.generator_opt_state, state.students.fake_opt_state)]
  np.testing.assert_array_equal(counts, [[1], [3]])


def test_the_first_fake_update_sees_the_images_of_the_generators_turn():
  """At ratio 1 a large generator step must not reach the fake score."""
  changed = []
  for lr in (0., 10.):
    _, _, frozen = gaussian_round(one_device(), np.array([0, 0]))
    parts = turns.Networks(
        generator, denoised, denoised, optax.sgd(lr), optax.sgd(1e-3))
    settings = turns.Settings(batch_size=64, ratio=1, sigma_max=20.)
    init = students.make_init(parts, 1, key=jax.random.key(0), ema=False)
    start = {'mean': jnp.zeros(2), 'log': jnp.zeros(2)}
    state = init({'teacher': start, 'start': start})
    round_ = students.make_round(parts, settings, (1,), one_device())
    state, _ = jax.jit(round_)(state, {}, frozen)
    changed.append(state.students)
  chex.assert_trees_all_equal(changed[0].fake, changed[1].fake)
  assert (changed[0].generator['mean'] != changed[1].generator['mean']).any()


def test_the_generator_maps_noise_at_sigma_max():
  """G(z) is about 0.5 F + 0.0031 z at sigma 80 (with F = 0: 0.0031 z)."""
  module = networks.build(dict(kind='mlp', width=8, depth=1), (2,), 3)
  params = networks.init_params(module, jax.random.key(0), (2,))
  g = diffusion.make_denoiser(networks.apply_fn(module), 0.5)
  z = jax.random.normal(jax.random.key(1), (4, 2))
  np.testing.assert_allclose(
      turns.generated(g, params, z, jnp.zeros(4, jnp.int32), 80.),
      0.0031249 * z, rtol=1e-3)


def mlp_run(mesh, num_rounds=2):
  module = networks.build(dict(kind='mlp', width=16, depth=1), (2,), 4)
  d = diffusion.make_denoiser(networks.apply_fn(module), 0.5)
  tx = optax.chain(optax.clip_by_global_norm(10.), optax.adamw(1e-3))
  parts = turns.Networks(d, d, d, tx, tx)
  params = networks.init_params(module, jax.random.key(0), (2,))
  noisy = lambda seed: jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(jax.random.key(seed), x.shape),
      params)
  classes, sizes = partition.members(partition.consecutive(4, 4))
  frozen = {'teacher': noisy(1), 'start': noisy(2), 'classes': classes,
            'sizes': sizes}
  init = students.make_init(parts, 4, key=jax.random.key(0), ema=True)
  spec = students.State(
      step=mesh_lib.P(), key=mesh_lib.P(), students=mesh_lib.P('student'))
  settings = turns.Settings(batch_size=16, ratio=2, ema_decay=0.9)
  step = mesh_lib.compile_step(
      students.make_round(parts, settings, (2,), mesh), mesh, spec)
  state = jax.jit(
      init, out_shardings=mesh_lib.shardings(mesh, spec))(frozen)
  frozen = mesh_lib.put(frozen, mesh, mesh_lib.P())
  for _ in range(num_rounds):
    state, metrics = step(state, {}, frozen)
  return state, metrics


@pytest.fixture(scope='module')
def alone():
  return jax.device_get(mlp_run(one_device()))


@pytest.mark.parametrize('student_devices', [1, 2, 4])
def test_eight_devices_equal_one(alone, student_devices):
  mesh = mesh_lib.make_mesh(4, student_devices)
  assert mesh.shape['data'] == 8 // student_devices
  state, metrics = mlp_run(mesh)
  layout = jax.tree.leaves(state.students)[0].sharding.spec
  assert layout[:1] == ('student',)
  chex.assert_trees_all_close(
      (jax.device_get(state.students), jax.device_get(metrics)),
      (alone[0].students, alone[1]), atol=2e-5)


def test_a_round_holds_the_students_once(num=8, side=256):
  """Beside the state, which is donated, there is work space of a student.

  On CPU, what is read after its next state is known would be copied.
  """
  update = lambda student, part, batch, own, key, shared: (
      student @ student, {'loss': part[1]})
  state = students.State(
      step=jnp.int32(0), key=jax.random.key(0),
      students=jax.ShapeDtypeStruct((num, side, side), jnp.float32))
  frozen = {'classes': np.zeros((num, 1), np.int32),
            'sizes': np.ones(num, np.int32)}
  step = jax.jit(students.make_step(update, one_device()), donate_argnums=0)
  memory = step.lower(state, {}, frozen).compile().memory_analysis()
  assert memory.temp_size_in_bytes < num * side**2 * 4 / 2


def test_students_do_not_touch_each_other():
  """The second starts elsewhere: the first ends in the same bits."""
  state, round_, frozen = gaussian_round(one_device(), np.array([0, 1]))
  moved = state.replace(students=jax.tree.map(
      lambda x: x.at[1].add(jnp.ones((), x.dtype)), state.students))
  ends = [jax.jit(round_)(s, {}, frozen)[0].students for s in (state, moved)]
  first, last = (
      [jax.tree.map(lambda x, k=k: x[k], end) for end in ends] for k in (0, 1))
  chex.assert_trees_all_equal(*first)
  assert (last[0].generator['mean'] != last[1].generator['mean']).all()
