"""Convolutions whose nine taps read where they are told: deformable, or aligned with a box.

Only gathers, products and matrix products, one tap after another, so that the nine maps that a tap
each reads are never in memory together, in the backward pass neither.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sm3det_jax.precision import wide, wide_dtype

# (row, column) of the taps from the middle one, row by row.
TAPS = np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1), indexing='ij'), -1).reshape(9, 2)


def align_offsets(boxes: jax.Array, stride: int) -> jax.Array:
  """Where the taps of a 3x3 convolution go so that they span a box (S2ANet, equation 2).

  Args:
    boxes: OBB [..., H, W, 5] in image pixels, one for every cell of a map.
    stride: pixels a cell; cell (y, x) is the point (x * stride, y * stride).

  Returns:
    [..., H, W, 9, 2]: (y, x) in cells, from where the taps of a plain convolution are.
  """
  boxes = wide(boxes)
  cx, cy, w, h = (boxes[..., i, None] / stride for i in range(4))
  cos, sin = jnp.cos(boxes[..., 4:]), jnp.sin(boxes[..., 4:])
  # a tap lies in the middle of each of the nine parts of the box
  down, right = (
    jnp.asarray(t, boxes.dtype).reshape((1,) * (boxes.ndim - 1) + (9,)) / 3 for t in TAPS.T
  )
  y = cy + right * w * sin + down * h * cos
  x = cx + right * w * cos - down * h * sin
  return jnp.stack([y, x], -1) - _plain(boxes.shape[-3:-1], y.dtype, boxes.ndim - 3)


def deform_conv(x: jax.Array, offsets: jax.Array, kernel: jax.Array) -> jax.Array:
  """Deformable 3x3 convolution with padding 1 (Dai et al. 2017), as mmcv's `deform_conv2d`.

  Differentiable in all three.

  Args:
    x: [B, H, W, C].
    offsets: [B, H, W, 9, 2]: (y, x) in cells, added to where each tap reads; bilinear between
      cells, 0 outside of the map.
    kernel: [3, 3, C, D].

  Returns:
    [B, H, W, D].
  """
  b, h, w, c = x.shape
  points = (wide(offsets) + _plain((h, w), wide(offsets).dtype, 1)).reshape(b, h * w, 9, 2)
  index, weight = (jnp.moveaxis(t, 2, 0) for t in _bilinear(points, h, w))  # [9, B, H W, 4]
  cells = x.reshape(b, h * w, c)

  @jax.checkpoint
  def tap(total, part):
    index, weight, kernel = part
    value = sum(weight[..., j, None] * wide(_rows(cells, index[..., j])) for j in range(4))
    return total + wide(value.astype(x.dtype) @ kernel.astype(x.dtype)), None

  total = jnp.zeros((b, h * w, kernel.shape[-1]), wide_dtype(x.dtype))
  total, _ = jax.lax.scan(tap, total, (index, weight, kernel.reshape(9, c, -1)))
  return total.astype(x.dtype).reshape(b, h, w, -1)


def _plain(shape, dtype, batch_axes):
  """Where the taps of a plain convolution read: [1.., H, W, 9, 2]."""
  cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1)
  return jnp.asarray((cells[:, :, None] + TAPS).reshape((1,) * batch_axes + (*shape, 9, 2)), dtype)


def _bilinear(points, height, width):
  """Cells and weights, each [..., 4], of points (y, x) [..., 2]; the map is 0 around."""
  y, x = jnp.clip(points[..., 0], -1, height), jnp.clip(points[..., 1], -1, width)
  top, left = jnp.floor(y), jnp.floor(x)
  dy, dx = y - top, x - left
  index, weight = [], []
  for row, part_y in ((0, 1 - dy), (1, dy)):
    for column, part_x in ((0, 1 - dx), (1, dx)):
      i, j = top.astype(jnp.int32) + row, left.astype(jnp.int32) + column
      inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
      index.append(jnp.where(inside, i * width + j, 0))
      weight.append(jnp.where(inside, part_y * part_x, 0))
  return jnp.stack(index, -1), jnp.stack(weight, -1)


def _rows(cells, index):
  """cells [B, N, C] at index [B, S]: [B, S, C]."""
  return jax.vmap(lambda c, i: c.at[i].get(mode='promise_in_bounds'))(cells, index)
