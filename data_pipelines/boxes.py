"""Boxes in numpy, for the host side of the pipeline (twins of `sm3det_jax.geometry`).

HBB [n, 4] x1, y1, x2, y2; OBB [n, 5] cx, cy, w, h, theta in le90 (w >= h, theta in [-pi/2, pi/2),
positive is clockwise on the screen); polygons [n, 8] x1, y1 .. x4, y4. Pixels and radians.
"""

import math

import cv2
import numpy as np

COLUMNS = {'hbb': 4, 'obb': 5}  # of the boxes of a kind


def le90(obb: np.ndarray) -> np.ndarray:
  """The same rectangles with w >= h and theta in [-pi/2, pi/2); float32 [n, 5]."""
  cx, cy, w, h, theta = np.asarray(obb, np.float64).reshape(-1, 5).T
  theta = np.where(theta == np.float32(-math.pi / 2), -math.pi / 2, theta)  # it lies below
  theta = np.where(w < h, theta + math.pi / 2, theta)
  theta = np.mod(theta + math.pi / 2, math.pi) - math.pi / 2
  out = np.stack([cx, cy, np.maximum(w, h), np.minimum(w, h), theta], -1).astype(np.float32)
  # rounding to float32 may land on pi/2 itself
  out[:, 4] = np.where(out[:, 4] >= math.pi / 2, out[:, 4] - np.float32(math.pi), out[:, 4])
  return out


def to_polygon(boxes: np.ndarray) -> np.ndarray:
  """Corners of boxes in float64, clockwise on screen from the box's own top left.

  Args:
    boxes: [n, 4] HBB, [n, 5] OBB of any angle, or [n, 8] corners, which stay.

  Returns:
    [n, 8].
  """
  boxes = np.asarray(boxes, np.float64)
  if boxes.shape[-1] == 8:
    return boxes.reshape(-1, 8)
  if boxes.shape[-1] == 4:
    return boxes.reshape(-1, 4)[:, [0, 1, 2, 1, 2, 3, 0, 3]]
  cx, cy, w, h, theta = boxes.reshape(-1, 5, 1).swapaxes(0, 1)  # 5 x [n, 1]
  dx, dy = np.array([[-0.5, 0.5, 0.5, -0.5]]), np.array([[-0.5, -0.5, 0.5, 0.5]])
  cos, sin = np.cos(theta), np.sin(theta)
  x = cx + dx * w * cos - dy * h * sin
  y = cy + dx * w * sin + dy * h * cos
  return np.stack([x, y], -1).reshape(-1, 8)


def polygon_to_obb(polygons: np.ndarray) -> np.ndarray:
  """Minimum-area rectangles of quadrilaterals, as the reference makes its boxes.

  Uses only the rectangle that OpenCV returns, so its changing angle conventions do not matter.
  Any four points are allowed; collinear ones give a side of 0.
  """
  polygons = np.asarray(polygons, np.float64).reshape(-1, 4, 2)
  return le90(np.array([around(points) for points in polygons]))


def around(points: np.ndarray) -> np.ndarray:
  """The rectangle of least area around points [k, 2]: cx, cy, w, h, theta [5], of any angle."""
  middle = points.mean(0)  # float32 inside OpenCV: keep the numbers small
  (cx, cy), (w, h), angle = cv2.minAreaRect((points - middle).astype(np.float32))
  return np.array([cx + middle[0], cy + middle[1], w, h, math.radians(angle)])


def polygon_to_hbb(polygons: np.ndarray) -> np.ndarray:
  """Enclosing horizontal boxes [n, 4]."""
  points = np.asarray(polygons, np.float32).reshape(-1, 4, 2)
  return np.concatenate([points.min(1), points.max(1)], -1)


def obb_to_hbb(obb: np.ndarray) -> np.ndarray:
  """Enclosing horizontal boxes [n, 4] of oriented ones."""
  return polygon_to_hbb(to_polygon(obb))


def self_crossing(polygons: np.ndarray) -> np.ndarray:
  """True [n] where two opposite edges of the quadrilateral cross in their interiors."""
  p = np.asarray(polygons, np.float64).reshape(-1, 4, 2)

  def side(a, b, c):  # which side of the line ab the point c lies on
    return np.sign(
      (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    )

  def cross(a, b, c, d):
    return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)

  a, b, c, d = p[:, 0], p[:, 1], p[:, 2], p[:, 3]
  return cross(a, b, c, d) | cross(b, c, d, a)
