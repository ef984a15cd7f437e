"""The official backbones: names and layouts of their arrays against ours."""

import ml_collections

from sm3det_jax import config as configs
from sm3det_jax.interop.layouts import Entry, affine

ARCHITECTURES = {  # of the official ConvNeXt: depths, channels
  'tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
  'small': ((3, 3, 27, 3), (96, 192, 384, 768)),
  'base': ((3, 3, 27, 3), (128, 256, 512, 1024)),
  'large': ((3, 3, 27, 3), (192, 384, 768, 1536)),
}


def convnext_config(backbone: dict) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
  """`config.backbone` and `config.moe` of the arguments of `ConvNeXt_moe_MultiInput`."""
  c = configs.default()
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
  return c.backbone, c.moe


def convnext(config) -> list[Entry]:
  entries = affine(('stem',), 'dataset_stems.single', 'conv')
  entries += affine(('stem_norm',), 'downsample_layers.0.0', 'norm')
  for i, depth in enumerate(config.backbone.depths):
    if i:
      entries += affine((f'downsample{i}_norm',), f'downsample_layers.{i}.0', 'norm')
      entries += affine((f'downsample{i}',), f'downsample_layers.{i}.1', 'conv')
    for j in range(depth):
      block, name = f'stage{i}_block{j}', f'stages.{i}.{j}'
      entries += [Entry((block, 'gamma'), (f'{name}.gamma',), 'same')]
      entries += affine((block, 'dwconv'), f'{name}.depthwise_conv', 'depthwise')
      entries += affine((block, 'norm'), f'{name}.norm', 'norm')
      if j in config.moe.blocks[i]:
        entries += _moe((block, 'moe'), f'{name}.ffn', config.moe)
      else:
        for k in (1, 2):
          entries += affine((block, 'ffn', f'fc{k}'), f'{name}.ffn.pointwise_conv{k}', 'linear')
    entries += affine((f'norm{i}',), f'norm{i}', 'norm')
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
