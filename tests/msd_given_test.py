"""A run of a U-Net teaches others; its config has been through JSON."""

import jax
import numpy as np
import pytest

from configs import digits
from core_jax import loop
from msd_jax import given
from msd_jax import make_pairs
from msd_jax import setup
from msd_jax import stages

ADM = dict(kind='adm', model_channels=8, channel_mult=(1,), num_blocks=1,
           attention_resolutions=(), dropout=0.)


def config(**changes):
  found = digits.get_config('tiny')
  found.teacher.network = found.students.network = ADM
  found.classifier = None
  found.declared = dict(shape=(8, 8, 1), num_classes=10, num_train=1442)
  found.update_from_flattened_dict({'teacher.num_steps': 1, **changes})
  return found.lock()


def test_a_unet_of_a_run_teaches_others_and_makes_pairs(tmp_path):
  first = config()
  run = setup.make(first, jax.devices()[:1])
  trained = loop.fit(
      stages.make_stages(run)[:1], first, str(tmp_path))['teacher']
  found = given.results(config(teacher_workdir=str(tmp_path)), run.teacher)
  jax.tree.map(np.testing.assert_array_equal, found['teacher'], trained)
  module, params, sigma_data = make_pairs.read_teacher(str(tmp_path))
  assert module == run.teacher and sigma_data == first.sigma_data
  assert make_pairs.own_sigma_max(str(tmp_path)) == first.sigma_max == 30
  jax.tree.map(np.testing.assert_array_equal, params, trained)
  other = config(teacher_workdir=str(tmp_path), **{'teacher.lr': 1.})
  with pytest.raises(ValueError, match='was trained with teacher='):
    given.results(other, run.teacher)
