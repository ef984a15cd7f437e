"""What the configs of the heads hold, by default the released settings; `HEADS` names them."""

from ml_collections import ConfigDict

from sm3det_jax.config.registry import HeadKind


def gfl() -> ConfigDict:
  """Generalised focal loss head for horizontal boxes with ATSS, as mmdet 2.x `GFLHead`."""
  return ConfigDict(
    dict(
      type='gfl',
      channels=256,
      convs=4,
      strides=(8, 16, 32, 64, 128),
      anchor_scale=8.0,
      reg_max=16,
      atss_topk=9,
      focal_beta=2.0,
      cls_weight=1.0,
      dfl_weight=0.25,
      bbox_weight=2.0,
      score_threshold=0.05,
      pre_nms=1000,  # (anchor, class) pairs a level
      nms_iou=0.6,
      max_detections=100,
    )
  )


def retinanet() -> ConfigDict:
  """RetinaNet: nine anchors a cell, focal loss, L1."""
  return ConfigDict(
    dict(
      type='retinanet',
      channels=256,
      convs=4,
      strides=(8, 16, 32, 64, 128),
      anchor_scale=4.0,
      scales_per_octave=3,
      anchor_ratios=(0.5, 1.0, 2.0),
      pos_iou=0.5,
      neg_iou=0.4,
      min_pos_iou=0.0,
      focal_gamma=2.0,
      focal_alpha=0.25,
      bbox_beta=0.0,  # of smooth L1; 0 = L1
      score_threshold=0.05,
      pre_nms=1000,  # (anchor, class) pairs a level
      nms_iou=0.5,
      max_detections=100,
    )
  )


def _two_stage(kind, rpn, roi, **others):
  """The settings that two-stage heads share, with those in which they differ."""
  shared_rpn = dict(pos_iou=0.7, neg_iou=0.3, min_pos_iou=0.3, samples=256, positive_fraction=0.5)
  shared_roi = dict(
    fc_channels=1024, output_size=7, finest_scale=56.0, pos_iou=0.5, samples=512,
    positive_fraction=0.25,
  )  # fmt: skip
  return ConfigDict(
    dict(
      type=kind,
      channels=256,
      strides=(4, 8, 16, 32, 64),
      anchor_scales=(8.0,),
      anchor_ratios=(0.5, 1.0, 2.0),
      rpn=shared_rpn | rpn,
      roi=shared_roi | roi,
      score_threshold=0.05,
      **others,
    )
  )


def faster_rcnn() -> ConfigDict:
  """Faster R-CNN: horizontal RPN, RoIAlign, a two-layer RoI head with a box for every class."""
  return _two_stage(
    'faster_rcnn',
    rpn=dict(allowed_border=-1, bbox_beta=0.0),
    roi=dict(sampling_ratio=0, bbox_beta=0.0),
    train_proposals=dict(pre_nms=2000, nms_iou=0.7, max_proposals=1000),
    proposals=dict(pre_nms=1000, nms_iou=0.7, max_proposals=1000),
    nms_iou=0.5,
    max_detections=100,
  )


def cascade_rcnn() -> ConfigDict:
  """Cascade R-CNN: as Faster R-CNN with three RoI heads, each with one box for all classes."""
  c = faster_rcnn()
  c.type = 'cascade_rcnn'
  c.rpn.update(allowed_border=0, bbox_beta=1 / 9)
  c.train_proposals.max_proposals = 2000
  with c.ignore_type():
    c.roi.pos_iou = (0.5, 0.6, 0.7)  # of each stage
  c.roi.bbox_beta, c.roi.weight = 1.0, (1.0, 0.5, 0.25)
  return c


def oriented_rcnn() -> ConfigDict:
  """Oriented R-CNN: midpoint-offset RPN, rotated RoIAlign, a two-layer RoI head."""
  return _two_stage(
    'oriented_rcnn',
    rpn=dict(allowed_border=0, bbox_beta=1 / 9),
    roi=dict(sampling_ratio=2, bbox_beta=1.0),
    proposals=dict(pre_nms=2000, nms_iou=0.8, max_proposals=2000),
    nms_iou=0.1,
    max_detections=2000,
  )


def roi_transformer() -> ConfigDict:
  """RoI Transformer: horizontal RPN, a stage that turns its boxes, one that refines them."""
  c = oriented_rcnn()
  c.type, c.proposals.nms_iou = 'roi_transformer', 0.7
  with c.ignore_type():
    c.roi.pos_iou = (0.5, 0.5)  # of the stages, as the two below
    c.roi.sampling_ratio = (0, 2)  # 0: by the size of the RoI
  c.roi.weight = (1.0, 1.0)
  return c


def s2anet() -> ConfigDict:
  """S2ANet: anchors become boxes (FAM), features are aligned with them and judged again (ODM)."""
  dense = dict(
    pos_iou=0.5, neg_iou=0.4, min_pos_iou=0.0, focal_gamma=2.0, focal_alpha=0.25, bbox_beta=0.11
  )
  return ConfigDict(
    dict(
      type='s2anet',
      channels=256,
      convs=2,
      strides=(8, 16, 32, 64, 128),
      anchor_scale=4.0,
      fam=dict(dense),
      odm=dict(dense),
      score_threshold=0.05,
      pre_nms=2000,  # cells a level
      nms_iou=0.1,
      max_detections=2000,
    )
  )  # fmt: skip


HEADS = {
  'gfl': HeadKind(
    'hbb',
    gfl,
    'sm3det_jax.heads.gfl:GFL',
    'sm3det_jax.interop.hbb_heads:GFL',
    channels=32,  # the groups of its norms
  ),
  'retinanet': HeadKind(
    'hbb',
    retinanet,
    'sm3det_jax.heads.retinanet:RetinaNet',
    'sm3det_jax.interop.hbb_heads:RETINANET',
  ),
  'faster_rcnn': HeadKind(
    'hbb',
    faster_rcnn,
    'sm3det_jax.heads.faster_rcnn:FasterRCNN',
    'sm3det_jax.interop.hbb_heads:FASTER_RCNN',
  ),
  'cascade_rcnn': HeadKind(
    'hbb',
    cascade_rcnn,
    'sm3det_jax.heads.cascade_rcnn:CascadeRCNN',
    'sm3det_jax.interop.hbb_heads:CASCADE_RCNN',
  ),
  'oriented_rcnn': HeadKind(
    'obb',
    oriented_rcnn,
    'sm3det_jax.heads.oriented_rcnn:OrientedRCNN',
    'sm3det_jax.interop.obb_heads:ORIENTED_RCNN',
  ),
  'roi_transformer': HeadKind(
    'obb',
    roi_transformer,
    'sm3det_jax.heads.roi_transformer:RoITransformer',
    'sm3det_jax.interop.obb_heads:ROI_TRANSFORMER',
  ),
  's2anet': HeadKind(
    'obb',
    s2anet,
    'sm3det_jax.heads.s2anet:S2ANet',
    'sm3det_jax.interop.obb_heads:S2ANET',
    channels=8,  # the orientations of its filters
  ),
}
DEFAULT = {'hbb': 'gfl', 'obb': 'oriented_rcnn'}  # kind by box format
