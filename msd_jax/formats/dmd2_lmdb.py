"""DMD2's LMDB: raw bytes of images and labels under numbered keys.

'images_shape' is 'N C H W' and 'labels_shape' 'N', in ASCII;
'images_<i>_data' holds C H W bytes, 'labels_<i>_data' an int64.
"""

import os

import numpy as np

from msd_jax.formats import source


class LmdbSource:
  """A labelled source; labels are read once, when it is opened.

  Attributes:
    labels: int32 [N].
    num_classes: of the whole file.
    shape: of one image, (H, W, C).
  """

  def __init__(self, path: str):
    """Opens a folder with data.mdb, or such a file.

    Raises:
      DataError: it is absent, cut short or holds something else.
    """
    lmdb = source.extra('lmdb', 'formats')
    self._path = path
    file = os.path.join(path, 'data.mdb') if os.path.isdir(path) else path
    if not os.path.isfile(file):
      raise source.DataError(f'{path}: no LMDB file {file}')
    try:
      self._env = lmdb.open(
          path, readonly=True, lock=False, readahead=False, meminit=False,
          subdir=os.path.isdir(path))
    except lmdb.Error as error:
      raise source.DataError(
          f'{path}: not a readable LMDB: {error}') from error
    # LMDB maps the file: a page beyond its end would kill the process.
    wanted = (self._env.info()['last_pgno'] + 1) * self._env.stat()['psize']
    if os.path.getsize(file) < wanted:
      raise source.DataError(
          f'{file}: an LMDB cut short: {os.path.getsize(file)} bytes of '
          f'{wanted}')
    self._num, *chw = self._numbers('images_shape', 4)
    self.shape = (*chw[1:], chw[0])
    num_labels, = self._numbers('labels_shape', 1)
    if num_labels != self._num:
      raise source.DataError(
          f'{path}: {self._num} images, but {num_labels} labels')
    with self._env.begin() as reader:
      labels = [self._get(reader, f'labels_{i}_data', 8)
                for i in range(self._num)]
    labels = np.frombuffer(b''.join(labels), '<i8')
    self.labels = source.check_labels(
        labels, max(int(labels.max(initial=0)) + 1, 1), path)
    self.num_classes = int(self.labels.max(initial=0)) + 1

  def _numbers(self, key, num):
    with self._env.begin() as reader:
      value = reader.get(key.encode())
    try:
      numbers = [int(word) for word in bytes(value).decode('ascii').split()]
    except (TypeError, ValueError):
      numbers = []
    if len(numbers) != num or min(numbers) < 1:
      raise source.DataError(
          f'{self._path}: not an LMDB of DMD2: {key} is {value!r}, not {num} '
          'positive numbers')
    return numbers

  def _get(self, reader, key, size):
    value = reader.get(key.encode())
    if value is None or len(value) != size:
      raise source.DataError(
          f'{self._path}: an LMDB cut short: images_shape says {self._num} '
          f'images, but {key} '
          f'{"is missing" if value is None else f"has {len(value)} bytes"}')
    return value

  def __len__(self) -> int:
    return self._num

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    h, w, c = self.shape
    with self._env.begin() as reader:
      data = self._get(reader, f'images_{index}_data', h * w * c)
    image = np.frombuffer(data, np.uint8).reshape(c, h, w).transpose(1, 2, 0)
    return {'image': np.ascontiguousarray(image), 'label': self.labels[index]}
