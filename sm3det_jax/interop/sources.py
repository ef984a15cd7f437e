"""The names that official weights have in other files -> the official detector's, and back.

A file of one data set lacks the tasks' names and calls its pyramid's levels otherwise; one of
ImageNet has the names of its own repository.
"""

import re

import numpy as np

from data_pipelines.errors import UserError
from sm3det_jax.heads.common import start_stage

DROPPED = r'ema_.*|.*\.attn_mask'  # averages that mmcv has swapped in, constants of Swin
CLASSIFIER = r'(head|fc|classifier)\d?\..*'
HEAD = r'((bbox|rpn|roi|fam|odm)_head|align_conv)\.'  # of a detector of one task

CONVNEXT = (
  (r'(stages\.\d+\.\d+)\.dwconv', r'\1.depthwise_conv'),
  (r'(stages\.\d+\.\d+)\.pwconv', r'\1.ffn.pointwise_conv'),
  (r'(stages\.\d+\.\d+)\.(pointwise_conv|grn)', r'\1.ffn.\2'),
  (r'norm\.', 'norm3.'),
)
CONVNEXT_STEM = (
  (r'downsample_layers\.0\.0', 'dataset_stems.single'),
  (r'downsample_layers\.0\.1', 'downsample_layers.0.0'),
)
PYRAMID_STEM = (  # VAN, LSKNet
  (r'patch_embed1\.proj', 'dataset_stems.single'),
  (r'patch_embed1\.norm', 'patch_embed1'),
)
PLAIN = {  # names of backbones without experts, from the official detector's; the first that fits
  'convnext': (
    (r'(stages\.\d+\.\d+)\.ffn\.(pointwise_conv|grn)', r'\1.\2'),
    (r'downsample_layers\.0\.0', 'downsample_layers.0.1'),
    (r'dataset_stems\.single', 'downsample_layers.0.0'),
  ),
  'van': (
    (r'patch_embed1\.', 'patch_embed1.norm.'),
    (r'dataset_stems\.single', 'patch_embed1.proj'),
  ),
}
PLAIN['lsknet'] = PLAIN['van']
SWIN = (
  (r'layers\.', 'stages.'),
  (r'patch_embed\.proj\.', 'patch_embed.projection.'),
  (r'(.*\.attn)\.(qkv|proj|relative_position_bias_table)', r'\1.w_msa.\2'),
  (r'(.*)\.mlp\.fc1', r'\1.ffn.layers.0.0'),
  (r'(.*)\.mlp\.fc2', r'\1.ffn.layers.1'),
  (r'norm\.', 'norm3.'),
)


def of_backbone(state: dict, kind: str, wanted: set[str]) -> dict:
  """A backbone's arrays by the official detector's names.

  Args:
    state: {name without `backbone.`: array} of mmpretrain, mmdetection or of the backbone's own
      repository.
    kind: `config.backbone.type`.
    wanted: names of the model that is to take them.
  """
  if kind == 'convnext':
    return _convnext(state)
  if kind == 'swin':
    return _swin(state)
  if kind in ('van', 'lsknet') and 'dataset_stems.single.weight' in wanted:
    return _renamed(state, PYRAMID_STEM)
  return state


def of_one_task(state: dict, task: str, strides: tuple, stages: int, wanted: set[str]) -> dict:
  """A detector of one task -> that task of the official detector, with its pyramid.

  Its pyramid counts from the first stage that it reads; a last level by max pooling (kernel 1,
  stride 2) becomes the convolution that does the same, where the model has one.

  Raises:
    UserError: it reads other stages than a head with these strides.
  """
  laterals = sum(bool(re.fullmatch(r'neck\.lateral_convs\.\d+\.conv\.weight', n)) for n in state)
  start = start_stage(strides)
  if laterals != stages - start:
    raise UserError(
      f'the pyramid of the file reads {laterals} stages of the backbone, task {task} reads '
      f'{stages - start} (strides {tuple(strides)})'
    )

  def shifted(name):
    level = r'^(neck\.(?:lateral|fpn)_convs\.)(\d+)'
    return re.sub(level, lambda m: f'{m[1]}{int(m[2]) + start}', name)

  state = {shifted(name): array for name, array in state.items()}
  extra, last = (f'neck.fpn_convs.{i}.conv' for i in (stages, stages - 1))
  if f'{extra}.weight' in wanted - state.keys() and f'{last}.weight' in state:
    pool = np.zeros_like(state[f'{last}.weight'])
    pool[:, :, 1, 1] = np.eye(len(pool), dtype=pool.dtype)
    state |= {f'{extra}.weight': pool, f'{extra}.bias': np.zeros(len(pool), pool.dtype)}
  return {f'{task}_{n}' if re.match(HEAD, n) else n: a for n, a in state.items()}


def to_one_task(state: dict, task: str, strides: tuple, kind: str) -> dict:
  """The official detector with one task -> a detector of that task, as `of_one_task` takes it.

  Without experts the backbone (`kind` is its type) gets the names of mmpretrain or of its own
  repository.
  """
  start, renamed = start_stage(strides), {}
  dense = not any('.experts.' in name for name in state)
  for name, array in state.items():
    if level := re.fullmatch(r'(neck\.\w+_convs)\.(\d+)\.(.*)', name):
      number = int(level[2]) - start
      if not 0 <= number < len(strides):
        continue  # no head reads it
      name = f'{level[1]}.{number}.{level[3]}'
    for pattern, replacement in PLAIN.get(kind, ()) if dense else ():
      name, changed = re.subn(rf'^backbone\.{pattern}', f'backbone.{replacement}', name)
      if changed:
        break
    renamed[name.removeprefix(f'{task}_')] = array
  return renamed


def _convnext(state):
  """Of mmpretrain and of Facebook; those of the official detector stay as they are."""
  stem = state.get('downsample_layers.0.0.weight')
  if stem is not None and stem.ndim == 4:
    state = _renamed(state, CONVNEXT_STEM)
  thin = r'.*\.(pointwise_conv\d\.weight|grn\.\w+)'  # linear layers written as 1x1 convolutions
  state = _renamed(state, CONVNEXT)
  return {n: np.squeeze(a) if re.fullmatch(thin, n) else a for n, a in state.items()}


def _swin(state):
  """Of mmdetection and of Microsoft, which merges 2x2 patches in another order."""
  if any(name.startswith('layers.') for name in state):
    merge = r'layers\.\d+\.downsample\.(norm|reduction)\.\w+'
    state = {n: _merged(a) if re.fullmatch(merge, n) else a for n, a in state.items()}
  return _renamed(state, SWIN)


def _merged(array):
  """Last axis: 4 patches (columns first) of C channels -> C channels of 4 patches (rows first)."""
  patches = array.reshape(*array.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
  return np.swapaxes(patches, -1, -2).reshape(array.shape)


def _renamed(state, rules):
  renamed = {}
  for name, array in state.items():
    for pattern, replacement in rules:
      name = re.sub(f'^{pattern}', replacement, name)
    renamed[name] = array
  return renamed
