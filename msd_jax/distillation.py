"""The stages of the students, built from a config (MSD, eq. 9).

Each goes on from the one before it: `describe` says what is carried over.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from core_jax import keys
from core_jax import loop
from core_jax import mesh as mesh_lib
from msd_jax import batches
from msd_jax import data
from msd_jax import diffusion
from msd_jax import distances
from msd_jax import given as given_lib
from msd_jax import losses
from msd_jax import networks
from msd_jax import partition
from msd_jax import recipe as recipe_lib
from msd_jax import regress
from msd_jax import routing
from msd_jax import setup
from msd_jax import students
from msd_jax import turns
from msd_jax import watch
from msd_jax.formats import pairs as pairs_lib

_MATCHING = {'dm', 'adm'}  # The kinds of stages that have a fake score.


@dataclasses.dataclass(frozen=True)
class Method:
  """What tells a stage of students from another; see `loop.Stage`."""

  init: Callable[[Any], Any]
  step: Callable[..., Any]
  batch: Callable[[int], Any] = loop.no_batch
  frozen: Callable[[dict[str, Any]], dict[str, Any]] = lambda results: {}
  own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  panels: Callable[[Any, Any], Any] | None = None  # see watch.make_panels
  sigma_min: float = 0.  # of the generators' preconditioning


def make_stage(
    run: setup.Setup, stage: setup.StudentStage, router: np.ndarray,
    num_steps: int, given: Mapping[str, Any],
) -> loop.Stage:
  """One stage of the students of a router.

  Args:
    run: the run.
    stage: which.
    router: int32 [Y].
    num_steps: rounds.
    given: results from elsewhere; pairs must be of its teacher.

  Raises:
    ValueError: a field of the config that does not fit.
  """
  classes, sizes = partition.members(router)
  settings = setup.stage_settings(run.config, stage.kind)
  mesh = run.mesh
  if len(sizes) % mesh.shape['student']:  # a baseline beside K students
    mesh = mesh_lib.make_mesh(len(sizes), devices=mesh.devices.flatten())
    mesh_lib.check_batch_size(
        settings.batch_size, mesh,
        f'{setup.STUDENT_BLOCKS[stage.kind]}.batch_size',
        run.config.compute.microbatches)
  make = {'dm': matching, 'adm': matching, 'consistency': consistency,
          'post': post_distillation}[stage.kind]
  method = make(run, stage, router, settings, mesh, given)
  own = {'brightness': batches.brightness(run.dataset.train, router),
         **method.own}

  def frozen(results):
    return {'teacher': results['teacher'], 'classes': classes, 'sizes': sizes,
            'own': own, **_beginning(run, stage, results),
            **method.frozen(results)}

  return loop.Stage(
      name=stage.name, num_steps=num_steps, mesh=mesh, init=method.init,
      step=method.step, batch=method.batch, frozen=frozen,
      params=functools.partial(_bundle, run, stage, router, method.sigma_min),
      state_spec=students.State(step=P(), key=P(), students=P('student')),
      fsdp=run.config.compute.fsdp, init_only=('start', 'carried', 'fake'),
      of_students=('carried', 'own'),
      watch=functools.partial(
          watch.brightness_alarm, limit=run.config.brightness_alarm),
      observe=method.panels and functools.partial(
          watch.draw_panels, method.panels, stage.name))


def describe(run: setup.Setup, stage: setup.StudentStage) -> str:
  """What a stage carries over and what is new, for people."""
  start = f'generator of {_start_name(run) or "random weights"}'
  if stage.before is not None:
    start = f'generator of {stage.before.name}'
  new = {'adm': ['discriminator'], 'consistency': ['slow target']}.get(
      stage.kind, [])
  if _keeps_fake(stage):
    start += ' and its fake score'
  elif stage.kind in _MATCHING:
    settings = setup.stage_settings(run.config, stage.kind)
    new = [f'fake score of {recipe_lib.fake_start(run, settings)}', *new]
  return (f'{stage.name} ({stage.kind}): {start}; new: '
          f'{", ".join([*new, "optimizers"])}')


def _keeps_fake(stage):
  """Whether the stage goes on with the fake score of the one before."""
  return stage.before is not None and (
      {stage.kind, stage.before.kind} <= _MATCHING)


def _start_name(run):
  """The stage whose params a first stage starts from; '' for none."""
  if 'score_matching' in given_lib.teacher_steps(run.config):
    return 'score_matching'
  return 'teacher' if run.student == run.teacher else ''


def _beginning(run, stage, results):
  """'start' or 'carried' of `students.make_init`."""
  if stage.before is not None:
    before = results[stage.before.name]
    return {'carried': {
        name: before[name] for name in ('generator', 'fake')
        if name in before}}
  name = _start_name(run)
  return {'start': results[name] if name else networks.init_params(
      run.student, keys.stream(run.config.seed, 'random weights'),
      run.dataset.shape)}


def _bundle(run, stage, router, sigma_min, state):
  """What the stage hands on: generators, and the fake scores to go on with."""
  learnt = state.students
  bundle = routing.bundle(
      learnt.generator if learnt.ema is None else learnt.ema, run.student,
      router, sigma_max=run.config.sigma_max,
      sigma_data=run.config.sigma_data, sigma_min=sigma_min,
      ema_decay=setup.stage_settings(run.config, stage.kind).ema_decay)
  last = stage.name == stage.students
  if not last and isinstance(learnt, turns.Student):
    bundle['fake'] = learnt.fake
  return bundle


def matching(
    run: setup.Setup, stage: setup.StudentStage, router: np.ndarray,
    settings: setup.Config, mesh: jax.sharding.Mesh, given: Mapping[str, Any],
) -> Method:
  """DM, with regression to pairs if the config weighs it, or with the GAN."""
  config = run.config
  weight = recipe_lib.regression_weight(config, stage.kind)
  distance, of_distance = _distance(
      run, config.regression.distance if weight else 'l2')
  recipe = recipe_lib.make_recipe(run, stage.kind, mesh, distance)
  start = recipe_lib.fake_start(run, settings)
  made = {}
  if recipe.settings.gan:
    made['real'] = _batches(
        run, 'real', run.dataset.train, router, stage.kind,
        filtered=settings.filter_real, rounds=settings.ratio)
  if weight:
    made['pairs'] = _batches(
        run, 'pairs', _pairs(run, given), router, stage.kind,
        filtered=config.regression.filter_pairs)

  def frozen(results):
    # The teacher's params are there anyway.
    new = {} if start == 'teacher' else {'fake': results[start]}
    return of_distance(results) | ({} if _keeps_fake(stage) else new)

  return Method(
      init=students.make_init(
          recipe.networks, int(router.max()) + 1,
          key=keys.stream(config.seed, stage.kind),
          ema=settings.ema_decay > 0),
      step=students.make_round(
          recipe.networks, recipe.settings, recipe.shape, mesh),
      batch=_joined(made), frozen=frozen,
      panels=watch.make_panels(
          recipe.networks, recipe.settings, recipe.shape)
      if len(recipe.shape) == 3 else None)


def _batches(run, name, source, router, kind, *, filtered, rounds=None):
  """batch(step) of the students of a router; see `batches.of_students`.

  Students of the same number draw the same order in every group of a kind.
  """
  num_students = int(router.max()) + 1
  sources = batches.parts_of(source, router) if filtered else (
      [source] * num_students)
  return batches.of_students(
      sources, setup.stage_settings(run.config, kind).batch_size,
      seed=keys.number(run.config.seed, f'{kind}/{name}'), rounds=rounds,
      field=f'{setup.STUDENT_BLOCKS[kind]}.batch_size')


def _joined(made):
  """{name: batch(step)} -> batch(step) -> {name: ...}."""
  return lambda step: {name: batch(step) for name, batch in made.items()}


def _pairs(run, given):
  """The teacher's pairs, checked against data and teacher."""
  folder = run.config.regression.pairs
  if not folder:
    raise data.DataError(
        'regression.weight is above 0, but regression.pairs is no folder of '
        '`python -m msd_jax.make_pairs`')
  if 'teacher' not in given:
    raise data.DataError(
        'regression.pairs needs teacher_workdir, the teacher that made them')
  pairs = pairs_lib.PairSource(folder, given['teacher'])
  if pairs.shape != tuple(run.dataset.shape):
    raise data.DataError(
        f'{folder}: pairs of {pairs.shape}, but the data has '
        f'{tuple(run.dataset.shape)}')
  data.check_labels(pairs.labels, run.dataset.num_classes, folder)
  sigma_max = pairs.made_by.get('sigma_max')
  if sigma_max != str(float(run.config.sigma_max)):
    raise data.DataError(
        f'{folder}: its noise was scaled by sigma_max={sigma_max}, but the '
        f'config has {float(run.config.sigma_max)}')
  return pairs


def _distance(run, kind):
  """Params -> distance, and results -> {'distance': its params}."""
  config = run.config
  if kind == 'l2':
    return lambda params: losses.square_distance, lambda results: {}
  if kind == 'features':
    if not config.classifier:
      raise ValueError("distance='features' needs the classifier")
    apply = setup.make_classifier(run).apply
    return (lambda params: distances.of_features(apply, params),
            lambda results: {'distance': results['classifier']})
  if kind == 'lpips':
    if len(run.dataset.shape) != 3:
      raise ValueError("distance='lpips' is of images, and these are points")
    params = distances.read_lpips(
        config.lpips_vgg_path, config.lpips_linear_path)
    return distances.lpips, lambda results: {'distance': params}
  raise ValueError(
      f'distance={kind!r} is not known; there are '
      f'{", ".join(distances.KINDS)}')


def consistency(
    run: setup.Setup, stage: setup.StudentStage, router: np.ndarray,
    settings: setup.Config, mesh: jax.sharding.Mesh, given: Mapping[str, Any],
) -> Method:
  """Consistency distillation on the real images of each student's classes."""
  del given
  config = run.config
  if settings.num_levels < 2:
    raise ValueError(
        f'consistency.num_levels={settings.num_levels}: a step is from one '
        'level to the next, so give 2 or more')
  distance, frozen = _distance(run, settings.distance)
  levels = diffusion.karras_sigmas(
      settings.num_levels, config.sigma_min, config.sigma_max)[::-1]
  loss = regress.make_consistency_loss(
      setup.gathering(run, mesh, diffusion.make_denoiser(
          networks.apply_fn(run.student), config.sigma_data,
          config.sigma_min)),
      setup.denoiser(run, run.teacher, mesh), distance, levels)
  clean = _batches(
      run, 'clean', run.dataset.train, router, stage.kind, filtered=True)
  return dataclasses.replace(
      _regression(run, stage, loss, router, mesh),
      batch=_joined({'clean': clean}), frozen=frozen,
      sigma_min=config.sigma_min)


def post_distillation(
    run: setup.Setup, stage: setup.StudentStage, router: np.ndarray,
    settings: setup.Config, mesh: jax.sharding.Mesh, given: Mapping[str, Any],
) -> Method:
  """From the one-step students of another run, post.workdir, by their output.
  """
  del given
  config = run.config
  distance, frozen = _distance(run, settings.distance)
  large, module, sigma_min = _large_students(run, stage, router)
  loss = regress.make_post_loss(
      setup.denoiser(run, run.student, mesh),
      diffusion.make_denoiser(
          networks.apply_fn(module), config.sigma_data, sigma_min),
      distance,
      lambda key, part: turns.draw(
          key, part, settings.batch_size // config.compute.microbatches,
          run.dataset.shape, mesh),
      config.sigma_max)
  return dataclasses.replace(
      _regression(run, stage, loss, router, mesh), frozen=frozen,
      own={'large': large})


def _regression(run, stage, loss, router, mesh):
  settings = setup.stage_settings(run.config, stage.kind)
  tx = setup.optimizer(settings)
  decays = regress.Settings(
      ema_decay=settings.ema_decay,
      target_decay=settings.get('target_decay', 0.),
      microbatches=run.config.compute.microbatches)
  return Method(
      init=regress.make_init(
          tx, decays, int(router.max()) + 1,
          key=keys.stream(run.config.seed, stage.kind)),
      step=regress.make_step(loss, tx, decays, mesh))


def _large_students(run, stage, router):
  """(params [K, ...], module, sigma_min) that each student is to imitate."""
  path, config = run.config.post.workdir, run.config
  if not path:
    raise ValueError(
        'post.workdir is not set: the run whose students are to be imitated')
  bundle, saved = given_lib.students(path)
  for field in ('dataset', 'data_path', 'sigma_data', 'sigma_max'):
    if saved[field] != config[field]:
      raise ValueError(
          f'post.workdir={path} was trained with {field}={saved[field]}, '
          f'this config has {config[field]}')
  owners = [np.unique(np.asarray(bundle['router'])[router == k])
            for k in range(router.max() + 1)]
  if any(len(owner) > 1 for owner in owners):
    more = '' if stage.students == 'students' else (
        '; --config.baselines="()" leaves such baselines out')
    raise ValueError(
        f'post.workdir={path}: its students share the classes otherwise; each '
        f'of {stage.students!r} needs all its classes from one of them{more}')
  owners = np.concatenate(owners)
  return (jax.tree.map(lambda x: np.asarray(x)[owners], bundle['generator']),
          networks.from_description(bundle['network']),
          float(bundle['sigma_min']))
