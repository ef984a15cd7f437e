"""Box coders: regression targets from boxes and back. All maths in at least float32.

Degenerate boxes (padding, collapsed proposals) encode to finite values; mask them afterwards.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from sm3det_jax.geometry import hbb, obb
from sm3det_jax.precision import wide

MAX_LOG_RATIO = abs(math.log(16 / 1000))  # a side changes at most by this factor
_MIN_SIDE = 1e-6  # px; a box without extent neither divides by 0 nor has a logarithm of 0


class Coder(Protocol):
  """Regression targets of boxes against anchors or RoIs, and back.

  `stds` divides the targets; there is one for each value of a box.
  """

  stds: tuple[float, ...]

  def encode(self, anchors: jax.Array, boxes: jax.Array, /) -> jax.Array:
    """Deltas [..., values] that turn anchors [..., 4 | 5] into boxes [..., 4 | 5]."""

  def decode(
    self, anchors: jax.Array, deltas: jax.Array, /, max_shape: hbb.Shape | None = None
  ) -> jax.Array:
    """Boxes [..., 4 | 5] from anchors [..., 4 | 5] and deltas [..., values]."""


def _wide(*arrays):
  return [wide(jnp.asarray(a)) for a in arrays]


def _log_ratio(a, b):
  return jnp.log(jnp.maximum(a, _MIN_SIDE) / jnp.maximum(b, _MIN_SIDE))


def _scaled(side, delta):
  return side * jnp.exp(jnp.clip(delta, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _split(deltas, stds):
  """The columns of deltas [..., k], each times its standard deviation."""
  return [deltas[..., i] * std for i, std in enumerate(stds)]


def _join(columns, stds):
  return jnp.stack([column / std for column, std in zip(columns, stds, strict=True)], -1)


@dataclasses.dataclass(frozen=True)
class DeltaXYWH:
  """HBB relative to HBB: (dx / w, dy / h, log w ratio, log h ratio) / stds."""

  stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

  def encode(self, anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    """Deltas [..., 4] that turn anchors [..., 4] into HBB [..., 4]."""
    anchors, boxes = _wide(anchors, boxes)
    px, py, pw, ph = _columns(hbb.to_cxcywh(anchors))
    gx, gy, gw, gh = _columns(hbb.to_cxcywh(boxes))
    pw, ph = jnp.maximum(pw, _MIN_SIDE), jnp.maximum(ph, _MIN_SIDE)
    columns = [(gx - px) / pw, (gy - py) / ph, _log_ratio(gw, pw), _log_ratio(gh, ph)]
    return _join(columns, self.stds)

  def decode(
    self, anchors: jax.Array, deltas: jax.Array, max_shape: hbb.Shape | None = None
  ) -> jax.Array:
    """HBB [..., 4] from anchors and deltas [..., 4]; max_shape (height, width) clips them."""
    anchors, deltas = _wide(anchors, deltas)
    px, py, pw, ph = _columns(hbb.to_cxcywh(anchors))
    dx, dy, dw, dh = _split(deltas, self.stds)
    cxcywh = [px + dx * pw, py + dy * ph, _scaled(pw, dw), _scaled(ph, dh)]
    boxes = hbb.from_cxcywh(jnp.stack(cxcywh, -1))
    return boxes if max_shape is None else hbb.clip(boxes, max_shape)


@dataclasses.dataclass(frozen=True)
class MidpointOffset:
  """OBB relative to HBB, by midpoint offsets (Oriented R-CNN, section 3.1).

  Six values: the enclosing HBB as in DeltaXYWH, then the x offset of the vertex on its top side
  over its width and the y offset of the vertex on its right side over its height.
  """

  stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)

  def encode(self, anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    """Deltas [..., 6] that turn anchors HBB [..., 4] into OBB [..., 5].

    Of several vertices within 0.1 px of the top, the rightmost counts; on the right, the lowest.
    """
    anchors, boxes = _wide(anchors, boxes)
    x, y = jnp.unstack(obb.to_corners(boxes), axis=-1)  # each [..., 4]
    box = jnp.stack([x.min(-1), y.min(-1), x.max(-1), y.max(-1)], -1)
    on_top = y - box[..., 1:2] <= 0.1
    on_right = box[..., 2:3] - x <= 0.1
    top = jnp.where(on_top, x, -jnp.inf).max(-1)
    right = jnp.where(on_right, y, -jnp.inf).max(-1)
    cx, cy, w, h = _columns(hbb.to_cxcywh(box))
    offsets = [
      (top - cx) / jnp.maximum(w, _MIN_SIDE),
      (right - cy) / jnp.maximum(h, _MIN_SIDE),
    ]
    deltas = DeltaXYWH(self.stds[:4]).encode(anchors, box)
    return jnp.concatenate([deltas, _join(offsets, self.stds[4:])], -1)

  def decode(
    self, anchors: jax.Array, deltas: jax.Array, max_shape: hbb.Shape | None = None
  ) -> jax.Array:
    """OBB [..., 5] (le90) from anchors HBB [..., 4] and deltas [..., 6].

    The parallelogram of the four vertices becomes a rectangle by stretching its shorter diagonal.
    Nothing is clipped to max_shape, as in the reference.
    """
    del max_shape
    anchors, deltas = _wide(anchors, deltas)
    box = DeltaXYWH(self.stds[:4]).decode(anchors, deltas[..., :4])
    cx, cy, w, h = _columns(hbb.to_cxcywh(box))
    top, right = (jnp.clip(d, -0.5, 0.5) for d in _split(deltas[..., 4:], self.stds[4:]))
    # Half diagonals: centre to the vertex on the top side, and to the one on the right side.
    up = jnp.stack([top * w, -0.5 * h], -1)
    across = jnp.stack([0.5 * w, right * h], -1)
    lengths = [jnp.hypot(d[..., 0], d[..., 1])[..., None] for d in (up, across)]
    longest = jnp.maximum(*lengths)
    up, across = (
      d * (longest / jnp.maximum(n, _MIN_SIDE)) for d, n in zip((up, across), lengths, strict=True)
    )
    center = jnp.stack([cx, cy], -1)
    return obb.from_corners(
      jnp.concatenate([center + up, center + across, center - up, center - across], -1)
    )


@dataclasses.dataclass(frozen=True)
class DeltaXYWHA:
  """OBB relative to OBB: the centre in the first box's frame, log side ratios, angle difference.

  With edge_swap the target's sides are exchanged where that makes the angle difference smaller, and
  decoding puts the long side first (le90); proj_xy measures the centre along the box's own axes.
  Angle differences are in units of norm_factor * pi (None: radians); they and, without edge_swap,
  decoded angles lie in [angle_start, angle_start + pi).
  """

  stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2, 0.1)
  edge_swap: bool = True
  proj_xy: bool = True
  norm_factor: float | None = None
  angle_start: float = -math.pi / 2  # le90

  def encode(self, rois: jax.Array, boxes: jax.Array) -> jax.Array:
    """Deltas [..., 5] that turn rois OBB [..., 5] into OBB [..., 5]."""
    rois, boxes = _wide(rois, boxes)
    px, py, pw, ph, pa = _columns(rois)
    gx, gy, gw, gh, ga = _columns(boxes)
    da = obb.wrap_angle(ga - pa, self.angle_start)
    if self.edge_swap:
      swapped = obb.wrap_angle(ga - pa + math.pi / 2, self.angle_start)
      keep = jnp.abs(da) < jnp.abs(swapped)
      da = jnp.where(keep, da, swapped)
      gw, gh = jnp.where(keep, gw, gh), jnp.where(keep, gh, gw)
    dx, dy = gx - px, gy - py
    if self.proj_xy:
      dx, dy = _rotate(dx, dy, -pa)
    dx, dy = dx / jnp.maximum(pw, _MIN_SIDE), dy / jnp.maximum(ph, _MIN_SIDE)
    return _join([dx, dy, _log_ratio(gw, pw), _log_ratio(gh, ph), da / self._unit], self.stds)

  def decode(
    self, rois: jax.Array, deltas: jax.Array, max_shape: hbb.Shape | None = None
  ) -> jax.Array:
    """OBB [..., 5] from rois OBB [..., 5] and deltas [..., 5].

    With max_shape (height, width) the centre is clipped to [0, width - 1] x [0, height - 1].
    """
    rois, deltas = _wide(rois, deltas)
    px, py, pw, ph, pa = _columns(rois)
    dx, dy, dw, dh, da = _split(deltas, self.stds)
    dx, dy = dx * pw, dy * ph
    if self.proj_xy:
      dx, dy = _rotate(dx, dy, pa)
    gx, gy = px + dx, py + dy
    if max_shape is not None:
      height, width = (jnp.asarray(side).astype(gx.dtype) for side in max_shape)
      gx, gy = jnp.clip(gx, 0, width - 1), jnp.clip(gy, 0, height - 1)
    ga = obb.wrap_angle(pa + da * self._unit, self.angle_start)
    boxes = jnp.stack([gx, gy, _scaled(pw, dw), _scaled(ph, dh), ga], -1)
    return obb.normalise(boxes) if self.edge_swap else boxes

  @property
  def _unit(self):
    return self.norm_factor * math.pi if self.norm_factor else 1.0


@dataclasses.dataclass(frozen=True)
class DeltaXYWHToXYWHA(DeltaXYWHA):
  """OBB relative to HBB, as to OBB of angle 0 (the first stage of RoI Transformer)."""

  stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2, 1.0)
  norm_factor: float | None = 2.0

  def encode(self, rois: jax.Array, boxes: jax.Array) -> jax.Array:
    """Deltas [..., 5] that turn rois HBB [..., 4] into OBB [..., 5]."""
    return super().encode(hbb.to_obb(rois), boxes)

  def decode(
    self, rois: jax.Array, deltas: jax.Array, max_shape: hbb.Shape | None = None
  ) -> jax.Array:
    """OBB [..., 5] from rois HBB [..., 4] and deltas [..., 5].

    Nothing is clipped to max_shape, as in the reference.
    """
    del max_shape
    return super().decode(hbb.to_obb(rois), deltas)


def distance_to_box(points: jax.Array, ltrb: jax.Array) -> jax.Array:
  """HBB [..., 4] from points [..., 2] and their distances [..., 4] to left, top, right, bottom."""
  return jnp.concatenate([points - ltrb[..., :2], points + ltrb[..., 2:]], -1)


def box_to_distance(points: jax.Array, boxes: jax.Array) -> jax.Array:
  """Distances [..., 4] of points [..., 2] to left, top, right, bottom of HBB [..., 4]."""
  return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def _columns(boxes):
  return [boxes[..., i] for i in range(boxes.shape[-1])]


def _rotate(x, y, theta):
  """The vector (x, y) turned clockwise on screen by theta."""
  cos, sin = jnp.cos(theta), jnp.sin(theta)
  return x * cos - y * sin, x * sin + y * cos
