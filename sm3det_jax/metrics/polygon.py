"""Exact IoU of quadrilaterals in float64 numpy: what evaluation measures with.

The intersection needs no clipping. Seen from below, a polygon's indicator is the signed sum over
its edges e of [x in the range of e][y < e(x)], so the common area of two polygons is the sum over
pairs of edges (e, f) of sign(e) sign(f) times the integral of min(e(x), f(x)) over the x both
cover, and min(e, f) = (e + f - |e - f|) / 2 with e and f straight lines. It holds for any polygon,
convex or not; parts that a self-crossing one winds around negatively count negatively, as in the
DOTA devkit.
"""

import numpy as np

CHUNK = 16_384  # pairs at once: a few MB for each temporary array [pairs, 4, 4]


def iou_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """IoU of aligned pairs of quadrilaterals.

  Args:
    a: [n, 8] corners in order, either sense.
    b: [n, 8] likewise.

  Returns:
    [n] float64 in 0..1; 0 where the union has no area.
  """
  a, b = (np.asarray(p, np.float64).reshape(-1, 4, 2) for p in (a, b))
  parts = [_iou(a[i : i + CHUNK], b[i : i + CHUNK]) for i in range(0, max(len(a), 1), CHUNK)]
  return np.concatenate(parts)


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """IoU of all quadrilaterals of `a` [n, 8] with all of `b` [m, 8]: [n, m] float64.

  Only pairs whose envelopes overlap are computed.
  """
  a, b = (np.asarray(p, np.float64).reshape(-1, 4, 2) for p in (a, b))
  result = np.zeros((len(a), len(b)))
  if not result.size:
    return result
  low = np.maximum(a.min(1)[:, None], b.min(1)[None])  # [n, m, 2]
  high = np.minimum(a.max(1)[:, None], b.max(1)[None])
  i, j = np.nonzero((high > low).all(-1))
  result[i, j] = iou_pairs(a[i], b[j])
  return result


def iof_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Share of every quadrilateral of `a` [n, 8] inside every one of `b` [m, 8]: [n, m] float64."""
  iou = iou_matrix(a, b)
  own, other = (np.abs(area(np.asarray(p, np.float64).reshape(-1, 4, 2))) for p in (a, b))
  common = iou / (1 + iou) * (own[:, None] + other[None])
  return np.divide(common, own[:, None], out=np.zeros_like(iou), where=own[:, None] > 0)


def area(p: np.ndarray) -> np.ndarray:
  """Signed area of polygons [..., k, 2] (shoelace)."""
  q = np.roll(p, -1, axis=-2)
  return 0.5 * (p[..., 0] * q[..., 1] - q[..., 0] * p[..., 1]).sum(-1)


def _iou(a, b):  # [n, 4, 2] each
  origin = a[:, :1]  # near both, so that coordinates of 20,000 px cost no digits
  a, b = a - origin, b - origin
  area_a, area_b = area(a), area(b)
  inter = _intersection(a, b) * np.sign(area_a) * np.sign(area_b)
  area_a, area_b = np.abs(area_a), np.abs(area_b)
  inter = np.clip(inter, 0.0, np.minimum(area_a, area_b))
  union = area_a + area_b - inter
  return np.divide(inter, union, out=np.zeros_like(union), where=union > 0)


def _intersection(a, b):
  e, f = a[:, :, None], b[:, None]  # edges' starts [n, 4, 1, 2], [n, 1, 4, 2]
  e2, f2 = np.roll(a, -1, 1)[:, :, None], np.roll(b, -1, 1)[:, None]
  start = np.maximum(np.minimum(e[..., 0], e2[..., 0]), np.minimum(f[..., 0], f2[..., 0]))
  stop = np.minimum(np.maximum(e[..., 0], e2[..., 0]), np.maximum(f[..., 0], f2[..., 0]))
  width = np.maximum(stop - start, 0.0)  # [n, 4, 4]
  e_start, e_stop = _height(e, e2, start), _height(e, e2, stop)
  f_start, f_stop = _height(f, f2, start), _height(f, f2, stop)
  d0, d1 = e_start - f_start, e_stop - f_stop
  size = np.abs(d0) + np.abs(d1)
  crossing = np.divide(d0 * d0 + d1 * d1, size, out=np.zeros_like(size), where=size > 0)
  gap = np.where(d0 * d1 < 0, crossing, size)  # twice the mean of |e - f|
  lower = 0.25 * (e_start + e_stop + f_start + f_stop - gap)  # mean of min(e, f)
  sign = np.sign(e2[..., 0] - e[..., 0]) * np.sign(f2[..., 0] - f[..., 0])
  return (sign * width * lower).sum((1, 2))


def _height(p, q, x):
  """y at `x` of the lines through p and q; the fraction stays in 0..1, so steep edges are safe."""
  run = q[..., 0] - p[..., 0]
  t = np.divide(x - p[..., 0], run, out=np.zeros(x.shape), where=run != 0)
  return p[..., 1] + np.clip(t, 0.0, 1.0) * (q[..., 1] - p[..., 1])
