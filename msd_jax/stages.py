"""The stages of a config: their order, and what each hands on."""

from collections.abc import Container
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P
import ml_collections
import numpy as np

from core_jax import checkpoint
from core_jax import data as data_lib
from core_jax import fsdp
from core_jax import loop
from core_jax import mesh as mesh_lib
from msd_jax import classifier
from msd_jax import data
from msd_jax import diffusion
from msd_jax import networks
from msd_jax import partition
from msd_jax import routing
from msd_jax import students
from msd_jax import teacher

Config = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Setup:
  """What the stages of a run have in common."""

  config: Config
  dataset: data.Dataset
  mesh: jax.sharding.Mesh
  teacher: nn.Module
  student: nn.Module
  class_embeddings: np.ndarray | None = None  # [Y, E], for partition 'kmeans'


def setup(
    config: Config,
    devices: Sequence[jax.Device] | None = None,
    dataset: data.Dataset | None = None,
) -> Setup:
  """Reads the data, builds mesh and networks, and checks the config.

  Args:
    config: of the run.
    devices: to make the mesh of; by default all that are here.
    dataset: to use in place of the one that the config names.

  Raises:
    ValueError: the first field that does not fit, by name.
  """
  dataset = data.load(config) if dataset is None else dataset
  build = functools.partial(
      networks.build, shape=dataset.shape, num_classes=dataset.num_classes,
      dtype=config.compute.dtype, remat=config.compute.remat)
  run = Setup(
      config, dataset,
      mesh_lib.make_mesh(
          config.num_students, config.student_devices, devices),
      teacher=build(config.teacher.network),
      student=build(config.students.network))
  if config.partition == 'kmeans':
    run = dataclasses.replace(run, class_embeddings=_teacher_embeddings(run))
  _router(run, config.num_students)
  for name in ('teacher', 'classifier', 'score_matching', 'students'):
    if config[name]:
      mesh_lib.check_batch_size(
          config[name].batch_size,
          run.mesh if name == 'students' else data_mesh(run),
          f'{name}.batch_size', config.compute.microbatches)
  unknown = set(config.baselines) - {'equal_batch', 'equal_compute'}
  if unknown:
    raise ValueError(
        f'baselines has {sorted(unknown)}; there are equal_batch and '
        'equal_compute')
  return run


def routers(run: Setup) -> dict[str, np.ndarray]:
  """Name of each students' stage -> its router, in the order of training.

  The students come last: the newest checkpoint of a run is theirs.
  """
  found = {}
  if run.config.num_students > 1:
    found = {f'single_{name}': _router(run, 1)
             for name in run.config.baselines}
  return {**found, 'students': _router(run, run.config.num_students)}


def _router(run, num_students):
  return partition.make_router(
      run.config.partition, run.dataset.num_classes, num_students,
      run.config.seed, run.class_embeddings)


def _teacher_embeddings(run):
  """Of the classes [Y, E], as a teacher that is trained already sees them."""
  if not run.config.teacher_workdir:
    raise ValueError(
        "partition='kmeans' groups the classes as a trained teacher sees "
        'them: give the run that trained it as teacher_workdir')
  return partition.class_embeddings(teacher_results(run)['teacher'])


def stage_steps(config: Any, router_names: Iterable[str]) -> dict[str, int]:
  """Name -> rounds of the stages of a config, in order.

  Args:
    config: a ConfigDict, or a dict as a run has saved it.
    router_names: see `routers`.
  """
  steps = {'teacher': config['teacher']['num_steps']}
  if config['classifier']:
    steps['classifier'] = config['classifier']['num_steps']
  if config['students']['network'] != config['teacher']['network']:
    steps['score_matching'] = config['score_matching']['num_steps']
  for name in router_names:
    # At equal total compute, one student takes the rounds of all.
    times = config['num_students'] if name == 'single_equal_compute' else 1
    steps[name] = times * config['students']['num_steps']
  return steps


def make_stages(run: Setup, given: Container[str] = ()) -> list[loop.Stage]:
  """The stages of a run, without those whose results are given."""
  make = {
      'teacher': teacher_stage, 'classifier': classifier_stage,
      'score_matching': score_matching_stage}
  found = routers(run)
  return [
      students_stage(run, name, found[name], num_steps) if name in found
      else make[name](run)
      for name, num_steps in stage_steps(run.config, found).items()
      if name not in given]


def _optimizer(settings, lr=None):
  return teacher.make_optimizer(
      lr=settings.lr if lr is None else lr,
      warmup_steps=settings.warmup_steps, clip_norm=settings.clip_norm,
      weight_decay=settings.weight_decay)


def denoiser(
    run: Setup, module: nn.Module, mesh: jax.sharding.Mesh | None = None
) -> diffusion.Denoiser:
  """The module's D(x; sigma, y) under the run's preconditioning.

  Inside a step on a mesh it gathers params that are split over 'data'.
  """
  denoised = diffusion.make_denoiser(
      networks.apply_fn(module), run.config.sigma_data)
  if mesh is None or not run.config.compute.fsdp:
    return denoised
  return lambda params, *args, **kwargs: denoised(
      fsdp.gather(params, mesh), *args, **kwargs)


def _one_network_stage(
    run, name, init_params, loss_fn, frozen=None, seed=None):
  """A stage that trains one network on the images of the training set."""
  settings = run.config[name]
  seed = run.config.seed if seed is None else seed
  tx = _optimizer(settings)
  mesh = data_mesh(run)
  return loop.Stage(
      name=name,
      num_steps=settings.num_steps,
      mesh=mesh,
      init=teacher.make_init(init_params, tx, seed),
      step=teacher.make_step(
          loss_fn, tx, settings.ema_half_life_steps,
          run.config.compute.microbatches),
      params=lambda state: state.ema,
      batch=data_lib.make_batches(
          run.dataset.train, settings.batch_size, seed=seed),
      frozen=frozen or (lambda results: {}),
      fsdp=run.config.compute.fsdp)


def data_mesh(run: Setup) -> jax.sharding.Mesh:
  """All devices along 'data', for a stage with one network."""
  return mesh_lib.make_mesh(devices=run.mesh.devices.flatten())


def teacher_stage(run: Setup) -> loop.Stage:
  """EDM: a denoiser of the images."""
  return _one_network_stage(
      run, 'teacher',
      lambda key: networks.init_params(run.teacher, key, run.dataset.shape),
      teacher.make_denoising(
          denoiser(run, run.teacher, data_mesh(run)), run.config.sigma_data))


def score_matching_stage(run: Setup) -> loop.Stage:
  """MSD's first stage where students are of another network: copy D."""
  return _one_network_stage(
      run, 'score_matching',
      lambda key: networks.init_params(run.student, key, run.dataset.shape),
      teacher.make_denoising(
          denoiser(run, run.student, data_mesh(run)), run.config.sigma_data,
          teacher=denoiser(run, run.teacher, data_mesh(run))),
      frozen=lambda results: {'teacher': results['teacher']})


def classifier_stage(run: Setup) -> loop.Stage:
  """A classifier of the same data, whose features measure all samplers."""
  module = make_classifier(run)
  loss_fn = lambda params, batch, key, frozen: classifier.loss(
      module.apply, params, batch['image'], batch['label'])
  return _one_network_stage(
      run, 'classifier',
      lambda key: module.init(
          key, np.zeros((1, *run.dataset.shape), np.float32))['params'],
      loss_fn,
      seed=0)  # The same ruler whatever the run's seed is.


def make_classifier(run: Setup) -> classifier.Classifier:
  """The module whose features the Fréchet distance uses."""
  settings = run.config.classifier
  return classifier.Classifier(
      run.dataset.num_classes, settings.width, settings.num_features)


def students_stage(
    run: Setup, name: str, router: np.ndarray, num_steps: int
) -> loop.Stage:
  """DMD2's distribution matching for the students of a router."""
  config, settings = run.config, run.config.students
  classes, sizes = partition.members(router)
  num_students = len(sizes)
  mesh = run.mesh
  if num_students % mesh.shape['student']:  # a baseline beside K students
    mesh = mesh_lib.make_mesh(num_students, devices=mesh.devices.flatten())
    mesh_lib.check_batch_size(
        settings.batch_size, mesh, 'students.batch_size',
        config.compute.microbatches)
  stage_networks = students.Networks(
      generator=denoiser(run, run.student, mesh),
      fake=denoiser(run, run.teacher, mesh),
      teacher=denoiser(run, run.teacher, mesh),
      generator_tx=_optimizer(settings),
      fake_tx=_optimizer(settings, settings.fake_lr))
  round_settings = students.Settings(
      batch_size=settings.batch_size, ratio=settings.ratio,
      sigma_data=config.sigma_data, sigma_min=config.sigma_min,
      sigma_max=config.sigma_max, min_level=settings.min_level,
      max_level=settings.max_level, ema_decay=settings.ema_decay,
      microbatches=config.compute.microbatches)
  start = 'teacher' if run.student == run.teacher else 'score_matching'
  return loop.Stage(
      name=name,
      num_steps=num_steps,
      mesh=mesh,
      init=students.make_init(
          stage_networks, num_students, seed=config.seed,
          ema=settings.ema_decay > 0),
      step=students.make_round(
          stage_networks, round_settings, run.dataset.shape, mesh),
      params=functools.partial(_bundle, run, router),
      frozen=lambda results: {
          'teacher': results['teacher'], 'start': results[start],
          'classes': classes, 'sizes': sizes},
      state_spec=students.State(
          step=P(), key=P(), students=P('student')),
      fsdp=config.compute.fsdp,
      init_only=('start',))


def _bundle(run, router, state):
  learnt = state.students
  return routing.bundle(
      learnt.generator if learnt.ema is None else learnt.ema, run.student,
      router, sigma_max=run.config.sigma_max, sigma_data=run.config.sigma_data)


def teacher_results(run: Setup) -> dict[str, Any]:
  """Results of config.teacher_workdir, for runs that share a teacher.

  That run's teacher and classifier, and its copy of the teacher in the
  students' network where these are the same.

  Raises:
    ValueError: that run had other data or another teacher.
    FileNotFoundError: it has not got so far.
  """
  path, mine = run.config.teacher_workdir, run.config.to_dict()
  if not path:
    return {}
  _, saved = checkpoint.load(path)
  if saved['teacher_workdir']:
    raise ValueError(
        f'teacher_workdir={path} took its teacher from '
        f'{saved["teacher_workdir"]}: give that')
  for field in ('dataset', 'data_path', 'sigma_data', 'teacher', 'classifier'):
    if saved[field] != mine[field]:
      raise ValueError(
          f'teacher_workdir={path} was trained with {field}={saved[field]}, '
          f'this config has {mine[field]}')
  same = lambda *names: all(saved[n] == mine[n] for n in names)
  wanted = {'teacher', 'classifier'}
  if same('score_matching') and (
      saved['students']['network'] == mine['students']['network']):
    wanted.add('score_matching')
  step, results = 0, {}
  for name, num_steps in stage_steps(saved, ()).items():
    step += num_steps
    if name in wanted:
      results[name], _ = checkpoint.load(path, step)
  return results
