"""Anchor boxes of a regular grid."""

from collections.abc import Sequence

import numpy as np


def base_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
  """HBB [len(ratios) * len(scales), 4] around the origin; the ratio (h / w) is the outer loop."""
  height = np.sqrt(np.asarray(ratios, np.float64))[:, None]
  scale = stride * np.asarray(scales, np.float64)[None]
  half = np.stack([scale / height, scale * height], -1).reshape(-1, 2) / 2
  return np.concatenate([-half, half], -1)


def grid_anchors(
  feature_shape: tuple[int, int], stride: int, scales: Sequence[float], ratios: Sequence[float]
) -> np.ndarray:
  """Anchors of one feature level, as mmdet 2.x makes them (centre offset 0).

  Args:
    feature_shape: (height, width) of the map in grid cells.
    stride: pixels between cells, and the side of the anchor of scale 1 and ratio 1.
    scales: sides relative to the stride.
    ratios: h / w of the anchors; the area does not depend on it.

  Returns:
    Float32 numpy array [h * w * len(ratios) * len(scales), 4]: a constant when traced. The order is
    y, x, ratio, scale. Cell (y, x) has its anchors centred at (x * stride, y * stride).
  """
  height, width = feature_shape
  y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing='ij')
  shifts = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
  return (shifts + base_anchors(stride, scales, ratios)).reshape(-1, 4).astype(np.float32)
