"""Boxes in numpy, for the host side of the pipeline (twins of `sm3det_jax.geometry`).

HBB [n, 4] x1, y1, x2, y2; OBB [n, 5] cx, cy, w, h, theta in le90 (w >= h, theta in [-pi/2, pi/2),
positive is clockwise on the screen); polygons [n, 8] x1, y1 .. x4, y4. Pixels and radians.
"""

import math

import cv2
import numpy as np


def le90(obb: np.ndarray) -> np.ndarray:
  """The same rectangles with w >= h and theta in [-pi/2, pi/2); float32 [n, 5]."""
  cx, cy, w, h, theta = np.asarray(obb, np.float64).reshape(-1, 5).T
  theta = np.where(w < h, theta + math.pi / 2, theta)
  theta = np.mod(theta + math.pi / 2, math.pi) - math.pi / 2
  out = np.stack([cx, cy, np.maximum(w, h), np.minimum(w, h), theta], -1).astype(np.float32)
  # rounding to float32 may land on pi/2 itself
  out[:, 4] = np.where(out[:, 4] >= math.pi / 2, out[:, 4] - np.float32(math.pi), out[:, 4])
  return out


def obb_to_polygon(obb: np.ndarray) -> np.ndarray:
  """Corners [n, 8]: for theta = 0 top left, top right, bottom right, bottom left."""
  cx, cy, w, h, theta = np.asarray(obb, np.float64).reshape(-1, 5).T
  cos, sin = np.cos(theta), np.sin(theta)
  x = np.stack([-w, w, w, -w], -1) / 2
  y = np.stack([-h, -h, h, h], -1) / 2
  px = cx[:, None] + x * cos[:, None] - y * sin[:, None]
  py = cy[:, None] + x * sin[:, None] + y * cos[:, None]
  return np.stack([px, py], -1).reshape(-1, 8).astype(np.float32)


def polygon_to_obb(polygons: np.ndarray) -> np.ndarray:
  """Minimum-area rectangles of quadrilaterals, as the reference makes its boxes.

  Uses only the rectangle that OpenCV returns, so its changing angle conventions do not matter.
  Any four points are allowed; collinear ones give a side of 0.
  """
  polygons = np.asarray(polygons, np.float64).reshape(-1, 4, 2)
  out = np.zeros((len(polygons), 5))
  for i, points in enumerate(polygons):
    middle = points.mean(0)  # float32 inside OpenCV: keep the numbers small
    (cx, cy), (w, h), angle = cv2.minAreaRect((points - middle).astype(np.float32))
    out[i] = cx + middle[0], cy + middle[1], w, h, math.radians(angle)
  return le90(out)


def hbb_to_polygon(hbb: np.ndarray) -> np.ndarray:
  """Corners [n, 8] of horizontal boxes, clockwise from the top left."""
  return np.asarray(hbb, np.float32).reshape(-1, 4)[:, [0, 1, 2, 1, 2, 3, 0, 3]]


def polygon_to_hbb(polygons: np.ndarray) -> np.ndarray:
  """Enclosing horizontal boxes [n, 4]."""
  points = np.asarray(polygons, np.float32).reshape(-1, 4, 2)
  return np.concatenate([points.min(1), points.max(1)], -1)


def obb_to_hbb(obb: np.ndarray) -> np.ndarray:
  """Enclosing horizontal boxes [n, 4] of oriented ones."""
  return polygon_to_hbb(obb_to_polygon(obb))


def to_polygon(boxes: np.ndarray) -> np.ndarray:
  """Corners [n, 8] of boxes of either kind, told by the last axis."""
  return obb_to_polygon(boxes) if np.shape(boxes)[-1] == 5 else hbb_to_polygon(boxes)


def polygon_area(polygons: np.ndarray) -> np.ndarray:
  """Areas [n] by the shoelace formula; the two lobes of a self-crossing one cancel."""
  points = np.asarray(polygons, np.float64).reshape(-1, 4, 2)
  x, y = points[..., 0], points[..., 1]
  return np.abs((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)) / 2


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
