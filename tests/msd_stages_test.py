"""From stage to stage: what is carried over, resumed, filtered, refused."""

import collections
import dataclasses
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import digits
from core_jax import checkpoint
from core_jax import data as core_data
from core_jax import loop
import msd_jax
from msd_jax import batches
from msd_jax import convert
from msd_jax import data
from msd_jax import diffusion
from msd_jax import distillation
from msd_jax import given
from msd_jax import make_pairs
from msd_jax import networks
from msd_jax import published
from msd_jax import recipe
from msd_jax import results
from msd_jax import setup
from msd_jax import stages
from msd_jax import train

ONE = [jax.devices()[0]]


def tiny(**changes):
  """Two students of few weights, and no classifier."""
  config = digits.get_config('tiny')
  config.classifier = None
  config.update_from_flattened_dict({
      'teacher.network.width': 16, 'teacher.network.depth': 1,
      'students.network.width': 16, 'students.network.depth': 1,
      'students.ratio': 2, 'num_students': 2, 'baselines': (), **changes})
  return config.lock()


def fit(config, workdir, devices=None, traces=None):
  """Trains all stages; counts traces of their steps."""
  run = setup.make(config)
  run = dataclasses.replace(run, mesh=setup.mesh_lib.make_mesh(
      config.num_students, devices=devices))
  found = given.results(config, run.teacher)

  def counted(stage):
    def step(*args):
      traces[stage.name] += 1
      return stage.step(*args)
    return stage if traces is None else dataclasses.replace(stage, step=step)

  todo = [counted(stage) for stage in stages.make_stages(run, found)]
  return loop.fit(todo, config, str(workdir), found)


CHAIN = 'dm+adm'


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
  """MSD's two stages, one after the other."""
  path = tmp_path_factory.mktemp('chain')
  traces = collections.Counter()
  return path, fit(tiny(student_stages=CHAIN), path, ONE, traces), traces


def test_a_chain_of_stages_traces_each_once_and_ends_in_generators(chain):
  _, found, traces = chain
  names = {'teacher', 'students_dm', 'students'}
  assert traces == dict.fromkeys(names, 1) and set(found) == names
  # What the next stage needs stays; what ends the run is lean.
  assert 'fake' in found['students_dm'] and 'fake' not in found['students']
  images = msd_jax.generate(
      found['students'], np.arange(4), jax.random.key(0))
  assert np.isfinite(images).all()


def test_students_carry_over_generator_and_fake_score(chain):
  """The state before the first round is what the stage before has left."""
  _, found, _ = chain
  run = setup.make(tiny(student_stages=CHAIN))
  stage = stages.make_stages(run)[-1]
  born = jax.jit(stage.init)(stage.frozen(found))
  before = found['students_dm']
  chex.assert_trees_all_equal(born.students.generator, before['generator'])
  chex.assert_trees_all_equal(born.students.fake, before['fake'])
  assert (jax.tree.leaves(born.students.head)[0][0] !=
          jax.tree.leaves(born.students.head)[0][1]).any()
  text = train.announcement(run, stages.make_stages(run), 'here')
  assert ('students (adm): generator of students_dm and its fake score; new: '
          'discriminator, optimizers') in text
  assert 'partition consecutive: 2 parts of ' in text


def test_the_report_shows_every_stage_what_was_watched_and_what_it_cost(chain):
  path, params, _ = chain
  run = setup.make(tiny(student_stages=CHAIN))
  summary = results.report(
      run, params, path, todo=stages.make_stages(run), started=0.)
  assert summary['steps'] == 12  # three stages of four
  page = (path / 'report.html').read_text()
  for words in ('takes the FID',
                'teacher (real) and fake score under noise',
                'students_dm: the brightness of a student was at most',
                'device seconds for one'):
    assert words in page, words


def bits(workdir):
  path = max(pathlib.Path(workdir, 'checkpoints').glob('[0-9]*'),
             key=lambda p: int(p.name))
  with ocp.StandardCheckpointer() as reader:
    tree = reader.restore(path / 'state')
  return path, [
      np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(
          x.dtype, jax.dtypes.prng_key) else x).tobytes()
      for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize('kinds', [CHAIN, 'consistency'])
def test_a_stage_resumed_in_its_middle_ends_in_the_same_bits(
    kinds, chain, tmp_path):
  config, path = tiny(student_stages=kinds), tmp_path / 'run'
  if kinds == CHAIN:
    shutil.copytree(chain[0], path)
  else:
    fit(config, path, ONE)
  last, expected = bits(path)
  shutil.rmtree(last)  # as if it had been killed two rounds before its end
  middle, _ = bits(path)
  assert int(last.name) - int(middle.name) == 2
  fit(config, path, ONE)
  assert bits(path) == (last, expected)


def test_eight_devices_go_through_the_chain_as_one(chain, tmp_path):
  _, one, _ = chain
  eight = fit(tiny(student_stages=CHAIN), tmp_path)
  chex.assert_trees_all_close(one, eight, atol=2e-4)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  """The folder of a run whose students went far, and pairs of its teacher."""
  path = tmp_path_factory.mktemp('teacher')
  fit(tiny(**{'students.lr': 0.1, 'students.warmup_steps': 1,
              'students.ema_decay': 0.}), path / 'run', ONE)
  make_pairs.make_pairs(
      str(path / 'run'), str(path / 'pairs'), num=48, num_shards=2,
      shards=range(2), seed=0, batch_size=24,
      settings=diffusion.Sampler(num_steps=2, sigma_max=30.))
  return path


def with_pairs(teacher, **changes):
  return tiny(**{
      'regression.weight': 0.5, 'regression.distance': 'l2',
      'regression.pairs': str(teacher / 'pairs'),
      'teacher_workdir': str(teacher / 'run'), **changes})


def test_pairs_are_shared_by_default_and_filtered_on_request(teacher):
  for filtered in (False, True):
    run = setup.make(with_pairs(teacher, **{
        'regression.filter_pairs': filtered}))
    stage, = stages.make_stages(run, given.results(run.config, run.teacher))
    pairs = stage.batch(0)['pairs']
    assert pairs['image'].shape == (16, 2, 8, 8, 1)
    own = run.routers['students'][pairs['label']] == np.arange(2)[None]
    assert own.all() == filtered


@pytest.mark.parametrize('kind, name, changes, filtered', [
    ('adm', 'real', {}, True),
    ('adm', 'real', {'adm.filter_real': False}, False),
    ('consistency', 'clean', {}, True)])
def test_real_images_are_those_of_a_students_classes(
    kind, name, changes, filtered):
  run = setup.make(tiny(student_stages=kind, **changes))
  label = stages.make_stages(run)[-1].batch(0)[name]['label']
  label = label.reshape(16, 2, -1)  # [B, K, updates]
  own = run.routers['students'][label] == np.arange(2)[None, :, None]
  assert own.all() == filtered


def test_regression_to_pairs_pulls_the_generator_to_them(teacher, tmp_path):
  """Without DM's voice: the loss on the pairs falls."""
  config = with_pairs(teacher, **{
      'students.num_steps': 40, 'students.lr': 1e-2, 'students.ema_decay': 0.,
      'regression.weight': 1e4})
  fit(config, tmp_path, ONE)
  rows = [row['regression_loss'] for row in
          loop.metrics_lib.read(str(tmp_path)) if 'regression_loss' in row]
  assert rows[-1] < 0.8 * rows[0]


@pytest.mark.parametrize('changes, message', [
    ({'regression.pairs': ''}, 'is no folder of'),
    ({'teacher_workdir': ''}, 'needs teacher_workdir'),
    ({'sigma_max': 80.}, 'sigma_max=30.0, but the config has 80.0'),
    ({'regression.distance': 'ssim'}, "distance='ssim' is not known"),
    ({'regression.distance': 'features'}, 'needs the classifier'),
    ({'regression.distance': 'lpips'}, 'needs lpips_vgg_path'),
    ({'students.batch_size': 64}, 'students.batch_size=64, but student 0'),
    ({'student_stages': 'dm+gan'}, "'gan' is not known"),
    ({'student_stages': 'dm+dm'}, 'a stage twice'),
    ({'student_stages': 'dm+adm', 'adm.backbone': 'vgg'},
     "adm.backbone='vgg'"),
    ({'student_stages': 'dm+adm', 'adm.gan_weight': 'auto'},
     "adm.gan_weight='auto'"),
    ({'student_stages': 'post', 'regression.weight': 0.},
     'post.workdir is not set'),
    ({'student_stages': 'adm'}, 'only the stage dm has the loss on pairs'),
    ({'teacher.sampler_steps': 0}, 'teacher.sampler_steps=0: give 1 or more'),
    ({'compute.microbatches': 0}, 'compute.microbatches=0: give 1 or more'),
    ({'students.warmup_steps': -1}, 'students.warmup_steps=-1: give 0 or'),
    ({'student_stages': 'dm+adm', 'students.fake_network': 'student',
      'students.network.width': 150}, 'features: 150 channels do not divide'),
    ({'evaluation.num_sets': 0}, 'evaluation.num_sets=0: give 1 or more'),
    ({'student_stages': 'consistency', 'regression.weight': 0.,
      'consistency.num_levels': 1}, 'give 2 or more'),
    ({'students.fake_network': 'small'},
     "students.fake_network='small' is not known; there are teacher, student"),
    ({'students.fake_network': 'student', 'students.network.width': 8,
      'score_matching.num_steps': 0}, "fake_network='student' starts from"),
])
def test_bad_fields_are_named(teacher, changes, message):
  config = with_pairs(teacher, **changes)
  with pytest.raises(ValueError, match=message):
    run = setup.make(config)
    stages.make_stages(run, given.results(config, run.teacher))


def test_the_batch_of_a_teacher_that_is_given_need_not_divide(teacher):
  """Another machine trained it; here eight devices make no stage of it."""
  changes = {'teacher.batch_size': 12, 'students.batch_size': 16}
  run = setup.make(tiny(**changes), jax.devices())
  found = {'teacher': given.results(
      with_pairs(teacher), run.teacher)['teacher']}
  assert [s.name for s in stages.make_stages(run, found)] == ['students']
  with pytest.raises(ValueError, match='teacher.batch_size=12 does not divide'):
    stages.make_stages(run)


def test_pairs_of_another_teacher_are_refused(teacher):
  run = setup.make(with_pairs(teacher))
  found = given.results(run.config, run.teacher)
  found['teacher'] = jax.tree.map(lambda x: x + 1, found['teacher'])
  with pytest.raises(data.DataError, match='made by another teacher'):
    stages.make_stages(run, found)


def test_knobs_are_those_that_are_not_turned_yet():
  run = setup.make(tiny(), ONE)
  assert train.knobs(run) == {
      'state': ['compute.fsdp=True', 'student_devices=2, or more devices'],
      'temporary': ['compute.microbatches=2']}
  config = tiny(**{'compute.fsdp': True, 'compute.microbatches': 2}).unlock()
  config.students.network = dict(
      kind='adm', model_channels=32, channel_mult=(1,))
  run = setup.make(config.lock(), jax.devices())
  assert train.knobs(run) == {
      'state': ['a larger slice'],
      'temporary': ['compute.remat=True', "compute.dtype='bfloat16'",
                    'compute.microbatches=4']}


def test_a_small_student_is_distilled_from_one_step_students(
    teacher, tmp_path):
  config = tiny(**{
      'student_stages': 'post', 'post.workdir': str(teacher / 'run'),
      'post.num_steps': 40, 'post.lr': 1e-2, 'teacher_workdir':
      str(teacher / 'run'), 'students.network.width': 8,
      'score_matching.num_steps': 0})
  fit(config, tmp_path, ONE)
  losses = [row['loss'] for row in loop.metrics_lib.read(str(tmp_path))]
  assert losses[-1] < 0.5 * losses[0]
  other = tiny(**{'student_stages': 'post', 'post.workdir':
                  str(teacher / 'run'), 'partition': 'random'})
  with pytest.raises(ValueError, match='share the classes otherwise'):
    stages.make_stages(setup.make(other))
  single = tiny(**{'student_stages': 'post', 'baselines': ('equal_batch',),
                   'post.workdir': str(teacher / 'run')})
  with pytest.raises(ValueError, match='baselines="[(][)]" leaves such'):
    stages.make_stages(setup.make(single))


def test_a_converted_teacher_is_a_runs_teacher(tmp_path):
  network = dict(kind='adm', model_channels=32, channel_mult=(1, 1),
                 num_blocks=1, attention_resolutions=(), dropout=0.)
  module = networks.build(network, (8, 8, 1), 10)
  params = jax.jit(lambda key: networks.init_params(
      module, key, (8, 8, 1)))(jax.random.key(0))
  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / 'folder', {
        'network': networks.describe(module), 'params': params,
        'sigma_data': np.float32(.5)})
  convert.to_file(str(tmp_path / 'folder'), str(tmp_path / 'file.safetensors'))
  config = tiny(sigma_data=.5)
  for name in ('folder', 'file.safetensors'):
    with config.unlocked():
      config.teacher_workdir = str(tmp_path / name)
    found = given.results(config, module)
    assert set(found) == {'teacher'}
    chex.assert_trees_all_equal(found['teacher'], jax.device_get(params))
  other = networks.build(dict(network, num_blocks=2), (8, 8, 1), 10)
  with config.unlocked():
    config.teacher_workdir = str(tmp_path / 'folder')
  with pytest.raises(ValueError, match='num_blocks=1; teacher.network'):
    given.results(config, other)


def test_a_generator_of_one_step_is_no_teacher(tmp_path):
  network = dict(kind='adm', model_channels=32, channel_mult=(1,),
                 num_blocks=1, attention_resolutions=(), dropout=0.)
  module = networks.build(network, (8, 8, 1), 10)
  params = jax.eval_shape(lambda key: networks.init_params(
      module, key, (8, 8, 1)), jax.random.key(0))
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params)
  published.write_safetensors(
      published.to_tensors(params, module), str(tmp_path / 'g.safetensors'))
  convert.convert(
      str(tmp_path / 'g.safetensors'), str(tmp_path / 'g'), one_step=True)
  config = tiny(sigma_data=.5, teacher_workdir=str(tmp_path / 'g'))
  with pytest.raises(ValueError, match='g holds a generator of one step'):
    given.results(config, module)
  convert.convert(str(tmp_path / 'g'), str(tmp_path / 'back.safetensors'))
  assert (tmp_path / 'back.safetensors').read_bytes() == (
      tmp_path / 'g.safetensors').read_bytes()


def test_a_teacher_is_not_looked_for_where_another_took_it(tmp_path):
  config, some = tiny(teacher_workdir='runs/first'), {'a': jnp.zeros(1)}
  with checkpoint.manager(str(tmp_path), keep=1, milestones=()) as mgr:
    checkpoint.save(
        mgr, 1, state=some, params=some, config=config, reached={})
  for read in (
      lambda: make_pairs.read_teacher(str(tmp_path)),
      lambda: given.results(
          tiny(teacher_workdir=str(tmp_path)), setup.make(tiny()).teacher)):
    with pytest.raises(ValueError, match='its teacher from runs/first: give'):
      read()


def test_a_run_of_another_method_has_no_teacher(tmp_path):
  some = {'a': jnp.zeros(1)}
  with checkpoint.manager(str(tmp_path), keep=1, milestones=()) as mgr:
    checkpoint.save(mgr, 1, state=some, params=some, reached={},
                    config=ml_collections.ConfigDict({'methods': ['stn']}))
  with pytest.raises(ValueError, match='is a run of another method'):
    make_pairs.read_teacher(str(tmp_path))


def test_a_teacher_that_is_not_there_is_named_with_its_field():
  config = tiny(teacher_workdir='/no/such')
  with pytest.raises(
      FileNotFoundError, match='teacher_workdir=/no/such: no such file'):
    given.results(config, None)


def labelled(labels):
  images = np.zeros((len(labels), 2, 2, 1), np.uint8)
  images += np.uint8(51 * np.asarray(labels))[:, None, None, None]
  return core_data.ArraySource(
      {'image': images, 'label': np.asarray(labels, np.int32)})


def test_batches_have_an_axis_of_students_and_are_a_function_of_the_step():
  source, router = labelled([0, 1, 2, 3] * 5), np.array([0, 0, 1, 1])
  batch = batches.of_students(
      batches.parts_of(source, router), 4, seed=0, field='x', rounds=3)
  images, labels = (batch(7)[name] for name in ('image', 'label'))
  assert images.shape == (4, 2, 3, 2, 2, 1) and labels.shape == (4, 2, 3)
  assert (router[labels] == np.arange(2)[None, :, None]).all()
  np.testing.assert_array_equal(batch(7)['label'], labels)
  # The rounds of a step are batches of their own: no image twice in an epoch.
  with pytest.raises(ValueError, match='x=11, but student 0 has only 10'):
    batches.of_students(
        batches.parts_of(source, router), 11, seed=0, field='x')


def test_brightness_is_that_of_each_students_classes():
  """Levels 0, 51, 102, 153 are -1, -0.6, -0.2, 0.2."""
  found = batches.brightness(labelled([0, 1, 2, 3]), np.array([0, 0, 1, 1]))
  np.testing.assert_allclose(found, [[-.8, .2], [0., .2]], atol=1e-6)
  # Of one image: a drift that is a number.
  one = batches.brightness(labelled([0, 1]), np.array([0, 1]))
  np.testing.assert_allclose(one, [[-1., 1 / 255], [-.6, 1 / 255]], atol=1e-6)


def test_kinds_of_stages_draw_apart_and_groups_of_one_kind_in_pairs():
  """What one student of all and the first of two draw is compared at a seed."""
  found = []
  for kind in ('dm', 'adm'):
    run = setup.make(tiny(student_stages=kind, baselines=('equal_batch',)))
    teacher = networks.init_params(
        run.teacher, jax.random.key(0), run.dataset.shape)
    _, single, several = stages.make_stages(run)
    key_of = lambda stage, given={'teacher': teacher}: jax.random.key_data(
        jax.jit(stage.init)(stage.frozen(given)).key).tolist()
    assert key_of(single) == key_of(several)
    found.append(key_of(several))
  assert found[0] != found[1]


def test_stages_say_what_they_start_from():
  run = setup.make(tiny(student_stages='consistency+adm'))
  texts = [distillation.describe(run, stage) for stage in
           setup.student_stages(run.config, ['students'])]
  assert texts == [
      'students_consistency (consistency): generator of teacher; new: slow '
      'target, optimizers',
      'students (adm): generator of students_consistency; new: fake score of '
      'teacher, discriminator, optimizers']
  run = setup.make(tiny(**SMALL_FAKE))
  dm, adm = setup.student_stages(run.config, ['students'])
  assert 'new: fake score of score_matching, optim' in distillation.describe(
      run, dm)
  assert 'and its fake score; new: discriminator' in distillation.describe(
      run, adm)


SMALL_FAKE = {'student_stages': CHAIN, 'students.network.width': 8,
              'students.fake_network': 'student'}


@pytest.mark.parametrize('backbone, width', [('fake', 8), ('teacher', 16)])
def test_a_fake_score_of_the_students_network(backbone, width):
  """It starts from score matching, is carried on, and has features."""
  run = setup.make(tiny(**SMALL_FAKE, **{'adm.backbone': backbone}), ONE)
  found = {name: networks.init_params(module, jax.random.key(i), (8, 8, 1))
           for i, (name, module) in enumerate([
               ('teacher', run.teacher), ('score_matching', run.student)])}
  *_, dm, adm = stages.make_stages(run)
  born = jax.jit(dm.init)(dm.frozen(found))
  chex.assert_trees_all_equal(
      jax.tree.map(lambda x: x[1], born.students.fake),
      found['score_matching'])
  found[dm.name] = dm.params(born)
  frozen = adm.frozen(found)
  assert 'fake' not in frozen and 'fake' in frozen['carried']
  state, metrics = jax.jit(adm.step)(
      jax.jit(adm.init)(frozen), adm.batch(0),
      loop.read_by_step(adm, frozen))
  assert np.isfinite(metrics['critic_loss']) and state.step == 1
  # The head reads what the backbone sees: a layer of as many features.
  assert state.students.head['conv0']['kernel'].shape[-2] == width


def test_both_scores_warm_up_over_the_same_rounds():
  """The fake score's optimizer ticks `ratio` times in a round."""
  run = setup.make(tiny(**{'students.warmup_steps': 4}), ONE)
  nets = recipe.make_recipe(run, 'dm', run.mesh).networks
  weight, rates = {'w': jnp.zeros(1)}, []
  for tx, ticks in ((nets.generator_tx, 1), (nets.fake_tx, 2)):
    state, found = tx.init(weight), []
    for _ in range(6 * ticks):
      update, state = tx.update({'w': jnp.ones(1)}, state, weight)
      found.append(-update['w'][0])
    rates.append(np.array(found[::ticks]))
  np.testing.assert_allclose(
      rates[0], 3e-4 * np.array([0, 1, 2, 3, 4, 4]) / 4, rtol=1e-4)
  np.testing.assert_allclose(rates[1], rates[0], rtol=1e-4)
