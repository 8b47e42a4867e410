"""CIFAR-10's binary batches."""

import os

import numpy as np

from core_jax import data

SHAPE = (32, 32, 3)
NUM_VALUES = 3 * 32 * 32  # Channels, rows, columns.


def read_binary(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
  """Reads records of a label and 3,072 values.

  Returns:
    uint8 [N, 3072] and int64 [N].

  Raises:
    DataError: the file is absent, empty or cut short.
  """
  try:
    values = np.fromfile(path, np.uint8)
  except OSError as error:
    raise data.DataError(f'{path}: cannot be read: {error}') from error
  if not values.size or values.size % (1 + NUM_VALUES):
    raise data.DataError(
        f'{path}: cut short: {values.size} bytes are not a number of records '
        f'of {1 + NUM_VALUES}')
  records = values.reshape(-1, 1 + NUM_VALUES)
  return records[:, 1:], records[:, 0].astype(np.int64)


def as_images(pixels: np.ndarray) -> np.ndarray:
  """Planes uint8 [N, 3072] -> images uint8 [N, 32, 32, 3]."""
  height, width, channels = SHAPE
  planes = pixels.reshape(-1, channels, height, width)
  return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
