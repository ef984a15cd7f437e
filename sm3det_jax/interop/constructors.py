"""Our configs of the arguments of the official backbones' constructors."""

import difflib
from collections.abc import Callable
from typing import Any

import ml_collections

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib

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
    UserError: another backbone, an unknown argument, or one that nothing here can honour.
  """
  if arguments['type'] not in CONSTRUCTORS:
    raise UserError(f'{arguments["type"]} is not supported here, only {", ".join(CONSTRUCTORS)}')
  kind, defaults, read = CONSTRUCTORS[arguments['type']]
  a = defaults | {k: v for k, v in arguments.items() if k in defaults}
  for key, value in arguments.items():
    _check_argument(kind, key, value, defaults)
  c = config_lib.default()
  config_lib.use_backbone(c, kind)
  backbone, moe = c.backbone, c.moe
  moe.blocks = _blocks(a, 'MoE_Block_inds')
  if 'num_experts' in a:
    moe.num_experts, moe.top_k, moe.noisy = a['num_experts'], a['top_k'], a['noisy_gating']
    if a['gate'] not in ('cosine', 'linear'):
      raise UserError(f"gate={a['gate']!r}: expected 'cosine' or 'linear'")
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
    raise UserError(f'backbone: unknown argument {key!r}; near it: {", ".join(near)}')
  if wrong:
    raise UserError(f'backbone: {key}={value!r} is not supported here')


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
