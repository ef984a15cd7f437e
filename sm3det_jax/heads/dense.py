"""Dense heads with a focal loss, one or more anchors a cell (RetinaNet, Lin et al. 2017).

The semantics are those of mmdet 2.x and mmrotate 0.3.4, which the released weights were trained
with.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sm3det_jax import losses
from sm3det_jax.geometry import assign, coders, hbb, iou, nms
from sm3det_jax.heads.common import PRIOR, Detections, map_images
from sm3det_jax.layers.convolution import Conv


class TowerHead(nn.Module):
  """Two towers of convolutions, shared over levels.

  Attributes:
    logits: of a cell, over all its anchors.
    deltas: of a cell, over all its anchors.
    channels: of the towers.
    convs: of each tower.
  """

  logits: int
  deltas: int
  channels: int
  convs: int

  def setup(self):
    self.cls_conv = [Conv(self.channels) for _ in range(self.convs)]
    self.reg_conv = [Conv(self.channels) for _ in range(self.convs)]
    self.cls = Conv(self.logits, bias_init=PRIOR)
    self.reg = Conv(self.deltas)

  def __call__(self, features, cls_features=None):
    """Levels [B, H, W, C] (others for the classes, if they differ) -> logits, deltas maps."""
    cls, reg = list(cls_features or features), list(features)
    for conv in self.cls_conv:
      cls = [nn.relu(conv(x)) for x in cls]
    for conv in self.reg_conv:
      reg = [nn.relu(conv(x)) for x in reg]
    return [self.cls(x) for x in cls], [self.reg(x) for x in reg]


def focal_terms(
  c: ConfigDict,
  coder: coders.Coder,
  anchors: jax.Array,
  cls: jax.Array,
  reg: jax.Array,
  targets: dict[str, jax.Array],
) -> dict[str, jax.Array]:
  """Terms cls and bbox; every anchor counts, none is sampled.

  Args:
    c: `pos_iou`, `neg_iou`, `min_pos_iou`, `focal_gamma`, `focal_alpha`, `bbox_beta`.
    coder: of boxes against anchors.
    anchors: HBB or OBB [B, A, 4 | 5], without gradient.
    cls: logits [B, A, classes].
    reg: deltas [B, A, values of a box].
    targets: as a task's batch.
  """
  boxes, valid = targets['boxes'], targets['valid']
  assigned = map_images(
    lambda image: _assigned(c, *image), (anchors, boxes, valid, targets.get('ignored'))
  )
  one = lambda *image: _image_terms(c, coder, *image)
  cls, bbox, positives = jax.vmap(one)(anchors, cls, reg, boxes, targets['labels'], assigned)
  # an image counts at least one positive, as in the reference
  normaliser = jnp.maximum(positives, 1).sum().astype(cls.dtype)
  return {'cls': cls.sum() / normaliser, 'bbox': bbox.sum() / normaliser}


def _image_terms(c, coder, anchors, cls, reg, boxes, labels, assigned):
  """Sums over the anchors of one image, and how many are positive."""
  positive = assigned > 0
  label = jnp.where(positive, labels[assigned - 1], cls.shape[-1])
  focal = losses.sigmoid_focal(cls, label, c.focal_gamma, c.focal_alpha)
  deltas = coder.encode(anchors, boxes[assigned - 1])
  bbox = losses.smooth_l1(reg, deltas, c.bbox_beta).sum(-1)
  return focal.sum(where=assigned >= 0), bbox.sum(where=positive), positive.sum()


def _assigned(c, anchors, boxes, valid, ignored=None):
  overlaps = iou.hbb_iou if anchors.shape[-1] == 4 else iou.rotated_iou
  found = assign.max_iou(overlaps, anchors, boxes, valid, c.pos_iou, c.neg_iou, c.min_pos_iou)
  return assign.ignore_regions(found, anchors, boxes, ignored)


def detect_pairs(
  c: ConfigDict,
  decode: Callable[[jax.Array, jax.Array], jax.Array],
  anchors: list[jax.Array],
  logits: list[jax.Array],
  deltas: list[jax.Array],
  shapes: jax.Array,
) -> Detections:
  """Horizontal detections: the best (anchor, class) pairs of every level, then NMS by class.

  Args:
    c: `pre_nms` (pairs a level), `score_threshold`, `nms_iou`, `max_detections`.
    decode: of anchors [k, 4] and deltas [k, n] to HBB [k, 4].
    anchors: [A_l, 4] of the levels.
    logits: [B, A_l, classes] of the levels.
    deltas: [B, A_l, n] of the levels.
    shapes: [B, 2] (height, width); boxes are clipped to it.
  """
  classes = logits[0].shape[-1]

  def candidates(anchors, logits, deltas):
    scores, pair = jax.lax.top_k(jax.nn.sigmoid(logits).reshape(-1), min(c.pre_nms, logits.size))
    index = pair // classes
    return decode(anchors[index], deltas[index]), scores, pair % classes

  def image(x):
    *maps, shape = x
    levels = [candidates(*level) for level in zip(anchors, *maps, strict=True)]
    boxes, scores, labels = map(jnp.concatenate, zip(*levels, strict=True))
    boxes = hbb.clip(boxes, shape.astype(boxes.dtype))
    good = (scores > c.score_threshold) & jnp.all(boxes[:, 2:] > boxes[:, :2], -1)
    index, valid = nms.nms(boxes, scores, c.nms_iou, c.max_detections, labels=labels, valid=good)
    return Detections(boxes[index], scores[index], labels[index], valid)

  return map_images(image, (logits, deltas, shapes))


REACHED = 'objects with at least one positive anchor'


def reached(c: ConfigDict, anchors: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
  """Which of an image's boxes [M, 4 | 5] get at least one positive anchor: bool [M]."""
  return assign.matched(_assigned(c, anchors, boxes, valid), valid)
