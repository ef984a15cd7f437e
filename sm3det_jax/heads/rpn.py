"""The region proposal network that every two-stage head has (Faster R-CNN, section 3).

The semantics are those of mmdet 2.x and mmrotate 0.3.4, which the released weights were trained
with.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sm3det_jax import losses
from sm3det_jax.geometry import assign, coders, iou, nms, obb
from sm3det_jax.heads.common import Levels, flat, level_anchors, level_shapes, map_images
from sm3det_jax.layers.convolution import Conv

# The overlap at which recall is usually told. From `rpn.min_pos_iou` (0.3) on an object has its
# best anchor as a positive, from `rpn.pos_iou` (0.7) on every such anchor.
REACH = 0.5


class RPNHead(nn.Module):
  """Objectness and a box for every anchor, and the proposals that follow.

  Attributes:
    config: of the whole head (`channels`, `strides`, `anchor_scales`, `anchor_ratios`, `rpn`).
    coder: of boxes against anchors; proposals are HBB with `DeltaXYWH` (clipped to the image), OBB
      with `MidpointOffset`. The boxes of `targets` have its format.
    drop_empty: proposals without width or height are dropped (mmdet; mmrotate keeps them).
  """

  config: dict
  coder: coders.Coder
  drop_empty: bool = False

  def setup(self):
    c = self.config
    anchors = len(c.anchor_scales) * len(c.anchor_ratios)
    self.conv, self.cls = Conv(c.channels), Conv(anchors, 1)
    self.reg = Conv(len(self.coder.stds) * anchors, 1)

  def __call__(self, features):
    """Levels [B, H, W, C] -> objectness logits [B, H, W, A], deltas [B, H, W, A * (4 | 6)] maps."""
    hidden = [nn.relu(self.conv(f)) for f in features]
    return [self.cls(h) for h in hidden], [self.reg(h) for h in hidden]

  def loss(
    self,
    features: Levels,
    targets: dict[str, jax.Array],
    keys: jax.Array,
    sampling: str,
    proposals: ConfigDict,
  ) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """The terms, and proposals as `propose` gives them.

    Args:
      features: the levels.
      targets: as a task's batch, with boxes in the coder's format.
      keys: [B] keys of the sampling.
      sampling: see `assign.sample`.
      proposals: as `propose`.

    Returns:
      ({'rpn_cls', 'rpn_bbox'}, boxes [B, P, 4 | 5], valid [B, P]).
    """
    anchors, cls, reg = self._flat(features)
    terms = rpn_loss(
      self.config.rpn, self.coder, jnp.concatenate(anchors), jnp.concatenate(cls, 1),
      jnp.concatenate(reg, 1), targets, keys, sampling,
    )  # fmt: skip
    return terms, *self._proposals(proposals, anchors, cls, reg, targets['shapes'])

  def propose(
    self, features: Levels, shapes: jax.Array, proposals: ConfigDict
  ) -> tuple[jax.Array, jax.Array]:
    """The best boxes of all levels, best first.

    Args:
      features: the levels.
      shapes: [B, 2] (height, width) of the images.
      proposals: `pre_nms` (a level), `nms_iou`, `max_proposals`.

    Returns:
      (boxes [B, P, 4 | 5], valid [B, P]), without gradient.
    """
    return self._proposals(proposals, *self._flat(features), shapes)

  def _flat(self, features):
    """Anchors [A_l, 4], logits [B, A_l], deltas [B, A_l, 4 | 6] of the levels."""
    c = self.config
    shapes = [f.shape[1:3] for f in features]
    anchors = level_anchors(shapes, c.strides, c.anchor_scales, c.anchor_ratios, features[0].dtype)
    cls, reg = self(features)
    return anchors, [x[..., 0] for x in flat(cls, 1)], flat(reg, len(self.coder.stds))

  def _proposals(self, c, anchors, cls, reg, shapes):
    def image(x):
      *maps, shape = x
      boxes, scores, ids = [], [], []
      for level, (a, s, r) in enumerate(zip(anchors, *maps, strict=True)):
        s, index = jax.lax.top_k(s, min(c.pre_nms, len(s)))
        boxes.append(self.coder.decode(a[index], r[index], max_shape=shape.astype(r.dtype)))
        scores.append(jax.nn.sigmoid(s))
        ids.append(jnp.full(s.shape, level))
      boxes, scores, ids = map(jnp.concatenate, (boxes, scores, ids))
      around = envelopes(boxes)
      good = jnp.all(around[:, 2:] > around[:, :2], 1) if self.drop_empty else None
      limit = min(c.max_proposals, len(boxes))
      index, valid = nms.nms(around, scores, c.nms_iou, limit, labels=ids, valid=good)
      return boxes[index], valid

    return map_images(image, jax.lax.stop_gradient((cls, reg, shapes)))


def envelopes(boxes: jax.Array) -> jax.Array:
  """HBB [..., 4] around HBB [..., 4] (themselves) or OBB [..., 5]."""
  return boxes if boxes.shape[-1] == 4 else obb.to_hbb(boxes)


def rpn_loss(
  c: ConfigDict,
  coder: coders.Coder,
  anchors: jax.Array,
  cls: jax.Array,
  reg: jax.Array,
  targets: dict[str, jax.Array],
  keys: jax.Array,
  sampling: str,
) -> dict[str, jax.Array]:
  """Terms of the proposals: anchors [A, 4], logits [B, A], deltas [B, A, 4 | 6]."""
  positive, negative, deltas = map_images(
    lambda image: rpn_targets(c, coder, anchors, sampling, *image),
    (targets['boxes'], targets['valid'], targets['shapes'], keys, targets.get('ignored')),
  )
  # an image counts at least one positive and one negative, as in the reference
  count = lambda mask: jnp.maximum(mask.sum(1), 1).sum()
  normaliser = (count(positive) + count(negative)).astype(cls.dtype)
  entropy = losses.sigmoid_cross_entropy(cls, positive.astype(cls.dtype))
  bbox = losses.smooth_l1(reg, deltas, c.bbox_beta).sum(-1)
  return {
    'rpn_cls': entropy.sum(where=positive | negative) / normaliser,
    'rpn_bbox': bbox.sum(where=positive) / normaliser,
  }


def rpn_targets(
  c: ConfigDict,
  coder: coders.Coder,
  anchors: jax.Array,
  sampling: str,
  boxes: jax.Array,
  valid: jax.Array,
  shape: jax.Array,
  key: jax.Array,
  ignored: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Sampled positives and negatives [A] and deltas [A, 4 | 6] of one image's anchors."""
  around = envelopes(boxes)
  assigned = assign.max_iou(
    iou.hbb_iou, anchors, around, valid, c.pos_iou, c.neg_iou, c.min_pos_iou,
    box_valid=inside(anchors, shape.astype(anchors.dtype), c.allowed_border),
  )  # fmt: skip
  assigned = assign.ignore_regions(assigned, anchors, around, ignored)
  positive, negative = assign.sample(assigned, c.samples, c.positive_fraction, sampling, key)
  return positive, negative, coder.encode(anchors, boxes[assigned - 1])


def inside(anchors: jax.Array, shape: jax.Array, border: float) -> jax.Array:
  """Which anchors [A, 4] leave the image by less than `border` px; all with -1, as mmdet."""
  if border < 0:
    return jnp.ones(len(anchors), bool)
  height, width = shape
  return (
    (anchors[:, 0] >= -border) & (anchors[:, 1] >= -border)
    & (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)
  )  # fmt: skip


def reached(
  c: ConfigDict, canvas: tuple[int, int], boxes: jax.Array, valid: jax.Array
) -> jax.Array:
  """Which of an image's boxes [M, 4 | 5] have an anchor of IoU >= `REACH` with their envelope."""
  shapes = level_shapes(canvas, c.strides)
  levels = level_anchors(shapes, c.strides, c.anchor_scales, c.anchor_ratios)
  best = [iou.hbb_iou(envelopes(boxes), anchors).max(1) for anchors in levels]
  return (jnp.stack(best).max(0) >= REACH) & valid
