"""The ImageNet-64 config at full width, from EDM's pickle to a FID, on a CPU.

Marked slow: a variant takes two cores an hour, and 20 GB. `-s` shows what each
command took.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
import warnings

import pytest

from configs import imagenet64
from tests import msd_pods_test

torch = pytest.importorskip('torch')

from benchmarks import torch_msd  # noqa: E402
from tests import persistent_pickle  # noqa: E402
from tests import torch_inception  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
IMAGES = 1000  # One of each class.
# Two rounds of each stage. A sample of the teacher takes 3 evaluations, not
# 511: the report draws 48 of them.
SHORT = {
    'declared.num_train': IMAGES, 'compute.dtype': 'float32',
    'score_matching.num_steps': 2, 'score_matching.batch_size': 1,
    'students.num_steps': 2, 'students.batch_size': 1, 'adm.num_steps': 2,
    'teacher.sampler_steps': 2, 'log_every_steps': 1,
    'checkpoint_every_steps': 2}


class Precond(torch.nn.Module):
  """The module around a network that EDM pickles."""

  def __init__(self, model):
    super().__init__()
    self.model, self.sigma_data = model, .5


def write_files(config, monkeypatch):
  """EDM's pickle, its zip and StyleGAN's Inception: random, in this folder."""
  torch.manual_seed(0)
  shape, num_classes = config.declared.shape, config.declared.num_classes
  network = {name: value for name, value in config.teacher.network.items()
             if name != 'kind'}
  module = torch_msd.ADM(shape[0], shape[2], num_classes, **network)
  torch_msd.randomize(module)
  persistent_pickle.write(
      'edm.pkl', dict(ema=Precond(module.requires_grad_(False))), monkeypatch)
  images, labels = msd_pods_test.images_like(config, IMAGES)
  msd_pods_test.write_edm_zip('images.zip', images, labels)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Deprecated, but the format of the file.
    torch.jit.script(torch_inception.stylegan(
        torch_inception.random_weights(gamma=False))).save('inception.pt')


def run(module, *arguments):
  """A command in a process of its own; says its time and the most memory."""
  start = time.monotonic()
  done = subprocess.run(
      [sys.executable, '-m', module, *arguments], text=True, check=True,
      stdout=subprocess.PIPE, env={
          **os.environ, 'PYTHONPATH': str(ROOT),
          'JAX_DISABLE_MOST_OPTIMIZATIONS': 'false',
          # XLA takes longer to read a program this large than to compile it.
          'JAX_ENABLE_COMPILATION_CACHE': 'false'})
  print(f'{module}: {time.monotonic() - start:.0f} s; the largest process so '
        f'far had {most_gigabytes():.1f} GB', flush=True)
  return done.stdout


def most_gigabytes():
  """Of memory, that the largest of the commands so far had."""
  return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


@pytest.mark.slow
@pytest.mark.parametrize('variant, stages', [
    ('single', ('students_dm', 'students')),
    ('s+single', ('score_matching', 'students_dm', 'students'))])
def test_from_edms_pickle_to_a_fid_under_20_gb(
    variant, stages, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  os.symlink(ROOT / 'configs', 'configs')
  write_files(imagenet64.get_config(variant), monkeypatch)
  run('msd_jax.convert', 'edm.pkl', 'teacher')
  run('msd_jax.main', f'--config=configs/imagenet64.py:{variant}',
      '--workdir=run', '--config.data_path=images.zip',
      '--config.teacher_workdir=teacher',
      *(f'--config.{name}={value}' for name, value in SHORT.items()))
  run('msd_jax.measure', 'reference', 'edm_zip:images.zip', 'reference.npz',
      '--inception=inception.pt', '--per_device=4')
  found = json.loads(run(
      'msd_jax.measure', 'fid', 'run', '--reference=reference.npz',
      '--inception=inception.pt', '--per_device=4', '--num=8',
      '--num_seeds=1'))
  assert 0 < found['fid_mean'] < float('inf')
  rows = [json.loads(line) for line in open('run/metrics.jsonl')]
  assert {(row['stage'], row['step']) for row in rows} == {
      (stage, 2 * i + j) for i, stage in enumerate(stages) for j in (1, 2)}
  assert most_gigabytes() < 20
