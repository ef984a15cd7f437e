"""Pixels for the eye, and other ranges of 8 bits."""

import numpy as np

from data_pipelines.errors import UserError

TAIL = 0.001  # share of a band's pixels that `stretch8` lets saturate at each end


def stretch(image: np.ndarray) -> np.ndarray:
  """Values between their 0.5 and 99.5 percentiles (of about 1,000 rows) as uint8 0..255."""
  values = np.nan_to_num(image.astype(np.float32))
  low, high = np.percentile(values[:: -(-len(values) // 1000)], (0.5, 99.5))
  values = (values - low) * (255 / max(high - low, 1e-12))
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def stretch8(image: np.ndarray) -> np.ndarray:
  """8 bits of a tile, as RingMoE's released pre-processing makes them.

  The range of all bands together becomes 0..255, rounded half to even; then each band is stretched
  between the levels that 0.1 % of its pixels lie below and above, truncated.

  Args:
    image: [H, W, bands] of any real type, finite.

  Returns:
    uint8 [H, W, bands]; 0 in a band of one level.

  Raises:
    UserError: all of it has one value, or values that are not finite.
  """
  values = np.asarray(image, np.float64)
  low, high = values.min(), values.max()
  if not np.isfinite(high - low):
    raise UserError('values that are not finite have no range of 8 bits')
  if low == high:
    raise UserError(f'a constant tile (all of it is {low:g}) has no range of 8 bits')
  levels = np.rint((values - low) / (high - low) * 255).astype(np.uint8)
  return np.stack([_stretched(band) for band in np.moveaxis(levels, -1, 0)], -1)


def _stretched(band):
  """One band's levels, uint8 [H, W]."""
  below = np.bincount(band.ravel(), minlength=256).cumsum()
  cut = TAIL * band.size
  low, high = (int(np.argmax(below > count)) for count in (cut, band.size - cut))
  if low == high:
    return np.zeros_like(band)
  return ((np.clip(band, low, high).astype(np.float64) - low) * 255 / (high - low)).astype(np.uint8)
