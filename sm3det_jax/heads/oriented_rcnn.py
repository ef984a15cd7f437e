"""Oriented R-CNN, the oriented head on optical and infrared images (Xie et al. 2021).

The semantics are those of mmrotate 0.3.4, which the released weights were trained with.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm3det_jax import losses
from sm3det_jax.backbones.layers import Dense
from sm3det_jax.geometry import assign, coders, iou, nms, roi_align
from sm3det_jax.heads import rpn
from sm3det_jax.heads.common import Detections, start_stage
from sm3det_jax.precision import wide

RPN_CODER = coders.MidpointOffset()
ROI_CODER = coders.DeltaXYWHA()


class RoIHead(nn.Module):
  """Two linear layers, class logits (background last), a class-agnostic box."""

  num_classes: int
  fc_channels: int

  @nn.compact
  def __call__(self, rois):
    """[..., 7, 7, C] -> [..., classes + 1], [..., 5], in at least float32."""
    x = rois.reshape(*rois.shape[:-3], -1)
    uniform, normal = nn.initializers.xavier_uniform(), nn.initializers.xavier_normal()
    x = nn.relu(Dense(self.fc_channels, uniform, name='fc1')(x))
    x = nn.relu(Dense(self.fc_channels, uniform, name='fc2')(x))
    # Xavier for these two as well: what the reference's initialisation ends up as
    cls = Dense(self.num_classes + 1, normal, name='cls')(x)
    return wide(cls), wide(Dense(5, normal, name='reg')(x))


class OrientedRCNN(nn.Module):
  """The task's head.

  Attributes:
    config: as `sm3det_jax.head_configs.oriented_rcnn`.
    num_classes: of its label space.
  """

  config: dict
  num_classes: int

  GROUPS = {'rpn_cls': 'rpn_head', 'rpn_bbox': 'rpn_head', 'cls': 'roi_head', 'bbox': 'roi_head'}

  def setup(self):
    c = self.config
    self.rpn_head = rpn.RPNHead(c, RPN_CODER)
    self.roi_head = RoIHead(self.num_classes, c.roi.fc_channels)

  @property
  def start(self) -> int:
    return start_stage(self.config.strides)

  def touch(self, features):
    size = self.config.roi.output_size
    blank = jnp.zeros((1, size, size, features[0].shape[-1]), features[0].dtype)
    return self.rpn_head(features), self.roi_head(blank)

  def raw(self, features):
    """Maps of the levels: objectness logits [B, H, W, A], offsets [B, H, W, 6 A]."""
    return self.rpn_head(features)

  def loss(self, features, targets, rng=None, sampling='random'):
    """Terms rpn_cls, rpn_bbox, cls, bbox; `targets` as a task's batch.

    `sampling` and `rng` choose the anchors and RoIs that count (`assign.sample`).
    """
    count = len(features[0])
    keys = jnp.zeros((count, 2)) if rng is None else jax.random.split(rng, (count, 2))
    c = self.config
    terms, proposals, valid = self.rpn_head.loss(
      features, targets, keys[:, 0], sampling, c.proposals
    )
    return terms | self._roi_loss(features, proposals, valid, targets, keys[:, 1], sampling)

  def _roi_features(self, features, rois):
    c = self.config
    used = features[: len(c.strides) - 1]  # the coarsest level proposes only
    return roi_align.multilevel_rotated_roi_align(
      used,
      rois,
      c.strides[: len(used)],
      c.roi.output_size,
      c.roi.sampling_ratio,
      c.roi.finest_scale,
    )

  def _roi_loss(self, features, proposals, proposal_valid, targets, keys, sampling):
    c = self.config.roi
    choose = lambda *x: sample_rois(c, self.num_classes, sampling, *x)
    rois, valid, labels, deltas = jax.vmap(choose)(
      proposals, proposal_valid, targets['boxes'], targets['labels'], targets['valid'], keys
    )
    cls, reg = self.roi_head(self._roi_features(features, rois))
    samples = jnp.maximum(valid.sum(), 1).astype(cls.dtype)
    positive = valid & (labels < self.num_classes)
    bbox = losses.smooth_l1(reg, deltas, c.bbox_beta).sum(-1)
    return {
      'cls': losses.softmax_cross_entropy(cls, labels).sum(where=valid) / samples,
      'bbox': bbox.sum(where=positive) / samples,
    }

  def detect(self, features, shapes) -> Detections:
    """Detections with centres inside of `shapes` [B, 2] (height, width)."""
    c = self.config
    proposals, valid = self.rpn_head.propose(features, shapes, c.proposals)
    cls, reg = self.roi_head(self._roi_features(features, proposals))
    scores = jnp.where(valid[..., None], jax.nn.softmax(cls, -1)[..., :-1], 0)  # [B, P, classes]

    def image(x):
      proposals, reg, scores, shape = x
      boxes = ROI_CODER.decode(proposals, reg, max_shape=shape.astype(reg.dtype))
      flat_scores, pair = scores.reshape(-1), jnp.arange(scores.size)
      if c.pre_nms:
        flat_scores, pair = jax.lax.top_k(flat_scores, min(c.pre_nms, scores.size))
      labels = pair % self.num_classes
      boxes = boxes[pair // self.num_classes]
      index, valid = nms.nms(
        boxes, flat_scores, c.nms_iou, c.max_detections, labels=labels,
        valid=flat_scores > c.score_threshold,
      )  # fmt: skip
      return Detections(boxes[index], flat_scores[index], labels[index], valid)

    return jax.lax.map(image, (proposals, reg, scores, shapes))


def sample_rois(c, num_classes, sampling, proposals, proposal_valid, boxes, labels, valid, key):
  """RoIs of one image that count: objects are proposals too, positives come first.

  Returns:
    rois [S, 5], valid [S], labels [S] (`num_classes` is background), deltas [S, 5].
  """
  overlaps = iou.rotated_iou(proposals, boxes)
  assigned = assign.max_iou(
    overlaps, valid, c.pos_iou, c.pos_iou, c.pos_iou, low_quality=False, box_valid=proposal_valid
  )
  own = jnp.where(valid, jnp.arange(len(boxes)) + 1, -1).astype(assigned.dtype)
  rois, assigned = jnp.concatenate([boxes, proposals]), jnp.concatenate([own, assigned])
  positive, negative = assign.sample(assigned, c.samples, c.positive_fraction, sampling, key)
  size = len(rois) if sampling == 'all' else min(c.samples, len(rois))
  order = jnp.argsort(jnp.where(positive, 0, jnp.where(negative, 1, 2)), stable=True)[:size]
  rois, assigned, positive = rois[order], assigned[order], positive[order]
  target = jnp.where(positive[:, None], boxes[assigned - 1], rois)
  label = jnp.where(positive, labels[assigned - 1], num_classes)
  return rois, (positive | negative[order]), label, ROI_CODER.encode(rois, target)
