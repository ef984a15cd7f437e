"""The official PyTorch implementation's configs and weights, in and out.

A state dict is {official name: array} in PyTorch layouts (convolutions OIHW, linear (out, in)). One
table made from the config pairs every official name with ours, so both directions agree.
"""

from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np

from sm3det_jax import config as configs

ARCHITECTURES = {  # of the official ConvNeXt: depths, channels
  'tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
  'small': ((3, 3, 27, 3), (96, 192, 384, 768)),
  'base': ((3, 3, 27, 3), (128, 256, 512, 1024)),
  'large': ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
TASKS = {'sar': 'hbb', 'rgb': 'obb', 'ifr': 'obb'}
IGNORED = ('.ffn.mean', '.ffn.std', '.integral.project')  # constants of the official modules


class Entry(NamedTuple):
  """One array of ours and where it comes from."""

  path: tuple[str, ...]
  names: tuple[str, ...]  # several official arrays are stacked on a new first axis
  layout: str


# Ours from theirs, theirs from ours.
LAYOUTS = {
  'same': (lambda x: x, lambda x: x),
  'linear': (lambda x: x.T, lambda x: x.T),
  'conv': (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
  'depthwise': (lambda x: x[:, 0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[:, None]),
}


def _roi_layout(size):
  """A linear layer over RoI features: (out, C size size) against (size size C, out)."""

  def ours(x):
    return x.reshape(len(x), -1, size, size).transpose(2, 3, 1, 0).reshape(-1, len(x))

  def theirs(x):
    return x.reshape(size, size, -1, x.shape[-1]).transpose(3, 2, 0, 1).reshape(x.shape[-1], -1)

  return ours, theirs


def config_from_official(model: dict) -> ml_collections.ConfigDict:
  """Our config of an official `model` dict.

  Tasks are sar, rgb, ifr, with classes named class_0.. owned by every task (`label_space` joint).
  What the dict leaves out has the official constructor's default.

  Raises:
    ValueError: a detector, backbone or head of another kind.
  """
  c = configs.default()
  backbone = model['backbone']
  _expect(model, 'TriSourceDetector')
  _expect(backbone, 'ConvNeXt_moe_MultiInput')
  _expect(model['sar_bbox_head'], 'GFLHead')
  arch = backbone.get('arch', 'tiny')
  if isinstance(arch, str):
    depths, channels = ARCHITECTURES[arch]
  else:
    depths, channels = arch['depths'], arch['channels']
  c.backbone.depths, c.backbone.channels = tuple(depths), tuple(channels)
  c.backbone.drop_path_rate = float(backbone.get('drop_path_rate', 0.0))
  c.backbone.layer_scale = float(backbone.get('layer_scale_init_value', 1e-6))
  c.moe.blocks = tuple(map(tuple, backbone['MoE_Block_inds']))
  c.moe.num_experts = backbone.get('num_experts', 8)
  c.moe.top_k = backbone.get('top_k', 2)
  c.moe.noisy = backbone.get('noisy_gating', True)
  c.moe.gate = {'cosine_top': 'cosine', 'cosine': 'cosine'}.get(
    backbone.get('gate', 'cosine'), 'linear'
  )
  c.neck.channels = model['neck']['out_channels']
  heads = {'sar': _gfl(model)} | {t: _oriented_rcnn(model, t) for t in ('rgb', 'ifr')}
  del c.tasks
  c.tasks = ml_collections.ConfigDict(sort_keys=False)
  classes = tuple(f'class_{i}' for i in range(model['sar_bbox_head']['num_classes']))
  for name, box in TASKS.items():
    c.tasks[name] = configs.task(box, '', classes, ratio=2 if name == 'sar' else 1)
    c.tasks[name].head = heads[name]
  c.label_space = 'joint'
  return c


def _expect(part, kind):
  if part['type'] != kind:
    raise ValueError(f'{part["type"]} is not supported here, only {kind}')


def _gfl(model):
  head, c = model['sar_bbox_head'], configs.gfl()
  test = model.get('sar_test_cfg') or head.get('test_cfg') or {}
  train = model.get('sar_train_cfg') or head.get('train_cfg') or {}
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


def _oriented_rcnn(model, task):
  rpn, roi = model[f'{task}_rpn_head'], model[f'{task}_roi_head']
  _expect(rpn, 'OrientedRPNHead')
  _expect(roi, 'OrientedStandardRoIHead')
  train, test = model[f'{task}_train_cfg'], model[f'{task}_test_cfg']
  c, box = configs.oriented_rcnn(), roi['bbox_head']
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


def from_state_dict(state_dict: dict, config: ml_collections.ConfigDict) -> dict:
  """Our variables, {'params': ...}, of a whole official detector.

  Raises:
    ValueError: names every array that is missing or that nothing here takes.
  """
  params, taken, missing = {}, set(), []
  for path, names, layout in _entries(config):
    missing += [n for n in names if n not in state_dict]
    if missing:
      continue
    taken.update(names)
    ours = _layouts(config, layout)[0]
    arrays = [ours(np.asarray(state_dict[n])) for n in names]
    _put(params, path, jnp.asarray(arrays[0] if layout[-1] != '*' else np.stack(arrays)))
  unexpected = [n for n in state_dict if n not in taken and not n.endswith(IGNORED)]
  if missing or (unexpected := sorted(unexpected)):
    raise ValueError(f'state dict does not fit: missing {missing}, unexpected {unexpected}')
  return {'params': params}


def to_state_dict(variables: dict, config: ml_collections.ConfigDict) -> dict:
  """The official names and layouts of our variables, or of a tree of gradients {'params': ...}."""
  out = {}
  for path, names, layout in _entries(config):
    array = np.asarray(_get(variables['params'], path))
    theirs = _layouts(config, layout)[1]
    parts = array if layout[-1] == '*' else [array]
    out |= {n: theirs(p) for n, p in zip(names, parts, strict=True)}
  return out


def _layouts(config, layout):
  name = layout.rstrip('*')
  if name != 'roi':
    return LAYOUTS[name]
  sizes = {t.head.roi.output_size for t in config.tasks.values() if 'roi' in t.head}
  return _roi_layout(*sizes)


def _get(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _put(tree, path, value):
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def _affine(path, name, layout) -> list[Entry]:
  """Kernel and bias of one layer ('norm' for the scale of a norm)."""
  ours = 'scale' if layout == 'norm' else 'kernel'
  return [
    Entry((*path, ours), (f'{name}.weight',), 'same' if layout == 'norm' else layout),
    Entry((*path, 'bias'), (f'{name}.bias',), 'same'),
  ]


def _entries(config) -> list[Entry]:
  """Every array of the model."""
  entries = [
    Entry(('backbone', *e.path), tuple(f'backbone.{n}' for n in e.names), e.layout)
    for e in _convnext(config)
  ]
  stages = len(config.backbone.depths)
  for i in range(stages):
    entries += _affine(('neck', f'lateral_{i}'), f'neck.lateral_convs.{i}.conv', 'conv')
    entries += _affine(('neck', f'output_{i}'), f'neck.fpn_convs.{i}.conv', 'conv')
  for i in range(2):
    entries += _affine(('neck', f'extra_{i}'), f'neck.fpn_convs.{stages + i}.conv', 'conv')
  heads = {'gfl': _gfl_entries, 'oriented_rcnn': _oriented_rcnn_entries}
  for name, task in config.tasks.items():
    entries += heads[task.head.type](name, task.head)
  return entries


def _convnext(config) -> list[Entry]:
  entries = _affine(('stem',), 'dataset_stems.single', 'conv')
  entries += _affine(('stem_norm',), 'downsample_layers.0.0', 'norm')
  for i, depth in enumerate(config.backbone.depths):
    if i:
      entries += _affine((f'downsample{i}_norm',), f'downsample_layers.{i}.0', 'norm')
      entries += _affine((f'downsample{i}',), f'downsample_layers.{i}.1', 'conv')
    for j in range(depth):
      block, name = f'stage{i}_block{j}', f'stages.{i}.{j}'
      entries += [Entry((block, 'gamma'), (f'{name}.gamma',), 'same')]
      entries += _affine((block, 'dwconv'), f'{name}.depthwise_conv', 'depthwise')
      entries += _affine((block, 'norm'), f'{name}.norm', 'norm')
      if j in config.moe.blocks[i]:
        entries += _moe((block, 'moe'), f'{name}.ffn', config.moe)
      else:
        for k in (1, 2):
          entries += _affine((block, 'ffn', f'fc{k}'), f'{name}.ffn.pointwise_conv{k}', 'linear')
    entries += _affine((f'norm{i}',), f'norm{i}', 'norm')
  return entries


def _moe(path, name, moe) -> list[Entry]:
  experts = lambda k, part: tuple(
    f'{name}.experts.{e}.pointwise_conv{k}.{part}' for e in range(moe.num_experts)
  )
  entries = [Entry((*path, 'router', 'noise'), (f'{name}.w_noise',), 'same')]
  for k in (1, 2):
    entries += [Entry((*path, f'experts_w{k}'), experts(k, 'weight'), 'linear*')]
    entries += [Entry((*path, f'experts_b{k}'), experts(k, 'bias'), 'same*')]
  if moe.gate == 'linear':
    return entries + [Entry((*path, 'router', 'gate'), (f'{name}.w_gate',), 'same')]
  router, gate = (*path, 'router'), f'{name}.w_gate'
  return entries + [
    Entry((*router, 'temperature'), (f'{gate}.temperature',), 'same'),
    Entry((*router, 'embedding'), (f'{gate}.sim_matrix',), 'same'),
    Entry((*router, 'projection'), (f'{gate}.cosine_projector.weight',), 'linear'),
    Entry((*router, 'projection_bias'), (f'{gate}.cosine_projector.bias',), 'same'),
  ]


def _gfl_entries(task, head) -> list[Entry]:
  path, name = (f'heads_{task}', 'bbox_head'), f'{task}_bbox_head'
  entries = []
  for tower in ('cls', 'reg'):
    for i in range(head.convs):
      theirs = f'{name}.{tower}_convs.{i}'
      entries += _affine((*path, f'{tower}_conv_{i}'), f'{theirs}.conv', 'conv')[:1]
      entries += _affine((*path, f'{tower}_norm_{i}'), f'{theirs}.gn', 'norm')
    entries += _affine((*path, tower), f'{name}.gfl_{tower}', 'conv')
  scales = tuple(f'{name}.scales.{i}.scale' for i in range(len(head.strides)))
  return entries + [Entry((*path, 'scale'), scales, 'same*')]


def _oriented_rcnn_entries(task, head) -> list[Entry]:
  del head
  entries, rpn, roi = [], (f'heads_{task}', 'rpn_head'), (f'heads_{task}', 'roi_head')
  for part in ('conv', 'cls', 'reg'):
    entries += _affine((*rpn, part), f'{task}_rpn_head.rpn_{part}', 'conv')
  box = f'{task}_roi_head.bbox_head'
  entries += _affine((*roi, 'fc1'), f'{box}.shared_fcs.0', 'roi')
  entries += _affine((*roi, 'fc2'), f'{box}.shared_fcs.1', 'linear')
  for part in ('cls', 'reg'):
    entries += _affine((*roi, part), f'{box}.fc_{part}', 'linear')
  return entries
