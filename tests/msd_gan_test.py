"""Adversarial DM: losses, head and encoder features, and what a round does."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core_jax import mesh as mesh_lib
from msd_jax import conv
from msd_jax import discriminator
from msd_jax import losses
from msd_jax import networks
from msd_jax import partition
from msd_jax import published
from msd_jax import students
from msd_jax import turns
from msd_jax import unet


def test_a_critic_that_cannot_tell_loses_two_ln_two():
  np.testing.assert_allclose(
      losses.critic_loss(jnp.zeros(4), jnp.zeros(4)), 2 * np.log(2), rtol=1e-6)


def test_gradients_of_both_losses_are_sigmoids():
  real, fake = jnp.array([-1., 2.]), jnp.array([.5, 3.])
  d_real, d_fake = jax.grad(losses.critic_loss, argnums=(0, 1))(real, fake)
  np.testing.assert_allclose(d_real, -jax.nn.sigmoid(-real) / 2, rtol=1e-6)
  np.testing.assert_allclose(d_fake, jax.nn.sigmoid(fake) / 2, rtol=1e-6)
  # The generator pulls logits up wherever they are: towards 'real'.
  np.testing.assert_allclose(
      jax.grad(losses.generator_gan_loss)(fake), -jax.nn.sigmoid(-fake) / 2,
      rtol=1e-6)


def test_the_best_critic_is_the_log_ratio_of_densities():
  """Three outcomes, p = (3, 4, 1) / 8 real and q = (1, 3, 4) / 8 fake."""
  real = jnp.array([0] * 3 + [1] * 4 + [2])
  fake = jnp.array([0] + [1] * 3 + [2] * 4)
  loss = lambda table: losses.critic_loss(table[real], table[fake])
  table = jax.lax.fori_loop(
      0, 300, lambda _, t: t - 4 * jax.grad(loss)(t), jnp.zeros(3))
  np.testing.assert_allclose(
      table, np.log([3 / 1, 4 / 3, 1 / 4]), atol=1e-4)


def test_matching_weight_gives_the_wanted_norm():
  wanted, found = jnp.array([[3., 4.]]), jnp.array([[1., 0.]])
  assert losses.matching_weight(wanted, found, 2.) == 10.


def test_the_head_has_dmd2s_parameters_at_imagenet64():
  shape = lambda: discriminator.init(jax.random.key(0), (8, 8, 768))
  params = jax.eval_shape(shape)
  assert sum(x.size for x in jax.tree.leaves(params)) == 18_879_745


def torch_head(channels):
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  nn = torch.nn
  return torch, nn.Sequential(
      nn.Conv2d(channels, channels, 4, 2, 1), nn.GroupNorm(32, channels),
      nn.SiLU(), nn.Conv2d(channels, channels, 4, 4, 0),
      nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, 1, 1))


def test_the_head_is_the_one_of_dmd2_in_torch():
  torch, peer = torch_head(128)
  params = published.head_to_params(
      {name: value.detach().numpy() for name, value in
       peer.state_dict().items()})
  chex.assert_trees_all_equal_shapes(
      params, jax.eval_shape(
          lambda key: discriminator.init(key, (8, 8, 128)),
          jax.random.key(0)))
  x = np.random.default_rng(0).standard_normal((3, 8, 8, 128), np.float32)
  expected = peer(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().numpy()
  np.testing.assert_allclose(
      jax.jit(discriminator.logits)(params, x), expected.reshape(3), atol=1e-5)


def test_a_head_of_other_shapes_is_refused():
  _, peer = torch_head(32)
  tensors = {name: value.detach().numpy() for name, value in
             peer.state_dict().items()}
  tensors['3.weight'] = tensors['3.weight'][..., :3, :3]
  with pytest.raises(published.MismatchError, match='3.weight is .*, not '):
    published.head_to_params(tensors)


@pytest.mark.parametrize('shape, convolutions', [
    ((16,), 2), ((2, 2, 16), 1), ((4, 4, 16), 1), ((32, 32, 16), 4)])
def test_heads_of_other_features(shape, convolutions):
  params = jax.eval_shape(
      lambda key: discriminator.init(key, shape), jax.random.key(0))
  assert sum('conv' in name for name in params) == convolutions
  logits = jax.eval_shape(
      discriminator.logits, params, jnp.zeros((3, *shape)))
  assert logits.shape == (3,)
  with pytest.raises(ValueError, match='square features'):
    discriminator.init(jax.random.key(0), (7, 7, 16))


@pytest.mark.parametrize('kind', ['adm', 'ncsnpp'])
def test_encoder_features_are_what_torchs_decoder_takes(kind, monkeypatch):
  monkeypatch.setattr(conv, '_conv3x3', conv._ordinary)
  torch = pytest.importorskip('torch')
  from benchmarks import torch_msd
  from tests import msd_songunet_test
  from tests import msd_unet_test
  from tests import torch_song
  torch.manual_seed(0)
  if kind == 'adm':
    config = dict(msd_unet_test.TINY, channels_per_head=32)
    peer = torch_msd.ADM(**config, dropout=0.)
    torch_msd.randomize(peer)
    module, size = unet.ADM(**config), 8
  else:
    config = msd_songunet_test.TINY
    peer = torch_song.Song(**config, **msd_songunet_test.NCSN)
    module, size = networks.NETWORKS[kind](**config), 16
  seen = []
  first = next(iter(peer.dec.values()))
  first.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
  x, c_noise, labels = msd_unet_test.inputs(size=size)
  tensor = lambda a: torch.from_numpy(np.array(a))
  with torch.no_grad():
    peer(tensor(x).permute(0, 3, 1, 2), tensor(c_noise),
         tensor(labels).long())
  params = published.to_params(
      {name: value.numpy() for name, value in peer.state_dict().items()},
      module)
  found = jax.jit(networks.encode_fn(module))(params, x, c_noise, labels)
  expected = seen[0].permute(0, 2, 3, 1).numpy()
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, atol=1e-4)


# A round on points [B, 1]: a teacher that is no help, so that only the
# discriminator can tell where the real points are.

REAL = 1.5


def denoised(params, x, sigma, labels):
  return x / (1 + sigma[:, None]**2) + params['mean'][None]


def features(params, x, sigma, labels):
  """An encoder of one layer: [B, 1] -> [B, 8]."""
  scaled = x / jnp.sqrt(1 + sigma[:, None]**2)
  return jnp.tanh(scaled @ params['w'] + params['b'][None])


def make_networks():
  shift = lambda params, x, sigma, labels: (
      params['mean'][None] + 0.1 * x / sigma[:, None])
  return turns.Networks(
      generator=shift, fake=denoised, teacher=denoised,
      generator_tx=optax.adam(2e-2), fake_tx=optax.adam(3e-3),
      features=features, init_head=lambda key: discriminator.init(key, (8,)))


def make_run(gan, mesh=None):
  """State, round and frozen weights of two students."""
  parts = make_networks()
  settings = turns.Settings(batch_size=64, ratio=2, sigma_max=20., gan=gan)
  classes, sizes = partition.members(np.array([0, 1]))
  random = np.random.default_rng(0)
  frozen = {
      'teacher': {name: random.standard_normal(shape, np.float32) for
                  name, shape in (('mean', 1), ('w', (1, 8)), ('b', 8))},
      'start': {'mean': jnp.zeros(1)}, 'classes': classes, 'sizes': sizes}
  mesh = mesh or mesh_lib.make_mesh(devices=jax.devices()[:1])
  init = jax.jit(students.make_init(parts, 2, key=jax.random.key(0), ema=False))
  return init(frozen), students.make_round(
      parts, settings, (1,), mesh), frozen


def real_points(step, batch_size=64, ratio=2):
  """Student k's real points lie at REAL (-1)^k."""
  random = np.random.default_rng(step)
  image = 0.1 * random.standard_normal((batch_size, 2, ratio, 1), np.float32)
  image += REAL * np.array([1, -1], np.float32)[None, :, None, None]
  label = np.broadcast_to(
      np.array([0, 1], np.int32)[None, :, None], image.shape[:3])
  return {'real': {'image': image, 'label': label}}


def test_the_discriminator_draws_each_student_to_its_real_points():
  # At first the fake score is the teacher's and DM says nothing.
  gan = turns.Gan(weight=10., critic_weight=1., max_level=600)
  state, round_, frozen = make_run(gan)
  step = jax.jit(round_)
  for i in range(100):
    state, metrics = step(state, real_points(i), frozen)
  mean = state.students.generator['mean'][:, 0]
  assert mean[0] > 0.3 and mean[1] < -0.3
  assert metrics['gan_weight'] == 10.


def test_without_weights_the_discriminator_changes_nothing_but_itself():
  ends = []
  for gan in (turns.Gan(weight=0., critic_weight=0.), None):
    state, round_, frozen = make_run(gan)
    batch = real_points(0) if gan else {}
    state, _ = jax.jit(round_)(state, batch, frozen)
    ends.append((state.students.generator, state.students.fake))
  chex.assert_trees_all_close(*ends, atol=1e-6)


def one_student(gan):
  """A recipe, a student, points, labels and a teacher, without the axis K."""
  state, _, frozen = make_run(gan)
  recipe = turns.Recipe(
      make_networks(), turns.Settings(64, sigma_max=20., gan=gan), (1,),
      mesh_lib.make_mesh(devices=jax.devices()[:1]))
  student = jax.tree.map(lambda x: x[0], state.students)
  x = jax.random.normal(jax.random.key(1), (64, 1))
  return recipe, student, x, jnp.zeros(64, jnp.int32), frozen['teacher']


@pytest.mark.parametrize('backbone', ['fake', 'teacher'])
def test_the_critic_teaches_the_fake_encoder_but_no_frozen_one(backbone):
  recipe, student, x, labels, teacher = one_student(
      turns.Gan(backbone=backbone))
  loss = lambda guidance: turns.judged(
      recipe, guidance, teacher, x, labels, jax.random.key(0)).sum()
  fake, head = jax.jit(jax.grad(loss))((student.fake, student.head))
  assert optax.tree.norm(head) > 0
  assert (optax.tree.norm(fake) > 0) == (backbone == 'fake')


def test_without_diffusion_the_discriminator_sees_clean_images():
  recipe, student, x, labels, teacher = one_student(turns.Gan(max_level=0))
  judge = jax.jit(lambda key: turns.judged(
      recipe, (student.fake, student.head), teacher, x, labels, key))
  chex.assert_trees_all_equal(*map(judge, map(jax.random.key, (0, 1))))


def test_matched_gives_both_gradients_one_norm():
  recipe, student, x, labels, teacher = one_student(
      turns.Gan(weight=turns.MATCHED, match_factor=0.5))
  # The fake score has moved, so that DM has something to say.
  student = student.replace(fake={**student.fake, 'mean': jnp.ones(1)})
  _, _, metrics = jax.jit(lambda student: turns.update_generator(
      recipe, student, (x, labels), None, jax.random.key(0),
      {'teacher': teacher}))(student)
  assert metrics['dm_x_grad_norm'] > 0
  np.testing.assert_allclose(
      metrics['gan_weight'] * metrics['gan_x_grad_norm'],
      0.5 * metrics['dm_x_grad_norm'], rtol=1e-4)


def test_a_fake_score_gone_to_infinity_moves_no_image_and_is_logged():
  recipe, student, x, labels, teacher = one_student(None)
  student = student.replace(fake={**student.fake, 'mean': jnp.full(1, jnp.inf)})
  _, _, metrics = jax.jit(lambda student: turns.update_generator(
      recipe, student, (x, labels), None, jax.random.key(0),
      {'teacher': teacher}))(student)
  assert metrics['dm_not_finite'] == 1 and metrics['dm_x_grad_norm'] == 0


def test_a_fake_score_that_breaks_says_so_in_the_same_update():
  recipe, student, x, labels, teacher = one_student(None)

  @jax.custom_jvp
  def broken(x):
    return x

  broken.defjvps(lambda dx, y, x: dx * jnp.inf)
  sound = recipe.networks.fake
  fake = lambda *args: broken(sound(*args))
  recipe = dataclasses.replace(
      recipe, networks=dataclasses.replace(recipe.networks, fake=fake))
  carry = (student.fake, student.head), student.fake_opt_state
  _, found = turns.update_fake(
      recipe, teacher, carry, (x, labels, None, jax.random.key(0)))
  assert np.isfinite(found['fake_loss'])
  assert not np.isfinite(found['fake_grad_norm'])


def test_heads_are_new_and_each_students_own():
  state, _, _ = make_run(turns.Gan())
  kernel = state.students.head['conv0']['kernel']
  assert kernel.shape[0] == 2 and (kernel[0] != kernel[1]).any()


def test_eight_devices_equal_one():
  ends = []
  for mesh in (mesh_lib.make_mesh(devices=jax.devices()[:1]),
               mesh_lib.make_mesh(2)):
    state, round_, frozen = make_run(turns.Gan(), mesh)
    spec = students.State(
        step=mesh_lib.P(), key=mesh_lib.P(), students=mesh_lib.P('student'))
    step = mesh_lib.compile_step(round_, mesh, spec)
    state = jax.device_put(state, mesh_lib.shardings(
        mesh, jax.tree.broadcast(spec, state)))
    for i in range(2):
      batch = mesh_lib.put(real_points(i), mesh, mesh_lib.P('data'))
      state, metrics = step(
          state, batch, mesh_lib.put(frozen, mesh, mesh_lib.P()))
    ends.append(jax.device_get((state.students, metrics)))
  chex.assert_trees_all_close(*ends, atol=2e-5)
