"""S2ANet, a single-stage oriented head (Han et al. 2021).

A first dense head (FAM, feature alignment) turns the one square anchor of every cell into an
oriented box; a convolution aligned with that box feeds the second (ODM, oriented detection), whose
first convolution has every filter in eight orientations. The semantics are those of mmrotate 0.3.4,
which the released weights were trained with; its angles lie in [-pi/4, 3 pi/4) (le135) up to the
last step.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.geometry import align_conv, coders, hbb, nms, obb
from sm3det_jax.heads import dense
from sm3det_jax.heads.common import (
  Detections,
  Head,
  Levels,
  flat,
  level_anchors,
  level_shapes,
  map_images,
)

CODER = coders.DeltaXYWHA((1.0,) * 5, edge_swap=False, norm_factor=1.0, angle_start=-math.pi / 4)
ORIENTATIONS = 8
RING = (0, 1, 2, 5, 8, 7, 6, 3)  # border taps of a 3x3 kernel, clockwise


def oriented_kernels(kernel: jax.Array) -> jax.Array:
  """Every filter turned clockwise in steps of 45 degrees: its border taps move, the middle stays.

  Args:
    kernel: [3, 3, C, D].

  Returns:
    [3, 3, C, D * 8]; the eight of a filter are next to each other.
  """
  source = np.tile(np.arange(9)[:, None], ORIENTATIONS)  # [tap, orientation]
  for turn in range(ORIENTATIONS):
    source[list(RING), turn] = np.roll(RING, turn)
  _, _, c, d = kernel.shape
  turned = kernel.reshape(9, c, d)[source]  # [9, 8, C, D]
  return turned.transpose(0, 2, 3, 1).reshape(3, 3, c, d * ORIENTATIONS)


class OrientedConv(nn.Module):
  """3x3 convolution whose filters come in eight orientations (Zhou et al. 2017)."""

  filters: int

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> [B, H, W, filters * 8]."""
    shape = (3, 3, x.shape[-1], self.filters)
    kernel = oriented_kernels(self.param('kernel', nn.initializers.normal(0.01), shape))
    bias = self.param('bias', nn.initializers.zeros, kernel.shape[-1:])
    numbers = ('NHWC', 'HWIO', 'NHWC')
    y = jax.lax.conv_general_dilated(
      x, kernel.astype(x.dtype), (1, 1), 'SAME', dimension_numbers=numbers
    )
    return y + bias.astype(x.dtype)[None, None, None]


def over_orientations(x: jax.Array) -> jax.Array:
  """The strongest response of every filter: [B, H, W, D * 8] -> [B, H, W, D]."""
  return x.reshape(*x.shape[:3], -1, ORIENTATIONS).max(-1)


class AlignConv(nn.Module):
  """A 3x3 convolution of every level whose taps span a box (S2ANet, section III-C)."""

  strides: tuple[int, ...]

  @nn.compact
  def __call__(self, features, boxes):
    """Levels [B, H, W, C] and OBB [B, H W, 5] of their cells -> levels [B, H, W, C]."""
    c = features[0].shape[-1]
    init = nn.initializers.he_uniform(batch_axis=0)
    kernel = self.param('kernel', init, (len(self.strides), 3, 3, c, c))
    out = []
    for x, b, k, stride in zip(features, boxes, kernel, self.strides, strict=True):
      offsets = align_conv.align_offsets(b.reshape(*x.shape[:3], 5), stride)
      out.append(nn.relu(align_conv.deform_conv(x, jax.lax.stop_gradient(offsets), k)))
    return out


class ODMHead(dense.TowerHead):
  """The second dense head: classes are told from what does not depend on the orientation."""

  def setup(self):
    super().setup()
    self.or_conv = OrientedConv(self.channels // ORIENTATIONS)

  def __call__(self, features):
    features = [self.or_conv(x) for x in features]
    return super().__call__(features, [over_orientations(x) for x in features])


class S2ANet(Head):
  """Boxes from anchors (FAM), judged again on features aligned with them (ODM)."""

  SHARED = ('align_conv',)  # as in the reference, whose name rule does not find it in the head
  REACHED = dense.REACHED

  def setup(self):
    c = self.config
    if c.channels % ORIENTATIONS:
      raise UserError(f'head s2anet: channels={c.channels} is no multiple of {ORIENTATIONS}')
    self.fam_head = dense.TowerHead(self.num_classes, 5, c.channels, c.convs)
    self.align_conv = AlignConv(c.strides)
    self.odm_head = ODMHead(self.num_classes, 5, c.channels, c.convs)

  def raw(self, features: Levels) -> tuple[Levels, ...]:
    """Maps of the levels: logits [B, H, W, classes] and deltas [B, H, W, 5] of FAM, then of ODM."""
    fam, _, odm = self._run(features)
    return *fam, *odm

  def _run(self, features):
    """FAM's maps, its boxes [B, H W, 5] of the levels without gradient, ODM's maps."""
    fam = self.fam_head(features)
    boxes = [  # not clipped to the image
      jax.lax.stop_gradient(CODER.decode(a[None], d))
      for a, d in zip(self._anchors(features), flat(fam[1], 5), strict=True)
    ]
    return fam, boxes, self.odm_head(self.align_conv(features, boxes))

  def _anchors(self, features):
    shapes = [f.shape[1:3] for f in features]
    return square_anchors(self.config, shapes, features[0].dtype)

  def loss(
    self,
    features: Levels,
    targets: dict[str, jax.Array],
    rng: jax.Array | None = None,
    sampling: str = 'random',
  ) -> dict[str, jax.Array]:
    """Terms cls and bbox of both heads; `targets` as a task's batch. Every location counts."""
    del rng, sampling
    # no coder here exchanges the sides: w has to be the long one
    targets = targets | {'boxes': obb.normalise(targets['boxes'])}
    fam, refined, odm = self._run(features)
    refined = jnp.concatenate(refined, 1)
    anchors = jnp.broadcast_to(jnp.concatenate(self._anchors(features))[None], refined.shape)
    terms = {}
    for name, boxes, (cls, reg) in (('fam', anchors, fam), ('odm', refined, odm)):
      cls, reg = (jnp.concatenate(flat(m, k), 1) for m, k in ((cls, self.num_classes), (reg, 5)))
      new = dense.focal_terms(self.config[name], CODER, boxes, cls, reg, targets)
      terms |= {f'{name}.{term}': value for term, value in new.items()}
    return terms

  def detect(self, features: Levels, shapes: jax.Array) -> Detections:
    """Detections with centres inside of `shapes` [B, 2] (height, width), from ODM alone."""
    c = self.config
    _, boxes, (cls, reg) = self._run(features)

    def image(x):
      *levels, shape = x
      candidates = [self._candidates(*level, shape) for level in zip(*levels, strict=True)]
      boxes, scores = map(jnp.concatenate, zip(*candidates, strict=True))
      return Detections(
        *nms.multiclass_nms(boxes[:, None], scores, c.score_threshold, c.nms_iou, c.max_detections)
      )

    return map_images(image, (boxes, flat(cls, self.num_classes), flat(reg, 5), shapes))

  def _candidates(self, anchors, logits, deltas, shape):
    """Boxes and scores of the cells of a level that are best for any class."""
    index = jax.lax.top_k(logits.max(-1), min(self.config.pre_nms, len(logits)))[1]
    boxes = CODER.decode(anchors[index], deltas[index], shape.astype(deltas.dtype))
    return obb.normalise(boxes), jax.nn.sigmoid(logits[index])

  @classmethod
  def groups(cls, config: ConfigDict) -> dict[str, str]:
    return {f'{part}.{term}': f'{part}_head' for part in ('fam', 'odm') for term in ('cls', 'bbox')}

  @classmethod
  def reached(
    cls, config: ConfigDict, canvas: tuple[int, int], boxes: jax.Array, valid: jax.Array
  ) -> jax.Array:
    """Of FAM's anchors."""
    anchors = square_anchors(config, level_shapes(canvas, config.strides))
    return dense.reached(config.fam, jnp.concatenate(anchors), boxes, valid)


def square_anchors(
  c: ConfigDict, shapes: list[tuple[int, int]], dtype: jnp.dtype = jnp.float32
) -> list[jax.Array]:
  """One square OBB [H W, 5] of angle 0 for every cell of levels of the given (height, width)."""
  return [hbb.to_obb(a) for a in level_anchors(shapes, c.strides, (c.anchor_scale,), (1.0,), dtype)]
