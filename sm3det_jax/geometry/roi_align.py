"""Rotated RoIAlign: features on a grid inside oriented boxes, by bilinear interpolation.

All levels are sampled by one gather from a concatenated buffer of cells. Box coordinates receive no
gradient: in every head they come from detached proposals.
"""


import jax
import jax.numpy as jnp
import numpy as np


def rotated_roi_align(features, rois, output_size=7, spatial_scale=0.25, sampling_ratio=2):
  """Average of sampling_ratio^2 bilinear samples in every bin of a rotated grid (aligned, clockwise).

  Args:
    features: [B, H, W, C].
    rois: [R, 6]: index of the image, then an OBB in image pixels.
    output_size: bins a side.
    spatial_scale: feature cells a pixel.
    sampling_ratio: samples a bin and a side.

  Returns:
    [R, output_size, output_size, C]; samples outside the map count as 0.
  """
  b, h, w, c = features.shape
  batch = rois[:, 0].astype(jnp.int32)
  size = jnp.full((rois.shape[0], 2), jnp.asarray([[h, w]]), jnp.int32)
  scale = jnp.full(rois.shape[0], spatial_scale, rois.dtype)
  return _align(
    features.reshape(-1, c), rois[:, 1:], batch * (h * w), size, scale, output_size, sampling_ratio
  )


def roi_levels(rois, num_levels, finest_scale=56):
  """Feature level int32 [...] of OBB [..., 5]: one up for each doubling of sqrt(w * h) (FPN, eq. 1)."""
  size = jnp.sqrt(rois[..., 2] * rois[..., 3])
  level = jnp.floor(jnp.log2(size / finest_scale + 1e-6))
  return jnp.clip(level, 0, num_levels - 1).astype(jnp.int32)


def multilevel_rotated_roi_align(
  features, rois, strides, output_size=7, sampling_ratio=2, finest_scale=56
):
  """Rotated RoIAlign, each box on the level that suits its size.

  Args:
    features: levels [B, H_l, W_l, C], finest first.
    rois: OBB [B, R, 5] in image pixels.
    strides: pixels a cell, of each level.
    output_size: bins a side.
    sampling_ratio: samples a bin and a side.
    finest_scale: boxes with sqrt(w * h) below twice this use the first level.

  Returns:
    [B, R, output_size, output_size, C].
  """
  b, r, _ = rois.shape
  c = features[0].shape[-1]
  cells = jnp.concatenate([f.reshape(-1, c) for f in features])
  sizes = np.asarray([f.shape[1:3] for f in features], np.int32)
  starts = np.cumsum([0] + [f.shape[0] * f.shape[1] * f.shape[2] for f in features])[:-1]
  level = roi_levels(rois, len(features), finest_scale)
  image = jnp.arange(b, dtype=jnp.int32)[:, None]
  first = jnp.asarray(starts, jnp.int32)[level] + image * jnp.asarray(sizes.prod(1))[level]
  scale = jnp.asarray(1 / np.asarray(strides), rois.dtype)[level]
  size = jnp.asarray(sizes)[level]
  out = _align(
    cells,
    rois.reshape(-1, 5),
    first.reshape(-1),
    size.reshape(-1, 2),
    scale.reshape(-1),
    output_size,
    sampling_ratio,
  )
  return out.reshape(b, r, *out.shape[1:])


def _align(cells, boxes, first, size, scale, output_size, sampling_ratio):
  index, weight = _bilinear(*_sample_points(boxes, scale, output_size, sampling_ratio), size)
  index = index + first[:, None, None]
  r = boxes.shape[0]
  s = sampling_ratio**2
  bins = output_size**2
  index = index.reshape(r, bins, s * 4)
  weight = (weight / s).reshape(r, bins, s * 4).astype(cells.dtype)
  out = jnp.einsum('rbk,rbkc->rbc', weight, cells[index])
  return out.reshape(r, output_size, output_size, -1)


def _sample_points(boxes, scale, output_size, sampling_ratio):
  """Sample coordinates y, x, each [R, bins * samples], in cells (cell centres are integers)."""
  boxes = jax.lax.stop_gradient(boxes)
  n = output_size * sampling_ratio
  ticks = (np.arange(n) + 0.5) / n - 0.5
  ticks = ticks.reshape(output_size, sampling_ratio)
  v, u = np.broadcast_arrays(ticks[:, None, :, None], ticks[None, :, None, :])
  u, v = (jnp.asarray(t.reshape(1, -1), boxes.dtype) for t in (u, v))
  cx, cy, w, h = (boxes[:, i] * scale for i in range(4))
  cos, sin = jnp.cos(boxes[:, 4:]), jnp.sin(boxes[:, 4:])
  u, v = u * w[:, None], v * h[:, None]
  return u * sin + v * cos + (cy - 0.5)[:, None], u * cos - v * sin + (cx - 0.5)[:, None]


def _bilinear(y, x, size):
  """Cells and weights, each [R, S, 4], of points y, x [R, S] in maps of size [R, 2]."""
  limit = size.astype(y.dtype)[:, None]
  inside = (y >= -1) & (y <= limit[..., 0]) & (x >= -1) & (x <= limit[..., 1])
  y, x = jnp.clip(y, 0, limit[..., 0] - 1), jnp.clip(x, 0, limit[..., 1] - 1)
  y0, x0 = jnp.floor(y), jnp.floor(x)
  dy, dx = y - y0, x - x0
  y0, x0 = y0.astype(jnp.int32), x0.astype(jnp.int32)
  y1 = jnp.minimum(y0 + 1, size[:, :1] - 1)
  x1 = jnp.minimum(x0 + 1, size[:, 1:] - 1)
  w = size[:, 1:]
  index = jnp.stack([y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1], -1)
  weight = jnp.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx], -1)
  return index, jnp.where(inside[..., None], weight, 0)
