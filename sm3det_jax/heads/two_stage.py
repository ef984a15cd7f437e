"""Two-stage detectors: proposals, then one or more stages that classify and refine them as RoIs.

The semantics are those of mmdet 2.x and mmrotate 0.3.4 (`StandardRoIHead`, `CascadeRoIHead` and
their rotated kin), which the released weights were trained with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sm3det_jax import losses
from sm3det_jax.geometry import assign, coders, iou, nms, obb, roi_align
from sm3det_jax.heads import rpn
from sm3det_jax.heads.common import Detections, Head, Levels, map_images
from sm3det_jax.layers.linear import Dense
from sm3det_jax.precision import wide

ENVELOPES = f'objects (envelopes) with an RPN anchor of IoU >= {rpn.REACH}'
ROIS = 1000  # of an image, in the multiply-accumulates that papers give
uniform, normal = nn.initializers.xavier_uniform(), nn.initializers.xavier_normal()


class RoIHead(nn.Module):
  """Two linear layers, class logits (background last), a box or a box of every class.

  Attributes:
    num_classes: without background.
    fc_channels: of the two layers.
    deltas: values of the box regression, (values of a box) or (classes * values of a box).
    fc_init, cls_init, reg_init: of the kernels.
  """

  num_classes: int
  fc_channels: int
  deltas: int = 5
  fc_init: nn.initializers.Initializer = uniform
  # Xavier for these two as well: what the reference's rotated heads end up with
  cls_init: nn.initializers.Initializer = normal
  reg_init: nn.initializers.Initializer = normal

  @nn.compact
  def __call__(self, rois):
    """[..., 7, 7, C] -> [..., classes + 1], [..., deltas], in at least float32."""
    x = rois.reshape(*rois.shape[:-3], -1)
    x = nn.relu(Dense(self.fc_channels, self.fc_init, name='fc1')(x))
    x = nn.relu(Dense(self.fc_channels, self.fc_init, name='fc2')(x))
    cls = Dense(self.num_classes + 1, self.cls_init, name='cls')(x)
    return wide(cls), wide(Dense(self.deltas, self.reg_init, name='reg')(x))


class RoIHeads(nn.Module):
  """The `roi_head` of several stages.

  Attributes:
    make: index of a stage -> its RoIHead.
    count: of the stages.
  """

  make: Callable[[int], RoIHead]
  count: int

  def setup(self):
    self.stage = [self.make(k) for k in range(self.count)]

  def __call__(self, stage, rois):
    return self.stage[stage](rois)


class Stage(NamedTuple):
  """What the stages differ in."""

  head: Callable  # RoI features [..., 7, 7, C] -> class logits, deltas
  coder: coders.Coder  # of boxes against RoIs
  pos_iou: float  # a RoI is positive from this IoU on, background below
  sampling_ratio: int  # of RoIAlign; 0 = by the size of the RoI (HBB only)
  weight: float = 1.0  # of its losses


class Samples(NamedTuple):
  """The RoIs of an image that count in training, positives first."""

  boxes: jax.Array  # [S, 4 | 5]
  valid: jax.Array  # [S]
  labels: jax.Array  # [S]; the number of classes is background
  deltas: jax.Array  # [S, values of a box]; anything where no positive is
  objects: jax.Array  # [S]; which of them are ground truths, added to the proposals


class TwoStage(Head):
  """A task's head of two or more stages; the subclasses say which."""

  RPN_CODER = coders.DeltaXYWH()
  ROI_CODERS = ()  # of the stages
  DROP_EMPTY = False  # see RPNHead
  REACHED = f'objects with an RPN anchor of IoU >= {rpn.REACH}'

  def setup(self):
    self.rpn_head = rpn.RPNHead(self.config, self.RPN_CODER, self.DROP_EMPTY)
    self.roi_head = self.make_roi_head()

  def make_roi_head(self) -> nn.Module:
    raise NotImplementedError

  def stages(self) -> list[Stage]:
    raise NotImplementedError

  def touch(self, features: Levels) -> Any:
    size = self.config.roi.output_size
    blank = jnp.zeros((1, size, size, features[0].shape[-1]), features[0].dtype)
    return self.rpn_head(features), [stage.head(blank) for stage in self.stages()]

  def raw(self, features: Levels) -> tuple[Levels, ...]:
    """Maps of the levels: objectness logits [B, H, W, A], deltas [B, H, W, A * values of a box]."""
    return self.rpn_head(features)

  def loss(
    self,
    features: Levels,
    targets: dict[str, jax.Array],
    rng: jax.Array | None = None,
    sampling: str = 'random',
  ) -> dict[str, jax.Array]:
    """Terms rpn_cls, rpn_bbox, and cls, bbox (of several stages s0.cls, s0.bbox, s1.cls ...).

    `targets` as a task's batch; `sampling` and `rng` choose the anchors and RoIs that count
    (`assign.sample`).
    """
    c = self.config
    shape = len(features[0]), 1 + len(self.stages())
    keys = jnp.zeros(shape) if rng is None else jax.random.split(rng, shape)
    terms, rois, valid = self.rpn_head.loss(
      features, self.rpn_targets(targets), keys[:, 0], sampling,
      c.get('train_proposals', c.proposals),
    )  # fmt: skip
    return terms | self.roi_loss(features, rois, valid, targets, keys[:, 1:], sampling)

  def roi_loss(
    self,
    features: Levels,
    rois: jax.Array,
    valid: jax.Array,
    targets: dict[str, jax.Array],
    keys: jax.Array,
    sampling: str,
  ) -> dict[str, jax.Array]:
    """The terms of the stages, from proposals [B, P, 4 | 5], valid [B, P] and keys [B, stages]."""
    c, stages, terms = self.config, self.stages(), {}
    for k, stage in enumerate(stages):
      samples = map_images(
        lambda image, stage=stage: sample(c.roi, stage, self.num_classes, sampling, *image),
        (
          rois, valid, targets['boxes'], targets['labels'], targets['valid'], keys[:, k],
          targets.get('ignored'),
        ),
      )  # fmt: skip
      cls, reg = stage.head(roi_features(c, stage, features, samples.boxes))
      new = stage_loss(c.roi.bbox_beta, self.num_classes, samples, cls, reg)
      terms |= {self._prefix(k) + term: stage.weight * value for term, value in new.items()}
      if stage is not stages[-1]:
        rois, valid = jax.vmap(lambda *x, stage=stage: refined(stage, *x))(
          samples, reg, targets['shapes']
        )
    return terms

  @classmethod
  def _prefix(cls, stage):
    """Of the stage's terms."""
    return f's{stage}.' if len(cls.ROI_CODERS) > 1 else ''

  @classmethod
  def groups(cls, config: ConfigDict) -> dict[str, str]:
    prefixes = map(cls._prefix, range(len(cls.ROI_CODERS)))
    of_rois = [prefix + term for prefix in prefixes for term in ('cls', 'bbox')]
    return {'rpn_cls': 'rpn_head', 'rpn_bbox': 'rpn_head'} | dict.fromkeys(of_rois, 'roi_head')

  @classmethod
  def reached(
    cls, config: ConfigDict, canvas: tuple[int, int], boxes: jax.Array, valid: jax.Array
  ) -> jax.Array:
    return rpn.reached(config, canvas, boxes, valid)

  @classmethod
  def counted(cls, config: ConfigDict) -> dict:
    pre_nms = max(config.proposals.pre_nms, ROIS)
    return {'proposals': {'max_proposals': ROIS, 'pre_nms': pre_nms}}

  def rpn_targets(self, targets: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The targets with boxes in the format of the proposals."""
    if isinstance(self.RPN_CODER, coders.DeltaXYWH):
      return targets | {'boxes': rpn.envelopes(targets['boxes'])}
    return targets

  def detect(self, features: Levels, shapes: jax.Array) -> Detections:
    """Detections of images of `shapes` [B, 2] (height, width).

    With several stages the class logits are averaged, boxes are those of the last (mmdet 2.x).
    """
    c, stages, logits = self.config, self.stages(), 0
    rois, valid = self.rpn_head.propose(features, shapes, c.proposals)
    for stage in stages:
      cls, reg = stage.head(roi_features(c, stage, features, rois))
      logits += cls
      boxes = jax.vmap(lambda *x, stage=stage: decoded(stage, *x))(rois, reg, shapes)
      rois = boxes[:, :, 0]
    scores = jax.nn.softmax(logits / len(stages), -1)[..., :-1]
    scores = jnp.where(valid[..., None], scores, 0)  # [B, P, classes]
    best = lambda x: Detections(
      *nms.multiclass_nms(*x, c.score_threshold, c.nms_iou, c.max_detections)
    )
    return map_images(best, (boxes, scores))


def roi_features(c: ConfigDict, stage: Stage, features: Levels, rois: jax.Array) -> jax.Array:
  """RoIs [B, R, 4 | 5] -> [B, R, 7, 7, C], each from the level that suits its size."""
  horizontal = rois.shape[-1] == 4
  align = roi_align.multilevel_roi_align if horizontal else roi_align.multilevel_rotated_roi_align
  used = len(c.strides) - 1  # the coarsest level proposes only
  return align(
    features[:used], rois, c.strides[:used], c.roi.output_size, stage.sampling_ratio,
    c.roi.finest_scale,
  )  # fmt: skip


def sample(
  c: ConfigDict,
  stage: Stage,
  num_classes: int,
  sampling: str,
  rois: jax.Array,
  roi_valid: jax.Array,
  boxes: jax.Array,
  labels: jax.Array,
  valid: jax.Array,
  key: jax.Array,
  ignored: jax.Array | None = None,
) -> Samples:
  """Chooses RoIs of one image; its objects (their envelopes if RoIs are HBB) are RoIs too."""
  horizontal = rois.shape[-1] == 4
  objects = rpn.envelopes(boxes) if horizontal else obb.normalise(boxes)
  overlaps = iou.hbb_iou if horizontal else iou.rotated_iou
  assigned = assign.max_iou(
    overlaps, rois, objects, valid, stage.pos_iou, stage.pos_iou, low_quality=False,
    box_valid=roi_valid,
  )  # fmt: skip
  assigned = assign.ignore_regions(assigned, rois, objects, ignored)
  own = jnp.where(valid, jnp.arange(len(boxes)) + 1, -1).astype(assigned.dtype)
  rois, assigned = jnp.concatenate([objects, rois]), jnp.concatenate([own, assigned])
  positive, negative = assign.sample(assigned, c.samples, c.positive_fraction, sampling, key)
  size = len(rois) if sampling == 'all' else min(c.samples, len(rois))
  order = jnp.argsort(jnp.where(positive, 0, jnp.where(negative, 1, 2)), stable=True)[:size]
  rois, assigned, positive = rois[order], assigned[order], positive[order]
  return Samples(
    rois, positive | negative[order], jnp.where(positive, labels[assigned - 1], num_classes),
    stage.coder.encode(rois, boxes[assigned - 1]), order < len(boxes),
  )  # fmt: skip


def stage_loss(
  beta: float, num_classes: int, samples: Samples, cls: jax.Array, reg: jax.Array
) -> dict[str, jax.Array]:
  """Terms cls, bbox: logits [B, S, classes + 1], deltas [B, S, (classes *) values of a box]."""
  count = jnp.maximum(samples.valid.sum(), 1).astype(cls.dtype)
  positive = samples.valid & (samples.labels < num_classes)
  size = samples.deltas.shape[-1]
  if reg.shape[-1] > size:  # a box a class
    own = jnp.where(positive, samples.labels, 0)[..., None, None]
    reg = jnp.take_along_axis(reg.reshape(*reg.shape[:-1], -1, size), own, -2)[..., 0, :]
  entropy = losses.softmax_cross_entropy(cls, samples.labels)
  bbox = losses.smooth_l1(reg, samples.deltas, beta).sum(-1)
  return {
    'cls': entropy.sum(where=samples.valid) / count,
    'bbox': bbox.sum(where=positive) / count,
  }


def decoded(stage: Stage, rois: jax.Array, reg: jax.Array, shape: jax.Array) -> jax.Array:
  """Boxes [R, 1 | classes, 4 | 5] of one image from its RoIs [R, 4 | 5]."""
  reg = reg.reshape(len(rois), -1, len(stage.coder.stds))
  return stage.coder.decode(rois[:, None], reg, max_shape=shape.astype(reg.dtype))


def refined(
  stage: Stage, samples: Samples, reg: jax.Array, shape: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The RoIs of the next stage [S, 4 | 5] and which are valid: what the samples became.

  Ground truths among them are left out, as the next stage adds them again.
  """
  boxes = decoded(stage, samples.boxes, reg, shape)[:, 0]
  return jax.lax.stop_gradient(boxes), samples.valid & ~samples.objects
