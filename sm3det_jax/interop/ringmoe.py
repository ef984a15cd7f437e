"""RingMoE's configs and weights by the names of its reference values, in and out.

Arrays are {name: array}: 's0.b1.attn.q.w' (out, in) of stage 0, block 1; FFN weights are (in, out).
"""

import jax
import ml_collections
import numpy as np

from data_pipelines.errors import UserError
from sm3det_jax.config import ringmoe
from sm3det_jax.config.backbones import STEM_STRIDE, stride
from sm3det_jax.interop import layouts
from sm3det_jax.interop.backbones import blocks_of
from sm3det_jax.interop.layouts import Entry
from sm3det_jax.model import build
from sm3det_jax.moe.hierarchical import FFN

ATTENTION = {'v1': 'table', 'v2': 'cosine'}
COMBINE = {'gate': 'probability', 'renorm': 'renormalised'}
EPSILONS = ('eps_patch', 'eps', 'eps_merge', 'eps_final')


def config(arguments: dict) -> ml_collections.ConfigDict:
  """Our config of RingMoE's arguments.

  Args:
    arguments: 'image' px, 'embed', 'depths', 'heads', 'window', 'ratio'; 'NS' and 'NC', specialised
      experts of a modality and collaborative ones: without them blocks have FFNs, and there is one
      modality, opt; 'modalities', by default all four. The 'profile' ('paper' unless said) has
      defaults of 'attn' v1 or v2, 'kbias', 'gelu', 'eps', 'eps_patch', 'eps_merge', 'eps_final',
      'channels' and 'decoder_channels' of each modality, 'k', 'cf', 'groups', 'alpha', 'combine'
      gate or renorm; 'mask_patch' is 32. These may also lie in its 'options'.

  Raises:
    UserError: another profile, modality, attention or combination; patches or decoders that are
      not as wide as the backbone's strides.
  """
  a = arguments | arguments.get('options', {})
  experts = 'NS' in a or 'NC' in a
  names = a.get('modalities', ringmoe.MODALITIES if experts else ('opt',))
  c = ringmoe.ringmoe('tiny', a.get('profile', 'paper'), names)
  for i, (name, task) in enumerate(c.tasks.items()):
    bands = a['channels'][i] if 'channels' in a else task.bands
    target = task.target
    if 'decoder_channels' in a:
      target = 'power' if a['decoder_channels'][i] == 1 < bands else 'pixel'
    c.tasks[name] = ringmoe.modality(name, bands, target)
    c.tasks[name].size = (a['image'],) * 2
  _set_backbone(c.backbone, a)
  blocks = tuple(tuple(range(depth)) for depth in a['depths'])
  c.moe.blocks = blocks if experts else ((),) * len(blocks)
  c.backbone.specialised = a.get('NS', 0)
  ringmoe.keep_collaborative(c, a.get('NC', 0))
  for theirs, ours in (('k', 'top_k'), ('alpha', 'balance_weight'), ('cf', 'capacity_factor')):
    if theirs in a:
      c.moe[ours] = a[theirs] or type(c.moe[ours])(0)
  c.simmim.cell = a.get('mask_patch', c.simmim.cell)
  _fixed('patch', a, STEM_STRIDE)
  _fixed('decoder_stride', a, stride(c))
  return c


def _set_backbone(backbone, a):
  stages = range(len(a['depths']))
  backbone.update(
    depths=tuple(a['depths']),
    channels=tuple(a['embed'] * 2**i for i in stages),
    heads=tuple(a['heads']),
    # the released code's are never larger than a map, and so are its tables
    windows=tuple(min(a['window'], a['image'] // (STEM_STRIDE * 2**i)) for i in stages),
    mlp_ratio=float(a['ratio']),
  )
  if 'attn' in a:
    backbone.attention = ATTENTION[_one_of(ATTENTION, 'attn', a['attn'])]
    backbone.key_bias = backbone.attention == 'table'
  if 'combine' in a:
    backbone.combine = COMBINE[_one_of(COMBINE, 'combine', a['combine'])]
  for theirs, ours in (('kbias', 'key_bias'), ('gelu', 'gelu'), ('groups', 'groups')):
    if theirs in a:
      backbone[ours] = a[theirs]
  given = zip(EPSILONS, backbone.epsilons, strict=True)
  backbone.epsilons = tuple(float(a.get(key, default)) for key, default in given)


def _fixed(key, a, ours):
  if a.get(key, ours) != ours:
    raise UserError(f'{key}={a[key]} is not supported here, only {ours}')


def _one_of(choices, key, value):
  if value not in choices:
    raise UserError(f'{key}={value!r}: expected {", ".join(choices)}')
  return value


def from_state_dict(arrays: dict, config: ml_collections.ConfigDict) -> dict:
  """Our variables, {'params': ..}, of all arrays of a model.

  An encoder alone has neither decoders nor a mask token.

  Raises:
    UserError: names every array that is missing or that nothing here takes, or the first one of
      another shape than the config's.
  """
  whole = any(name == 'mask_token' or name.startswith('dec.') for name in arrays)
  table = entries(config, whole)
  variables = layouts.variables(table, arrays)
  like = jax.eval_shape(build(config).init, jax.random.key(0))
  for entry in table:
    path = (entry.collection, *entry.path)
    there, here = (layouts.get(tree, path).shape for tree in (variables, like))
    if there != here:
      raise UserError(
        f'{entry.names[0]}: {there} in our layout, {here} in the model of this config; weights of '
        'another width, or with other experts?'
      )
  return variables


def to_state_dict(variables: dict, config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """The arrays of our variables, or of a tree of gradients {'params': ..}."""
  whole = 'mask_token' in variables['params']['backbone']
  return layouts.state_dict(entries(config, whole), variables)


def entries(config: ml_collections.ConfigDict, whole: bool = True) -> list[Entry]:
  """Every array of the model, ours and theirs.

  Args:
    config: of the model.
    whole: with mask token and decoders, not the encoder alone.
  """
  tasks = tuple(config.tasks)
  table = _backbone(config.backbone, config.moe, tasks)
  if whole:
    table.append(Entry(('mask_token', 'token'), ('mask_token',), 'same'))
  table = [entry._replace(path=('backbone', *entry.path)) for entry in table]
  for task in tasks if whole else ():
    table += _linear((f'heads_{task}', 'decoder'), f'dec.{ringmoe.MODALITIES.index(task)}')
  return table


def _backbone(backbone, moe, tasks):
  table, last = [], len(backbone.depths) - 1
  for task in tasks:
    stem, name = f'stem_{task}', f'patch_embed.{ringmoe.MODALITIES.index(task)}'
    table += _linear((stem,), name, 'conv') + _norm((f'{stem}_norm',), f'{name}.norm')
  for i in range(last):
    merge, name = f'downsample{i + 1}', f's{i}.merge'
    table += _linear((merge,), name, 'patches', bias=False)
    table += _norm((f'{merge}_norm',), f'{name}.norm')
  for i, j in blocks_of(backbone):
    block, name = f'stage{i}_block{j}', f's{i}.b{j}'
    table += _attention((block, 'attention'), f'{name}.attn', backbone)
    for k in (1, 2):
      table += _norm((block, f'norm{k}'), f'{name}.norm{k}')
    if j in moe.blocks[i]:
      table += _experts((block, 'moe'), f'{name}.moe', backbone, backbone.collaborative[i][j])
    else:
      table += _feed_forward((block, 'ffn'), f'{name}.ffn')
  return table + _norm((f'norm{last}',), 'norm')


def _experts(path, name, backbone, collaborative):
  groups = {'spec': backbone.specialised, 'coll': collaborative, 'shared': backbone.shared}
  return [
    Entry((*path, f'{group}.{key}'), (f'{name}.{group}.{key}',), 'same')
    for group, count in groups.items()
    for key in (*FFN, *(('router',) if group != 'shared' else ()))
    if count
  ]


def _attention(path, name, backbone):
  table = []
  for layer in ('q', 'k', 'v', 'proj'):
    bias = layer != 'k' or backbone.key_bias
    table += _linear((*path, layer), f'{name}.{layer}', bias=bias)
  if backbone.attention == 'table':
    return [*table, Entry((*path, 'bias_table'), (f'{name}.rel_table',), 'same')]
  return [
    *table,
    Entry((*path, 'log_scale'), (f'{name}.logit_scale',), 'same'),
    Entry((*path, 'position_w1'), (f'{name}.cpb.w1',), 'linear'),
    Entry((*path, 'position_b1'), (f'{name}.cpb.b1',), 'same'),
    Entry((*path, 'position_w2'), (f'{name}.cpb.w2',), 'linear'),
  ]


def _feed_forward(path, name):
  return [
    Entry((*path, f'fc{i}', ours), (f'{name}.{theirs}{i}',), 'same')
    for i in (1, 2)
    for ours, theirs in (('kernel', 'w'), ('bias', 'b'))
  ]


def _linear(path, name, layout='linear', bias=True):
  kernel = Entry((*path, 'kernel'), (f'{name}.w',), layout)
  return [kernel, Entry((*path, 'bias'), (f'{name}.b',), 'same')] if bias else [kernel]


def _norm(path, name):
  return [
    Entry((*path, ours), (f'{name}.{theirs}',), 'same')
    for ours, theirs in (('scale', 'g'), ('bias', 'b'))
  ]
