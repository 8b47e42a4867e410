"""What a round of distribution matching reads, from a config."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from msd_jax import diffusion
from msd_jax import discriminator
from msd_jax import losses
from msd_jax import networks
from msd_jax import setup
from msd_jax import turns


def make_recipe(
    run: setup.Setup, kind: str, mesh: jax.sharding.Mesh,
    distance: Callable[[Any], losses.Distance] | None = None,
) -> turns.Recipe:
  """Networks and settings of the stage 'dm' or 'adm'.

  Args:
    run: the run.
    kind: of the stage.
    mesh: of the stage.
    distance: params -> distance, of the regression to pairs.

  Raises:
    ValueError: a field of the config that does not fit, by name.
  """
  config, settings = run.config, setup.stage_settings(run.config, kind)
  _check_rounds(settings)
  gan = _gan(settings) if kind == 'adm' else None
  fake = fake_module(run, settings)
  seen = run.teacher if gan and gan.backbone == 'teacher' else fake
  features = diffusion.make_features(
      networks.encode_fn(seen), config.sigma_data)
  return turns.Recipe(
      turns.Networks(
          generator=setup.denoiser(run, run.student, mesh),
          fake=setup.denoiser(run, fake, mesh),
          teacher=setup.denoiser(run, run.teacher, mesh),
          generator_tx=setup.optimizer(settings),
          fake_tx=setup.optimizer(
              settings, lr=settings.fake_lr, updates_per_round=settings.ratio),
          features=setup.gathering(run, mesh, features), distance=distance,
          init_head=_head_init(run, seen, features) if gan else None),
      turns.Settings(
          batch_size=settings.batch_size, ratio=settings.ratio,
          sigma_data=config.sigma_data, sigma_min=config.sigma_min,
          sigma_max=config.sigma_max, min_level=settings.min_level,
          max_level=settings.max_level, ema_decay=settings.ema_decay,
          gan=gan, regression_weight=regression_weight(config, kind),
          microbatches=config.compute.microbatches),
      run.dataset.shape, mesh)


def regression_weight(config: setup.Config, kind: str) -> float:
  """Of the loss on pairs, which DM alone has."""
  return config.regression.weight if (
      kind == 'dm' and config.regression) else 0.


def fake_module(run: setup.Setup, settings: setup.Config) -> nn.Module:
  """The network of the fake score.

  Raises:
    ValueError: students.fake_network is not known.
  """
  modules = {'teacher': run.teacher, 'student': run.student}
  if settings.fake_network not in modules:
    raise ValueError(
        f'students.fake_network={settings.fake_network!r} is not known; there '
        f'are {", ".join(modules)}')
  return modules[settings.fake_network]


def fake_start(run: setup.Setup, settings: setup.Config) -> str:
  """The stage whose params a new fake score starts from.

  Raises:
    ValueError: it has another network than the teacher, and nothing made that
      network a denoiser.
  """
  if fake_module(run, settings) == run.teacher:
    return 'teacher'
  if not run.config.score_matching.num_steps:
    raise ValueError(
        "students.fake_network='student' starts from the teacher's copy by "
        'score matching, but score_matching.num_steps=0')
  return 'score_matching'


def _check_rounds(settings):
  if settings.ratio < 1:
    raise ValueError(
        f'students.ratio={settings.ratio}: the fake score needs at least 1 '
        'update for each of the generator')
  last = turns.Settings.num_levels - 1
  if not 0 <= settings.min_level <= settings.max_level <= last:
    raise ValueError(
        f'students.min_level={settings.min_level}, students.max_level='
        f'{settings.max_level}: of the levels 0 to {last}, in this order')
  if not 0 <= settings.get('gan_max_level', 0) <= last:
    raise ValueError(
        f'adm.gan_max_level={settings.gan_max_level}: of the levels 0 to '
        f'{last}, with 0 for no noise')


def _gan(settings):
  if settings.backbone not in ('fake', 'teacher'):
    raise ValueError(
        f'adm.backbone={settings.backbone!r}; there are fake and teacher')
  weight = settings.gan_weight
  if isinstance(weight, str) and weight != turns.MATCHED:
    raise ValueError(
        f'adm.gan_weight={weight!r}: a number, or {turns.MATCHED!r}')
  return turns.Gan(
      weight=weight, critic_weight=settings.critic_weight,
      max_level=settings.gan_max_level, backbone=settings.backbone,
      match_factor=settings.match_factor)


def _head_init(run, module, features):
  """key -> params of a discriminator's head for the encoder's features."""
  example = jax.ShapeDtypeStruct((1, *run.dataset.shape), np.float32)
  params = jax.eval_shape(lambda key: networks.init_params(
      module, key, run.dataset.shape), jax.random.key(0))
  shape = jax.eval_shape(
      features, params, example, jax.ShapeDtypeStruct((1,), np.float32),
      jax.ShapeDtypeStruct((1,), np.int32)).shape[1:]
  init = lambda key: discriminator.init(key, shape)
  jax.eval_shape(init, jax.random.key(0))  # Raises now, not stages later.
  return init
