"""What the stages of a run share: data, mesh, networks; and their names."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax

from core_jax import fsdp
from core_jax import mesh as mesh_lib
from msd_jax import classifier
from msd_jax import data
from msd_jax import diffusion
from msd_jax import given
from msd_jax import networks
from msd_jax import partition
from msd_jax import teacher

Config = ml_collections.ConfigDict

# A stage of the students -> the block of the config with its settings.
STUDENT_BLOCKS = {
    'dm': 'students', 'adm': 'adm', 'consistency': 'consistency',
    'post': 'post'}


@dataclasses.dataclass(frozen=True)
class Setup:
  """What the stages of a run have in common."""

  config: Config
  dataset: data.Dataset
  mesh: jax.sharding.Mesh
  teacher: nn.Module
  student: nn.Module
  # Name of each group of students -> its router, in the order of training. The
  # students come last: the newest checkpoint of a run is theirs.
  routers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StudentStage:
  """One stage of some students: `before` is the one that it goes on from."""

  name: str
  students: str  # as in `Setup.routers`
  kind: str  # of STUDENT_BLOCKS
  before: 'StudentStage | None' = None


def make(
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
  _check_settings(config)
  run = dataclasses.replace(run, routers=_routers(run))
  blocks = {STUDENT_BLOCKS[kind] for kind in student_kinds(config)}
  for name in sorted({'students', *blocks}):
    if 'batch_size' in config[name]:
      mesh_lib.check_batch_size(
          config[name].batch_size, run.mesh, f'{name}.batch_size',
          config.compute.microbatches)
  unknown = set(config.baselines) - {'equal_batch', 'equal_compute'}
  if unknown:
    raise ValueError(
        f'baselines has {sorted(unknown)}; there are equal_batch and '
        'equal_compute')
  return run


def _check_settings(config):
  """What would be found wrong after training alone, or never."""
  for block, field, least in (
      ('teacher', 'sampler_steps', 1), ('evaluation', 'num_sets', 1),
      ('evaluation', 'num_samples', 1), ('compute', 'microbatches', 1),
      *((block, 'warmup_steps', 0) for block in config)):
    block_of = config.get(block)
    if isinstance(block_of, Config) and block_of.get(field, least) < least:
      raise ValueError(
          f'{block}.{field}={block_of[field]}: give {least} or more')
  if config.regression and config.regression.weight and (
      'dm' not in student_kinds(config)):
    raise ValueError(
        f'regression.weight={config.regression.weight}: only the stage dm has '
        f'the loss on pairs, and student_stages={config.student_stages!r}')


def student_kinds(config: Any) -> tuple[str, ...]:
  """'dm+adm' -> ('dm', 'adm'): config.student_stages, checked.

  Raises:
    ValueError: an unknown stage, one twice, or one without its block.
  """
  kinds = tuple(config['student_stages'].split('+'))
  for kind in kinds:
    if kind not in STUDENT_BLOCKS:
      raise ValueError(
          f'student_stages={config["student_stages"]!r}: {kind!r} is not '
          f'known; there are {", ".join(STUDENT_BLOCKS)}, joined by +')
    if not config[STUDENT_BLOCKS[kind]]:
      raise ValueError(
          f'student_stages has {kind!r}, but {STUDENT_BLOCKS[kind]} is not set')
  if len(set(kinds)) < len(kinds):
    raise ValueError(
        f'student_stages={config["student_stages"]!r} has a stage twice')
  return kinds


def stage_settings(config: Config, kind: str) -> Config:
  """The block of a stage; 'adm' says only what differs from 'students'."""
  block = config[STUDENT_BLOCKS[kind]]
  return Config({**config.students, **block}) if kind == 'adm' else block


def _routers(run):
  """Of the baselines, then of the students; k-means runs once."""
  config = run.config
  embeddings = None
  if config.partition == 'kmeans' and config.num_students > 1:
    embeddings = _teacher_embeddings(run)
  router = lambda num_students: partition.make_router(
      config.partition, run.dataset.num_classes, num_students, config.seed,
      embeddings)
  students = router(config.num_students)
  names = config.baselines if config.num_students > 1 else ()
  return {**{f'single_{name}': router(1) for name in names},
          'students': students}


def _teacher_embeddings(run):
  """Of the classes [Y, E], as a teacher that is trained already sees them."""
  if not run.config.teacher_workdir:
    raise ValueError(
        "partition='kmeans' groups the classes as a trained teacher sees "
        'them: give the run that trained it as teacher_workdir')
  return partition.class_embeddings(given.results(
      run.config, run.teacher)['teacher'])


def student_stages(
    config: Any, names: Iterable[str]) -> list[StudentStage]:
  """The stages of these groups of students, in order.

  The last one has the name of the group, so that its result is the group's.

  Args:
    config: a ConfigDict, or a dict as a run has saved it.
    names: of the groups, see `Setup.routers`.
  """
  stages = []
  kinds = student_kinds(config)
  for name in names:
    before = None
    for kind in kinds:
      stage_name = name if kind == kinds[-1] else f'{name}_{kind}'
      before = StudentStage(stage_name, name, kind, before)
      stages.append(before)
  return stages


def stage_steps(config: Any, names: Iterable[str]) -> dict[str, int]:
  """Stage -> rounds of all stages in order, those included that are given.

  Args:
    config: a ConfigDict, or a dict as a run has saved it.
    names: of the groups of students, see `Setup.routers`.
  """
  steps = given.teacher_steps(config)
  for stage in student_stages(config, names):
    # At equal total compute, one student takes the rounds of all.
    single = stage.students == 'single_equal_compute'
    steps[stage.name] = config[STUDENT_BLOCKS[stage.kind]]['num_steps'] * (
        config['num_students'] if single else 1)
  return steps


def optimizer(
    settings: Any, *, lr: float | None = None, updates_per_round: int = 1
) -> optax.GradientTransformation:
  """AdamW as a block of the config says, whose warm-up is in rounds."""
  return teacher.make_optimizer(
      lr=settings.lr if lr is None else lr,
      warmup_steps=settings.warmup_steps * updates_per_round,
      clip_norm=settings.clip_norm, weight_decay=settings.weight_decay)


def denoiser(
    run: Setup, module: nn.Module, mesh: jax.sharding.Mesh | None = None
) -> diffusion.Denoiser:
  """The module's D(x; sigma, y) under the run's preconditioning.

  Args:
    run: the run.
    module: of the network.
    mesh: of the stage, if it is called inside a step.
  """
  return gathering(run, mesh, diffusion.make_denoiser(
      networks.apply_fn(module), run.config.sigma_data))


def gathering(
    run: Setup, mesh: jax.sharding.Mesh | None, network: Callable[..., Any]
) -> Callable[..., Any]:
  """`network(params, ...)` for params that may be split over 'data'."""
  if mesh is None or not run.config.compute.fsdp:
    return network
  return lambda params, *args, **kwargs: network(
      fsdp.gather(params, mesh), *args, **kwargs)


def data_mesh(run: Setup) -> jax.sharding.Mesh:
  """All devices along 'data', for a stage with one network."""
  return mesh_lib.make_mesh(devices=run.mesh.devices.flatten())


def make_classifier(run: Setup) -> classifier.Classifier:
  """The module whose features the Fréchet distance uses."""
  settings = run.config.classifier
  return classifier.Classifier(
      run.dataset.num_classes, settings.width, settings.num_features)
