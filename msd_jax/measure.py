"""FID of students against reference statistics: python -m msd_jax.measure -h.

`measure fid` makes images of the students and prints a JSON object; `measure
reference` writes the .npz of a data set, for those that have none published.
"""

import argparse
import json

import ml_collections
import numpy as np

from core_jax import data as core_data
from core_jax import mesh as mesh_lib
from msd_jax import data
from msd_jax import export
from msd_jax import fid
from msd_jax import inception
from msd_jax import networks
from msd_jax import routing

_BATCH = 1024  # Real images read at once.


def read_images(name: str) -> core_data.Source:
  """The training images of 'DATASET:PATH', such as 'edm_zip:train.zip'."""
  dataset, _, path = name.partition(':')
  return data.load(ml_collections.ConfigDict(
      {'dataset': dataset, 'data_path': path})).train


def image_batches(images: core_data.Source, rows: np.ndarray):
  """uint8 [n, H, W, C], in the order of rows."""
  for start in range(0, len(rows), _BATCH):
    yield core_data.take(images, rows[start:start + _BATCH])['image']


def measure_fid(args: argparse.Namespace) -> str:
  """The command's first half: see `fid.measure`."""
  for field, value, least in (
      ('num', args.num, 2), ('num_seeds', args.num_seeds, 1)):
    if value < least:
      raise ValueError(f'--{field}={value}: give {least} or more')
  params = export.read_students(args.students)
  shape = networks.example_shape(networks.from_description(params['network']))
  reference = fid.read_reference(
      args.reference, shape[0], inception.NUM_FEATURES)
  mesh = mesh_lib.make_mesh()
  extract = fid.inception_extractor(args.inception, mesh, args.per_device)
  real = None
  if args.real:
    images = read_images(args.real)
    if images[0]['image'].shape != shape:
      raise ValueError(
          f'--real={args.real} has images {images[0]["image"].shape}, the '
          f'students make {shape}')
    rows = np.random.default_rng(0).permutation(len(images))[:args.num]
    real = np.concatenate(
        [extract(batch) for batch in image_batches(images, rows)])
  sampler = fid.Sampler(
      routing.generate_on_each(params, mesh), len(params['router']), mesh.size)
  found = fid.measure(
      sampler, extract, reference, protocol=args.protocol, num=args.num,
      seeds=range(args.num_seeds), real_features=real)
  decay = float(params['ema_decay'])
  # JSON has no NaN: null where nobody knows.
  found['ema_decay'] = None if np.isnan(decay) else decay
  return json.dumps(found, indent=1)


def write_reference(args: argparse.Namespace) -> str:
  """The command's second half: see `fid.write_reference`."""
  images = read_images(args.images)
  rows = np.arange(len(images))
  extract = fid.inception_extractor(
      args.inception, mesh_lib.make_mesh(), args.per_device)
  fid.write_reference(args.target, image_batches(images, rows), extract)
  return f'statistics of {len(rows)} images in {args.target}'


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m msd_jax.measure', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(required=True)
  one = commands.add_parser('fid')
  one.set_defaults(run=measure_fid)
  one.add_argument('students', metavar='STUDENTS',
                   help='a run, or a folder of msd_jax.convert --one_step')
  one.add_argument('--reference', required=True, metavar='FILE',
                   help='.npz of mu and sigma')
  one.add_argument('--protocol', choices=sorted(fid.PROTOCOLS), default='edm')
  one.add_argument('--num', type=int, default=50_000,
                   help='images of a seed (50000)')
  one.add_argument('--num_seeds', type=int, default=3, help='(3)')
  one.add_argument('--real', metavar='DATASET:PATH',
                   help='real images, for precision and recall')
  two = commands.add_parser('reference')
  two.set_defaults(run=write_reference)
  two.add_argument('images', metavar='DATASET:PATH',
                   help='such as edm_zip:train.zip; its training images')
  two.add_argument('target', metavar='FILE', help='the .npz to write')
  for command in (one, two):
    command.add_argument(
        '--inception', required=True, metavar='FILE',
        help='inception-2015-12-05.pt or .pkl, or pt_inception-*.pth')
    command.add_argument(
        '--per_device', type=int, default=fid.PER_DEVICE,
        help=f'images of a call ({fid.PER_DEVICE})')
  args = parser.parse_args()
  try:
    print(args.run(args))
  except (OSError, ValueError) as error:
    raise SystemExit(f'{parser.prog}: {error}') from error


if __name__ == '__main__':
  main()
