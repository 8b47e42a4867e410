"""Images as bytes, 0 to 255, and as the networks have them, [-1, 1]."""

from typing import TypeVar

import jax
import numpy as np

Array = TypeVar('Array', np.ndarray, jax.Array)


def to_unit_range(images: Array) -> Array:
  """uint8 0..255 -> float32 in [-1, 1]; floats pass as they are."""
  if images.dtype != np.uint8:
    return images
  return images.astype(np.float32) / 127.5 - 1


def to_uint8(images: np.ndarray) -> np.ndarray:
  """[-1, 1] to the nearest of 256 levels; what is beyond them is clipped.

  FIDs round otherwise, each protocol in its own way: see fid.py.
  """
  return np.rint(np.clip(images, -1, 1) * 127.5 + 127.5).astype(np.uint8)
