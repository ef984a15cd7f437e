"""Horizontal boxes: `[..., 4]` arrays of x1, y1, x2, y2 in pixels; y points down."""

import jax
import jax.numpy as jnp

Shape = jax.Array | tuple[int, int]  # (height, width) in pixels, traced or not


def area(boxes: jax.Array) -> jax.Array:
  """Areas [...] of HBB [..., 4] in square pixels; inverted boxes have area 0."""
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  return sides[..., 0] * sides[..., 1]


def centers(boxes: jax.Array) -> jax.Array:
  """Centres [..., 2] (x, y) of HBB [..., 4]."""
  return (boxes[..., :2] + boxes[..., 2:]) * 0.5


def clip(boxes: jax.Array, shape: Shape) -> jax.Array:
  """Clips HBB [..., 4] to an image: x to [0, width], y to [0, height], as mmdet 2.x.

  Args:
    boxes: [..., 4].
    shape: (height, width) in pixels, two numbers or scalars; may be traced.
  """
  height, width = (jnp.asarray(side).astype(boxes.dtype) for side in shape)
  x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
  x1, x2 = (jnp.clip(x, 0, width) for x in (x1, x2))
  y1, y2 = (jnp.clip(y, 0, height) for y in (y1, y2))
  return jnp.stack([x1, y1, x2, y2], -1)


def to_cxcywh(boxes: jax.Array) -> jax.Array:
  """Centre and size [..., 4] (cx, cy, w, h) of HBB [..., 4]."""
  return jnp.concatenate([centers(boxes), boxes[..., 2:] - boxes[..., :2]], -1)


def from_cxcywh(boxes: jax.Array) -> jax.Array:
  """HBB [..., 4] from centre and size [..., 4] (cx, cy, w, h)."""
  half = boxes[..., 2:] * 0.5
  return jnp.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def to_obb(boxes: jax.Array) -> jax.Array:
  """OBB [..., 5] of angle 0 (whichever side is longer) from HBB [..., 4]."""
  boxes = to_cxcywh(boxes)
  return jnp.concatenate([boxes, jnp.zeros_like(boxes[..., :1])], -1)
