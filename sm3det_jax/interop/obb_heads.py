"""The official oriented heads: our configs of theirs, and their arrays against ours."""

import math

import ml_collections

from sm3det_jax.config import heads as head_configs
from sm3det_jax.heads import s2anet as s2anet_head
from sm3det_jax.heads.oriented_rcnn import OrientedRCNN
from sm3det_jax.heads.roi_transformer import RoITransformer
from sm3det_jax.interop import two_stage
from sm3det_jax.interop.heads import OfficialHead
from sm3det_jax.interop.layouts import Entry, affine, fixed, plain_losses

ANGLES = {'le90': -math.pi / 2, 'le135': -math.pi / 4}


def _same_coder(theirs: dict, ours) -> None:
  angles = theirs.get('angle_range')
  fixed('target_stds', tuple(theirs.get('target_stds', (1.0,) * 5)), ours.stds)
  fixed('norm_factor', theirs.get('norm_factor'), ours.norm_factor)
  fixed('edge_swap', theirs.get('edge_swap', False), ours.edge_swap)
  if theirs['type'] == 'DeltaXYWHAOBBoxCoder':
    fixed('proj_xy', theirs.get('proj_xy', False), ours.proj_xy)
  if ANGLES.get(angles) != ours.angle_start:
    fixed('angle_range', angles, next(k for k, v in ANGLES.items() if v == ours.angle_start))


def _same_stages(model: dict, task: str, coders, agnostic) -> None:
  """Refuses other RoI heads than those with these coders and boxes for all classes or for each."""
  heads = model[f'{task}_roi_head']['bbox_head']
  heads = heads if isinstance(heads, list | tuple) else [heads]
  fixed('num_stages', len(heads), len(coders))
  for head, coder, one in zip(heads, coders, agnostic, strict=True):
    _same_coder(head['bbox_coder'], coder)
    fixed('reg_class_agnostic', head.get('reg_class_agnostic', False), one)
  plain_losses(model[f'{task}_rpn_head'], *heads)


def oriented_rcnn(model: dict, task: str) -> ml_collections.ConfigDict:
  c, roi = head_configs.oriented_rcnn(), model[f'{task}_roi_head']
  _same_stages(model, task, OrientedRCNN.ROI_CODERS, [True])
  two_stage.fill(c, model, task)
  c.roi.pos_iou = float(model[f'{task}_train_cfg']['rcnn']['assigner']['pos_iou_thr'])
  c.roi.sampling_ratio = roi['bbox_roi_extractor']['roi_layer']['sample_num']
  return c


def oriented_rcnn_entries(task, head) -> list[Entry]:
  return two_stage.rpn_entries(task) + two_stage.roi_entries(task, head)


def roi_transformer(model: dict, task: str) -> ml_collections.ConfigDict:
  c, roi = head_configs.roi_transformer(), model[f'{task}_roi_head']
  _same_stages(model, task, RoITransformer.ROI_CODERS, [True, False])
  two_stage.fill(c, model, task)
  horizontal, rotated = (part['roi_layer'] for part in roi['bbox_roi_extractor'])
  c.roi.pos_iou = two_stage.stage_pos_iou(model, task)
  c.roi.sampling_ratio = horizontal['sampling_ratio'], rotated['sample_num']
  c.roi.weight = tuple(map(float, roi['stage_loss_weights']))
  return c


def roi_transformer_entries(task, head) -> list[Entry]:
  stages = (two_stage.roi_entries(task, head, k) for k in range(len(head.roi.weight)))
  return two_stage.rpn_entries(task) + sum(stages, [])


def s2anet(model: dict, task: str) -> ml_collections.ConfigDict:
  c, test = head_configs.s2anet(), model[f'{task}_test_cfg']
  for part in ('fam', 'odm'):
    head = model[f'{task}_{part}_head']
    _same_coder(head['bbox_coder'], s2anet_head.CODER)
    plain_losses(head)
    assigner = model[f'{task}_train_cfg'][f'{part}_cfg']['assigner']
    c[part].pos_iou, c[part].neg_iou = (
      float(assigner['pos_iou_thr']),
      float(assigner['neg_iou_thr']),
    )
    c[part].min_pos_iou = float(assigner.get('min_pos_iou', 0.0))
    c[part].focal_gamma = float(head['loss_cls'].get('gamma', 2.0))
    c[part].focal_alpha = float(head['loss_cls'].get('alpha', 0.25))
    c[part].bbox_beta = two_stage.beta(head['loss_bbox'])
  fam = model[f'{task}_fam_head']
  c.channels, c.convs = fam.get('feat_channels', 256), fam.get('stacked_convs', 4)
  c.strides = tuple(fam['anchor_generator']['strides'])
  (c.anchor_scale,) = map(float, fam['anchor_generator']['scales'])
  c.score_threshold, c.nms_iou = float(test.get('score_thr', 0.05)), float(test['nms']['iou_thr'])
  c.pre_nms, c.max_detections = test['nms_pre'], test['max_per_img']
  return c


def s2anet_entries(task, head) -> list[Entry]:
  path, entries = f'heads_{task}', []
  for part, output in (('fam', 'retina'), ('odm', 'odm')):
    ours, theirs = (path, f'{part}_head'), f'{task}_{part}_head'
    for tower in ('cls', 'reg'):
      for i in range(head.convs):
        entries += affine((*ours, f'{tower}_conv_{i}'), f'{theirs}.{tower}_convs.{i}.conv', 'conv')
      entries += affine((*ours, tower), f'{theirs}.{output}_{tower}', 'conv')
  entries += affine((path, 'odm_head', 'or_conv'), f'{task}_odm_head.or_conv', 'oriented')
  names = (f'{task}_align_conv.ac.{i}.deform_conv.weight' for i in range(len(head.strides)))
  return entries + [Entry((path, 'align_conv', 'kernel'), tuple(names), 'conv*')]


ORIENTED_RCNN = OfficialHead(
  {'rpn_head': 'OrientedRPNHead', 'roi_head': 'OrientedStandardRoIHead'},
  oriented_rcnn,
  oriented_rcnn_entries,
)
ROI_TRANSFORMER = OfficialHead(
  {'rpn_head': 'RotatedRPNHead', 'roi_head': 'RoITransRoIHead'},
  roi_transformer,
  roi_transformer_entries,
)
S2ANET = OfficialHead(
  {'fam_head': 'RotatedRetinaHead', 'odm_head': 'ODMRefineHead'},
  s2anet,
  s2anet_entries,
  also=('align_conv',),
)
