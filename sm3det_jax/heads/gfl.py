"""GFL, the horizontal head on SAR (Li et al. 2020): quality and distribution focal losses, ATSS.

The semantics are those of mmdet 2.x `GFLHead`, which the released weights were trained with.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sm3det_jax import losses
from sm3det_jax.geometry import assign, coders, hbb, iou
from sm3det_jax.heads import dense
from sm3det_jax.heads.common import (
  PRIOR,
  Detections,
  Head,
  Levels,
  flat,
  level_anchors,
  level_shapes,
  map_images,
)
from sm3det_jax.layers.convolution import Conv
from sm3det_jax.layers.norm import GroupNorm


class GFLHead(nn.Module):
  """Two towers of convolutions shared over levels; class logits and distance distributions."""

  num_classes: int
  channels: int
  convs: int
  reg_max: int
  levels: int

  def setup(self):
    tower = lambda: [Conv(self.channels, use_bias=False) for _ in range(self.convs)]
    norms = lambda: [GroupNorm() for _ in range(self.convs)]
    self.cls_conv, self.cls_norm = tower(), norms()
    self.reg_conv, self.reg_norm = tower(), norms()
    self.cls = Conv(self.num_classes, bias_init=PRIOR)
    self.reg = Conv(4 * (self.reg_max + 1))
    self.scale = self.param('scale', nn.initializers.ones, (self.levels,))

  def __call__(self, features):
    """Levels [B, H, W, C] -> class logits [B, H, W, classes], [B, H, W, 4 (reg_max + 1)] maps."""
    logits, distances = [], []
    for level, x in enumerate(features):
      c = r = x
      for conv, norm in zip(self.cls_conv, self.cls_norm, strict=True):
        c = nn.relu(norm(conv(c)))
      for conv, norm in zip(self.reg_conv, self.reg_norm, strict=True):
        r = nn.relu(norm(conv(r)))
      logits.append(self.cls(c))
      distances.append(self.reg(r) * self.scale[level].astype(r.dtype))
    return logits, distances


class GFL(Head):
  """Generalised focal loss on every location (Li et al. 2020)."""

  REACHED = 'objects with at least one ATSS positive'

  def setup(self):
    c = self.config
    self.bbox_head = GFLHead(self.num_classes, c.channels, c.convs, c.reg_max, len(c.strides))

  def raw(self, features: Levels) -> tuple[Levels, ...]:
    """Maps of the levels: class logits, distance logits after the level's scale."""
    return self.bbox_head(features)

  def _anchors(self, features):
    c = self.config
    shapes = [f.shape[1:3] for f in features]
    return level_anchors(shapes, c.strides, (c.anchor_scale,), (1.0,), features[0].dtype)

  def loss(
    self,
    features: Levels,
    targets: dict[str, jax.Array],
    rng: jax.Array | None = None,
    sampling: str = 'random',
  ) -> dict[str, jax.Array]:
    """Terms cls, bbox, dfl; `targets` as a task's batch. Every location counts, none is sampled."""
    del rng, sampling
    c = self.config
    logits, distances = self.bbox_head(features)
    levels = self._anchors(features)
    anchors = jnp.concatenate(levels)  # [A, 4]
    sizes = tuple(len(a) for a in levels)
    stride = jnp.repeat(
      jnp.asarray(c.strides, anchors.dtype), jnp.asarray(sizes), total_repeat_length=len(anchors)
    )
    logits = jnp.concatenate(flat(logits, self.num_classes), 1)  # [B, A, classes]
    distances = jnp.concatenate(flat(distances, 4 * (c.reg_max + 1)), 1)
    boxes, ignored = targets['boxes'], targets.get('ignored')
    assigned = map_images(
      lambda image: _assigned(c, anchors, sizes, *image), (boxes, targets['valid'], ignored)
    )
    counts = None if ignored is None else assigned >= 0  # None: every location
    one = lambda *image: _image_loss(c, self.num_classes, anchors, stride, *image)
    cls, bbox, dfl, weight, positives = jax.vmap(one)(
      logits, distances, boxes, targets['labels'], assigned, counts
    )
    normaliser = jnp.maximum(weight.sum(), 1)
    return {
      'cls': c.cls_weight * cls.sum() / jnp.maximum(positives.sum(), 1).astype(cls.dtype),
      'bbox': c.bbox_weight * bbox.sum() / normaliser,
      'dfl': c.dfl_weight * dfl.sum() / normaliser,
    }

  def detect(self, features: Levels, shapes: jax.Array) -> Detections:
    """Detections inside of `shapes` [B, 2] (height, width)."""
    c = self.config
    logits, distances = self.bbox_head(features)
    logits, distances = flat(logits, self.num_classes), flat(distances, 4 * (c.reg_max + 1))

    def decode(anchors, distances):
      stride = (anchors[:, 2:3] - anchors[:, :1]) / c.anchor_scale
      reach = losses.integral(distances, c.reg_max) * stride
      return coders.distance_to_box(hbb.centers(anchors), reach)

    return dense.detect_pairs(c, decode, self._anchors(features), logits, distances, shapes)

  @classmethod
  def groups(cls, config: ConfigDict) -> dict[str, str]:
    return dict.fromkeys(('cls', 'bbox', 'dfl'), 'bbox_head')

  @classmethod
  def reached(
    cls, config: ConfigDict, canvas: tuple[int, int], boxes: jax.Array, valid: jax.Array
  ) -> jax.Array:
    c = config
    shapes = level_shapes(canvas, c.strides)
    levels = level_anchors(shapes, c.strides, (c.anchor_scale,), (1.0,))
    sizes = tuple(len(a) for a in levels)
    assigned = _assigned(c, jnp.concatenate(levels), sizes, boxes, valid)
    return assign.matched(assigned, valid)


def _assigned(c, anchors, sizes, boxes, valid, ignored=None):
  found = assign.atss(anchors, sizes, boxes, valid, c.atss_topk)
  return assign.ignore_regions(found, anchors, boxes, ignored)


def _image_loss(
  c, num_classes, anchors, stride, logits, distances, boxes, labels, assigned, counts
):
  """Sums over the anchors of one image: the three terms, the box weights, the positives."""
  positive = assigned > 0
  target = jnp.where(positive[:, None], boxes[assigned - 1], anchors) / stride[:, None]
  label = jnp.where(positive, labels[assigned - 1], num_classes)
  center = hbb.centers(anchors) / stride[:, None]
  box = coders.distance_to_box(center, losses.integral(distances, c.reg_max))
  quality = iou.hbb_iou_aligned(jax.lax.stop_gradient(box), target)
  weight = jnp.where(positive, jax.nn.sigmoid(jax.lax.stop_gradient(logits)).max(-1), 0)
  # below the last bin, so that a distance always has a bin on either side
  reach = jnp.clip(coders.box_to_distance(center, target), 0, c.reg_max - 0.1)
  cls = losses.quality_focal(
    logits, label, jnp.where(positive, quality, 0), num_classes, c.focal_beta
  )
  bbox = losses.giou(box, target) * weight
  dfl = losses.distribution_focal(distances.reshape(-1, c.reg_max + 1), reach.reshape(-1))
  dfl = dfl.reshape(-1, 4).mean(-1) * weight
  return cls.sum(where=counts), bbox.sum(), dfl.sum(), weight.sum(), positive.sum()
