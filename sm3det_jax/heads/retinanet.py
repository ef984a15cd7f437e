"""RetinaNet, a single-stage horizontal head (Lin et al. 2017).

The semantics are those of mmdet 2.x `RetinaHead`, which the released weights were trained with.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sm3det_jax.geometry import coders
from sm3det_jax.heads import dense
from sm3det_jax.heads.common import Detections, Head, Levels, flat, level_anchors, level_shapes

CODER = coders.DeltaXYWH()


class RetinaNet(Head):
  """Class logits and deltas of every anchor (Lin et al. 2017)."""

  REACHED = dense.REACHED

  def setup(self):
    c = self.config
    anchors = c.scales_per_octave * len(c.anchor_ratios)
    self.bbox_head = dense.TowerHead(anchors * self.num_classes, anchors * 4, c.channels, c.convs)

  def raw(self, features: Levels) -> tuple[Levels, ...]:
    """Maps of the levels: class logits [B, H, W, A * classes], deltas [B, H, W, A * 4]."""
    return self.bbox_head(features)

  def _run(self, features):
    """Anchors [A_l, 4], logits [B, A_l, classes], deltas [B, A_l, 4] of the levels."""
    cls, reg = self.bbox_head(features)
    anchors = octave_anchors(self.config, [f.shape[1:3] for f in features], features[0].dtype)
    return anchors, flat(cls, self.num_classes), flat(reg, 4)

  def loss(
    self,
    features: Levels,
    targets: dict[str, jax.Array],
    rng: jax.Array | None = None,
    sampling: str = 'random',
  ) -> dict[str, jax.Array]:
    """Terms cls and bbox; `targets` as a task's batch. Every anchor counts, none is sampled."""
    del rng, sampling
    anchors, cls, reg = self._run(features)
    cls, reg = jnp.concatenate(cls, 1), jnp.concatenate(reg, 1)
    anchors = jnp.broadcast_to(jnp.concatenate(anchors)[None], reg.shape)
    return dense.focal_terms(self.config, CODER, anchors, cls, reg, targets)

  def detect(self, features: Levels, shapes: jax.Array) -> Detections:
    """Detections inside of `shapes` [B, 2] (height, width)."""
    return dense.detect_pairs(self.config, CODER.decode, *self._run(features), shapes)

  @classmethod
  def groups(cls, config: ConfigDict) -> dict[str, str]:
    return dict.fromkeys(('cls', 'bbox'), 'bbox_head')

  @classmethod
  def reached(
    cls, config: ConfigDict, canvas: tuple[int, int], boxes: jax.Array, valid: jax.Array
  ) -> jax.Array:
    anchors = octave_anchors(config, level_shapes(canvas, config.strides))
    return dense.reached(config, jnp.concatenate(anchors), boxes, valid)


def octave_anchors(
  c: ConfigDict, shapes: list[tuple[int, int]], dtype: jnp.dtype = jnp.float32
) -> list[jax.Array]:
  """Anchors [H W A, 4] of levels of the given (height, width), of several sizes an octave."""
  scales = [c.anchor_scale * 2 ** (i / c.scales_per_octave) for i in range(c.scales_per_octave)]
  return level_anchors(shapes, c.strides, scales, c.anchor_ratios, dtype)
