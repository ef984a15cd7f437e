"""The official oriented heads: our configs of theirs, and their arrays against ours."""

import ml_collections

from sm3det_jax import head_configs
from sm3det_jax.interop.layouts import Entry, affine, expect


def oriented_rcnn(model: dict, task: str) -> ml_collections.ConfigDict:
  rpn, roi = model[f'{task}_rpn_head'], model[f'{task}_roi_head']
  expect(rpn, 'OrientedRPNHead')
  expect(roi, 'OrientedStandardRoIHead')
  train, test = model[f'{task}_train_cfg'], model[f'{task}_test_cfg']
  c, box = head_configs.oriented_rcnn(), roi['bbox_head']
  c.channels = rpn.get('feat_channels', 256)
  c.strides = tuple(rpn['anchor_generator']['strides'])
  c.anchor_scales = tuple(map(float, rpn['anchor_generator']['scales']))
  c.anchor_ratios = tuple(map(float, rpn['anchor_generator']['ratios']))
  assigner, sampler = train['rpn']['assigner'], train['rpn']['sampler']
  c.rpn.pos_iou, c.rpn.neg_iou = float(assigner['pos_iou_thr']), float(assigner['neg_iou_thr'])
  c.rpn.min_pos_iou = float(assigner.get('min_pos_iou', 0.0))
  c.rpn.samples, c.rpn.positive_fraction = sampler['num'], float(sampler['pos_fraction'])
  c.rpn.allowed_border = train['rpn'].get('allowed_border', 0)
  c.rpn.bbox_beta = float(rpn['loss_bbox'].get('beta', 1.0))
  proposals = test['rpn']
  c.proposals.pre_nms, c.proposals.max_proposals = proposals['nms_pre'], proposals['max_per_img']
  c.proposals.nms_iou = float(proposals['nms']['iou_threshold'])
  assigner, sampler = train['rcnn']['assigner'], train['rcnn']['sampler']
  c.roi.fc_channels = box.get('fc_out_channels', 1024)
  c.roi.output_size = box.get('roi_feat_size', 7)
  c.roi.sampling_ratio = roi['bbox_roi_extractor']['roi_layer']['sample_num']
  c.roi.finest_scale = float(roi['bbox_roi_extractor'].get('finest_scale', 56))
  c.roi.pos_iou = float(assigner['pos_iou_thr'])
  c.roi.samples, c.roi.positive_fraction = sampler['num'], float(sampler['pos_fraction'])
  c.roi.bbox_beta = float(box['loss_bbox'].get('beta', 1.0))
  c.score_threshold = float(test['rcnn'].get('score_thr', 0.05))
  c.nms_iou = float(test['rcnn']['nms']['iou_thr'])
  c.max_detections = test['rcnn']['max_per_img']
  return c


def oriented_rcnn_entries(task, head) -> list[Entry]:
  entries, rpn, roi = [], (f'heads_{task}', 'rpn_head'), (f'heads_{task}', 'roi_head')
  for part in ('conv', 'cls', 'reg'):
    entries += affine((*rpn, part), f'{task}_rpn_head.rpn_{part}', 'conv')
  box = f'{task}_roi_head.bbox_head'
  entries += affine((*roi, 'fc1'), f'{box}.shared_fcs.0', f'roi{head.roi.output_size}')
  entries += affine((*roi, 'fc2'), f'{box}.shared_fcs.1', 'linear')
  for part in ('cls', 'reg'):
    entries += affine((*roi, part), f'{box}.fc_{part}', 'linear')
  return entries
