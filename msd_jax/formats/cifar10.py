"""CIFAR-10's own two formats: python batches and binary batches.

The python batches are pickles, read as data (torch_files.py).
"""

import os

import numpy as np

from core_jax import cifar10 as binary
from msd_jax import torch_files
from msd_jax.formats import source

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog',
           'horse', 'ship', 'truck')
_BATCHES = {'train': [f'data_batch_{i}' for i in range(1, 6)],
            'test': ['test_batch']}
_BINARY = '.bin'


def read(folder: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads a folder of either format: split -> (images, labels).

  Returns:
    uint8 [N, 32, 32, 3] and int [N] for 'train' and 'test'.

  Raises:
    DataError: a batch is missing, damaged, or a pickle with code.
  """
  readers = {'': _read_python, _BINARY: binary.read_binary}
  first = os.path.join(folder, _BATCHES['train'][0])
  found = [suffix for suffix in readers if os.path.isfile(first + suffix)]
  if not found:
    raise source.DataError(
        f'{folder!r} has neither data_batch_1 nor data_batch_1.bin: '
        '--config.data_path names the folder of CIFAR-10, cifar-10-batches-py '
        'or cifar-10-batches-bin')
  splits = {}
  for split, names in _BATCHES.items():
    batches = [readers[found[0]](os.path.join(folder, name + found[0]))
               for name in names]
    pixels, labels = (np.concatenate(part)
                      for part in zip(*batches, strict=True))
    splits[split] = binary.as_images(pixels), labels
  return splits


def _read_python(path):
  """A pickled dict of b'data' [N, 3072] and b'labels'."""
  try:
    batch = torch_files.read(path, encoding='bytes')
  except torch_files.FileError as error:
    raise source.DataError(str(error)) from error
  try:
    pixels, labels = batch[b'data'].value, np.asarray(batch[b'labels'])
    good = (pixels.dtype == np.uint8 and pixels.shape ==
            (len(labels), binary.NUM_VALUES) and labels.dtype.kind == 'i')
  except (AttributeError, KeyError, TypeError, ValueError):
    good = False
  if not good:
    raise source.DataError(
        f"{path}: not a batch of CIFAR-10: it needs b'data', uint8 [N, 3072], "
        "and b'labels', N integers")
  return pixels, labels
