"""Windows that cut a large image on the fly, and the names of patches that were cut before.

A window keeps an object if at least `keep` of its area lies inside (0.7 in the DOTA devkit and
mmrotate); the object's box then stays whole, shifted but not clipped, as in mmrotate's `img_split`.
What is cut more is left out of that window.
"""

import re

import numpy as np

from data_pipelines.errors import UserError


def windows(height: int, width: int, size: int = 0, overlap: int = 0) -> np.ndarray:
  """Corners x1, y1, x2, y2 of the windows of an image, row by row; int32 [n, 4].

  The rule of the DOTA devkit: steps of size - overlap, the last window of a row or column shifted
  back to the border. `size` 0 gives the whole image; a side shorter than `size` is taken whole.

  Raises:
    UserError: an overlap that is not below the size.
  """
  if not size:
    return np.array([[0, 0, width, height]], np.int32)
  if not 0 <= overlap < size:
    raise UserError(f'tile.overlap={overlap}: expected at least 0 and less than tile.size={size}')
  y, x = np.meshgrid(_starts(height, size, overlap), _starts(width, size, overlap), indexing='ij')
  x, y = x.ravel(), y.ravel()
  x2, y2 = np.minimum(x + size, width), np.minimum(y + size, height)
  return np.stack([x, y, x2, y2], -1).astype(np.int32)


def _starts(length, size, overlap):
  last = max(length - size, 0)
  return np.append(np.arange(0, last, size - overlap), last)


def kept_fraction(polygons: np.ndarray, windows: np.ndarray) -> np.ndarray:
  """Share of each polygon's area inside each window; float64 [windows, polygons].

  Exact, by Green's theorem: area = sum over edges of the integral of clamp(x) dy over the part of
  the edge inside the window's rows. Polygons must not cross themselves; one without area gets 0.

  Args:
    polygons: [m, 8].
    windows: [k, 4] x1, y1, x2, y2.
  """
  points = np.asarray(polygons, np.float64).reshape(1, -1, 4, 2)
  x1, y1, x2, y2 = np.asarray(windows, np.float64).T[:, :, None, None]  # [k, 1, 1] each
  inside = _area(points, x1, y1, x2, y2)
  # its own bounds as window: a far one would cost the area's last digits
  low, high = points.min(2, keepdims=True), points.max(2, keepdims=True)
  whole = _area(points, low[..., 0], low[..., 1], high[..., 0], high[..., 1])
  return np.divide(inside, whole, out=np.zeros_like(inside), where=whole > 1e-9)


def _area(points, x1, y1, x2, y2):
  """Area of [1, m, 4, 2] polygons inside windows [k, 1, 1] -> [k, m]."""
  # the polygon's own corner as origin keeps the numbers small
  origin = points[:, :, :1]
  a, b = points - origin, np.roll(points, -1, 2) - origin
  x1, x2 = x1 - origin[..., 0], x2 - origin[..., 0]
  y1, y2 = y1 - origin[..., 1], y2 - origin[..., 1]
  ax, ay, bx, by = a[..., 0], a[..., 1], b[..., 0], b[..., 1]
  dx, dy = bx - ax, by - ay

  def crossing(value, start, delta):  # where along the edge start + t delta = value, in 0..1
    t = np.divide(
      value - start,
      delta,
      out=np.zeros(np.broadcast_shapes(value.shape, delta.shape)),
      where=delta != 0,
    )
    return np.clip(t, 0, 1)

  enter, leave = crossing(y1, ay, dy), crossing(y2, ay, dy)
  enter, leave = np.minimum(enter, leave), np.maximum(enter, leave)
  between = [np.clip(crossing(x, ax, dx), enter, leave) for x in (x1, x2)]
  t = np.stack([enter, np.minimum(*between), np.maximum(*between), leave])
  x = np.clip(ax + t * dx, x1, x2) - x1  # piecewise linear in t, its corners at t
  integral = ((x[1:] + x[:-1]) / 2 * np.diff(t, axis=0)).sum(0) * dy
  inside = np.where(dy != 0, integral, 0.0)
  return np.abs(inside.sum(-1))


_PATCH = re.compile(r'(?P<image>.+?)__(?P<rate>\d+(?:\.\d+)?)__(?P<x>-?\d+)___(?P<y>-?\d+)$')


def parse_patch(id: str) -> tuple[str, float, int, int] | None:
  """(image, rate, x, y) of a pre-cut patch's name `<image>__<rate>__<x>___<y>`, else None.

  x, y is the patch's corner in the image resized by rate: a point p of the patch is
  (p + (x, y)) / rate in the image. mmrotate writes the patch's size in the place of the rate:
  numbers of 16 and more are such sizes and mean rate 1.
  """
  match = _PATCH.match(id)
  if not match:
    return None
  rate = float(match['rate'])
  return match['image'], rate if rate < 16 else 1.0, int(match['x']), int(match['y'])
