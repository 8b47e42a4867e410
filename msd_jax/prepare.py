"""Image folders to a data set: python -m msd_jax.prepare --help.

SRC holds a folder for each class, with images of any size below it. Each is
cropped to its central square and resized by Lanczos filtering with Pillow, as
in EDM's ImageNet-64, so that its reference statistics apply. Classes are
numbered in the order of their names. DST is EDM's format where it ends in
.zip, otherwise a folder of array_record files.
"""

import argparse
from collections.abc import Iterator
from concurrent import futures
import os
import shutil

import numpy as np
import PIL.Image

from msd_jax.formats import edm_zip
from msd_jax.formats import records
from msd_jax.formats import source

_AHEAD = 256  # Images in the making.


def central_square(image: PIL.Image.Image, resolution: int) -> np.ndarray:
  """The central square of an image, resized: uint8 [R, R, C]."""
  width, height = image.size
  side = min(width, height)
  left, top = (width - side) // 2, (height - side) // 2
  image = image.crop((left, top, left + side, top + side))
  pixels = np.asarray(image.resize(
      (resolution, resolution), PIL.Image.Resampling.LANCZOS))
  return pixels if pixels.ndim == 3 else pixels[..., None]


def read(path: str, resolution: int, grey: bool = False) -> np.ndarray:
  """An image file of any mode -> uint8 [R, R, 3], or [R, R, 1].

  Raises:
    DataError: it can't be read.
  """
  try:
    with PIL.Image.open(path) as image:
      return central_square(image.convert('L' if grey else 'RGB'), resolution)
  except (OSError, SyntaxError, ValueError,
          PIL.Image.DecompressionBombError) as error:
    raise source.DataError(f'{path}: not a readable image: {error}') from error


def find(folder: str) -> list[tuple[str, int]]:
  """(path, class) of every image below a folder, in the order of paths.

  Raises:
    DataError: there are no folders of classes, or one has no images.
  """
  try:
    classes = sorted(entry.name for entry in os.scandir(folder)
                     if entry.is_dir() and not entry.name.startswith('.'))
  except OSError as error:
    raise source.DataError(f'no folder {folder!r}') from error
  if not classes:
    raise source.DataError(f'{folder}: no folders, one per class, in it')
  found = []
  for label, name in enumerate(classes):
    paths = sorted(
        os.path.join(place, file)
        for place, _, files in os.walk(os.path.join(folder, name))
        for file in files if source.is_image(file))
    if not paths:
      raise source.DataError(f'{folder}: no images in the class {name!r}')
    found += [(path, label) for path in paths]
  return found


def examples(
    files: list[tuple[str, int]], resolution: int, grey: bool
) -> Iterator[tuple[np.ndarray, int]]:
  """Images and labels in order, decoded on all cores."""
  with futures.ThreadPoolExecutor() as pool:
    for start in range(0, len(files), _AHEAD):
      part = files[start:start + _AHEAD]
      images = pool.map(lambda file: read(file[0], resolution, grey), part)
      yield from zip(images, (label for _, label in part), strict=True)


def prepare(
    folder: str, target: str, resolution: int, grey: bool = False) -> str:
  """Does what the command does; returns a line for people.

  Raises:
    DataError: an image is damaged, the target exists, or classes lack images.
  """
  if os.path.exists(target):
    raise source.DataError(f'{target}: exists already')
  if resolution < 1:
    raise source.DataError(f'--resolution={resolution} is not positive')
  write = edm_zip.write if target.endswith('.zip') else records.write
  made = examples(find(folder), resolution, grey)
  partial = f'{target}.partial'
  shutil.rmtree(partial, ignore_errors=True)
  num, num_classes = write(partial, made)
  os.replace(partial, target)
  return f'{num} images of {num_classes} classes in {target}'


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m msd_jax.prepare', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('source', metavar='SRC', help='a folder for each class')
  parser.add_argument('target', metavar='DST', help='a new .zip or folder')
  parser.add_argument('--resolution', type=int, required=True, metavar='R',
                      help='height and width of the images')
  parser.add_argument('--grey', action='store_true', help='one channel')
  args = parser.parse_args()
  try:
    print(prepare(args.source, args.target, args.resolution, args.grey))
  except (OSError, ValueError) as error:
    raise SystemExit(f'{parser.prog}: {error}') from error


if __name__ == '__main__':
  main()
