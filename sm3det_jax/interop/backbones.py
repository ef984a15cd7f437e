"""The official backbones: our configs of their constructors' arguments, their arrays against ours.

Names of arrays are those of the official multi-modal classes (`*_MultiInput`), whose stem is
`dataset_stems.single`; PVT-v2, which the official code lacks, has those of its own repository.
"""

import difflib
import re
from collections.abc import Callable
from typing import Any

import ml_collections

from sm3det_jax import config as configs
from sm3det_jax.interop.layouts import Entry, affine

CONVNEXT_SIZES = {  # depths, channels
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
SQUAD = {'FFN': 'ffn', 'Conv3x3_FFN': 'conv3x3', 'Conv5x5_FFN': 'conv5x5'}

# Arguments that change no evaluation, or that the images or the weights answer.
UNUSED = ('type', 'init_cfg', 'pretrained', 'with_cp', 'frozen_stages', 'img_size', 'num_stages',
          'pretrain_img_size', 'in_channels', 'in_chans', 'convert_weights', 'num_classes',
          'attn_drop_rate', 'linear_pw_conv')  # fmt: skip
NONE = ((),) * 4
ROUTED = dict(noisy_gating=True, gate='cosine', top_k=2)
CONVNEXT = dict(
  arch='tiny', drop_path_rate=0.0, layer_scale_init_value=1e-6, use_grn=False, MoE_Block_inds=NONE,
  num_experts=8, **ROUTED,
)  # fmt: skip
VAN = dict(mlp_ratios=(8, 8, 4, 4), drop_rate=0.0, drop_path_rate=0.0)
VAN_DENSE = VAN | dict(embed_dims=(64, 128, 256, 512), depths=(3, 4, 6, 3))
VAN_MOE = VAN | ROUTED | dict(
  embed_dims=(32, 64, 160, 256), depths=(3, 3, 5, 2), MoE_Block_inds_fc1=NONE,
  MoE_Block_inds_fc2=NONE, num_experts=2,
)  # fmt: skip
SWIN = dict(
  embed_dims=96, window_size=7, mlp_ratio=4, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24),
  MoE_Block_inds=NONE, num_experts=4, squads=None, squad_num=0, qkv_bias=True, patch_norm=True,
  drop_path_rate=0.1, **ROUTED,
)  # fmt: skip
PVT_V2 = dict(
  embed_dims=(64, 128, 256, 512), num_heads=(1, 2, 4, 8), mlp_ratios=(4, 4, 4, 4), qkv_bias=False,
  drop_rate=0.0, drop_path_rate=0.0, depths=(3, 4, 6, 3), sr_ratios=(8, 4, 2, 1),
)  # fmt: skip

# What an argument must be where it is given.
FIXED = {
  'act_cfg': {'type': 'GELU'},
  'stem_patch_size': 4,
  'patch_size': 4,
  'gap_before_final_norm': False,
  'out_indices': (0, 1, 2, 3),
  'strides': (4, 2, 2, 2),
  'qk_scale': None,
  'use_abs_pos_embed': False,
  'datasets': None,
  'inject_uni_info_mode': None,
  'linear': False,
}
NORMS = {'convnext': ({'type': 'LN2d', 'eps': 1e-6},), 'swin': ({'type': 'LN'},)}


def config(arguments: dict) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
  """`config.backbone` and `config.moe` of the arguments of an official constructor.

  What they leave out has the constructor's default, but for ConvNeXt's experts: 8, as all released
  configurations have, not 2.

  Raises:
    ValueError: another backbone, an unknown argument, or one that nothing here can honour.
  """
  if arguments['type'] not in CONSTRUCTORS:
    raise ValueError(f'{arguments["type"]} is not supported here, only {", ".join(CONSTRUCTORS)}')
  kind, defaults, read = CONSTRUCTORS[arguments['type']]
  a = defaults | {k: v for k, v in arguments.items() if k in defaults}
  for key, value in arguments.items():
    _check_argument(kind, key, value, defaults)
  c = configs.default()
  configs.use_backbone(c, kind)
  backbone, moe = c.backbone, c.moe
  moe.blocks = _blocks(a, 'MoE_Block_inds')
  if 'num_experts' in a:
    moe.num_experts, moe.top_k, moe.noisy = a['num_experts'], a['top_k'], a['noisy_gating']
    if a['gate'] not in ('cosine', 'linear'):
      raise ValueError(f"gate={a['gate']!r}: expected 'cosine' or 'linear'")
    moe.gate = a['gate']
  read(a, backbone, moe)
  if len(moe.blocks) < len(backbone.depths):
    moe.blocks = ((),) * len(backbone.depths)
  backbone.drop_path_rate = float(a['drop_path_rate'])
  return backbone, moe


def _check_argument(kind, key, value, defaults):
  if key == 'norm_cfg':
    # momentum and requires_grad are training's
    wrong = value is not None and (
      value not in NORMS[kind]
      if kind in NORMS
      else value['type'] not in ('BN', 'SyncBN') or set(value) - {'type', 'requires_grad'}
    )
  elif key in FIXED:
    wrong = (tuple(value) if isinstance(value, list) else value) != FIXED[key]
  elif key in defaults or key in UNUSED:
    wrong = False
  else:
    near = difflib.get_close_matches(key, list(defaults), 3) or sorted(defaults)
    raise ValueError(f'backbone: unknown argument {key!r}; near it: {", ".join(near)}')
  if wrong:
    raise ValueError(f'backbone: {key}={value!r} is not supported here')


def _blocks(a, key):
  """MoE blocks of each stage; the official code drops those beyond the depth."""
  if key not in a:
    return ()
  depths = _convnext_size(a)[0] if 'arch' in a else a['depths']
  return tuple(
    tuple(sorted({range(depth)[j] for j in blocks if j < depth}))
    for depth, blocks in zip(depths, a[key], strict=False)
  )


def _convnext_size(a):
  arch = a['arch']
  if isinstance(arch, str):
    return CONVNEXT_SIZES[arch]
  return tuple(arch['depths']), tuple(arch['channels'])


def _read_convnext(a, backbone, moe):
  backbone.depths, backbone.channels = _convnext_size(a)
  backbone.layer_scale = float(a['layer_scale_init_value'])
  backbone.grn = a['use_grn']


def _read_van(a, backbone, moe):
  backbone.depths, backbone.channels = tuple(a['depths']), tuple(a['embed_dims'])
  backbone.mlp_ratios = tuple(map(float, a['mlp_ratios']))
  backbone.drop_rate = float(a['drop_rate'])
  moe.blocks = _blocks(a, 'MoE_Block_inds_fc1')
  backbone.fc2_blocks = _blocks(a, 'MoE_Block_inds_fc2')


def _read_pvt_v2(a, backbone, moe):
  _read_van(a, backbone, moe)
  backbone.heads, backbone.reductions = tuple(a['num_heads']), tuple(a['sr_ratios'])
  backbone.qkv_bias = a['qkv_bias']


def _read_swin(a, backbone, moe):
  backbone.depths, backbone.heads = tuple(a['depths']), tuple(a['num_heads'])
  backbone.channels = tuple(a['embed_dims'] * 2**i for i in range(len(a['depths'])))
  backbone.window, backbone.mlp_ratio = a['window_size'], float(a['mlp_ratio'])
  backbone.qkv_bias, backbone.patch_norm = a['qkv_bias'], a['patch_norm']
  if a['squads'] and a['squad_num']:
    backbone.squad = tuple(SQUAD[name] for name in a['squads'])
    moe.num_experts = a['squad_num'] * len(a['squads'])


CONSTRUCTORS: dict[str, tuple[str, dict[str, Any], Callable]] = {
  'ConvNeXt_moe_MultiInput': ('convnext', CONVNEXT, _read_convnext),
  'ConvNeXt_moe': ('convnext', CONVNEXT, _read_convnext),
  'VAN_moe_MultiInput': ('van', VAN_MOE, _read_van),
  'VAN_moe': ('van', VAN_MOE | {'noisy_gating': False}, _read_van),
  'VAN': ('van', VAN_DENSE, _read_van),
  'LSKNet_moe_MultiInput': ('lsknet', VAN_MOE, _read_van),
  'LSKNet_moe': ('lsknet', VAN_MOE | {'noisy_gating': False}, _read_van),
  'LSKNet': ('lsknet', VAN_DENSE, _read_van),
  'SwinTransformer_MoE': ('swin', SWIN, _read_swin),
  'PyramidVisionTransformerV2': ('pvt_v2', PVT_V2, _read_pvt_v2),
}


def entries(config) -> list[Entry]:
  """Every array of the backbone of a config, ours (paths inside of it) and theirs.

  A task's own stem is to the shared one as `dataset_stems.<task>` is to `dataset_stems.single`.
  """
  table = ENTRIES[config.backbone.type](config.backbone, config.moe)
  if config.backbone.get('stems') != 'per_task':
    return table
  shared = [e for e in table if re.fullmatch('(stem|embed0)(_norm)?', e.path[0])]
  own = [_own_stem(entry, task) for task in config.tasks for entry in shared]
  return own + [e for e in table if e not in shared]


def _own_stem(entry, task):
  (module, *rest), (name,) = entry.path, entry.names
  own = f'{module.removesuffix("_norm")}_{task}' + '_norm' * module.endswith('_norm')
  stem, _, part = name.rpartition('.')
  name = f'{stem.removesuffix(".single")}.{task}.{part}'
  return entry._replace(path=(own, *rest), names=(name,))


def _blocks_of(backbone):
  return [(i, j) for i, depth in enumerate(backbone.depths) for j in range(depth)]


def _convnext(backbone, moe) -> list[Entry]:
  table = affine(('stem',), 'dataset_stems.single', 'conv')
  table += affine(('stem_norm',), 'downsample_layers.0.0', 'norm')
  for i in range(len(backbone.depths)):
    if i:
      table += affine((f'downsample{i}_norm',), f'downsample_layers.{i}.0', 'norm')
      table += affine((f'downsample{i}',), f'downsample_layers.{i}.1', 'conv')
    table += affine((f'norm{i}',), f'norm{i}', 'norm')
  for i, j in _blocks_of(backbone):
    block, name = f'stage{i}_block{j}', f'stages.{i}.{j}'
    if backbone.layer_scale:
      table += [Entry((block, 'gamma'), (f'{name}.gamma',), 'same')]
    table += affine((block, 'dwconv'), f'{name}.depthwise_conv', 'depthwise')
    table += affine((block, 'norm'), f'{name}.norm', 'norm')
    if j in moe.blocks[i]:
      layers = ('pointwise_conv1', 'pointwise_conv2')
      table += _moe((block, 'moe'), f'{name}.ffn', moe, layers)
      continue
    for k in (1, 2):
      table += affine((block, 'ffn', f'fc{k}'), f'{name}.ffn.pointwise_conv{k}', 'linear')
    if backbone.get('grn'):
      for part in ('gamma', 'beta'):
        table += [Entry((block, 'ffn', 'grn', part), (f'{name}.ffn.grn.{part}',), 'same')]
  return table


def _van(backbone, moe) -> list[Entry]:
  table = _pyramid(backbone, moe, 'pointwise', _batch_norm)
  for i, j in _blocks_of(backbone):
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


def _pvt_v2(backbone, moe) -> list[Entry]:
  norm = lambda path, name: affine(path, name, 'norm')
  table = _pyramid(backbone, moe, 'linear', norm)
  for i, j in _blocks_of(backbone):
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
  for i, j in _blocks_of(backbone):
    path, name = (f'stage{i}_block{j}', 'mlp'), f'block{i + 1}.{j}.mlp'
    table += affine((*path, 'dwconv'), f'{name}.dwconv.dwconv', 'depthwise')
    for k in (1, 2):
      if j in routed[k - 1][i]:
        table += _moe((*path, f'fc{k}'), f'{name}.fc{k}', moe, ('',), linear)
      else:
        table += affine((*path, f'fc{k}'), f'{name}.fc{k}', linear)
  return table


def _swin(backbone, moe) -> list[Entry]:
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
  for i, j in _blocks_of(backbone):
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
      table += _moe((block, 'moe'), f'{name}.ffn', moe, ('layers.0.0', 'layers.1'))
  return table


def _squad(path, name, squad, moe) -> list[Entry]:
  table = _router(path, name, moe)
  for e in range(moe.num_experts):
    single = squad[e % len(squad)] == 'ffn'
    first, second = ('layers.0.0', 'layers.1') if single else ('conv1.0', 'ffn.0')
    layout = 'as_conv' if single else 'conv'
    table += affine((*path, f'expert{e}_in'), f'{name}.experts.{e}.{first}', layout)
    table += affine((*path, f'expert{e}_out'), f'{name}.experts.{e}.{second}', 'linear')
  return table


def _moe(path, name, moe, layers, layout='linear') -> list[Entry]:
  """Router and experts of `layers`, which are named 1, 2 where there are several."""
  table = _router(path, name, moe)
  for k, layer in enumerate(layers, 1):
    number = k if len(layers) > 1 else ''
    names = [f'{name}.experts.{e}.{layer}'.rstrip('.') for e in range(moe.num_experts)]
    for ours, theirs, how in (('w', 'weight', layout), ('b', 'bias', 'same')):
      official = tuple(f'{n}.{theirs}' for n in names)
      table += [Entry((*path, f'experts_{ours}{number}'), official, f'{how}*')]
  return table


def _router(path, name, moe) -> list[Entry]:
  router, gate = (*path, 'router'), f'{name}.w_gate'
  table = [Entry((*router, 'noise'), (f'{name}.w_noise',), 'same')]
  if moe.gate == 'linear':
    return table + [Entry((*router, 'gate'), (gate,), 'same')]
  return table + [
    Entry((*router, 'temperature'), (f'{gate}.temperature',), 'same'),
    Entry((*router, 'embedding'), (f'{gate}.sim_matrix',), 'same'),
    Entry((*router, 'projection'), (f'{gate}.cosine_projector.weight',), 'linear'),
    Entry((*router, 'projection_bias'), (f'{gate}.cosine_projector.bias',), 'same'),
  ]


def _batch_norm(path, name) -> list[Entry]:
  averages = (('mean', 'running_mean'), ('var', 'running_var'))
  return affine(path, name, 'norm') + [
    Entry((*path, ours), (f'{name}.{theirs}',), 'same', 'batch_stats') for ours, theirs in averages
  ]


ENTRIES = {'convnext': _convnext, 'lsknet': _van, 'pvt_v2': _pvt_v2, 'swin': _swin, 'van': _van}
