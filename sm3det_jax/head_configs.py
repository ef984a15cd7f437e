"""What the configs of the heads hold, by default the released settings; `HEADS` names them."""

from ml_collections import ConfigDict


def gfl() -> ConfigDict:
  """Generalised focal loss head for horizontal boxes (facts: mmdet 2.x GFLHead, ATSS)."""
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


def oriented_rcnn() -> ConfigDict:
  """Oriented R-CNN: midpoint-offset RPN, rotated RoIAlign, a two-layer RoI head."""
  return ConfigDict(
    dict(
      type='oriented_rcnn',
      channels=256,
      strides=(4, 8, 16, 32, 64),
      anchor_scales=(8.0,),
      anchor_ratios=(0.5, 1.0, 2.0),
      rpn=dict(
        pos_iou=0.7, neg_iou=0.3, min_pos_iou=0.3, samples=256, positive_fraction=0.5,
        allowed_border=0, bbox_beta=1 / 9,
      ),
      proposals=dict(pre_nms=2000, nms_iou=0.8, max_proposals=2000),
      roi=dict(
        fc_channels=1024, output_size=7, sampling_ratio=2, finest_scale=56.0, pos_iou=0.5,
        samples=512, positive_fraction=0.25, bbox_beta=1.0,
      ),
      score_threshold=0.05,
      nms_iou=0.1,
      pre_nms=0,  # cap on (RoI, class) candidates; 0 = none, one that binds is counted and reported
      max_detections=2000,
    )
  )  # fmt: skip


def roi_transformer() -> ConfigDict:
  """RoI Transformer: horizontal RPN, a stage that turns its boxes, one that refines them."""
  return ConfigDict(
    dict(
      type='roi_transformer',
      channels=256,
      strides=(4, 8, 16, 32, 64),
      anchor_scales=(8.0,),
      anchor_ratios=(0.5, 1.0, 2.0),
      rpn=dict(
        pos_iou=0.7, neg_iou=0.3, min_pos_iou=0.3, samples=256, positive_fraction=0.5,
        allowed_border=0, bbox_beta=1 / 9,
      ),
      proposals=dict(pre_nms=2000, nms_iou=0.7, max_proposals=2000),
      roi=dict(
        fc_channels=1024, output_size=7, finest_scale=56.0, samples=512, positive_fraction=0.25,
        bbox_beta=1.0,
        pos_iou=(0.5, 0.5),  # of the stages, as the two below
        sampling_ratio=(0, 2),  # 0: by the size of the RoI
        weight=(1.0, 1.0),
      ),
      score_threshold=0.05,
      nms_iou=0.1,
      pre_nms=0,  # cap on (RoI, class) candidates; 0 = none, one that binds is counted and reported
      max_detections=2000,
    )
  )  # fmt: skip


def s2anet() -> ConfigDict:
  """S2ANet: anchors become boxes (FAM), features are aligned with them and judged again (ODM)."""
  dense = dict(
    pos_iou=0.5, neg_iou=0.4, min_pos_iou=0.0, focal_gamma=2.0, focal_alpha=0.25, bbox_beta=0.11
  )
  return ConfigDict(
    dict(
      type='s2anet',
      channels=256,  # a multiple of 8
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


HEADS = {  # kind: (box format, defaults)
  'gfl': ('hbb', gfl),
  'oriented_rcnn': ('obb', oriented_rcnn),
  'roi_transformer': ('obb', roi_transformer),
  's2anet': ('obb', s2anet),
}
DEFAULT = {'hbb': 'gfl', 'obb': 'oriented_rcnn'}  # kind by box format
