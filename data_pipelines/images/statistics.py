"""How the pixels of a data set are distributed: counted in one pass, in bounded memory.

Values of 8 and 16 bits are counted one by one, so that their percentiles are exact. Those of
float32 are counted by their sign, exponent and upper nine bits of the mantissa, whatever range they
have: a percentile is right to a thousandth of its value. Pixels without data do not count.
"""

import collections
from typing import NamedTuple

import numpy as np

PERCENTILES = (
  0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 100.0,
)  # fmt: skip
CHUNK = 2**20  # values that are counted at once
_LOST = 14  # lower bits of a float32 that are not looked at
_SIGN = np.uint32(1 << 31)


class Histogram(NamedTuple):
  """How often the values of a band occur.

  Attributes:
    first: key of the first count, see `_keys`.
    counts: int64, of this key and those after it.
    low, high: the least and the greatest value.
  """

  first: int
  counts: np.ndarray
  low: float
  high: float


class Counts(NamedTuple):
  """The histograms of an image's bands, None for a band without data, and its type."""

  dtype: str
  bands: list[Histogram | None]


def count(pixels: np.ndarray, missing: np.ndarray | None = None) -> Counts:
  """Counts the values of an image.

  Args:
    pixels: [height, width, bands] of uint8, uint16, int16 or float32, finite.
    missing: where there are no data, of the same shape; None for nowhere.
  """
  rows, bands = max(1, CHUNK // max(pixels.shape[1], 1)), []
  for k in range(pixels.shape[2]):
    band = None
    for top in range(0, len(pixels), rows):
      values = pixels[top : top + rows, :, k]
      values = values.ravel() if missing is None else values[~missing[top : top + rows, :, k]]
      if values.size:
        band = _merged(band, _histogram(values))
    bands.append(band)
  return Counts(pixels.dtype.name, bands)


class Statistics:
  """The values of a split's pixels, image by image.

  Images of another type or number of bands are counted apart.
  """

  def __init__(self):
    self._images, self._bands = collections.Counter(), {}

  def add(self, found: Counts) -> None:
    """Takes an image in."""
    kind = found.dtype, len(found.bands)
    self._images[kind] += 1
    before = self._bands.get(kind, (None,) * kind[1])
    self._bands[kind] = [_merged(a, b) for a, b in zip(before, found.bands, strict=True)]

  def summary(self) -> dict:
    """What `prepare` keeps with the data, of the most frequent type and number of bands.

    Returns:
      `dtype`; `images`, how many are of it; `levels`, `PERCENTILES`; of each band `mean`, `std`,
      `percentiles` and `positive`, the percentiles of the values above zero, None where there are
      none. {} without images.
    """
    if not self._images:
      return {}
    (kind, images), *_ = self._images.most_common(1)
    dtype, bands = kind[0], self._bands[kind]
    moments = [_moments(h, dtype) for h in bands]
    return {
      'dtype': dtype,
      'images': images,
      'levels': list(PERCENTILES),
      'mean': [mean for mean, _ in moments],
      'std': [std for _, std in moments],
      'percentiles': [_percentiles(h, dtype) for h in bands],
      'positive': [_percentiles(_positive(h, dtype), dtype) for h in bands],
    }


def _keys(values):
  """Whole numbers from 0 on, in the order of the values."""
  if values.dtype.kind == 'u':
    return values
  if values.dtype.kind == 'i':
    return values.astype(np.int64) - np.iinfo(values.dtype).min
  bits = np.ascontiguousarray(values).view(np.uint32)
  return (np.where(bits & _SIGN, ~bits, bits | _SIGN) >> _LOST).astype(np.int64)


def _values(keys, dtype):
  """The values that have these keys, of float32 the middle one; float64."""
  if np.dtype(dtype).kind != 'f':
    return keys.astype(np.float64) + np.iinfo(dtype).min
  bits = (keys.astype(np.uint32) << _LOST) | np.uint32(1 << (_LOST - 1))
  values = np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float32)
  return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values).astype(np.float64)


def _histogram(values):
  counts = np.bincount(_keys(values))
  first = int(np.flatnonzero(counts)[0])
  # a copy: a view would keep the counts before it
  return Histogram(first, counts[first:].copy(), float(values.min()), float(values.max()))


def _merged(a, b):
  if a is None or b is None:
    return a or b
  first = min(a.first, b.first)
  counts = np.zeros(max(h.first + len(h.counts) for h in (a, b)) - first, np.int64)
  for h in (a, b):
    counts[h.first - first :][: len(h.counts)] += h.counts
  return Histogram(first, counts, min(a.low, b.low), max(a.high, b.high))


def _spread(h, dtype):
  """(values, how often each occurs), the values within those that there are."""
  values = _values(h.first + np.arange(len(h.counts)), dtype)
  return np.clip(values, h.low, h.high), h.counts


def _positive(h, dtype):
  """The part of a histogram above zero; None where it is empty."""
  if h is None or h.high <= 0:
    return None
  zero = int(_keys(np.zeros(1, dtype))[0])
  keys = h.first + np.flatnonzero(h.counts)
  if keys[-1] <= zero:  # less than any number of full precision
    return None
  first = int(keys[keys > zero][0])
  low = h.low if h.low > 0 else float(_values(np.array([first]), dtype)[0])
  return Histogram(first, h.counts[first - h.first :], low, h.high)


def _percentiles(h, dtype):
  """The least value that so much of all does not exceed, for each of `PERCENTILES`."""
  if h is None:
    return None
  values, counts = _spread(h, dtype)
  below = np.cumsum(counts)
  places = np.searchsorted(below, np.array(PERCENTILES) / 100 * below[-1])
  found = values[places]
  found[0], found[-1] = h.low, h.high
  return [_rounded(v) for v in found]


def _moments(h, dtype):
  """(mean, standard deviation)."""
  if h is None:
    return None, None
  values, counts = _spread(h, dtype)
  mean = np.average(values, weights=counts)
  return _rounded(mean), _rounded(np.sqrt(np.average((values - mean) ** 2, weights=counts)))


def _rounded(value):
  return float(f'{value:.7g}')
