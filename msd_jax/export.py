"""Students to ship, a file each: python -m msd_jax.export --help.

A file is safetensors. Its tensors have the names and the layout of EDM's
networks in torch; its metadata has the network, its noise levels, the number
of the student and the router of all. `open_students` generates from a folder
of such files, and reads those alone that the labels ask for.
"""

import argparse
from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import glob
import json
import os
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp

from msd_jax import given
from msd_jax import networks
from msd_jax import published
from msd_jax import routing
from msd_jax import torch_files

_FORMAT = 'msd_jax.student'
_NUMBERS = ('sigma_max', 'sigma_data', 'sigma_min', 'ema_decay')


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says of its student."""

  path: str
  student: int
  router: np.ndarray  # int32 [Y]: the student of every class, of all
  module: nn.Module
  numbers: Mapping[str, float]  # by the names of `routing.bundle`

  @property
  def classes(self) -> np.ndarray:
    return np.flatnonzero(self.router == self.student)


def read_students(path: str) -> dict[str, Any]:
  """What `msd_jax.generate` takes, of a run or of `msd_jax.convert`.

  Raises:
    ValueError: the folder has no students, or the run has not come to them.
  """
  if given.is_run(path):
    params, _ = given.students(path)
  else:
    with ocp.StandardCheckpointer() as reader:
      params = reader.restore(os.path.abspath(path))
  if 'router' not in params:
    raise ValueError(
        f'{path}: no students in it; a published generator needs '
        '`python -m msd_jax.convert --one_step`')
  return params


def student_path(folder: str, student: int, num_students: int) -> str:
  return os.path.join(
      folder, f'student-{student}-of-{num_students}.safetensors')


def write_student(bundle: Mapping[str, Any], student: int, path: str) -> None:
  """Writes one student of a bundle (see `routing.bundle`), whole or not at all.
  """
  module = networks.from_description(bundle['network'])
  params = jax.tree.map(
      lambda x: np.asarray(x[student]), bundle['generator'])
  metadata = {
      'format': _FORMAT, 'student': str(student),
      'router': json.dumps(np.asarray(bundle['router']).tolist()),
      'network': json.dumps(networks.settings(module)),
      **{name: repr(float(bundle[name])) for name in _NUMBERS}}
  published.write_safetensors(
      published.to_tensors(params, module), f'{path}.part', metadata)
  os.replace(f'{path}.part', path)


def read_header(path: str) -> Header:
  """What the file says of its student; no tensor is read.

  Raises:
    torch_files.FileError: it is damaged, or no student's.
  """
  found = published.read_metadata(path)
  if found.get('format') != _FORMAT:
    raise torch_files.FileError(
        f'{path}: no student that `python -m msd_jax.export` wrote')
  try:
    return Header(
        path, int(found['student']),
        np.asarray(json.loads(found['router']), np.int32),
        networks.from_settings(json.loads(found['network'])),
        {name: float(found[name]) for name in _NUMBERS})
  except (KeyError, TypeError, ValueError) as error:
    raise torch_files.FileError(
        f'{path}: its metadata is damaged: {error!r}') from error


def read_student(path: str) -> dict[str, Any]:
  """The student of a file as `msd_jax.generate` takes it: a bundle of K = 1.

  Its router has -1 for the classes of the others.

  Raises:
    torch_files.FileError: it is damaged, or no student's.
  """
  header = read_header(path)
  _, params = published.read_network(path, header.module)
  return routing.bundle(
      jax.tree.map(lambda x: x[None], params), header.module,
      np.where(header.router == header.student, 0, -1), **header.numbers)


def open_students(
    folder: str, *, resident: int = 1
) -> Callable[..., np.ndarray]:
  """Students of a folder of files -> (labels, key, block_size=64) -> images.

  The images are those of `msd_jax.generate` with all students. A student is
  read when a label first asks for it, so files of students that nobody asks
  for may be missing.

  Args:
    folder: of `python -m msd_jax.export`.
    resident: students that are kept on the device, those used last.

  Raises:
    torch_files.FileError: a file is damaged, or the files do not belong
      together.
    ValueError: resident is below 1; of the function, a label out of range, or
      of a student whose file is missing.
  """
  if resident < 1:
    raise ValueError(f'resident={resident}: at least 1 student must be kept')
  headers = _read_headers(folder)
  router, shape = _common(headers)
  held = {}  # student -> its bundle, the one used last at the end

  def student(k):
    bundle = held.pop(k, None)
    if bundle is None:
      while len(held) >= resident:  # Before there is one too many.
        held.pop(next(iter(held)))
      bundle = read_student(headers[k].path)
      bundle['generator'] = jax.device_put(bundle['generator'])
    held[k] = bundle
    return bundle

  def generate(labels, key, *, block_size=64):
    labels = routing.check_labels(labels, len(router))
    owners = router[labels]
    missing = np.flatnonzero(~np.isin(owners, list(headers)))
    if missing.size:
      path = student_path(folder, owners[missing[0]], router.max() + 1)
      raise ValueError(
          f'labels[{missing[0]}] = {labels[missing[0]]} needs {path}, which is '
          'not there')
    images = np.zeros((len(labels), *shape), np.float32)
    # Those at hand first: they may have to go.
    for k in sorted(set(owners.tolist()), key=lambda k: k not in held):
      rows = np.flatnonzero(owners == k)
      images[rows] = routing.generate_rows(
          student(k), labels, rows, key, block_size)
    return images

  return generate


def _read_headers(folder):
  """Student -> header of its file."""
  paths = sorted(glob.glob(os.path.join(folder, 'student-*-of-*.safetensors')))
  if not paths:
    raise torch_files.FileError(
        f'{folder}: no student-*.safetensors in it; `python -m msd_jax.export` '
        'writes them')
  headers = {}
  for path in paths:
    header = read_header(path)
    if header.student in headers:
      raise torch_files.FileError(
          f'{path} and {headers[header.student].path} are both student '
          f'{header.student}')
    headers[header.student] = header
  return headers


def _common(headers):
  """Router and shape of an example, the same in all files."""
  first, *others = headers.values()
  shape = networks.example_shape(first.module)
  for other in others:
    if not np.array_equal(first.router, other.router):
      raise torch_files.FileError(
          f'{first.path} and {other.path} are of different partitions of the '
          'classes')
    if networks.example_shape(other.module) != shape:
      raise torch_files.FileError(
          f'{first.path} makes images {list(shape)}, {other.path} '
          f'{list(networks.example_shape(other.module))}')
  return first.router, shape


def export(source: str, folder: str, student: int | None = None) -> str:
  """Writes the students of a run into a folder; returns a line for each.

  Args:
    source: see `read_students`.
    folder: made if it is not there.
    student: one of them; None writes all.

  Raises:
    ValueError: there are no students, or not this one.
    FileExistsError: a file is there already.
  """
  bundle = read_students(source)
  router = np.asarray(bundle['router'])
  num_students = jax.tree.leaves(bundle['generator'])[0].shape[0]
  chosen = range(num_students) if student is None else [student]
  if student is not None and student not in range(num_students):
    raise ValueError(
        f'--student={student}: {source} has students 0 to {num_students - 1}')
  paths = {k: student_path(folder, k, num_students) for k in chosen}
  there = [path for path in paths.values() if os.path.exists(path)]
  if there:
    raise FileExistsError(f'{there[0]}: exists already')
  os.makedirs(folder, exist_ok=True)
  lines = []
  for k, path in paths.items():
    write_student(bundle, k, path)
    lines.append(f'{path}: {np.sum(router == k)} classes, '
                 f'{os.path.getsize(path):,} bytes')
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m msd_jax.export', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      'source', metavar='STUDENTS',
      help='a run, or a folder of msd_jax.convert --one_step')
  parser.add_argument('folder', metavar='DST', help='a folder for the files')
  parser.add_argument(
      '--student', type=int, metavar='K', help='this one alone')
  args = parser.parse_args()
  try:
    print(export(args.source, args.folder, args.student))
  except (OSError, ValueError) as error:
    raise SystemExit(f'{parser.prog}: {error}') from error


if __name__ == '__main__':
  main()
