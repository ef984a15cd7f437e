"""Oriented boxes: `[..., 5]` arrays of cx, cy, w, h in pixels and theta in radians.

Positive angles turn clockwise on screen (y points down). The canonical form is le90: w >= h and
theta in [-pi/2, pi/2).
"""

import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np


def area(boxes: jax.Array) -> jax.Array:
  """Areas [...] of OBB [..., 5] in square pixels."""
  return boxes[..., 2] * boxes[..., 3]


def wrap_angle(theta: jax.Array, start: float = -math.pi / 2) -> jax.Array:
  """Angles modulo pi, in [start, start + pi); `start` -pi/2 is le90, -pi/4 is le135."""
  wrapped = jnp.mod(theta - start, math.pi) + start
  # The remainder of a tiny negative number rounds to pi itself.
  return jnp.where(wrapped >= start + math.pi, wrapped - math.pi, wrapped)


def normalise(boxes: jax.Array) -> jax.Array:
  """The same rectangles [..., 5] in le90: long side first, theta in [-pi/2, pi/2)."""
  w, h, theta = boxes[..., 2], boxes[..., 3], boxes[..., 4]
  theta = wrap_angle(jnp.where(w >= h, theta, theta + math.pi / 2))
  sizes = [jnp.maximum(w, h), jnp.minimum(w, h)]
  return jnp.stack([boxes[..., 0], boxes[..., 1], *sizes, theta], -1)


def to_corners(boxes: jax.Array) -> jax.Array:
  """Corners [..., 4, 2] of OBB [..., 5].

  Clockwise on screen; for theta = 0 they are top left, top right, bottom right, bottom left.
  """
  cx, cy, w, h, theta = (boxes[..., i] for i in range(5))
  cos, sin = jnp.cos(theta) * 0.5, jnp.sin(theta) * 0.5
  along_x, along_y = w * cos, w * sin  # half of the first side
  down_x, down_y = -h * sin, h * cos  # half of the second side
  corners = [
    jnp.stack([cx + i * along_x + j * down_x, cy + i * along_y + j * down_y], -1)
    for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
  ]
  return jnp.stack(corners, -2)


def to_polygon(boxes: jax.Array) -> jax.Array:
  """Corners [..., 8] (x1, y1, ..., x4, y4) of OBB [..., 5], in the order of `to_corners`."""
  corners = to_corners(boxes)
  return corners.reshape(*corners.shape[:-2], 8)


def envelope(boxes: jax.Array) -> jax.Array:
  """Width and height [..., 2] of the smallest HBB around OBB [..., 5]."""
  cos, sin = jnp.abs(jnp.cos(boxes[..., 4])), jnp.abs(jnp.sin(boxes[..., 4]))
  w, h = boxes[..., 2], boxes[..., 3]
  return jnp.stack([w * cos + h * sin, w * sin + h * cos], -1)


def to_hbb(boxes: jax.Array) -> jax.Array:
  """Smallest enclosing HBB [..., 4] of OBB [..., 5]."""
  half = envelope(boxes) * 0.5
  return jnp.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def from_corners(polygons: jax.Array) -> jax.Array:
  """OBB [..., 5] in le90 from the corners [..., 8] of rectangles, given in order around them.

  The angle is that of the longer of the two sides at the first corner, the centre the middle of a
  diagonal; polygons that are no rectangles need `from_polygon`.
  """
  p = polygons.reshape(*polygons.shape[:-1], 4, 2)
  first, second = p[..., 1, :] - p[..., 0, :], p[..., 3, :] - p[..., 0, :]
  w, h = jnp.hypot(first[..., 0], first[..., 1]), jnp.hypot(second[..., 0], second[..., 1])
  side = jnp.where((w >= h)[..., None], first, second)
  center = (p[..., 0, :] + p[..., 2, :]) * 0.5
  theta = wrap_angle(jnp.arctan2(side[..., 1], side[..., 0]))
  sizes = [jnp.maximum(w, h), jnp.minimum(w, h)]
  return jnp.stack([center[..., 0], center[..., 1], *sizes, theta], -1)


def from_polygon(polygons: np.ndarray) -> np.ndarray:
  """Minimum-area rectangles of quadrilaterals, on the host.

  Args:
    polygons: [n, 8] numpy array, corners in any order.

  Returns:
    [n, 5] float32 numpy array in le90. OpenCV versions differ in which side they call the width;
    normalising removes the difference.
  """
  points = np.asarray(polygons, np.float32).reshape(-1, 4, 2)
  boxes = np.zeros((len(points), 5))
  for box, quadrilateral in zip(boxes, points, strict=True):
    (box[0], box[1]), (w, h), degrees = cv2.minAreaRect(quadrilateral)
    box[2:] = max(w, h), min(w, h), np.radians(degrees if w >= h else degrees + 90)
  boxes[:, 4] = (boxes[:, 4] + np.pi / 2) % np.pi - np.pi / 2
  boxes = boxes.astype(np.float32)
  boxes[boxes[:, 4] >= np.float32(np.pi / 2), 4] = -np.pi / 2  # after rounding
  return boxes
