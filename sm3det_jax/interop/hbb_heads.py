"""The official horizontal heads: our configs of theirs, and their arrays against ours."""

import ml_collections

from sm3det_jax import head_configs
from sm3det_jax.interop.layouts import Entry, affine


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
