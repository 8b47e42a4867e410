"""Every variant of a config is a problem whose round can be traced."""

import jax
import numpy as np
import pytest

from configs import stn_brown
from configs import stn_cifar10
from configs import stn_fashion
from configs import stn_linear
from configs import stn_ptb
from configs import stn_ridge
from stn_jax import checks
from stn_jax import experiment
from stn_jax import state as state_lib
from stn_jax import tuner

# Module, variant, hyperparameters, shape of an image (None: words).
VARIANTS = [
    (stn_fashion, 'full', 6, (28, 28, 1)),
    (stn_cifar10, 'alexnet15', 15, (32, 32, 3)),
    (stn_cifar10, 'alexnet18', 18, (32, 32, 3)),
    (stn_cifar10, 'vgg16', 26, (32, 32, 3)),
    (stn_cifar10, 'resnet18', 18, (32, 32, 3)),
    (stn_brown, '', 7, None), (stn_brown, 'large', 7, None),
    (stn_ptb, '', 7, None)]


@pytest.mark.parametrize('module, variant, num, shape', VARIANTS)
def test_a_published_variant_is_a_problem(module, variant, num, shape):
  config = module.get_config(variant)
  assert len(config.space) == num
  checks.check(config)
  problem = experiment.make_problem(config, 10)
  if shape:
    checks.check_augmentation(problem.space, shape[-1])
    example = {'image': np.zeros((2, *shape), np.float32),
               'label': np.zeros(2, np.int32)}
  else:
    example = {name: np.zeros((2, 3), np.int32)
               for name in ('tokens', 'targets')}
  settings = state_lib.Settings(
      config.methods[0], config.warmup_rounds, config.entropy_weight,
      config.tune_scales, config.rank, config.unroll, config.diagnose)
  init = tuner.make_init(
      problem, settings, experiment.make_optimizers(config), example,
      config.num_rounds, config.seed)
  state = jax.eval_shape(init, {})
  assert state.lam.shape == (num,)
  answering = {path.split('/')[-1] for path in state.response}
  assert 'decoder' not in answering and len(answering) >= 2


@pytest.mark.parametrize('module', [
    stn_brown, stn_cifar10, stn_fashion, stn_linear, stn_ptb, stn_ridge])
def test_an_unknown_variant_is_refused(module):
  with pytest.raises(ValueError, match="variant 'larger' is not known"):
    module.get_config('larger')
