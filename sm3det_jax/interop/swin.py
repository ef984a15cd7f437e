"""The official Swin, and the names that mmdetection and Microsoft give its arrays."""

import re

import numpy as np

from sm3det_jax.interop.backbones import (
  NONE,
  ROUTED,
  OfficialBackbone,
  blocks,
  blocks_of,
  moe_entries,
  router_entries,
)
from sm3det_jax.interop.layouts import Entry, affine
from sm3det_jax.interop.sources import renamed

SQUAD = {'FFN': 'ffn', 'Conv3x3_FFN': 'conv3x3', 'Conv5x5_FFN': 'conv5x5'}
ARGUMENTS = dict(
  embed_dims=96, window_size=7, mlp_ratio=4, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24),
  MoE_Block_inds=NONE, num_experts=4, squads=None, squad_num=0, qkv_bias=True, patch_norm=True,
  drop_path_rate=0.1, **ROUTED,
)  # fmt: skip
NAMES = (
  (r'layers\.', 'stages.'),
  (r'patch_embed\.proj\.', 'patch_embed.projection.'),
  (r'(.*\.attn)\.(qkv|proj|relative_position_bias_table)', r'\1.w_msa.\2'),
  (r'(.*)\.mlp\.fc1', r'\1.ffn.layers.0.0'),
  (r'(.*)\.mlp\.fc2', r'\1.ffn.layers.1'),
  (r'norm\.', 'norm3.'),
)


def read(a, backbone, moe):
  backbone.depths, backbone.heads = tuple(a['depths']), tuple(a['num_heads'])
  backbone.channels = tuple(a['embed_dims'] * 2**i for i in range(len(a['depths'])))
  backbone.window, backbone.mlp_ratio = a['window_size'], float(a['mlp_ratio'])
  backbone.qkv_bias, backbone.patch_norm = a['qkv_bias'], a['patch_norm']
  moe.blocks = blocks(backbone.depths, a['MoE_Block_inds'])
  if a['squads'] and a['squad_num']:
    backbone.squad = tuple(SQUAD[name] for name in a['squads'])
    moe.num_experts = a['squad_num'] * len(a['squads'])


def entries(backbone, moe) -> list[Entry]:
  table = affine(('stem',), 'patch_embed.projection', 'conv')
  if backbone.patch_norm:
    table += affine(('stem_norm',), 'patch_embed.norm', 'norm')
  for i in range(len(backbone.depths)):
    table += affine((f'norm{i}',), f'norm{i}', 'norm')
    if i:
      path, name = (f'downsample{i}',), f'stages.{i - 1}.downsample'
      table += [Entry((*path, 'reduction', 'kernel'), (f'{name}.reduction.weight',), 'merging')]
      if backbone.patch_norm:
        for ours, theirs in (('scale', 'weight'), ('bias', 'bias')):
          table += [Entry((*path, 'norm', ours), (f'{name}.norm.{theirs}',), 'merging')]
  for i, j in blocks_of(backbone):
    block, name = f'stage{i}_block{j}', f'stages.{i}.blocks.{j}'
    for k in (1, 2):
      table += affine((block, f'norm{k}'), f'{name}.norm{k}', 'norm')
    attention, msa = (block, 'attention'), f'{name}.attn.w_msa'
    bias = Entry((*attention, 'bias_table'), (f'{msa}.relative_position_bias_table',), 'same')
    qkv = affine((*attention, 'qkv'), f'{msa}.qkv', 'linear')
    table += [bias, *(qkv if backbone.qkv_bias else qkv[:1])]
    table += affine((*attention, 'proj'), f'{msa}.proj', 'linear')
    if j not in moe.blocks[i]:
      table += affine((block, 'ffn', 'fc1'), f'{name}.ffn.layers.0.0', 'linear')
      table += affine((block, 'ffn', 'fc2'), f'{name}.ffn.layers.1', 'linear')
    elif backbone.squad:
      table += _squad((block, 'moe'), f'{name}.ffn', backbone.squad, moe)
    else:
      table += moe_entries((block, 'moe'), f'{name}.ffn', moe, ('layers.0.0', 'layers.1'))
  return table


def _squad(path, name, squad, moe) -> list[Entry]:
  table = router_entries(path, name, moe)
  for e in range(moe.num_experts):
    single = squad[e % len(squad)] == 'ffn'
    first, second = ('layers.0.0', 'layers.1') if single else ('conv1.0', 'ffn.0')
    layout = 'as_conv' if single else 'conv'
    table += affine((*path, f'expert{e}_in'), f'{name}.experts.{e}.{first}', layout)
    table += affine((*path, f'expert{e}_out'), f'{name}.experts.{e}.{second}', 'linear')
  return table


def named(state, wanted):
  """Of mmdetection and of Microsoft, which merges 2x2 patches in another order."""
  del wanted
  if any(name.startswith('layers.') for name in state):
    merge = r'layers\.\d+\.downsample\.(norm|reduction)\.\w+'
    state = {n: _merged(a) if re.fullmatch(merge, n) else a for n, a in state.items()}
  return renamed(state, NAMES)


def _merged(array):
  """Last axis: 4 patches (columns first) of C channels -> C channels of 4 patches (rows first)."""
  patches = array.reshape(*array.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
  return np.swapaxes(patches, -1, -2).reshape(array.shape)


SWIN = OfficialBackbone(
  {'SwinTransformer_MoE': ARGUMENTS},
  read,
  lambda norm: norm == {'type': 'LN'},
  entries,
  named,
)
