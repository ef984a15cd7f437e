"""The official VAN and LSKNet, and PVT-v2, which the official code lacks: its own repository's."""

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

COMMON = dict(mlp_ratios=(8, 8, 4, 4), drop_rate=0.0, drop_path_rate=0.0)
VAN_DENSE = COMMON | dict(embed_dims=(64, 128, 256, 512), depths=(3, 4, 6, 3))
VAN_MOE = COMMON | ROUTED | dict(
  embed_dims=(32, 64, 160, 256), depths=(3, 3, 5, 2), MoE_Block_inds_fc1=NONE,
  MoE_Block_inds_fc2=NONE, num_experts=2,
)  # fmt: skip
PVT = dict(
  embed_dims=(64, 128, 256, 512), num_heads=(1, 2, 4, 8), mlp_ratios=(4, 4, 4, 4), qkv_bias=False,
  drop_rate=0.0, drop_path_rate=0.0, depths=(3, 4, 6, 3), sr_ratios=(8, 4, 2, 1),
)  # fmt: skip
STEM = (  # of VAN and LSKNet
  (r'patch_embed1\.proj', 'dataset_stems.single'),
  (r'patch_embed1\.norm', 'patch_embed1'),
)
PLAIN = (
  (r'patch_embed1\.', 'patch_embed1.norm.'),
  (r'dataset_stems\.single', 'patch_embed1.proj'),
)


def _read_sizes(a, backbone):
  backbone.depths, backbone.channels = tuple(a['depths']), tuple(a['embed_dims'])
  backbone.mlp_ratios = tuple(map(float, a['mlp_ratios']))
  backbone.drop_rate = float(a['drop_rate'])


def read_van(a, backbone, moe):
  _read_sizes(a, backbone)
  moe.blocks = blocks(backbone.depths, a.get('MoE_Block_inds_fc1', ()))
  backbone.fc2_blocks = blocks(backbone.depths, a.get('MoE_Block_inds_fc2', ()))


def read_pvt_v2(a, backbone, moe):
  _read_sizes(a, backbone)
  moe.blocks = ()
  backbone.heads, backbone.reductions = tuple(a['num_heads']), tuple(a['sr_ratios'])
  backbone.qkv_bias = a['qkv_bias']


def van_entries(backbone, moe) -> list[Entry]:
  table = _pyramid(backbone, moe, 'pointwise', _batch_norm)
  for i, j in blocks_of(backbone):
    block, name = f'stage{i}_block{j}', f'block{i + 1}.{j}'
    for k in (1, 2):
      scale = Entry((block, f'scale{k}'), (f'{name}.layer_scale_{k}',), 'same')
      table += [scale, *_batch_norm((block, f'norm{k}'), f'{name}.norm{k}')]
      table += affine((block, 'attention', f'proj{k}'), f'{name}.attn.proj_{k}', 'pointwise')
    gate, unit = (block, 'attention', 'gate'), f'{name}.attn.spatial_gating_unit'
    table += affine((*gate, 'local'), f'{unit}.conv0', 'depthwise')
    table += affine((*gate, 'wide'), f'{unit}.conv_spatial', 'depthwise')
    if backbone.type == 'van':
      table += affine((*gate, 'mix'), f'{unit}.conv1', 'pointwise')
    else:
      table += affine((*gate, 'reduce1'), f'{unit}.conv1', 'pointwise')
      table += affine((*gate, 'reduce2'), f'{unit}.conv2', 'pointwise')
      table += affine((*gate, 'squeeze'), f'{unit}.conv_squeeze', 'conv')
      table += affine((*gate, 'mix'), f'{unit}.conv', 'pointwise')
  return table


def pvt_v2_entries(backbone, moe) -> list[Entry]:
  norm = lambda path, name: affine(path, name, 'norm')
  table = _pyramid(backbone, moe, 'linear', norm)
  for i, j in blocks_of(backbone):
    block, name = f'stage{i}_block{j}', f'block{i + 1}.{j}'
    for k in (1, 2):
      table += norm((block, f'norm{k}'), f'{name}.norm{k}')
    attention = (block, 'attention')
    for part in ('q', 'kv'):
      layer = affine((*attention, part), f'{name}.attn.{part}', 'linear')
      table += layer if backbone.qkv_bias else layer[:1]
    table += affine((*attention, 'proj'), f'{name}.attn.proj', 'linear')
    if backbone.reductions[i] > 1:
      table += affine((*attention, 'reduce'), f'{name}.attn.sr', 'conv')
      table += norm((*attention, 'reduce_norm'), f'{name}.attn.norm')
  return table


def _pyramid(backbone, moe, linear, embed_norm) -> list[Entry]:
  """Embeddings, norms and FFNs of VAN, LSKNet and PVT-v2; `linear`: layout of the FFN's layers."""
  official = backbone.type != 'pvt_v2'
  table, routed = [], (moe.blocks, backbone.fc2_blocks or moe.blocks)
  for i in range(len(backbone.depths)):
    name = f'patch_embed{i + 1}'
    stem = official and not i
    table += affine((f'embed{i}',), 'dataset_stems.single' if stem else f'{name}.proj', 'conv')
    table += embed_norm((f'embed{i}_norm',), name if stem else f'{name}.norm')
    table += affine((f'norm{i}',), f'norm{i + 1}', 'norm')
  for i, j in blocks_of(backbone):
    path, name = (f'stage{i}_block{j}', 'mlp'), f'block{i + 1}.{j}.mlp'
    table += affine((*path, 'dwconv'), f'{name}.dwconv.dwconv', 'depthwise')
    for k in (1, 2):
      if j in routed[k - 1][i]:
        table += moe_entries((*path, f'fc{k}'), f'{name}.fc{k}', moe, ('',), linear)
      else:
        table += affine((*path, f'fc{k}'), f'{name}.fc{k}', linear)
  return table


def _batch_norm(path, name) -> list[Entry]:
  averages = (('mean', 'running_mean'), ('var', 'running_var'))
  return affine(path, name, 'norm') + [
    Entry((*path, ours), (f'{name}.{theirs}',), 'same', 'batch_stats') for ours, theirs in averages
  ]


def named(state, wanted):
  """Of VAN's and LSKNet's own repositories."""
  return renamed(state, STEM) if 'dataset_stems.single.weight' in wanted else state


def _batch_normed(norm):
  # requires_grad is training's
  return norm['type'] in ('BN', 'SyncBN') and not set(norm) - {'type', 'requires_grad'}


def _van(name):
  alone = VAN_MOE | {'noisy_gating': False}
  return OfficialBackbone(
    {f'{name}_moe_MultiInput': VAN_MOE, f'{name}_moe': alone, name: VAN_DENSE},
    read_van,
    _batch_normed,
    van_entries,
    named,
    PLAIN,
  )


VAN, LSKNET = _van('VAN'), _van('LSKNet')
PVT_V2 = OfficialBackbone(
  {'PyramidVisionTransformerV2': PVT}, read_pvt_v2, _batch_normed, pvt_v2_entries
)
