"""What the configs of the backbones hold, by kind and size, and where the paper puts MoE layers.

Sources: the released configurations of ConvNeXt, VAN and LSKNet (T, S, B). docs/decisions says how
the rest was chosen: ConvNeXt-L, PVT-v2 and the two Swins have none.
"""

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config.registry import BackboneKind

STEM_STRIDE = 4  # of all backbones; each further stage halves the map


def stride(config: ConfigDict) -> int:
  """Pixels of a side of a cell of the last stage's map."""
  return STEM_STRIDE * 2 ** (len(config.backbone.depths) - 1)


def expert_counts(config: ConfigDict) -> dict[str, int]:
  """How many experts a MoE layer has, by the keys that say so; {} of a dense model."""
  backbone, blocks = config.backbone, config.moe.blocks
  if not any(blocks):
    return {}
  if backbone.type != 'ringmoe':
    return {'config.moe.num_experts': config.moe.num_experts}
  specialised = 'config.backbone.specialised of all tasks'
  found = {specialised: backbone.specialised * len(config.tasks)}
  for i, own in enumerate(blocks):
    found |= {f'config.backbone.collaborative[{i}][{j}]': backbone.collaborative[i][j] for j in own}
  return {what: count for what, count in found.items() if count}


def _even(depth: int) -> tuple[int, ...]:
  return tuple(range(0, depth, 2))


def _even_blocks(depths) -> dict:
  """Even blocks of all stages but the first."""
  return dict(blocks=((), *map(_even, depths[1:])), num_experts=8, top_k=2)


def _of(size: str, kind: str, values: dict):
  if size not in values:
    raise UserError(f'{kind} has no size {size!r}, only {", ".join(values)}')
  return values[size]


def convnext(size: str = 'T') -> tuple[ConfigDict, dict]:
  """ConvNeXt."""
  depths, channels = _of(size, 'convnext', {
    'T': ((3, 3, 9, 3), (96, 192, 384, 768)),
    'S': ((3, 3, 27, 3), (96, 192, 384, 768)),
    'B': ((3, 3, 27, 3), (128, 256, 512, 1024)),
    'L': ((3, 3, 27, 3), (192, 384, 768, 1536)),
  })  # fmt: skip
  backbone = dict(
    type='convnext',
    depths=depths,
    channels=channels,
    drop_path_rate=0.1,
    layer_scale=1e-6,  # 0: none
    grn=False,  # global response normalisation in the dense FFNs (ConvNeXt V2)
    adapters=False,  # squeeze and excitation in every block, a task its own (domain attention)
    experts_from_one=True,  # every expert starts as a copy of one FFN, as from a checkpoint
  )
  return ConfigDict(backbone), _even_blocks(depths)


def van(size: str = 'T') -> tuple[ConfigDict, dict]:
  """VAN-B0, B1, B2, which the paper calls T, S, B; `moe.blocks` are those of fc1."""
  depths, channels, drop_path_rate, blocks, num_experts = _of(size, 'van', {
    'T': ((3, 3, 5, 2), (32, 64, 160, 256), 0.1, ((), (0, 2), (0, 2, 4), (0,)), 8),
    'S': ((2, 2, 4, 2), (64, 128, 320, 512), 0.0, ((), (0,), (0, 2), (0,)), 4),
    'B': ((3, 3, 12, 3), (64, 128, 320, 512), 0.2, ((), (0, 2), _even(12), (0, 2)), 4),
  })  # fmt: skip
  backbone = dict(
    type='van',
    depths=depths,
    channels=channels,
    mlp_ratios=(8.0, 8.0, 4.0, 4.0),
    fc2_blocks=(),  # MoE blocks of the FFN's second layer; () = as moe.blocks
    drop_rate=0.1,
    drop_path_rate=drop_path_rate,
    layer_scale=1e-2,
    experts_from_one=True,
  )
  return ConfigDict(backbone), dict(blocks=blocks, num_experts=num_experts, top_k=2)


def lsknet(size: str = 'T') -> tuple[ConfigDict, dict]:
  """LSKNet: as VAN but for its gate and the experts of T."""
  backbone, moe = van(size)
  backbone.type = 'lsknet'
  return backbone, moe | {'num_experts': 4}


def pvt_v2(size: str = 'T') -> tuple[ConfigDict, dict]:
  """PVT-v2 b0, b1, b2, taken for the paper's T, S, B."""
  depths, channels, drop_path_rate = _of(size, 'pvt_v2', {
    'T': ((2, 2, 2, 2), (32, 64, 160, 256), 0.1),
    'S': ((2, 2, 2, 2), (64, 128, 320, 512), 0.1),
    'B': ((3, 4, 6, 3), (64, 128, 320, 512), 0.1),
  })  # fmt: skip
  backbone = dict(
    type='pvt_v2',
    depths=depths,
    channels=channels,
    heads=(1, 2, 5, 8),
    mlp_ratios=(8.0, 8.0, 4.0, 4.0),
    reductions=(8, 4, 2, 1),  # side of the patches that keys and values are taken from
    qkv_bias=True,
    fc2_blocks=(),  # MoE blocks of the FFN's second layer; () = as moe.blocks
    drop_rate=0.0,
    drop_path_rate=drop_path_rate,
    experts_from_one=True,
  )
  return ConfigDict(backbone), _even_blocks(depths) | {'num_experts': 4}


def swin(size: str = 'T') -> tuple[ConfigDict, dict]:
  """Swin, version 1."""
  depths, width, heads, drop_path_rate = _of(size, 'swin', {
    'T': ((2, 2, 6, 2), 96, (3, 6, 12, 24), 0.1),
    'S': ((2, 2, 18, 2), 96, (3, 6, 12, 24), 0.2),
    'B': ((2, 2, 18, 2), 128, (4, 8, 16, 32), 0.2),
    'L': ((2, 2, 18, 2), 192, (6, 12, 24, 48), 0.2),
  })  # fmt: skip
  backbone = dict(
    type='swin',
    depths=depths,
    channels=tuple(width * 2**i for i in range(4)),
    heads=heads,
    window=7,
    mlp_ratio=4.0,
    qkv_bias=True,
    patch_norm=True,
    squad=(),  # kinds of experts, repeated: 'ffn', 'conv3x3', 'conv5x5'; () = FFNs
    drop_path_rate=drop_path_rate,
    experts_from_one=True,
  )
  return ConfigDict(backbone), _even_blocks(depths)


def swin_v2(size: str = 'T') -> tuple[ConfigDict, dict]:
  """Swin, version 2, for images of 256 px and up."""
  depths, width, heads, drop_path_rate = _of(size, 'swin_v2', {
    'T': ((2, 2, 6, 2), 96, (3, 6, 12, 24), 0.2),
    'S': ((2, 2, 18, 2), 96, (3, 6, 12, 24), 0.3),
    'B': ((2, 2, 18, 2), 128, (4, 8, 16, 32), 0.5),
    'L': ((2, 2, 18, 2), 192, (6, 12, 24, 48), 0.2),
  })  # fmt: skip
  backbone = dict(
    type='swin_v2',
    depths=depths,
    channels=tuple(width * 2**i for i in range(4)),
    heads=heads,
    windows=(8, 8, 8, 8),  # their sides; a map that is no larger is one window
    mlp_ratio=4.0,
    attention='cosine',  # 'table': scaled dot products and a table of biases, as version 1
    key_bias=False,  # keys have a bias, as queries and values do
    gelu='erf',  # of dense FFNs; experts have this one
    epsilons=(1e-5, 1e-5, 1e-5, 1e-5),  # of the norms of stem, blocks, merging, outputs
    output_norms='all',  # of the stages; 'last': only the last stage's output has a norm
    drop_path_rate=drop_path_rate,
    experts_from_one=True,
  )
  return ConfigDict(backbone), _even_blocks(depths)


def ringmoe(size: str = 'T') -> tuple[ConfigDict, dict]:
  """RingMoE: Swin, version 2, for images of 192 px, with hierarchical experts."""
  depths, width, heads, specialised = _of('tiny' if size == 'T' else size, 'ringmoe', {
    'giant': ((2, 2, 18, 2), 448, (14, 28, 56, 112), 4),
    'base': ((2, 2, 18, 2), 128, (4, 8, 16, 32), 4),
    'tiny': ((2, 2, 2, 2), 32, (1, 2, 4, 8), 2),
  })  # fmt: skip
  backbone, _ = swin_v2()
  backbone.update(
    type='ringmoe',
    depths=depths,
    channels=tuple(width * 2**i for i in range(4)),
    heads=heads,
    windows=(12, 12, 12, 6),
    output_norms='last',
    drop_path_rate=0.0,
    specialised=specialised,  # experts of each modality, in every MoE layer; 0: none
    collaborative=tuple((4,) * depth for depth in depths),  # experts for all, of each block
    shared=True,  # an expert that all tokens go to, beside the routed ones
    combine='probability',  # what weighs an expert; 'renormalised' over those chosen, as released
    groups=1,  # equal runs of tokens with a capacity of their own
    balance='paper',  # the loss that balances experts; or 'released'
  )
  moe = dict(
    blocks=tuple(map(tuple, map(range, depths))),
    top_k=1,
    noisy=False,
    gate='linear',
    softmax='before',
    balance_weight=1e-3,
  )
  return backbone, moe


BACKBONES = {
  'convnext': BackboneKind(
    convnext,
    'sm3det_jax.backbones.convnext:ConvNeXt',
    'sm3det_jax.interop.convnext:CONVNEXT',
  ),
  'lsknet': BackboneKind(
    lsknet, 'sm3det_jax.backbones.lsknet:LSKNet', 'sm3det_jax.interop.pyramid:LSKNET'
  ),
  'pvt_v2': BackboneKind(
    pvt_v2, 'sm3det_jax.backbones.pvt_v2:PVTv2', 'sm3det_jax.interop.pyramid:PVT_V2'
  ),
  'ringmoe': BackboneKind(ringmoe, 'sm3det_jax.backbones.ringmoe:RingMoE'),
  'swin': BackboneKind(swin, 'sm3det_jax.backbones.swin:Swin', 'sm3det_jax.interop.swin:SWIN'),
  'swin_v2': BackboneKind(swin_v2, 'sm3det_jax.backbones.swin_v2:SwinV2'),
  'van': BackboneKind(van, 'sm3det_jax.backbones.van:VAN', 'sm3det_jax.interop.pyramid:VAN'),
}
