"""array_record files of images: a record is a label and a PNG.

The label is an int32, little-endian, before the PNG's bytes. Our own layout,
as `python -m msd_jax.prepare` writes it: array_record itself knows bytes alone.
"""

from collections.abc import Iterable
import glob
import os

import numpy as np

from msd_jax.formats import edm_zip
from msd_jax.formats import source

_LABEL_BYTES = 4
_SHARD = 1 << 16  # Records in a file.
SUFFIX = '.array_record'


class RecordSource:
  """A labelled source; labels are read once, when it is opened.

  Attributes:
    labels: int32 [N].
    num_classes: of the whole file.
    shape: of one image, (H, W, C).
  """

  def __init__(self, path: str):
    """Opens a file, or all files of a folder in the order of their names.

    Raises:
      DataError: there is none, or it is damaged.
    """
    reader = source.extra(
        'array_record.python.array_record_data_source', 'formats')
    files = sorted(glob.glob(os.path.join(path, f'*{SUFFIX}*'))) if (
        os.path.isdir(path)) else [path] * os.path.isfile(path)
    if not files:
      raise source.DataError(f'{path}: no array_record files')
    self._path = path
    try:
      self._records = reader.ArrayRecordDataSource(files)
      size = len(self._records)
      heads = [self._records[i][:_LABEL_BYTES] for i in range(size)]
    except (OSError, RuntimeError, ValueError, IndexError) as error:
      reason = (str(error).splitlines() or [''])[0]
      raise source.DataError(
          f'{path}: a damaged array_record: {reason}') from error
    if not heads or any(len(head) < _LABEL_BYTES for head in heads):
      raise source.DataError(f'{path}: not records of a label and a PNG')
    labels = np.frombuffer(b''.join(heads), '<i4')
    self.labels = source.check_labels(
        labels, max(int(labels.max()) + 1, 1), path)
    self.num_classes = int(self.labels.max()) + 1
    self.shape = self._decode(0).shape

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    image = self._decode(int(index))
    source.check_shape(image, self.shape, f'{self._path}: record {index}')
    return {'image': image, 'label': self.labels[index]}

  def _decode(self, index):
    return source.decode_image(
        self._records[index][_LABEL_BYTES:], f'{self._path}: record {index}')


def write(
    folder: str, examples: Iterable[tuple[np.ndarray, int]],
    shard: int = _SHARD) -> tuple[int, int]:
  """Writes (uint8 [H, W, C], class) to files in a new folder.

  Returns:
    The number of images and of classes.
  """
  array_record = source.extra(
      'array_record.python.array_record_module', 'formats')
  os.makedirs(folder)
  classes, num, writer = set(), 0, None
  for num, (image, label) in enumerate(examples, start=1):
    if (num - 1) % shard == 0:
      if writer is not None:
        writer.close()
      # One record in a group: each is read alone.
      writer = array_record.ArrayRecordWriter(
          os.path.join(folder, f'{(num - 1) // shard:05d}{SUFFIX}'),
          'group_size:1')
    head = int(label).to_bytes(_LABEL_BYTES, 'little', signed=True)
    writer.write(head + edm_zip.encode_png(image))
    classes.add(int(label))
  if writer is not None:
    writer.close()
  return num, len(classes)
