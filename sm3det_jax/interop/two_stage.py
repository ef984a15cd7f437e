"""What official two-stage heads of every kind share: settings and arrays of RPN and RoI head."""

import ml_collections

from sm3det_jax.interop.layouts import Entry, affine


def fill(c: ml_collections.ConfigDict, model: dict, task: str) -> None:
  """Sets in our config of a two-stage head what does not differ between its stages."""
  rpn, roi = model[f'{task}_rpn_head'], model[f'{task}_roi_head']
  train, test = model[f'{task}_train_cfg'], model[f'{task}_test_cfg']
  c.channels, anchors = rpn.get('feat_channels', 256), rpn['anchor_generator']
  c.strides = tuple(anchors['strides'])
  c.anchor_scales = tuple(map(float, anchors['scales']))
  c.anchor_ratios = tuple(map(float, anchors['ratios']))
  assigner, sampler = train['rpn']['assigner'], train['rpn']['sampler']
  c.rpn.pos_iou, c.rpn.neg_iou = float(assigner['pos_iou_thr']), float(assigner['neg_iou_thr'])
  c.rpn.min_pos_iou = float(assigner.get('min_pos_iou', 0.0))
  c.rpn.samples, c.rpn.positive_fraction = sampler['num'], float(sampler['pos_fraction'])
  c.rpn.allowed_border = train['rpn'].get('allowed_border', 0)
  c.rpn.bbox_beta = beta(rpn['loss_bbox'])
  c.proposals = proposals(test['rpn'])
  if 'train_proposals' in c:
    c.train_proposals = proposals(train['rpn_proposal'])
  box, extractor = first(roi['bbox_head']), first(roi['bbox_roi_extractor'])
  sampler = first(train['rcnn'])['sampler']
  c.roi.fc_channels, c.roi.output_size = (
    box.get('fc_out_channels', 1024),
    box.get('roi_feat_size', 7),
  )
  c.roi.finest_scale = float(extractor.get('finest_scale', 56))
  c.roi.samples, c.roi.positive_fraction = sampler['num'], float(sampler['pos_fraction'])
  c.roi.bbox_beta = beta(box['loss_bbox'])
  nms = test['rcnn']['nms']
  c.score_threshold = float(test['rcnn'].get('score_thr', 0.05))
  c.nms_iou = float(nms['iou_threshold'] if 'iou_threshold' in nms else nms['iou_thr'])
  c.max_detections = test['rcnn']['max_per_img']


def proposals(part: dict) -> dict:
  return dict(
    pre_nms=part['nms_pre'],
    nms_iou=float(part['nms']['iou_threshold']),
    max_proposals=part['max_per_img'],
  )


def beta(loss: dict) -> float:
  """Of smooth L1; 0 is L1."""
  return 0.0 if loss['type'] == 'L1Loss' else float(loss.get('beta', 1.0))


def first(part):
  """Of the stages, where there are several."""
  return part[0] if isinstance(part, list | tuple) else part


def stage_pos_iou(model: dict, task: str) -> tuple[float, ...]:
  stages = model[f'{task}_train_cfg']['rcnn']
  return tuple(float(stage['assigner']['pos_iou_thr']) for stage in stages)


def rpn_entries(task: str) -> list[Entry]:
  path, name = (f'heads_{task}', 'rpn_head'), f'{task}_rpn_head'
  parts = (affine((*path, part), f'{name}.rpn_{part}', 'conv') for part in ('conv', 'cls', 'reg'))
  return sum(parts, [])


def roi_entries(task: str, head, stage: int | None = None) -> list[Entry]:
  """Arrays of one RoI head, the only one or that of a stage."""
  path, name = (f'heads_{task}', 'roi_head'), f'{task}_roi_head.bbox_head'
  if stage is not None:
    path, name = (*path, f'stage_{stage}'), f'{name}.{stage}'
  entries = affine((*path, 'fc1'), f'{name}.shared_fcs.0', f'roi{head.roi.output_size}')
  entries += affine((*path, 'fc2'), f'{name}.shared_fcs.1', 'linear')
  for part in ('cls', 'reg'):
    entries += affine((*path, part), f'{name}.fc_{part}', 'linear')
  return entries
