"""The official ConvNeXt, and the names that mmpretrain and Facebook give its arrays."""

import re

import numpy as np

from sm3det_jax.interop.backbones import (
  NONE,
  ROUTED,
  OfficialBackbone,
  blocks,
  blocks_of,
  moe_entries,
)
from sm3det_jax.interop.layouts import Entry, affine
from sm3det_jax.interop.sources import renamed

SIZES = {  # depths, channels
  'atto': ((2, 2, 6, 2), (40, 80, 160, 320)),
  'femto': ((2, 2, 6, 2), (48, 96, 192, 384)),
  'pico': ((2, 2, 6, 2), (64, 128, 256, 512)),
  'nano': ((2, 2, 8, 2), (80, 160, 320, 640)),
  'tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
  'small': ((3, 3, 27, 3), (96, 192, 384, 768)),
  'base': ((3, 3, 27, 3), (128, 256, 512, 1024)),
  'swin_large': ((2, 2, 18, 2), (192, 384, 768, 1536)),
  'large': ((3, 3, 27, 3), (192, 384, 768, 1536)),
  'xlarge': ((3, 3, 27, 3), (256, 512, 1024, 2048)),
  'huge': ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}
ARGUMENTS = dict(
  arch='tiny', drop_path_rate=0.0, layer_scale_init_value=1e-6, use_grn=False, MoE_Block_inds=NONE,
  num_experts=8, **ROUTED,
)  # fmt: skip
NAMES = (
  (r'(stages\.\d+\.\d+)\.dwconv', r'\1.depthwise_conv'),
  (r'(stages\.\d+\.\d+)\.pwconv', r'\1.ffn.pointwise_conv'),
  (r'(stages\.\d+\.\d+)\.(pointwise_conv|grn)', r'\1.ffn.\2'),
  (r'norm\.', 'norm3.'),
)
STEM = (
  (r'downsample_layers\.0\.0', 'dataset_stems.single'),
  (r'downsample_layers\.0\.1', 'downsample_layers.0.0'),
)
PLAIN = (
  (r'(stages\.\d+\.\d+)\.ffn\.(pointwise_conv|grn)', r'\1.\2'),
  (r'downsample_layers\.0\.0', 'downsample_layers.0.1'),
  (r'dataset_stems\.single', 'downsample_layers.0.0'),
)


def read(a, backbone, moe):
  arch = a['arch']
  named = isinstance(arch, str)
  sizes = SIZES[arch] if named else (tuple(arch['depths']), tuple(arch['channels']))
  backbone.depths, backbone.channels = sizes
  backbone.layer_scale, backbone.grn = float(a['layer_scale_init_value']), a['use_grn']
  moe.blocks = blocks(backbone.depths, a['MoE_Block_inds'])


def entries(backbone, moe) -> list[Entry]:
  table = affine(('stem',), 'dataset_stems.single', 'conv')
  table += affine(('stem_norm',), 'downsample_layers.0.0', 'norm')
  for i in range(len(backbone.depths)):
    if i:
      table += affine((f'downsample{i}_norm',), f'downsample_layers.{i}.0', 'norm')
      table += affine((f'downsample{i}',), f'downsample_layers.{i}.1', 'conv')
    table += affine((f'norm{i}',), f'norm{i}', 'norm')
  for i, j in blocks_of(backbone):
    block, name = f'stage{i}_block{j}', f'stages.{i}.{j}'
    if backbone.layer_scale:
      table += [Entry((block, 'gamma'), (f'{name}.gamma',), 'same')]
    table += affine((block, 'dwconv'), f'{name}.depthwise_conv', 'depthwise')
    table += affine((block, 'norm'), f'{name}.norm', 'norm')
    if j in moe.blocks[i]:
      layers = ('pointwise_conv1', 'pointwise_conv2')
      table += moe_entries((block, 'moe'), f'{name}.ffn', moe, layers)
      continue
    for k in (1, 2):
      table += affine((block, 'ffn', f'fc{k}'), f'{name}.ffn.pointwise_conv{k}', 'linear')
    if backbone.get('grn'):
      for part in ('gamma', 'beta'):
        table += [Entry((block, 'ffn', 'grn', part), (f'{name}.ffn.grn.{part}',), 'same')]
  return table


def named(state, wanted):
  """Of mmpretrain and of Facebook; those of the official detector stay as they are."""
  del wanted
  stem = state.get('downsample_layers.0.0.weight')
  if stem is not None and stem.ndim == 4:
    state = renamed(state, STEM)
  thin = r'.*\.(pointwise_conv\d\.weight|grn\.\w+)'  # linear layers written as 1x1 convolutions
  state = renamed(state, NAMES)
  return {n: np.squeeze(a) if re.fullmatch(thin, n) else a for n, a in state.items()}


CONVNEXT = OfficialBackbone(
  {'ConvNeXt_moe_MultiInput': ARGUMENTS, 'ConvNeXt_moe': ARGUMENTS},
  read,
  lambda norm: norm == {'type': 'LN2d', 'eps': 1e-6},
  entries,
  named,
  PLAIN,
)
