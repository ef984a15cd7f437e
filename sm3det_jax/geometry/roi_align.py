"""RoIAlign: features on a grid inside oriented or horizontal boxes, by bilinear interpolation.

For oriented boxes all levels are sampled by one gather from a concatenated buffer of cells; for
horizontal ones, whose rows and columns separate, by matrix products. Box coordinates receive no
gradient: in every head they come from detached proposals.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sm3det_jax.geometry import hbb
from sm3det_jax.precision import wide, wide_dtype

# Elements of the rows scattered at once in the backward pass: they should fit a cache.
CHUNK = 2**18
# Elements an image of boxes' rows, before their columns are sampled, in memory at once (64 MiB).
ROWS = 2**24


def rotated_roi_align(
  features: jax.Array,
  rois: jax.Array,
  output_size: int = 7,
  spatial_scale: float = 0.25,
  sampling_ratio: int = 2,
) -> jax.Array:
  """Average of sampling_ratio^2 bilinear samples in every bin of a rotated grid.

  The semantics are RoIAlignRotated with aligned=True, clockwise=True of mmcv.

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
  r = rois.shape[0]
  size = jnp.broadcast_to(jnp.asarray([[h, w]], jnp.int32), (r, 2))
  points = _sample_points(rois[:, 1:], spatial_scale, output_size, sampling_ratio)
  index, weight = _bilinear(*points, size)
  index = index + (rois[:, 0].astype(jnp.int32) * (h * w))[:, None, None]
  taps = (1, r, output_size**2, -1)  # the images' maps are one buffer
  out = _weighted_sum(features.reshape(1, -1, c), index.reshape(taps), weight.reshape(taps))
  return (out[0] / sampling_ratio**2).reshape(r, output_size, output_size, c)


def roi_levels(rois: jax.Array, num_levels: int, finest_scale: float = 56) -> jax.Array:
  """Feature level int32 [...] of OBB [..., 5]: one up for each doubling of sqrt(w * h).

  Boxes with sqrt(w * h) below twice finest_scale are on the first level (FPN, equation 1).
  """
  size = jnp.sqrt(rois[..., 2] * rois[..., 3])
  level = jnp.floor(jnp.log2(size / finest_scale + 1e-6))
  return jnp.clip(level, 0, num_levels - 1).astype(jnp.int32)


def multilevel_roi_align(
  features: Sequence[jax.Array],
  rois: jax.Array,
  strides: Sequence[int],
  output_size: int = 7,
  sampling_ratio: int = 0,
  finest_scale: float = 56,
) -> jax.Array:
  """RoIAlign of horizontal boxes, each box on the level that suits its size.

  The semantics are RoIAlign with aligned=True and average pooling of mmcv. With sampling_ratio 0 a
  bin of h x w cells is the mean of ceil(h) x ceil(w) samples. Their number is bounded by nothing, a
  box of 4 x 250 cells has 36 a bin, but the mean separates: a box gives A_y F A_x^T, where a row of
  A_y [output_size, H] is the mean of a bin's one-dimensional samples. This is exact for every box
  and static in shape; it costs output_size W (H + output_size) C multiply-accumulates a box and
  level, whatever the size of the box.

  Args:
    features: levels [B, H_l, W_l, C], finest first.
    rois: HBB [B, R, 4] in image pixels.
    strides: pixels a cell, of each level.
    output_size: bins a side.
    sampling_ratio: samples a bin and a side; 0: by the size of the box.
    finest_scale: boxes with sqrt(w * h) below twice this use the first level.

  Returns:
    [B, R, output_size, output_size, C]; samples outside the map count as 0, and a box without width
    or height has, with sampling_ratio 0, no samples: 0.
  """
  rois = jax.lax.stop_gradient(rois)
  levels = roi_levels(hbb.to_cxcywh(rois), len(features), finest_scale)
  out = 0
  for level, (f, stride) in enumerate(zip(features, strides, strict=True)):
    f = wide(f)
    boxes = (rois / stride - 0.5).astype(f.dtype)
    axes = [
      _bin_weights(boxes[..., i], boxes[..., i + 2], f.shape[2 - i], output_size, sampling_ratio)
      for i in (1, 0)
    ]
    on_level = (levels == level)[..., None, None]
    y, x = (jnp.where(on_level, axis, 0).swapaxes(0, 1) for axis in axes)  # [R, B, bins, H | W]
    pool = lambda x, f=f: jnp.einsum('bqw,bpwc->bpqc', x[1], jnp.einsum('bph,bhwc->bpwc', x[0], f))
    chunk = max(ROWS // (output_size * f.shape[2] * f.shape[3]), 1)
    out += jax.lax.map(pool, (y, x), batch_size=min(chunk, len(y)))
  return out.swapaxes(0, 1).astype(features[0].dtype)


def _bin_weights(start, end, size, bins, sampling_ratio):
  """Weights [..., bins, size] of a map's cells in the bins from start to end [...], in cells."""
  side = (end - start)[..., None]
  count = jnp.ceil(side / bins) if sampling_ratio == 0 else jnp.full_like(side, sampling_ratio)
  cells, index = jnp.arange(size, dtype=side.dtype), jnp.arange(bins, dtype=side.dtype)
  index = index.reshape((1,) * start.ndim + (-1,))

  def add(k, total):
    at = start[..., None] + (index + (k + 0.5) / jnp.maximum(count, 1)) * side / bins
    counts = (k < count) & (at >= -1) & (at <= size)
    near = 1 - jnp.abs(jnp.clip(at, 0, size - 1)[..., None] - cells.reshape((1,) * at.ndim + (-1,)))
    return total + jnp.where(counts[..., None], jnp.maximum(near, 0), 0)

  total = jnp.zeros((*start.shape, bins, size), side.dtype)
  total = jax.lax.fori_loop(0, count.max(initial=0).astype(jnp.int32), add, total)
  return total / jnp.maximum(count, 1)[..., None]


def multilevel_rotated_roi_align(
  features: Sequence[jax.Array],
  rois: jax.Array,
  strides: Sequence[int],
  output_size: int = 7,
  sampling_ratio: int = 2,
  finest_scale: float = 56,
) -> jax.Array:
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
  cells = jnp.concatenate([f.reshape(b, -1, c) for f in features], 1)
  sizes = np.asarray([f.shape[1:3] for f in features], np.int32)
  starts = np.cumsum([0, *sizes.prod(1)[:-1]], dtype=np.int32)
  level = roi_levels(rois, len(features), finest_scale).reshape(-1)
  scale = jnp.asarray(1 / np.asarray(strides), rois.dtype)[level]
  points = _sample_points(rois.reshape(-1, 5), scale[:, None], output_size, sampling_ratio)
  index, weight = _bilinear(*points, jnp.asarray(sizes)[level])
  index = index + jnp.asarray(starts)[level][:, None, None]
  taps = (b, r, output_size**2, -1)
  out = _weighted_sum(cells, index.reshape(taps), weight.reshape(taps))
  return (out / sampling_ratio**2).reshape(b, r, output_size, output_size, c)


@jax.custom_vjp
def _weighted_sum(cells, index, weight):
  """Sums [B, R, S, C] over K taps: cells [B, N, C], index and weight [B, R, S, K].

  One tap at a time, so that nothing K times the output is ever in memory; in at least float32.
  """
  dtype = wide_dtype(cells.dtype)
  out = 0
  for k in range(index.shape[-1]):
    tap = jax.vmap(lambda cells, index: cells[index])(cells, index[..., k])
    out += weight[..., k, None].astype(dtype) * tap.astype(dtype)
  return out.astype(cells.dtype)


def _weighted_sum_fwd(cells, index, weight):
  # An empty array remembers the number and type of the cells.
  return _weighted_sum(cells, index, weight), (cells[..., :0], index, weight)


def _weighted_sum_bwd(residuals, cotangent):
  """One scatter-add a chunk of RoIs, in place: far faster on CPU than the taps' transposes."""
  empty, index, weight = residuals
  b, r, s, k = index.shape
  c = cotangent.shape[-1]
  chunk = min(max(CHUNK // (s * k * c), 1), r)
  dtype = wide_dtype(empty.dtype)
  padding = ((0, 0), (0, -r % chunk), (0, 0), (0, 0))
  index, weight, cotangent = (jnp.pad(x, padding) for x in (index, weight, cotangent))

  def step(i, grad):
    part = lambda x: jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, 1)
    rows = part(weight)[..., None].astype(dtype) * part(cotangent)[..., None, :].astype(dtype)
    return jax.vmap(lambda g, index, rows: g.at[index].add(rows))(grad, part(index), rows)

  grad = jnp.zeros((b, empty.shape[1], c), dtype)
  grad = jax.lax.fori_loop(0, index.shape[1] // chunk, step, grad)
  return grad.astype(empty.dtype), None, None


_weighted_sum.defvjp(_weighted_sum_fwd, _weighted_sum_bwd)


def _sample_points(boxes, scale, output_size, sampling_ratio):
  """Sample coordinates y, x, each [R, bins * samples], in cells (a cell's centre is an integer)."""
  boxes = jax.lax.stop_gradient(boxes)
  n = output_size * sampling_ratio
  ticks = ((np.arange(n) + 0.5) / n - 0.5).reshape(output_size, sampling_ratio)
  v, u = np.broadcast_arrays(ticks[:, None, :, None], ticks[None, :, None, :])
  u, v = (jnp.asarray(t.reshape(1, -1), boxes.dtype) for t in (u, v))
  cx, cy, w, h = jnp.split(boxes[:, :4] * scale, 4, axis=1)
  cos, sin = jnp.cos(boxes[:, 4:]), jnp.sin(boxes[:, 4:])
  return u * w * sin + v * h * cos + cy - 0.5, u * w * cos - v * h * sin + cx - 0.5


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
