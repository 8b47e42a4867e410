"""Data sets that TFDS has prepared as array_record, read without TensorFlow."""

import os
from typing import Any

from absl import logging
import numpy as np

from core_jax import data as core_data
from msd_jax.formats import source

PREFIX = 'tfds:'
_CHUNK = 1000  # Examples decoded at once.
_OTHER_RESIZE = 'imagenet_resized'


class TfdsSource:
  """A labelled source of one split.

  Attributes:
    labels: int32 [N]; read in one pass that decodes no image.
    num_classes: as TFDS declares it, whatever labels the split has.
    shape: of one image, (H, W, C).
  """

  def __init__(self, name: str, split: str):
    """Opens a split by TFDS's name of the data set, or by its folder.

    Raises:
      DataError: it is not prepared, or has no images with labels.
    """
    self._name = f'TFDS {name} ({split})'
    tfds, builder = _builder(name)
    split = _existing(builder, split)
    skip = {'image': tfds.decode.SkipDecoding()}
    self._images = _data_source(builder, name, split, None)
    features = builder.info.features
    found = {'image', 'label'} <= set(features or ())
    label = features['label'] if found else None
    if not hasattr(label, 'num_classes'):
      raise source.DataError(
          f'TFDS {name!r} ({split}) needs image and label, a class')
    bare = _data_source(builder, name, split, skip)
    labels = [bare[i]['label'] for i in range(len(bare))]
    self.num_classes = label.num_classes
    self.labels = source.check_labels(
        np.asarray(labels), self.num_classes, f'TFDS {name!r} ({split})')
    self.shape = self._images[0]['image'].shape
    if _OTHER_RESIZE in name:
      logging.warning(
          'TFDS %s is resized otherwise than the images of EDM: a FID against '
          "EDM's reference statistics is not comparable with published ones. "
          'Prepare the original images with `python -m msd_jax.prepare`.', name)

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    image = self._images[int(index)]['image']
    source.check_shape(image, self.shape, f'{self._name}: example {index}')
    return {'image': image, 'label': self.labels[index]}


def read(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
  """A split that TFDS has prepared, by name or by folder, whole.

  Returns:
    images [N, H, W, C] and labels [N].

  Raises:
    DataError: it is not prepared, or has no images with labels.
  """
  _, builder = _builder(name)
  examples = _data_source(builder, name, split, None)
  chunks = [
      core_data.take(examples, range(i, min(i + _CHUNK, len(examples))))
      for i in range(0, len(examples), _CHUNK)]
  missing = {'image', 'label'} - set(chunks[0] if chunks else ())
  if missing:
    raise source.DataError(
        f'TFDS {name!r} ({split}) has no {sorted(missing)}')
  return tuple(np.concatenate([chunk[field] for chunk in chunks])
               for field in ('image', 'label'))


# What TFDS raises where a data set is unknown or not prepared.
_ERRORS = (AssertionError, ImportError, KeyError, NotImplementedError, OSError,
           RuntimeError, ValueError)


def _builder(name: str) -> Any:
  # Imported late, for it takes seconds.
  try:
    import tensorflow_datasets as tfds
    if os.path.isdir(name):
      return tfds, tfds.builder_from_directory(name)
    return tfds, tfds.builder(name)
  except _ERRORS as error:
    raise _unprepared(name, '', error) from error


def _existing(builder, split):
  """ImageNet's test split is called validation."""
  splits = builder.info.splits or {}
  return 'validation' if split == 'test' and split not in splits else split


def _data_source(builder, name, split, decoders):
  # Nothing here downloads, for that hangs.
  try:
    return builder.as_data_source(split, decoders=decoders)
  except _ERRORS as error:
    raise _unprepared(name, f' ({split})', error) from error


def _unprepared(name, split, error):
  reason = (str(error).strip() or type(error).__name__).splitlines()[0]
  return source.DataError(
      f'TFDS has no array_record files of {name!r}{split}: {reason} To '
      'prepare them, install the extra [prepare] and run `tfds build '
      f'{name} --file_format=array_record`')
