"""The arrays of the official backbones against ours.

Names of arrays are those of the official multi-modal classes (`*_MultiInput`), whose stem is
`dataset_stems.single`; PVT-v2, which the official code lacks, has those of its own repository.
"""

import re

from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.registry import resolve
from sm3det_jax.interop.layouts import Entry, affine


def entries(config) -> list[Entry]:
  """Every array of the backbone of a config, ours (paths inside of it) and theirs.

  A task's own stem is to the shared one as `dataset_stems.<task>` is to `dataset_stems.single`.
  """
  table = resolve(BACKBONES[config.backbone.type].official)(config.backbone, config.moe)
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


def convnext_entries(backbone, moe) -> list[Entry]:
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


def van_entries(backbone, moe) -> list[Entry]:
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


def pvt_v2_entries(backbone, moe) -> list[Entry]:
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


def swin_entries(backbone, moe) -> list[Entry]:
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
