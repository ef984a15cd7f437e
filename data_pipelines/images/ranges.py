"""Whether a task's mean and std can be of the pixels' range, and pixels for the eye."""

from collections.abc import Sequence

import numpy as np


def mismatch(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> str | None:
  """Why a mean and a std are not of the unit of these pixels; None if they may be.

  Args:
    image: of any type but uint8, where nothing is said.
    mean, std: of each band, as a task has them.
  """
  if image.dtype == np.uint8:
    return None
  low, high = image.min(), image.max()
  if high > 255 >= max(mean) and max(std) <= 128:
    return f'{image.dtype} values up to {high:g}, mean and std of 8 bits: set them'
  if high <= 1 < min(mean):
    return f'{image.dtype} values from {low:g} to {high:g}, mean {min(mean):g}: set mean and std'
  return None


def stretch(image: np.ndarray) -> np.ndarray:
  """Values between their 0.5 and 99.5 percentiles (of about 1,000 rows) as uint8 0..255."""
  values = np.nan_to_num(image.astype(np.float32))
  low, high = np.percentile(values[:: -(-len(values) // 1000)], (0.5, 99.5))
  values = (values - low) * (255 / max(high - low, 1e-12))
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)
