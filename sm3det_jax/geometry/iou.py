"""Intersection over union of horizontal and oriented boxes, in at least float32, differentiable."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from sm3det_jax.geometry import hbb, obb
from sm3det_jax.precision import wide


def _ratio(inter, area_a, area_b):
  """Intersection over union; 0 for two empty boxes."""
  inter = _bounded(inter, 0, jnp.minimum(area_a, area_b))
  union = area_a + area_b - inter
  return inter / jnp.where(union > 1e-9, union, 1e-9)


def hbb_intersection(a: jax.Array, b: jax.Array) -> jax.Array:
  """Intersection areas [...] of HBB [..., 4] with HBB [..., 4], pair by pair (shapes broadcast)."""
  a, b = wide(jnp.asarray(a)), wide(jnp.asarray(b))
  width, height = (  # one by one: a trailing axis of 2 would be written out, pair by pair
    jnp.maximum(jnp.minimum(a[..., i + 2], b[..., i + 2]) - jnp.maximum(a[..., i], b[..., i]), 0)
    for i in (0, 1)
  )
  return width * height


def hbb_iou_aligned(a: jax.Array, b: jax.Array) -> jax.Array:
  """IoU [...] of HBB [..., 4] with HBB [..., 4], pair by pair (shapes broadcast)."""
  a, b = wide(jnp.asarray(a)), wide(jnp.asarray(b))
  return _ratio(hbb_intersection(a, b), hbb.area(a), hbb.area(b))


def hbb_iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """IoU [n, m] of every HBB of a [n, 4] with every HBB of b [m, 4]."""
  return hbb_iou_aligned(jnp.asarray(a)[:, None], jnp.asarray(b)[None])


def rotated_intersection(a: jax.Array, b: jax.Array) -> jax.Array:
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
  cos, sin = jnp.cos(theta), jnp.sin(theta)
  ux, uy, vx, vy = a[..., 2] * cos, a[..., 2] * sin, -a[..., 3] * sin, a[..., 3] * cos
  half_w, half_h = b[..., 2] * 0.5, b[..., 3] * 0.5
  total = 0
  for ex, ey, fx, fy in ((ux, uy, vx, vy), (vx, vy, -ux, -uy)):  # a side and the next one
    corner_x, corner_y = (ex + fx) * 0.5, (ey + fy) * 0.5
    inv_x, inv_y = (1 / jnp.where(jnp.abs(e) < 1e-12, 1e-12, e) for e in (ex, ey))
    for sign in (1, -1):  # it and the opposite one
      total += _side_integral(
        x - sign * corner_x, y - sign * corner_y, sign * ex, sign * ey, sign * inv_x, sign * inv_y,
        half_w, half_h,
      )  # fmt: skip
  return _bounded(total, 0, jnp.inf)


def _side_integral(px, py, ex, ey, inv_x, inv_y, half_w, half_h):
  """Integral of clip(x, -half_w, half_w) dy along p + t e, 0 <= t <= 1, where |y| <= half_h.

  The side is in the slab from t0 to t3 and between the two clips from t1 to t2. The integrand being
  continuous, the integral is stationary in t1 and t2: their gradient is 0, not a rounding error.
  """
  enter, leave = _ordered((-half_h - py) * inv_y, (half_h - py) * inv_y)
  t0, t3 = _clip(enter, 0, 1), _clip(leave, 0, 1)
  left, right = _ordered(*stop_gradient(((-half_w - px) * inv_x, (half_w - px) * inv_x)))
  t1, t2 = _clip(left, t0, t3), _clip(right, t0, t3)
  last = jnp.where(inv_x > 0, half_w, -half_w)  # the clip that a long side leaves by
  middle = (t2 - t1) * (px + 0.5 * (t1 + t2) * ex)
  return ey * (middle + (t3 - t2 - (t1 - t0)) * last)


# A compiler may compute a value twice with different rounding (fused multiply-add). Gradients of
# jnp.minimum and jnp.maximum, which compare operand and result for equality, are then lost, and
# those of a selection at a tie are a mixture. So: selections where ties are accidental, and no
# gradient through a bound that is exceeded by rounding only.
def _ordered(a, b):
  return jnp.where(a < b, a, b), jnp.where(a < b, b, a)


def _clip(x, low, high):
  return jnp.where(x < low, low, jnp.where(x > high, high, x))


def _bounded(x, low, high):
  return stop_gradient(jnp.clip(x, low, high)) + (x - stop_gradient(x))


def rotated_iou_aligned(a: jax.Array, b: jax.Array) -> jax.Array:
  """IoU [...] of OBB [..., 5] with OBB [..., 5], pair by pair (shapes broadcast).

  Exact to about 1e-6 in float32 for any angles and sizes; zero-size boxes give 0. Gradients are
  finite everywhere (a subgradient where edges touch or coincide).
  """
  a, b = wide(jnp.asarray(a)), wide(jnp.asarray(b))
  return _ratio(rotated_intersection(a, b), obb.area(a), obb.area(b))


def rotated_iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """IoU [n, m] of every OBB of a [n, 5] with every OBB of b [m, 5]."""
  return rotated_iou_aligned(jnp.asarray(a)[:, None], jnp.asarray(b)[None])
