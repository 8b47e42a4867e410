"""EDM's zip files: PNG images, uncompressed, and dataset.json.

dataset.json is {'labels': [[name, class], ...]}; images are in the order of
their names. Reading is random access: nothing is unpacked.
"""

from collections.abc import Iterable
import io
import json
import zipfile

import numpy as np
import PIL.Image

from msd_jax.formats import source

_INDEX = 'dataset.json'


class ZipSource:
  """A labelled source, decoded at each access.

  Attributes:
    labels: int32 [N].
    num_classes: of the whole file.
    shape: of one image, (H, W, C).
  """

  def __init__(self, path: str):
    """Opens the file and reads its labels.

    Raises:
      DataError: it is no zip, or has no labels, or not one for each image.
    """
    self._path = path
    try:
      self._zip = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
      raise source.DataError(
          f'{path}: not a readable zip file: {error}') from error
    self._names = sorted(
        name for name in self._zip.namelist() if source.is_image(name))
    if not self._names:
      raise source.DataError(f'{path}: no images in it')
    self.labels = self._read_labels()
    self.num_classes = int(self.labels.max()) + 1
    self.shape = self._decode(0).shape

  def _read_labels(self):
    try:
      labels = json.loads(self._zip.read(_INDEX))['labels']
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile):
      labels = None
    if not isinstance(labels, list):
      raise source.DataError(
          f'{self._path}: a zip without labels: its {_INDEX} must be '
          '{"labels": [[name, class], ...]}')
    try:
      by_name = dict(labels)
      found = np.asarray([by_name[name] for name in self._names])
    except KeyError as error:
      raise source.DataError(
          f'{self._path}: {_INDEX} has no label of {error}') from error
    except (TypeError, ValueError) as error:
      raise source.DataError(
          f'{self._path}: {_INDEX} is not a list of [name, class]') from error
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
      raise source.DataError(
          f'{self._path}: labels of {_INDEX} must be integers, not '
          f'{found.dtype} of shape {found.shape[1:]}')
    return source.check_labels(found, max(int(found.max()) + 1, 1), self._path)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    image = self._decode(index)
    source.check_shape(
        image, self.shape, f'{self._path}: {self._names[index]}')
    return {'image': image, 'label': self.labels[index]}

  def _decode(self, index):
    name = self._names[index]
    try:
      data = self._zip.read(name)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
      raise source.DataError(f'{self._path}: {name}: {error}') from error
    return source.decode_image(data, f'{self._path}: {name}')


def write(
    path: str, examples: Iterable[tuple[np.ndarray, int]]) -> tuple[int, int]:
  """Writes such a file of (uint8 [H, W, C], class); counts what it wrote.

  Returns:
    The number of images and of classes.
  """
  labels = []
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    for i, (image, label) in enumerate(examples):
      name = f'{i // 1000:05d}/img{i:08d}.png'
      archive.writestr(name, encode_png(image))
      labels.append([name, int(label)])
    archive.writestr(_INDEX, json.dumps({'labels': labels}))
  return len(labels), len({label for _, label in labels})


def encode_png(image: np.ndarray) -> bytes:
  """uint8 [H, W, C], C = 1 or 3 -> the bytes of a PNG, uncompressed."""
  buffer = io.BytesIO()
  PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
      buffer, 'PNG', compress_level=0, optimize=False)
  return buffer.getvalue()
