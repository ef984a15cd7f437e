"""What is kept of one image once its pixels are gone: a few numbers, a hash and a thumbnail."""

import math
import zlib
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 16  # px, of the thumbnail
CELLS = 9  # a side, of the picture whose neighbouring cells the hash compares
# a square picture [.., side, side] as it is, turned and mirrored: every way to show it
ORIENTATIONS = {
  '': lambda x: x,
  'turned by 90 degrees': lambda x: np.rot90(x, 1, (-2, -1)),
  'turned by 180 degrees': lambda x: np.rot90(x, 2, (-2, -1)),
  'turned by 270 degrees': lambda x: np.rot90(x, 3, (-2, -1)),
  'mirrored left to right': lambda x: x[..., ::-1],
  'mirrored top to bottom': lambda x: x[..., ::-1, :],
  'mirrored along a diagonal': lambda x: np.swapaxes(x, -2, -1),
  'mirrored along the other diagonal': lambda x: np.swapaxes(x[..., ::-1, ::-1], -2, -1),
}
OPENCV = [np.dtype(t) for t in ('u1', 'u2', 'i2', 'f4', 'f8')]  # that its functions take


class Look(NamedTuple):
  """One image in short.

  Attributes:
    height, width, bands, dtype: of the pixels.
    low, high: smallest and largest finite value.
    mean, std: [bands] of the finite values.
    filled: share of the pixels that have data: finite, and not 0 in all bands.
    checksum: of all pixels.
    hashes: uint64 [8, 2]; in each of `ORIENTATIONS` 128 comparisons of neighbouring cells, along
      rows and along columns.
    thumbnail: float32 [SIDE * SIDE], mean 0 and norm 1; all 0 for an image of one value.
  """

  height: int
  width: int
  bands: int
  dtype: str
  low: float
  high: float
  mean: np.ndarray
  std: np.ndarray
  filled: float
  checksum: int
  hashes: np.ndarray
  thumbnail: np.ndarray


def look(image: np.ndarray) -> Look:
  """`Look` of pixels [H, W, bands] of any real type."""
  image = np.ascontiguousarray(image)
  height, width, bands = image.shape
  finite = np.isfinite(image) if image.dtype.kind == 'f' else np.ones((1, 1, bands), bool)
  values = image if finite.all() else image[finite]
  low, high = (float(f(values)) if values.size else 0.0 for f in (np.min, np.max))
  mean, std = np.transpose([_moments(image[..., k], finite[..., k]) for k in range(bands)])
  grey = _grey(image)
  cells, thumbnail = _resized(grey, CELLS), _resized(grey, SIDE).ravel()
  thumbnail = thumbnail - thumbnail.mean()
  norm = np.linalg.norm(thumbnail) if low < high else 0
  return Look(
    height=height,
    width=width,
    bands=bands,
    dtype=str(image.dtype),
    low=low,
    high=high,
    mean=mean,
    std=std,
    filled=float(((image != 0) & finite).any(2).mean()),
    checksum=zlib.crc32(image.data, zlib.crc32(repr((image.shape, str(image.dtype))).encode())),
    hashes=np.stack([_hash(turn(cells)) for turn in ORIENTATIONS.values()]),
    thumbnail=thumbnail / norm if norm else np.zeros_like(thumbnail),
  )


def turned(thumbnails: np.ndarray, turn: str) -> np.ndarray:
  """Thumbnails [.., k] of the same pictures in one of `ORIENTATIONS`."""
  side = math.isqrt(thumbnails.shape[-1])
  square = thumbnails.reshape(*thumbnails.shape[:-1], side, side)
  return ORIENTATIONS[turn](square).reshape(thumbnails.shape)


def likeness(a: Look, b: Look) -> tuple[float, str]:
  """How much `a` looks like `b` (correlation of thumbnails), and in which orientation most."""
  return max(
    ((float(turned(a.thumbnail, turn) @ b.thumbnail), turn) for turn in ORIENTATIONS),
    key=lambda pair: pair[0],
  )


def _moments(band, finite):
  """(mean, standard deviation) of the finite values of a band [H, W]."""
  if band.dtype not in OPENCV:
    band = band.astype(np.float64)
  mask = None if finite.all() else finite.astype(np.uint8)
  mean, std = cv2.meanStdDev(np.ascontiguousarray(band), mask=mask)
  return mean.item(), std.item()


def _grey(image):
  """Mean of all bands, float32 [4 SIDE, 4 SIDE]; what is not finite is 0."""
  total = 0
  for k in range(image.shape[2]):
    band = image[..., k]
    if band.dtype.kind == 'f':
      band = np.nan_to_num(band, nan=0, posinf=0, neginf=0)
    elif band.dtype not in OPENCV:
      band = band.astype(np.float32)
    total = total + _resized(np.ascontiguousarray(band), 4 * SIDE).astype(np.float32)
  return total / image.shape[2]


def _resized(picture, side):
  return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)


def _hash(cells):
  along, down = cells[:-1, 1:] > cells[:-1, :-1], cells[1:, :-1] > cells[:-1, :-1]
  return np.packbits(np.stack([along.ravel(), down.ravel()])).view(np.uint64)
