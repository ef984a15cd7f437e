"""What every head shares."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sm3det_jax.geometry import anchors
from sm3det_jax.precision import wide, wide_dtype

PRIOR = nn.initializers.constant(-math.log(99))  # bias of class logits: a probability of 0.01


class Detections(NamedTuple):
  """Padded detections of `B` images, best first."""

  boxes: jax.Array  # [B, D, 4 | 5]
  scores: jax.Array  # [B, D]
  labels: jax.Array  # [B, D] in the head's label space
  valid: jax.Array  # [B, D]


class Head(nn.Module):
  """A task's head; the subclasses say which.

  Attributes:
    config: of the head, see `sm3det_jax.config.heads`.
    num_classes: of its label space.
  """

  config: dict
  num_classes: int

  @property
  def start(self) -> int:
    return start_stage(self.config.strides)

  def touch(self, features):
    """Runs every layer once, so that `init` makes all parameters."""
    return self.raw(features)


def map_images(image: Callable, batch: Any) -> Any:
  """`image` of each image of a batch, one after the other; on a mesh each device does its own.

  A bare `lax.map` over a sharded batch would gather it, and every device would do all the images.

  Args:
    image: function of a tree like `batch` without the axis B.
    batch: tree of arrays [B, ...], over all axes of the mesh in use, if there is one.
  """
  run = lambda batch: jax.lax.map(image, batch)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1:
    images = P(mesh.axis_names)
    run = jax.shard_map(run, in_specs=(images,), out_specs=images, check_vma=False)
  return run(batch)


def flat(maps: list[jax.Array], channels: int) -> list[jax.Array]:
  """[B, H, W, A * channels] maps -> [B, H W A, channels], in at least float32."""
  return [wide(m).reshape(len(m), -1, channels) for m in maps]


def level_anchors(shapes, strides, scales, ratios, dtype=jnp.float32) -> list[jax.Array]:
  """Anchors [H W A, 4] of levels of the given (height, width), in the dtype of box maths."""
  return [
    jnp.asarray(anchors.grid_anchors(shape, s, scales, ratios), wide_dtype(dtype))
    for shape, s in zip(shapes, strides, strict=True)
  ]


def level_shapes(canvas, strides) -> list[tuple[int, int]]:
  """(height, width) of the levels of a canvas whose sides are multiples of 32."""
  return [tuple(-(-side // s) for side in canvas) for s in strides]


def start_stage(strides) -> int:
  """Backbone stage (0 at stride 4) whose lateral gives the first level of `strides`."""
  return {4: 0, 8: 1}[strides[0]]
