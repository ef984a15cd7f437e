"""Intersection over union of horizontal and oriented boxes, in at least float32, differentiable."""

import jax.numpy as jnp

from sm3det_jax.geometry import hbb, obb
from sm3det_jax.precision import wide


def _ratio(inter, area_a, area_b):
  """Intersection over union; 0 for two empty boxes."""
  inter = jnp.minimum(inter, jnp.minimum(area_a, area_b))
  return inter / jnp.maximum(area_a + area_b - inter, 1e-9)


def hbb_iou_aligned(a, b):
  """IoU [...] of HBB [..., 4] with HBB [..., 4], pair by pair (shapes broadcast)."""
  a, b = wide(jnp.asarray(a)), wide(jnp.asarray(b))
  sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
  sides = jnp.maximum(sides, 0)
  return _ratio(sides[..., 0] * sides[..., 1], hbb.area(a), hbb.area(b))


def hbb_iou(a, b):
  """IoU [n, m] of every HBB of a [n, 4] with every HBB of b [m, 4]."""
  return hbb_iou_aligned(jnp.asarray(a)[:, None], jnp.asarray(b)[None])


def rotated_intersection(a, b):
  """Intersection areas [...] of OBB [..., 5] with OBB [..., 5], pair by pair (shapes broadcast).

  In b's frame, b is |x| <= w/2, |y| <= h/2. By Green's theorem the area is the sum over a's four
  directed edges of the integral of clip(x, -w/2, w/2) dy over the part of the edge with
  |y| <= h/2: a piecewise linear function, cut at the slab's borders and at the two clips. No
  candidate points, sorting or branches, so nothing degenerates for near-identical boxes.
  """
  a, b = wide(jnp.asarray(a)), wide(jnp.asarray(b))
  cos, sin = jnp.cos(b[..., 4]), jnp.sin(b[..., 4])
  dx, dy = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
  x, y = dx * cos + dy * sin, dy * cos - dx * sin
  theta = a[..., 4] - b[..., 4]
  cos, sin = jnp.cos(theta) * 0.5, jnp.sin(theta) * 0.5
  ux, uy, vx, vy = a[..., 2] * cos, a[..., 2] * sin, -a[..., 3] * sin, a[..., 3] * cos
  half_w, half_h = b[..., 2] * 0.5, b[..., 3] * 0.5
  total = 0
  for px, py, ex, ey in (  # corner and edge, in the order of obb.to_corners
    (x - ux - vx, y - uy - vy, 2 * ux, 2 * uy),
    (x + ux - vx, y + uy - vy, 2 * vx, 2 * vy),
    (x + ux + vx, y + uy + vy, -2 * ux, -2 * uy),
    (x - ux + vx, y - uy + vy, -2 * vx, -2 * vy),
  ):
    total += _edge_integral(px, py, ex, ey, half_w, half_h)
  return jnp.maximum(total, 0)


def _edge_integral(px, py, ex, ey, half_w, half_h):
  """Integral of clip(x, -half_w, half_w) dy along p + t e, 0 <= t <= 1, where |y| <= half_h."""
  inv_x = 1 / jnp.where(jnp.abs(ex) < 1e-12, 1e-12, ex)
  inv_y = 1 / jnp.where(jnp.abs(ey) < 1e-12, 1e-12, ey)
  enter, leave = (-half_h - py) * inv_y, (half_h - py) * inv_y
  t0 = jnp.clip(jnp.minimum(enter, leave), 0, 1)
  t3 = jnp.clip(jnp.maximum(enter, leave), 0, 1)
  left, right = (-half_w - px) * inv_x, (half_w - px) * inv_x
  t1 = jnp.clip(jnp.minimum(left, right), t0, t3)
  t2 = jnp.clip(jnp.maximum(left, right), t0, t3)
  x0, x1, x2, x3 = (jnp.clip(px + t * ex, -half_w, half_w) for t in (t0, t1, t2, t3))
  return 0.5 * ey * ((t1 - t0) * (x0 + x1) + (t2 - t1) * (x1 + x2) + (t3 - t2) * (x2 + x3))


def rotated_iou_aligned(a, b):
  """IoU [...] of OBB [..., 5] with OBB [..., 5], pair by pair (shapes broadcast).

  Exact to about 1e-6 in float32 for any angles and sizes; zero-size boxes give 0. Gradients are
  finite everywhere (a subgradient where edges touch or coincide).
  """
  a, b = wide(jnp.asarray(a)), wide(jnp.asarray(b))
  return _ratio(rotated_intersection(a, b), obb.area(a), obb.area(b))


def rotated_iou(a, b):
  """IoU [n, m] of every OBB of a [n, 5] with every OBB of b [m, 5]."""
  return rotated_iou_aligned(jnp.asarray(a)[:, None], jnp.asarray(b)[None])
