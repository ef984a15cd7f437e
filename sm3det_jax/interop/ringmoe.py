"""RingMoE's configs and weights by the names of its reference values, in and out.

Arrays are {name: array}: 's0.b1.attn.q.w' (out, in) of stage 0, block 1; FFN weights are (in, out).
"""

import ml_collections
import numpy as np

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config.detector_checks import STEM_STRIDE
from sm3det_jax.interop import layouts
from sm3det_jax.interop.backbones import blocks_of
from sm3det_jax.interop.layouts import Entry

MODALITIES = ('opt', 'sar_l1', 'sar_l2', 'ms')
# what arguments leave out, as the paper or the released code has it
PROFILES = {
  'paper': dict(
    attn='v2', gelu='erf', eps_patch=1e-5, eps=1e-5, eps_merge=1e-5, eps_final=1e-5,
    channels=(3, 8, 1, 4),
  ),
  'code': dict(
    attn='v1', gelu='tanh', eps_patch=1e-6, eps=1e-6, eps_merge=1e-4, eps_final=1e-6,
    channels=(3, 8, 3, 4),
  ),
}  # fmt: skip
ATTENTION = {'v1': 'table', 'v2': 'cosine'}


def config(arguments: dict) -> ml_collections.ConfigDict:
  """Our config of RingMoE's arguments: a task of kind 'image' for each modality.

  Args:
    arguments: 'image' px, 'embed', 'depths', 'heads', 'window', 'ratio' and, of which the 'profile'
      ('paper' unless said) has defaults, 'attn', 'kbias', 'gelu', 'eps', 'eps_patch', 'eps_merge',
      'eps_final', 'channels'. These may also lie in its 'options'.

  Raises:
    UserError: another profile or attention, or patches that are not 4 px wide.
  """
  a = arguments | arguments.get('options', {})
  a = PROFILES[_one_of(PROFILES, 'profile', a.get('profile', 'paper'))] | a
  attention = ATTENTION[_one_of(ATTENTION, 'attn', a['attn'])]
  if a.get('patch', STEM_STRIDE) != STEM_STRIDE:
    raise UserError(f'patch={a["patch"]} is not supported here, only {STEM_STRIDE}')
  stages = range(len(a['depths']))
  c = config_lib.default()
  c.model, c.task_balance = 'simmim', 'none'
  del c.tasks
  c.tasks = ml_collections.ConfigDict(sort_keys=False)
  for name, bands in zip(MODALITIES[:1], a['channels'], strict=False):
    c.tasks[name] = config_lib.task(
      'image', name, bands=bands, mean=(0.0,) * bands, std=(1.0,) * bands, size=(a['image'],) * 2
    )
  config_lib.use_backbone(c, 'swin_v2')
  c.moe.blocks = ((),) * len(stages)
  c.backbone.update(
    depths=tuple(a['depths']),
    channels=tuple(a['embed'] * 2**i for i in stages),
    heads=tuple(a['heads']),
    # the released code's are never larger than a map, and so are its tables
    windows=tuple(min(a['window'], a['image'] // (STEM_STRIDE * 2**i)) for i in stages),
    mlp_ratio=float(a['ratio']),
    attention=attention,
    key_bias=a.get('kbias', attention == 'table'),
    gelu=a['gelu'],
    epsilons=tuple(a[key] for key in ('eps_patch', 'eps', 'eps_merge', 'eps_final')),
    output_norms='last',
    drop_path_rate=0.0,
    stems='per_task',
  )
  return c


def _one_of(choices, key, value):
  if value not in choices:
    raise UserError(f'{key}={value!r}: expected {", ".join(choices)}')
  return value


def from_state_dict(arrays: dict, config: ml_collections.ConfigDict) -> dict:
  """Our variables, {'params': ..}, of all arrays of a model.

  Raises:
    UserError: names every array that is missing or that nothing here takes.
  """
  return layouts.variables(entries(config), arrays)


def to_state_dict(variables: dict, config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
  """The arrays of our variables, or of a tree of gradients {'params': ..}."""
  return layouts.state_dict(entries(config), variables)


def entries(config: ml_collections.ConfigDict) -> list[Entry]:
  """Every array of the model, ours and theirs."""
  table = _backbone(config.backbone, tuple(config.tasks))
  return [entry._replace(path=('backbone', *entry.path)) for entry in table]


def _backbone(backbone, tasks):
  table, last = [], len(backbone.depths) - 1
  for task in tasks:
    stem, name = f'stem_{task}', f'patch_embed.{MODALITIES.index(task)}'
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
    table += _feed_forward((block, 'ffn'), f'{name}.ffn')
  return table + _norm((f'norm{last}',), 'norm')


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
