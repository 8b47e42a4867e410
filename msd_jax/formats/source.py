"""What the readers share: an error, labels, images, a choice of rows.

A labelled source is random access to examples {'image': uint8 [H, W, C],
'label': int32 []} whose `labels`, int32 [N], are known without decoding.
"""

from collections.abc import Sequence
import importlib
import io
import os
from typing import Any
import zlib

import numpy as np
import PIL.Image

from core_jax import data as core_data

DataError = core_data.DataError
check_labels = core_data.check_labels
_IMAGES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')


def extra(module: str, name: str) -> Any:
  """Imports what not every installation has.

  Raises:
    DataError: it is not installed, with the extra that brings it.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise DataError(
        f'{error}: install the extra [{name}] of this package') from error


def is_image(name: str) -> bool:
  """Whether a file of this name is one of the images that we read."""
  return os.path.splitext(name)[1].lower() in _IMAGES


def labels_of(source: Any) -> np.ndarray:
  """int32 [N] of a labelled source, or of arrays with 'label'."""
  if isinstance(source, core_data.ArraySource):
    return source.arrays['label']
  return source.labels


class Rows:
  """Some examples of a source, in the order of `rows`."""

  def __init__(self, source: core_data.Source, rows: np.ndarray):
    self._source = source
    self._rows = np.asarray(rows, np.intp)

  @property
  def labels(self) -> np.ndarray:
    return labels_of(self._source)[self._rows]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Any:
    return self._source[int(self._rows[index])]

  def __getitems__(self, indices: Sequence[int]) -> Any:
    return core_data.take(self._source, self._rows[np.asarray(indices)])


def of_classes(source: core_data.Source, classes: np.ndarray) -> Rows:
  """The examples of some classes: MSD's filter F(D, V_k), before shuffling.

  Labels stay what they are in the whole data set, and with them the number of
  classes that a network is made for.

  Raises:
    DataError: no example is of these classes.
  """
  rows = np.flatnonzero(np.isin(labels_of(source), classes))
  if not rows.size:
    raise DataError(f'no example of the classes {list(map(int, classes))}')
  return Rows(source, rows)


def in_memory(source: core_data.Source, most_bytes: int) -> core_data.Source:
  """The source as arrays where that takes at most `most_bytes`."""
  first = source[0]['image']
  if len(source) * first.nbytes > most_bytes:
    return source
  images = np.empty((len(source), *first.shape), first.dtype)
  for i in range(len(source)):
    images[i] = source[i]['image']
  return core_data.ArraySource({'image': images, 'label': source.labels})


def decode_image(data: bytes, where: str) -> np.ndarray:
  """An image file's bytes -> uint8 [H, W, C], C = 1 (grey) or 3 (RGB).

  Raises:
    DataError: it can't be read, or is of another mode.
  """
  try:
    # Loading alone passes over checksums, and verifying spends the object.
    with PIL.Image.open(io.BytesIO(data)) as image:
      image.verify()
    with PIL.Image.open(io.BytesIO(data)) as image:
      mode = image.mode
      pixels = np.asarray(image)
  # Pillow's decoders raise what they like on damaged files.
  except (OSError, SyntaxError, ValueError, EOFError, zlib.error,
          PIL.Image.DecompressionBombError) as error:
    raise DataError(f'{where}: not a readable image: {error}') from error
  if mode not in ('L', 'RGB'):
    raise DataError(f'{where}: its mode is {mode}, not L (grey) or RGB')
  return pixels if mode == 'RGB' else pixels[..., None]


def read_image(path: str) -> np.ndarray:
  """Reads a greyscale or RGB file as uint8 [H, W, C], C = 1 or 3."""
  try:
    with open(path, 'rb') as file:
      return decode_image(file.read(), path)
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error}') from error


def check_shape(image: np.ndarray, shape: tuple[int, ...], where: str) -> None:
  """Raises DataError unless the image has the shape of the first one."""
  if image.shape != shape:
    raise DataError(
        f'{where}: its shape is {image.shape}, but that of the first image is '
        f'{shape}')
