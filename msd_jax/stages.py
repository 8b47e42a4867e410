"""The stages of a config: their order, and what each hands on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from core_jax import data as data_lib
from core_jax import keys
from core_jax import loop
from core_jax import mesh as mesh_lib
from msd_jax import classifier
from msd_jax import distillation
from msd_jax import networks
from msd_jax import setup
from msd_jax import teacher


def make_stages(
    run: setup.Setup, given: Mapping[str, Any] | None = None
) -> list[loop.Stage]:
  """The stages of a run, without those whose results are given."""
  given = given or {}
  make = {
      'teacher': teacher_stage, 'classifier': classifier_stage,
      'score_matching': score_matching_stage}
  routers = run.routers
  of_students = {
      stage.name: stage for stage in setup.student_stages(run.config, routers)}
  return [
      distillation.make_stage(
          run, of_students[name], routers[of_students[name].students],
          num_steps, given) if name in of_students else make[name](run)
      for name, num_steps in setup.stage_steps(run.config, routers).items()
      if name not in given]


def _one_network_stage(
    run, name, init_params, loss_fn, frozen=None, seed=None):
  """A stage that trains one network on the images of the training set.

  Raises:
    ValueError: its batch does not divide over the devices.
  """
  settings = run.config[name]
  seed = run.config.seed if seed is None else seed
  tx = setup.optimizer(settings)
  compute, mesh = run.config.compute, setup.data_mesh(run)
  mesh_lib.check_batch_size(
      settings.batch_size, mesh, f'{name}.batch_size', compute.microbatches)
  return loop.Stage(
      name=name,
      num_steps=settings.num_steps,
      mesh=mesh,
      init=teacher.make_init(init_params, tx, keys.stream(seed, name)),
      step=teacher.make_step(
          loss_fn, tx, settings.ema_half_life_steps, compute.microbatches),
      params=lambda state: state.ema,
      batch=data_lib.make_batches(
          run.dataset.train, settings.batch_size,
          seed=keys.number(seed, name)),
      frozen=frozen or (lambda results: {}),
      fsdp=compute.fsdp)


def teacher_stage(run: setup.Setup) -> loop.Stage:
  """EDM: a denoiser of the images."""
  return _one_network_stage(
      run, 'teacher',
      lambda key: networks.init_params(run.teacher, key, run.dataset.shape),
      teacher.make_denoising(
          setup.denoiser(run, run.teacher, setup.data_mesh(run)),
          run.config.sigma_data))


def score_matching_stage(run: setup.Setup) -> loop.Stage:
  """MSD's first stage where students are of another network: copy D."""
  mesh = setup.data_mesh(run)
  return _one_network_stage(
      run, 'score_matching',
      lambda key: networks.init_params(run.student, key, run.dataset.shape),
      teacher.make_denoising(
          setup.denoiser(run, run.student, mesh), run.config.sigma_data,
          teacher=setup.denoiser(run, run.teacher, mesh)),
      frozen=lambda results: {'teacher': results['teacher']})


def classifier_stage(run: setup.Setup) -> loop.Stage:
  """A classifier of the same data, whose features measure all samplers."""
  module = setup.make_classifier(run)
  loss_fn = lambda params, batch, key, frozen: classifier.loss(
      module.apply, params, batch['image'], batch['label'])
  return _one_network_stage(
      run, 'classifier',
      lambda key: module.init(
          key, np.zeros((1, *run.dataset.shape), np.float32))['params'],
      loss_fn,
      seed=0)  # The same ruler whatever the run's seed is.
