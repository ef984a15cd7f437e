"""What the parts of a detector must hold to: backbone, experts, neck and heads with each other."""

import difflib
import math

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config.backbones import STEM_STRIDE
from sm3det_jax.config.heads import HEADS

PER_STAGE = ('channels', 'mlp_ratios', 'heads', 'windows', 'reductions', 'collaborative')
LEVELS = 5  # that the neck gives to a head
STARTS = (4, 8)  # strides of the level that may be a head's first
THRESHOLDS = ('min_pos_iou', 'neg_iou')  # none is above pos_iou


def check(config: ConfigDict) -> None:
  """Raises UserError if a detector's parts contradict each other."""
  check_backbone(config)
  for name, task in config.tasks.items():
    where = f'config.tasks.{name}'
    if 'head' not in task:
      raise UserError(
        f"{where}.kind={task.kind!r}: config.model='m2det' has no head for such tasks"
      )
    _check_modality(where, task, config.backbone.type)
    _check_classes(where, task)
    _check_size(f'{where}.size', task.size, config.backbone)
    row = HEADS[task.head.type]
    if row.box != task.kind:
      raise UserError(f'{where}: head {task.head.type!r} gives {row.box}, the task is {task.kind}')
    _check_head(f'{where}.head', task.head, row)


def check_backbone(config: ConfigDict) -> None:
  """Raises UserError if the parts of the backbone, its experts and its stems contradict."""
  _check_experts(config)
  _check_backbone(config.backbone, config.moe)
  _check_stem(config)


def _check_experts(config):
  c = config.moe
  if c.top_k > c.num_experts:
    raise UserError(f'config.moe: top_k={c.top_k}, num_experts={c.num_experts}')
  if config.backbone.get('squad') and c.capacity_factor:
    raise UserError(
      f'config.moe.capacity_factor={c.capacity_factor}: experts of config.backbone.squad are '
      'computed everywhere and drop nothing; set it to 0'
    )


def _check_backbone(backbone, moe):
  stages = len(backbone.depths)
  if not 2 <= stages <= LEVELS:
    raise UserError(f'config.backbone.depths has {stages} stages: expected 2 to {LEVELS}')
  routed = {'config.moe.blocks': moe.blocks}
  if backbone.get('fc2_blocks'):
    routed['config.backbone.fc2_blocks'] = backbone.fc2_blocks
  per_stage = {f'config.backbone.{k}': backbone[k] for k in PER_STAGE if k in backbone}
  for key, value in (routed | per_stage).items():
    if len(value) != stages:
      raise UserError(f'{key} has {len(value)} stages, config.backbone.depths has {stages}')
  for key, blocks in routed.items():
    for stage, depth in enumerate(backbone.depths):
      if any(not 0 <= j < depth for j in blocks[stage]):
        raise UserError(
          f'{key}: stage {stage} has blocks 0 to {depth - 1}, not all of {tuple(blocks[stage])}'
        )
  for channels, heads in zip(backbone.channels, backbone.get('heads', ()), strict=False):
    if channels % heads:
      raise UserError(f'config.backbone: {channels} channels do not divide into {heads} heads')
  if (squad := backbone.get('squad')) and moe.num_experts % len(squad):
    raise UserError(
      f'config.moe.num_experts={moe.num_experts} is no multiple of the {len(squad)} in '
      'config.backbone.squad'
    )
  if backbone.get('grn') and any(moe.blocks):
    raise UserError('config.backbone.grn: experts have no GRN, so config.moe.blocks must be empty')
  if backbone.type == 'ringmoe':
    _check_hierarchical(backbone, moe)
  elif backbone.get('gelu', 'erf') != 'erf' and any(moe.blocks):
    raise UserError(
      f"config.backbone.gelu={backbone.gelu!r}: experts have 'erf', so config.moe.blocks must be "
      'empty'
    )


def _check_hierarchical(backbone, moe):
  """Every MoE layer has some expert, and as many of a group as a token is to choose."""
  for stage, depth in enumerate(backbone.depths):
    found = backbone.collaborative[stage]
    if len(found) != depth:
      raise UserError(
        f'config.backbone.collaborative[{stage}]={tuple(found)}: expected {depth} numbers, one a '
        'block'
      )
    for j in moe.blocks[stage]:
      for group, n in (('specialised', backbone.specialised), ('collaborative', found[j])):
        if 0 < n < moe.top_k:
          raise UserError(f'config.moe.top_k={moe.top_k}: there are {n} {group} experts')
      if not (backbone.specialised or found[j] or backbone.shared):
        raise UserError(
          f'config.backbone: block {j} of stage {stage} has no expert at all; leave it out of '
          'config.moe.blocks'
        )


def _check_stem(config):
  bands = {name: c.bands for name, c in config.tasks.items()}
  if config.backbone.stems == 'shared' and len(set(bands.values())) > 1:
    raise UserError(
      f'config.tasks have different bands, {bands}, which one stem cannot read: set '
      "config.backbone.stems='per_task'"
    )


def _check_modality(where, c, backbone):
  if c.modality != 'auto' and backbone != 'ringmoe':
    raise UserError(
      f'{where}.modality={c.modality!r} has no effect: backbone {backbone!r} has nothing of a '
      "modality's own; set it to 'auto'"
    )


def _check_classes(where, c):
  if not c.classes:
    raise UserError(f'{where}.classes is empty')
  if len(set(c.classes)) != len(c.classes):
    raise UserError(f'{where}.classes has a name twice: {c.classes}')
  for name in c.train.right_angles:
    if name not in c.classes:
      near = difflib.get_close_matches(name, c.classes, 3) or c.classes
      raise UserError(
        f'{where}.train.right_angles: {name!r} is no class of the task; near it: {", ".join(near)}'
      )
  if c.kind == 'hbb' and c.train.rotate:
    raise UserError(f"{where}.train.rotate={c.train.rotate}: boxes of kind 'hbb' do not turn: 0")


def _check_size(where, size, backbone):
  """Maps are halved from stage to stage, and PVT-v2 cuts them into patches."""
  strides = [STEM_STRIDE * 2**i for i in range(len(backbone.depths))]
  patches = backbone.get('reductions', (1,) * len(strides))
  multiple = math.lcm(*(s * p for s, p in zip(strides, patches, strict=True)))
  if any(side % multiple for side in size):
    near = tuple(max(round(side / multiple), 1) * multiple for side in size)
    raise UserError(f'{where}={tuple(size)}: expected multiples of {multiple}, such as {near}')


def _check_head(where, c, row):
  if 'strides' in c:
    levels = [[start * 2**i for i in range(LEVELS)] for start in STARTS]
    if list(c.strides) not in levels:
      either = ' or '.join(str(tuple(strides)) for strides in levels)
      raise UserError(f'{where}.strides={tuple(c.strides)}: the levels of the neck have {either}')
  for key in ('anchor_scales', 'anchor_ratios'):
    if key in c and not len(c[key]):
      raise UserError(f'{where}.{key} is empty: a head needs an anchor')
  if 'channels' in c and c.channels % row.channels:
    raise UserError(
      f'{where}.channels={c.channels} is no multiple of {row.channels}, which {c.type!r} needs'
    )
  parts = {where: c} | {f'{where}.{k}': v for k, v in c.items() if isinstance(v, ConfigDict)}
  for place, part in parts.items():
    for key in THRESHOLDS:
      if key in part and part[key] > part.pos_iou:
        raise UserError(f'{place}: {key}={part[key]} is above pos_iou={part.pos_iou}')
  if 'roi' in c:
    _check_stages(f'{where}.roi', c.roi, row)


def _check_stages(where, roi, row):
  """Tuples have an element for each of the head's stages."""
  defaults = row.defaults().roi
  for key, default in defaults.items():
    if isinstance(default, tuple) and len(roi[key]) != len(default):
      raise UserError(f'{where}.{key}={tuple(roi[key])}: expected {len(default)}, one a stage')
  ratios, usual = (
    c.sampling_ratio if isinstance(c.sampling_ratio, tuple) else (c.sampling_ratio,)
    for c in (roi, defaults)
  )
  if row.box == 'obb' and any(n and not ours for ours, n in zip(ratios, usual, strict=True)):
    raise UserError(f'{where}.sampling_ratio={roi.sampling_ratio}: 0 is for horizontal RoIs alone')
