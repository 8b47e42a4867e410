"""Image files in a folder for each class."""

from collections.abc import Sequence
import os

import numpy as np

from msd_jax.formats import source


def read(
    path: str
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
  """Image files in `path`/{train,test}/CLASS/, all of one size and mode.

  Returns:
    split -> (images uint8 [N, H, W, C], labels [N]), and the classes' names.
  """
  if not path:
    raise source.DataError(
        "dataset 'folder' needs --config.data_path=FOLDER, which holds "
        'train/CLASS/ and test/CLASS/ with image files')
  names = {split: _subfolders(os.path.join(path, split))
           for split in ('train', 'test')}
  if names['train'] != names['test']:
    differ = sorted(set(names['train']) ^ set(names['test']))
    raise source.DataError(
        f'{path}: train and test must have the same classes; '
        f'in one only: {", ".join(differ)}')
  # Both splits take their size and mode from the first image of train.
  files = {split: [_files(os.path.join(path, split, name)) for name in names]
           for split, names in names.items()}
  first = source.read_image(files['train'][0][0])
  splits = {split: _read_classes(classes, first)
            for split, classes in files.items()}
  return splits, names['train']


def _read_classes(classes: Sequence[Sequence[str]], first: np.ndarray):
  """Reads files by class: uint8 [N, *first.shape] and labels [N]."""
  files = [file for files in classes for file in files]
  labels = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
  images = np.empty((len(files), *first.shape), np.uint8)
  for i, file in enumerate(files):
    image = source.read_image(file)
    source.check_shape(image, first.shape, file)
    images[i] = image
  return images, labels


def _subfolders(folder):
  """Returns the sorted names of folders in a folder, or raises DataError."""
  if not os.path.isdir(folder):
    raise source.DataError(f'no folder {folder!r}')
  with os.scandir(folder) as entries:
    names = sorted(e.name for e in entries
                   if e.is_dir() and not e.name.startswith('.'))
  if not names:
    raise source.DataError(f'{folder}: no folders, one per class, in it')
  return names


def _files(folder):
  """Returns the sorted paths of the files in a folder of one class."""
  with os.scandir(folder) as entries:
    paths = sorted(e.path for e in entries
                   if e.is_file() and not e.name.startswith('.'))
  if not paths:
    raise source.DataError(f'{folder}: no image files in it')
  return paths
