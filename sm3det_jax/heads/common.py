"""What every head shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sm3det_jax.geometry import anchors
from sm3det_jax.precision import wide, wide_dtype


class Detections(NamedTuple):
  """Padded detections of `B` images, best first."""

  boxes: jax.Array  # [B, D, 4 | 5]
  scores: jax.Array  # [B, D]
  labels: jax.Array  # [B, D] in the head's label space
  valid: jax.Array  # [B, D]


def flat(maps: list[jax.Array], channels: int) -> list[jax.Array]:
  """[B, H, W, A * channels] maps -> [B, H W A, channels], in at least float32."""
  return [wide(m).reshape(len(m), -1, channels) for m in maps]


def level_anchors(features: list[jax.Array], strides, scales, ratios) -> list[jax.Array]:
  """Anchors [H W A, 4] of every level, in the dtype of box maths."""
  dtype = wide_dtype(features[0].dtype)
  return [
    jnp.asarray(anchors.grid_anchors(f.shape[1:3], s, scales, ratios), dtype)
    for f, s in zip(features, strides, strict=True)
  ]


def start_stage(strides) -> int:
  """Backbone stage (0 at stride 4) whose lateral gives the first level of `strides`."""
  return {4: 0, 8: 1}[strides[0]]
