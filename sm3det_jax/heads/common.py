"""What every head shares."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from sm3det_jax.geometry import anchors
from sm3det_jax.precision import wide, wide_dtype

PRIOR = nn.initializers.constant(-math.log(99))  # bias of class logits: a probability of 0.01


Levels = list[jax.Array]  # maps [B, H, W, C] of a pyramid, finest first


class Detections(NamedTuple):
  """Padded detections of `B` images, best first."""

  boxes: jax.Array  # [B, D, 4 | 5]
  scores: jax.Array  # [B, D]
  labels: jax.Array  # [B, D] in the head's label space
  valid: jax.Array  # [B, D]


class Head(nn.Module):
  """A task's head; the subclasses say which.

  Beside what stands here a head has, of `features` as its `inputs` returns them:

      raw(features) -> its maps, before any box is decoded
      loss(features, targets, rng=None, sampling='random') -> {term: scalar}
      detect(features, shapes) -> Detections inside of `shapes` [B, 2] (height, width)

  `targets` is a task's part of a batch: boxes [B, M, 4 | 5], labels [B, M], valid [B, M], shapes
  [B, 2]; where a data set has regions to ignore, `ignored` [B, M] marks their rows, in which no
  negative lies (`assign.ignore_regions`). What is neither valid nor ignored is zero.

  Attributes:
    config: of the head, see `sm3det_jax.config.heads`.
    num_classes: of its label space.
  """

  config: dict
  num_classes: int

  # whether raw, loss, detect and touch take the (height, width) of the padded images, in which
  # boxes live, as a second argument; features need not tell it
  CANVAS = False
  # modules in none of the groups: their rate is that of what all tasks share
  SHARED = ()
  # what `reached` tells of the objects; a head without anchors misses none
  REACHED = 'objects, which no anchor limits'

  def inputs(self, stages: list[jax.Array], neck: Callable) -> Any:
    """What the head reads, by default the neck's levels from its finest stride on.

    Args:
      stages: outputs of the backbone [B, h, w, C], finest first.
      neck: (stages, first stage that is used) -> levels [B, h, w, C], finest first.
    """
    return neck(stages, start_stage(self.config.strides))

  def touch(self, features: Levels) -> Any:
    """Runs every layer once, so that `init` makes all parameters."""
    return self.raw(features)

  @classmethod
  def groups(cls, config: ConfigDict) -> dict[str, str]:
    """The module, one of the head's parameter groups, of each loss term."""
    raise NotImplementedError

  @classmethod
  def reached(
    cls, config: ConfigDict, canvas: tuple[int, int], boxes: jax.Array, valid: jax.Array
  ) -> jax.Array:
    """Which of an image's objects the head can learn at all, given its anchors.

    Args:
      config: of the head.
      canvas: static (height, width) of the padded image.
      boxes: [M, 4 | 5].
      valid: [M].

    Returns:
      bool [M], which `REACHED` puts in words.
    """
    del config, canvas, boxes
    return valid

  @classmethod
  def counted(cls, config: ConfigDict) -> dict:
    """Changes of the head's config for `sm3det account`, which counts what papers count."""
    del config
    return {}


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


def level_anchors(
  shapes: list[tuple[int, int]],
  strides: Sequence[int],
  scales: Sequence[float],
  ratios: Sequence[float],
  dtype: jnp.dtype = jnp.float32,
) -> list[jax.Array]:
  """Anchors [H W A, 4] of levels of the given (height, width), in the dtype of box maths."""
  return [
    jnp.asarray(anchors.grid_anchors(shape, s, scales, ratios), wide_dtype(dtype))
    for shape, s in zip(shapes, strides, strict=True)
  ]


def level_shapes(canvas: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
  """(height, width) of the levels of a canvas whose sides are multiples of 32."""
  return [tuple(-(-side // s) for side in canvas) for s in strides]


def start_stage(strides: Sequence[int]) -> int:
  """Backbone stage (0 at stride 4) whose lateral gives the first level of `strides`."""
  return {4: 0, 8: 1}[strides[0]]
