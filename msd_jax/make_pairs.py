"""Pairs of noise and a teacher's images: python -m msd_jax.make_pairs --help.

TEACHER is the folder of a run, or of `msd_jax.convert`. Labels go round all
classes. The noise of pair i depends on the seed and on i alone, and finished
shards are kept: the same command goes on where it was stopped, and several
machines may take a part of the shards each.
"""

import argparse
from collections.abc import Callable
import os
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from core_jax import checkpoint
from core_jax import keys
from msd_jax import convert
from msd_jax import data
from msd_jax import diffusion
from msd_jax import given
from msd_jax import networks
from msd_jax import pixels
from msd_jax.formats import pairs


def read_teacher(path: str) -> tuple[nn.Module, Any, float]:
  """(module, params, sigma_data) of a run's or a published teacher.

  Raises:
    DataError: there is nothing.
    ValueError: the run took its teacher from elsewhere, or what is there is no
      teacher.
  """
  if given.is_run(path):
    saved = checkpoint.load_config(path)
    given.check_trained_teacher(path, saved)
    config = ml_collections.ConfigDict(saved)
    step = given.teacher_steps(saved)['teacher']
    params, _ = checkpoint.load(path, step)
    dataset = data.load(config)
    module = networks.build(
        saved['teacher']['network'], dataset.shape, dataset.num_classes)
    return module, params, config.sigma_data
  if not os.path.exists(path):
    raise data.DataError(f'{path}: no such file or folder')
  return *given.published_teacher(path), convert.SIGMA_DATA


def own_sigma_max(path: str) -> float:
  """The most noise of a run's teacher; 80, as EDM has it, of a converted one.
  """
  if not given.is_run(path):
    return 80.
  return checkpoint.load_config(path)['sigma_max']


def make_sampler(
    module: nn.Module, sigma_data: float, settings: diffusion.Sampler
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """(params, key, indices [B], labels [B]) -> noise and images [B, H, W, C]."""
  denoised = diffusion.make_denoiser(networks.apply_fn(module), sigma_data)
  shape = networks.example_shape(module)

  @jax.jit
  def sample(params, key, indices, labels):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return noise, diffusion.sample(
        lambda x, sigma: denoised(params, x, sigma, labels), noise, key,
        settings)

  return sample


def make_shard(
    sample: Callable[..., tuple[jax.Array, jax.Array]], params: Any,
    indices: np.ndarray, *, num_classes: int, seed: int, batch_size: int
) -> dict[str, np.ndarray]:
  """The pairs of some indices, by name: see `formats/pairs.py`."""
  labels = (indices % num_classes).astype(np.int32)
  parts = []
  for start in range(0, len(indices), batch_size):
    # The last batch repeats its last row: one shape, one compilation.
    rows = np.minimum(
        np.arange(start, start + batch_size), len(indices) - 1)
    parts.append(jax.device_get(sample(
        params, keys.stream(seed, 'pairs'), indices[rows], labels[rows])))
  noise, image = (np.concatenate(part)[:len(indices)]
                  for part in zip(*parts, strict=True))
  return {'noise': noise, 'image': pixels.to_uint8(image), 'label': labels}


def make_pairs(
    teacher: str, folder: str, *, num: int, num_shards: int,
    shards: range, settings: diffusion.Sampler, seed: int, batch_size: int,
) -> str:
  """Does what the command does; returns a line for people.

  Raises:
    DataError: there is no teacher, more shards than pairs, or a shard that
      other settings made.
  """
  if not 1 <= num_shards <= num:
    raise data.DataError(f'{num_shards} shards for {num} pairs')
  module, params, sigma_data = read_teacher(teacher)
  num_classes = max(1, module.num_classes)
  if settings.num_steps < 1:
    raise data.DataError(f'--num_steps={settings.num_steps}: give 1 or more')
  params = jax.device_put(params)  # Once, not for each batch.
  sample = make_sampler(module, sigma_data, settings)
  made_by = {
      pairs.TEACHER: pairs.fingerprint(params), 'sampler': str(settings),
      'sigma_max': str(float(settings.sigma_max)),
      'seed': str(seed), 'num': str(num)}
  os.makedirs(folder, exist_ok=True)
  edges = np.linspace(0, num, num_shards + 1).astype(int)
  for i in shards:
    path = pairs.shard_path(folder, i, num_shards)
    if os.path.exists(path):
      pairs.check_made_by(path, made_by)
      continue
    indices = np.arange(edges[i], edges[i + 1])
    pairs.write_shard(path, make_shard(
        sample, params, indices, num_classes=num_classes, seed=seed,
        batch_size=batch_size), made_by)
    print(f'{path}: pairs {edges[i]} to {edges[i + 1] - 1}', flush=True)
  return f'shards {shards.start} to {shards.stop - 1} are in {folder}'


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m msd_jax.make_pairs', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('teacher', metavar='TEACHER')
  parser.add_argument('folder', metavar='DST', help='a folder for the shards')
  add = lambda name, default, help: parser.add_argument(
      name, type=type(default), default=default, help=f'{help} ({default})')
  add('--num', 25_000, 'pairs; DMD has 25,000 for ImageNet-64')
  add('--num_shards', 10, 'files')
  add('--first_shard', 0, 'of this machine')
  add('--last_shard', -1, 'of this machine; -1 is the last')
  add('--num_steps', 256, "of Heun's method, without churn")
  add('--sigma_min', .002, 'the least noise')
  add('--sigma_max', 0., "the most noise; 0 takes the teacher's own")
  add('--batch_size', 64, 'pairs at once')
  add('--seed', 0, 'of the noise')
  args = parser.parse_args()
  last = args.num_shards - 1 if args.last_shard < 0 else args.last_shard
  try:
    print(make_pairs(
        args.teacher, args.folder, num=args.num, num_shards=args.num_shards,
        shards=range(args.first_shard, min(last, args.num_shards - 1) + 1),
        settings=diffusion.Sampler(
            num_steps=args.num_steps, sigma_min=args.sigma_min,
            sigma_max=args.sigma_max or own_sigma_max(args.teacher)),
        seed=args.seed, batch_size=args.batch_size))
  except (OSError, ValueError) as error:
    raise SystemExit(f'{parser.prog}: {error}') from error


if __name__ == '__main__':
  main()
