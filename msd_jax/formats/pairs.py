"""Pairs of a teacher: noise and the image that its sampler makes of it.

For the regression loss of DMD. A folder of shards, safetensors files with
  noise  float32 [n, H, W, C], of unit variance
  image  uint8 [n, H, W, C]
  label  int32 [n]
and what made them in the metadata, so that pairs of another teacher are
refused.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import glob
import os
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from core_jax.fingerprint import fingerprint
from msd_jax.formats import source

TEACHER = 'teacher'  # The field of the metadata with its fingerprint.
_FIELDS = {'noise': np.float32, 'image': np.uint8, 'label': np.int32}


def shard_path(folder: str, index: int, num_shards: int) -> str:
  """Where the shard is, or will be."""
  return os.path.join(
      folder, f'pairs-{index:05d}-of-{num_shards:05d}.safetensors')


def write_shard(
    path: str, arrays: Mapping[str, np.ndarray], made_by: Mapping[str, str]
) -> None:
  """Writes one shard whole, or not at all.

  Args:
    path: see `shard_path`.
    arrays: 'noise', 'image', 'label' as above.
    made_by: metadata; TEACHER is its fingerprint, the rest for people.
  """
  partial = f'{path}.partial'
  safetensors.numpy.save_file(
      {name: np.ascontiguousarray(arrays[name], dtype)
       for name, dtype in _FIELDS.items()}, partial, dict(made_by))
  os.replace(partial, path)


def check_made_by(path: str, made_by: Mapping[str, str]) -> None:
  """Raises DataError where a shard has other metadata than these."""
  found = _open(path).metadata() or {}
  for name, wanted in made_by.items():
    if found.get(name) != wanted:
      raise source.DataError(
          f'{path} was made with {name}={found.get(name)}, now asked for: '
          f'{wanted}. Give another folder, or remove its shards')


class PairSource:
  """Random access to {'noise', 'image', 'label'}.

  Attributes:
    labels: int32 [N].
    teacher: the fingerprint of the params that made the pairs.
    made_by: the metadata of the shards.
    shape: of one image, (H, W, C).
  """

  def __init__(self, folder: str, teacher_params: Any = None):
    """Opens all shards of a folder.

    Args:
      folder: of `msd_jax.make_pairs`.
      teacher_params: if given, pairs that others made are refused.

    Raises:
      DataError: shards are missing, damaged, or made by another teacher.
    """
    self._shards = [_open(path) for path in _paths(folder)]
    self.made_by = self._shards[0].metadata() or {}
    for shard in self._shards:
      if (shard.metadata() or {}) != self.made_by:
        raise source.DataError(
            f'{folder}: its shards were made by different commands')
    self.teacher = self.made_by.get(TEACHER, '')
    if teacher_params is not None:
      check_teacher(self.teacher, teacher_params, folder)
    labels = [shard.get_tensor('label') for shard in self._shards]
    self.labels = np.concatenate(labels)
    self._starts = np.cumsum([0] + [len(part) for part in labels])
    self.shape = tuple(
        self._shards[0].get_slice('image').get_shape()[1:])

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    shard = int(np.searchsorted(self._starts, index, 'right')) - 1
    row = int(index - self._starts[shard])
    return {name: self._shards[shard].get_slice(name)[row:row + 1][0]
            for name in _FIELDS}


def check_teacher(found: str, params: Any, where: str) -> None:
  """Raises DataError unless the fingerprint is that of the params."""
  wanted = fingerprint(params)
  if found != wanted:
    raise source.DataError(
        f'{where}: pairs made by another teacher: its fingerprint is '
        f'{found or "missing"}, that of this teacher is {wanted}; make them '
        'again with `python -m msd_jax.make_pairs`')


def _paths(folder: str) -> Iterable[str]:
  paths = sorted(glob.glob(os.path.join(folder, 'pairs-*-of-*.safetensors')))
  if not paths:
    raise source.DataError(f'{folder}: no pairs-*.safetensors in it')
  num_shards = int(paths[0].rsplit('-', 1)[1].removesuffix('.safetensors'))
  wanted = [shard_path(folder, i, num_shards) for i in range(num_shards)]
  missing = sorted(set(wanted) - set(paths))
  if missing or len(paths) != num_shards:
    raise source.DataError(
        f'{folder}: {len(paths)} of {num_shards} shards; '
        f'{os.path.basename((missing or paths)[0])} is '
        f'{"missing" if missing else "of another set"}')
  return paths


def _open(path):
  try:
    shard = safetensors.safe_open(path, framework='numpy')
    missing = set(_FIELDS) - set(shard.keys())
  except (OSError, safetensors.SafetensorError) as error:
    raise source.DataError(
        f'{path}: a damaged shard of pairs: {error}') from error
  if missing:
    raise source.DataError(f'{path}: no {sorted(missing)} in it')
  return shard
