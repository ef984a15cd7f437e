"""The official horizontal heads: our configs of theirs, and their arrays against ours."""

import ml_collections

from sm3det_jax.config import heads as head_configs
from sm3det_jax.heads.cascade_rcnn import CascadeRCNN
from sm3det_jax.heads.faster_rcnn import FasterRCNN
from sm3det_jax.interop import two_stage
from sm3det_jax.interop.heads import OfficialHead
from sm3det_jax.interop.layouts import Entry, affine, fixed, plain_losses


def gfl(model: dict, task: str) -> ml_collections.ConfigDict:
  head, c = model[f'{task}_bbox_head'], head_configs.gfl()
  test = model.get(f'{task}_test_cfg') or head.get('test_cfg') or {}
  train = model.get(f'{task}_train_cfg') or head.get('train_cfg') or {}
  anchors = head['anchor_generator']
  c.channels, c.convs = head.get('feat_channels', 256), head.get('stacked_convs', 4)
  c.strides = tuple(anchors['strides'])
  c.anchor_scale = float(anchors.get('octave_base_scale', 8))
  c.reg_max = head.get('reg_max', 16)
  c.atss_topk = train.get('assigner', {}).get('topk', 9)
  c.focal_beta = float(head['loss_cls'].get('beta', 2.0))
  for ours, theirs in (
    ('cls_weight', 'loss_cls'),
    ('dfl_weight', 'loss_dfl'),
    ('bbox_weight', 'loss_bbox'),
  ):
    c[ours] = float(head.get(theirs, {}).get('loss_weight', c[ours]))
  c.score_threshold = float(test.get('score_thr', 0.05))
  c.pre_nms = test.get('nms_pre', 1000)
  c.nms_iou = float(test.get('nms', {}).get('iou_threshold', 0.6))
  c.max_detections = test.get('max_per_img', 100)
  return c


def gfl_entries(task, head) -> list[Entry]:
  path, name = (f'heads_{task}', 'bbox_head'), f'{task}_bbox_head'
  entries = []
  for tower in ('cls', 'reg'):
    for i in range(head.convs):
      theirs = f'{name}.{tower}_convs.{i}'
      entries += affine((*path, f'{tower}_conv_{i}'), f'{theirs}.conv', 'conv')[:1]
      entries += affine((*path, f'{tower}_norm_{i}'), f'{theirs}.gn', 'norm')
    entries += affine((*path, tower), f'{name}.gfl_{tower}', 'conv')
  scales = tuple(f'{name}.scales.{i}.scale' for i in range(len(head.strides)))
  return entries + [Entry((*path, 'scale'), scales, 'same*')]


def retinanet(model: dict, task: str) -> ml_collections.ConfigDict:
  head, c = model[f'{task}_bbox_head'], head_configs.retinanet()
  test, anchors = model[f'{task}_test_cfg'], head['anchor_generator']
  assigner = model[f'{task}_train_cfg']['assigner']
  plain_losses(head)
  c.channels, c.convs = head.get('feat_channels', 256), head.get('stacked_convs', 4)
  c.strides, c.anchor_ratios = tuple(anchors['strides']), tuple(map(float, anchors['ratios']))
  c.anchor_scale = float(anchors['octave_base_scale'])
  c.scales_per_octave = anchors['scales_per_octave']
  c.pos_iou, c.neg_iou = float(assigner['pos_iou_thr']), float(assigner['neg_iou_thr'])
  c.min_pos_iou = float(assigner.get('min_pos_iou', 0.0))
  c.focal_gamma = float(head['loss_cls'].get('gamma', 2.0))
  c.focal_alpha = float(head['loss_cls'].get('alpha', 0.25))
  c.bbox_beta = two_stage.beta(head['loss_bbox'])
  c.score_threshold, c.nms_iou = float(test['score_thr']), float(test['nms']['iou_threshold'])
  c.pre_nms, c.max_detections = test['nms_pre'], test['max_per_img']
  return c


def retinanet_entries(task, head) -> list[Entry]:
  path, name, entries = (f'heads_{task}', 'bbox_head'), f'{task}_bbox_head', []
  for tower in ('cls', 'reg'):
    for i in range(head.convs):
      entries += affine((*path, f'{tower}_conv_{i}'), f'{name}.{tower}_convs.{i}.conv', 'conv')
    entries += affine((*path, tower), f'{name}.retina_{tower}', 'conv')
  return entries


def _fill(c, model, task, stages, coders, agnostic):
  """Sets what Faster and Cascade R-CNN share, whose stages have these coders."""
  fixed('num_stages', len(stages), len(coders))
  for head, coder in zip(stages, coders, strict=True):
    fixed('target_stds', tuple(head['bbox_coder']['target_stds']), coder.stds)
    fixed('reg_class_agnostic', head.get('reg_class_agnostic', False), agnostic)
  plain_losses(model[f'{task}_rpn_head'], *stages)
  two_stage.fill(c, model, task)
  extractor = two_stage.first(model[f'{task}_roi_head']['bbox_roi_extractor'])
  c.roi.sampling_ratio = extractor['roi_layer']['sampling_ratio']


def faster_rcnn(model: dict, task: str) -> ml_collections.ConfigDict:
  c, stages = head_configs.faster_rcnn(), [model[f'{task}_roi_head']['bbox_head']]
  _fill(c, model, task, stages, FasterRCNN.ROI_CODERS, agnostic=False)
  c.roi.pos_iou = float(model[f'{task}_train_cfg']['rcnn']['assigner']['pos_iou_thr'])
  return c


def cascade_rcnn(model: dict, task: str) -> ml_collections.ConfigDict:
  c, roi = head_configs.cascade_rcnn(), model[f'{task}_roi_head']
  _fill(c, model, task, roi['bbox_head'], CascadeRCNN.ROI_CODERS, agnostic=True)
  c.roi.pos_iou = two_stage.stage_pos_iou(model, task)
  c.roi.weight = tuple(map(float, roi['stage_loss_weights']))
  return c


def faster_rcnn_entries(task, head) -> list[Entry]:
  return two_stage.rpn_entries(task) + two_stage.roi_entries(task, head)


def cascade_rcnn_entries(task, head) -> list[Entry]:
  stages = (two_stage.roi_entries(task, head, k) for k in range(len(head.roi.weight)))
  return two_stage.rpn_entries(task) + sum(stages, [])


GFL = OfficialHead({'bbox_head': 'GFLHead'}, gfl, gfl_entries)
RETINANET = OfficialHead({'bbox_head': 'RetinaHead'}, retinanet, retinanet_entries)
FASTER_RCNN = OfficialHead(
  {'rpn_head': 'RPNHead', 'roi_head': 'StandardRoIHead'}, faster_rcnn, faster_rcnn_entries
)
CASCADE_RCNN = OfficialHead(
  {'rpn_head': 'RPNHead', 'roi_head': 'CascadeRoIHead'}, cascade_rcnn, cascade_rcnn_entries
)
