"""Full-size configs, made small: from published weights and files to students;
split states, microbatches and rematerialisation change no result."""

import collections
import dataclasses
import io
import json
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from configs import cifar10
from configs import digits
from configs import imagenet64
from core_jax import loop
import msd_jax
from msd_jax import conv
from msd_jax import convert
from msd_jax import data
from msd_jax import networks
from msd_jax import published
from msd_jax import setup
from msd_jax import stages
from msd_jax import torch_files
from msd_jax import train

CONFIGS = {'imagenet64': imagenet64, 'cifar10': cifar10}


def images_like(config, num=32):
  shape, num_classes = config.declared.shape, config.declared.num_classes
  random = np.random.default_rng(0)
  return (random.integers(0, 256, (num, *shape), np.uint8),
          np.arange(num) % num_classes)


def write_edm_zip(path, images, labels):
  names = [f'00000/img{i:08d}.png' for i in range(len(images))]
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    for name, image in zip(names, images, strict=True):
      buffer = io.BytesIO()
      PIL.Image.fromarray(image).save(buffer, 'PNG')
      archive.writestr(name, buffer.getvalue())
    archive.writestr('dataset.json', json.dumps(
        {'labels': list(zip(names, labels.tolist(), strict=True))}))


def write_cifar10(path, images, labels):
  """Its binary batches."""
  path.mkdir()
  rows = np.concatenate([
      labels.astype(np.uint8)[:, None],
      images.transpose(0, 3, 1, 2).reshape(len(images), -1)], axis=1)
  for i in range(1, 6):
    (path / f'data_batch_{i}.bin').write_bytes(rows.tobytes())
  (path / 'test_batch.bin').write_bytes(rows.tobytes())


def with_files(config, tmp_path):
  """The config with data of its format and a teacher of random weights."""
  write = write_edm_zip if config.dataset == 'edm_zip' else write_cifar10
  write(tmp_path / 'data', *images_like(config))
  if config.dataset == 'cifar10':
    config.declared.num_train = 5 * 32  # Of five batches.
  config.data_path = str(tmp_path / 'data')
  module = networks.build(
      config.teacher.network, config.declared.shape,
      config.declared.num_classes)
  params = networks.init_params(
      module, jax.random.key(0), config.declared.shape)
  published.write_safetensors(
      published.to_tensors(params, module), str(tmp_path / 'edm.safetensors'))
  convert.convert(
      str(tmp_path / 'edm.safetensors'), str(tmp_path / 'teacher'))
  config.teacher_workdir = str(tmp_path / 'teacher')
  return config.lock()


@pytest.mark.parametrize('name, chain', [
    ('imagenet64', ('students_dm', 'students')),
    ('cifar10', ('students',))])  # At 32x32 a stage takes a minute to compile.
def test_a_config_goes_from_published_weights_to_students(
    name, chain, tmp_path, monkeypatch):
  # As on accelerators: sixteen products for each take as long again.
  monkeypatch.setattr(conv, '_conv3x3', conv._ordinary)
  config = CONFIGS[name].get_config('tiny')
  assert config.student_stages == 'dm+adm'
  if len(chain) == 1:
    config.student_stages = 'adm'
  config = with_files(config, tmp_path)
  make_stages, traces = stages.make_stages, collections.Counter()

  def counted(stage):
    def step(*args):
      traces[stage.name] += 1
      return stage.step(*args)
    return dataclasses.replace(stage, step=step)

  monkeypatch.setattr(stages, 'make_stages', lambda *args: [
      counted(stage) for stage in make_stages(*args)])
  train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert traces == dict.fromkeys(chain, 1)
  bundle, _ = msd_jax.load(str(tmp_path / 'run'))
  images = msd_jax.generate(bundle, np.arange(4), jax.random.key(0))
  assert np.isfinite(images).all() and images.std() > 0


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_has_a_second_method_and_says_which_files_it_wants(
    name, tmp_path):
  config = with_files(CONFIGS[name].get_config('tiny'), tmp_path)
  config.student_stages = 'consistency'
  with pytest.raises(torch_files.FileError, match='needs lpips_vgg_path'):
    stages.make_stages(setup.make(config))
  config.consistency.distance = 'l2'
  assert stages.make_stages(setup.make(config))[-1].num_steps == 2
  config.student_stages = 'post'
  config.post.distance = 'l2'
  with pytest.raises(ValueError, match='post.workdir is not set'):
    stages.make_stages(setup.make(config))


@pytest.mark.parametrize('variant, params', [
    ('', 295_899_267), ('s', 172_813_603), ('xs', 85_943_555)])
def test_students_have_the_sizes_that_the_docs_say(variant, params):
  config = imagenet64.get_config(variant)
  module = networks.build(config.students.network, (64, 64, 3), 1000)
  shapes = jax.eval_shape(lambda key: networks.init_params(
      module, key, (64, 64, 3)), jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == params


def test_tiny_students_have_the_teachers_network_where_large_ones_do():
  for variant, same in (('tiny', True), ('s+tiny', False)):
    config = imagenet64.get_config(variant)
    assert (config.students.network == config.teacher.network) == same


def test_one_student_takes_the_rounds_of_four():
  four, single = (imagenet64.get_config(v) for v in ('', 'single'))
  assert single.num_students == 1 and single.students.ema_decay
  assert single.students.num_steps == 4 * four.students.num_steps
  assert single.adm.num_steps == 4 * four.adm.num_steps


@pytest.mark.parametrize('name', CONFIGS)
def test_an_unknown_variant_is_refused_with_those_there_are(name):
  with pytest.raises(ValueError, match="'large' is not known.*':tiny'"):
    CONFIGS[name].get_config('tiny+large')


def test_a_plan_needs_no_files_and_a_run_checks_what_was_declared(tmp_path):
  config = imagenet64.get_config('tiny')
  promised = data.declared(config)
  assert promised.shape == (3, 3, 3) and len(promised.train) == 32
  assert data.declared(digits.get_config()) is None
  with_files(config, tmp_path)
  config.declared.num_classes = 5
  with pytest.raises(data.DataError, match='declared.num_classes is 5'):
    data.load(config)


@pytest.mark.parametrize('kind', ['adm', 'ddpmpp'])
def test_rematerialised_blocks_have_the_same_gradients(kind):
  small = dict(kind=kind, model_channels=8, channel_mult=(1,), num_blocks=1,
               attention_resolutions=(), dropout=0.)
  x = jax.random.normal(jax.random.key(1), (2, 5, 5, 3))
  grads = []
  for remat in (False, True):
    module = networks.build(small, (5, 5, 3), 2, remat=remat)
    params = networks.init_params(module, jax.random.key(0), (5, 5, 3))
    params = jax.tree.map(  # a new network is 0, and most gradients with it
        lambda p: p + .1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape),
        params)
    loss = lambda params, m=module: jnp.mean(jnp.square(
        networks.apply_fn(m)(params, x, jnp.zeros(2), jnp.array([0, 1]))))
    grads.append(jax.jit(jax.grad(loss))(params))
  chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-6)


def test_an_mlp_is_float32_and_whole():
  with pytest.raises(ValueError, match="compute.dtype='bfloat16'"):
    networks.build(dict(kind='mlp'), (2,), 8, dtype='bfloat16')


def small_digits(**changes):
  config = digits.get_config('tiny')
  config.update_from_flattened_dict({
      'teacher.network.depth': 1, 'students.network.depth': 1,
      'students.ratio': 2, 'baselines': (), 'num_students': 2, **changes})
  config.classifier = None
  return config.lock()


def fit(config, workdir, devices):
  run = setup.make(config, devices)
  return loop.fit(stages.make_stages(run), config, str(workdir))


def test_split_states_train_the_same_students_as_one_device(tmp_path):
  whole = small_digits(student_stages='adm')
  split = small_digits(student_stages='adm', **{'compute.fsdp': True})
  run = setup.make(split, jax.devices())
  stage = stages.make_stages(run)[-1]
  frozen = jax.eval_shape(
      stage.frozen, {'teacher': networks.init_params(
          run.teacher, jax.random.key(0), run.dataset.shape)})
  state = loop.abstract_state(stage, frozen)
  kernels = [x for x in jax.tree.leaves(state.students.generator)
             if x.size >= 2 * 2**10]
  assert kernels and all('data' in x.sharding.spec for x in kernels)
  chex.assert_trees_all_close(
      fit(whole, tmp_path / 'one', jax.devices()[:1]),
      fit(split, tmp_path / 'eight', jax.devices()), atol=1e-4)


def test_a_split_state_is_restored_on_other_devices(tmp_path):
  config = small_digits(**{'compute.fsdp': True})
  straight = fit(config, tmp_path / 'straight', jax.devices()[:4])
  for name, devices in (('teacher', 8), ('students', 2)):
    run = setup.make(config, jax.devices()[:devices])
    todo = [s if s.name != name else dataclasses.replace(
        s, batch=_stopping(s.batch, 3)) for s in stages.make_stages(run)]
    with pytest.raises(KeyboardInterrupt):
      loop.fit(todo, config, str(tmp_path / 'moved'))
  moved = fit(config, tmp_path / 'moved', jax.devices()[:4])
  chex.assert_trees_all_close(straight, moved, atol=1e-4)


def _stopping(batch, last):
  """A source of batches that fails after some steps, as a machine does."""
  def stopped(step):
    if step >= last:
      raise KeyboardInterrupt
    return batch(step)
  return stopped


def test_a_run_in_microbatches_ends_in_finite_students(tmp_path):
  config = small_digits(**{'compute.microbatches': 2})
  results = fit(config, tmp_path, jax.devices()[:2])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(
      results['students']['generator']))
