"""Pictures of what was found: the image, or the part of it with the object in question."""

import cv2
import numpy as np

from sm3det_jax.analysis.doctor.dataset import Dataset
from sm3det_jax.analysis.doctor.rows import Row
from sm3det_jax.viz import draw

LONGEST = 640  # px, of the drawn part
AROUND, LEAST = 2.0, 64  # times an object's longest side, and px, that a picture shows at least
OUTSIDE = 60  # grey of what lies outside of the image
OTHERS = (150, 150, 150)  # of objects that are not in question
DIM = 0.4  # brightness of what is not in question


def example(d: Dataset, row: Row) -> np.ndarray:
  """The picture of a row about an image that can be read; uint8 [H, W, 3]."""
  image = d.read(row.image)
  if row.object < 0:
    picture = _whole(d, row.image, image)
    if row.other >= 0:
      picture = draw.beside(picture, _whole(d, row.other, d.read(row.other)))
    return picture
  asked = [k for k in (row.object, row.other) if k >= 0]
  quads = _quads(d, asked)
  if not np.isfinite(quads).all():
    return _whole(d, row.image, image)
  window = _around(quads, image.shape)
  return _drawn(d, row.image, _part(image, window), window[:2], asked)


def _whole(d, k, image):
  return _drawn(d, k, draw.to_rgb(image), (0, 0))


def _drawn(d, k, picture, corner, asked=()):
  """The objects of image `k` on a part of it; the others than those `asked` for are dim."""
  scale = LONGEST / max(picture.shape[:2])
  size = [max(1, round(scale * n)) for n in picture.shape[1::-1]]
  picture = cv2.resize(
    picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  )
  rows = np.flatnonzero(d.objects['image'] == k) if d.objects else np.zeros(0, int)
  quads = (_quads(d, rows) - corner) * scale
  seen = np.isfinite(quads).all((1, 2))
  seen[seen] = ((quads[seen].max(1) >= 0) & (quads[seen].min(1) <= size)).all(1)
  rows, quads = rows[seen], quads[seen]
  names = (*d.classes, 'unknown')
  labels = d.objects['label'][rows] % len(names) if d.objects else rows  # UNKNOWN is the last
  if asked:
    picture = _spotlight(picture, (_quads(d, asked) - corner) * scale)
    mine = np.isin(rows, asked)
    lines = list(np.rint(quads[~mine]).astype(np.int32))
    cv2.polylines(picture, lines, True, OTHERS, 1, cv2.LINE_AA)
    quads, labels = quads[mine], labels[mine]
  return draw.draw(picture, quads.reshape(-1, 8), labels, names, title=d.images[k].split)


def _quads(d, rows):
  """Corners [n, 4, 2] as the files have them."""
  if not d.objects:
    return np.zeros((0, 4, 2))
  return d.objects['polygons'][rows].astype(np.float64).reshape(-1, 4, 2)


def _around(quads, shape):
  """x1, y1, x2, y2 of the part to show: the objects and as much around them as helps to judge.

  It may reach beyond the image, but not farther than the image is large.
  """
  points = quads.reshape(-1, 2)
  low, high = points.min(0), points.max(0)
  half = max(LEAST, AROUND * (high - low).max()) / 2
  middle, size = (low + high) / 2, np.array(shape[1::-1])
  if (low >= size).any() or (high <= 0).any():  # outside: with the whole image
    low, high = np.minimum(low, 0), np.maximum(high, size)
  low, high = np.minimum(low, middle - half), np.maximum(high, middle + half)
  # of an object far away only the image is shown
  low, high = np.clip(low, -size, size - 1), np.clip(high, 1, 2 * size)
  return *np.floor(low).astype(int), *np.ceil(high).astype(int)


def _part(image, window):
  """RGB of a part that may reach beyond the image."""
  x1, y1, x2, y2 = window
  height, width = image.shape[:2]
  inner = image[max(y1, 0) : y2, max(x1, 0) : x2]
  border = max(-y1, 0), max(y2 - height, 0), max(-x1, 0), max(x2 - width, 0)
  grey = (OUTSIDE,) * 3
  return cv2.copyMakeBorder(draw.to_rgb(inner), *border, cv2.BORDER_CONSTANT, value=grey)


def _spotlight(picture, quads):
  """The picture, dim but for discs around the quadrilaterals."""
  mask = np.zeros(picture.shape[:2], np.uint8)
  for quad in quads:
    (x, y), radius = cv2.minEnclosingCircle(quad.astype(np.float32))
    if max(abs(x), abs(y), radius) < 4 * LONGEST:
      cv2.circle(mask, (round(x), round(y)), round(1.1 * radius + 16), 255, -1, cv2.LINE_AA)
  if not mask.any():
    return picture
  share = DIM + (1 - DIM) * (mask[..., None] / 255)
  return (picture * share).astype(np.uint8)
