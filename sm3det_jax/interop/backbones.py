"""The official backbones: our configs of their constructors' arguments, their arrays against ours.

Names of arrays are those of the official multi-modal classes (`*_MultiInput`), whose stem is
`dataset_stems.single`. A row of `config.backbones.BACKBONES` names what is said of its kind.
"""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.registry import resolve
from sm3det_jax.interop.layouts import Entry


class OfficialBackbone(NamedTuple):
  """What the official code and others call a kind of backbone, and its arrays."""

  constructors: dict[str, dict[str, Any]]  # defaults of the arguments, by class
  read: Callable  # (all arguments, config.backbone, config.moe); it sets these two
  norm: Callable  # whether an argument norm_cfg is the norm that it has here
  entries: Callable  # (config.backbone, config.moe) -> every array, paths inside of the backbone
  # (names and arrays of another file, names wanted) -> the same by the names of `entries`
  renamed: Callable = lambda state, wanted: state
  # (pattern, replacement), the first that fits, from these names to those of backbones alone
  plain: tuple[tuple[str, str], ...] = ()


# Arguments that are taken and not read: they change training alone (with_cp, frozen_stages), or the
# images (img_size, in_channels) or the arrays (linear_pw_conv) say the same.
UNUSED = ('type', 'init_cfg', 'pretrained', 'with_cp', 'frozen_stages', 'img_size', 'num_stages',
          'pretrain_img_size', 'in_channels', 'in_chans', 'convert_weights', 'num_classes',
          'attn_drop_rate', 'linear_pw_conv')  # fmt: skip
NONE = ((),) * 4  # MoE blocks of the stages
ROUTED = dict(noisy_gating=True, gate='cosine', top_k=2)  # by default, of whatever has experts
# Arguments of which one value is supported.
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


def find(kind: str) -> OfficialBackbone | None:
  """What is said of `config.backbone.type`; None if it has no official names."""
  return resolve(BACKBONES[kind].official) if BACKBONES[kind].official else None


def config(arguments: dict) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
  """`config.backbone` and `config.moe` of the arguments of an official constructor.

  What they leave out has the constructor's default, but for ConvNeXt's experts: 8, as all released
  configurations have, not 2.

  Raises:
    UserError: another backbone, an unknown argument, or one that nothing here can honour.
  """
  official = {kind: found for kind in BACKBONES if (found := find(kind))}
  kinds = {name: kind for kind, found in official.items() for name in found.constructors}
  if arguments['type'] not in kinds:
    raise UserError(f'{arguments["type"]} is not supported here, only {", ".join(kinds)}')
  kind = kinds[arguments['type']]
  defaults = official[kind].constructors[arguments['type']]
  a = defaults | {k: v for k, v in arguments.items() if k in defaults}
  for key, value in arguments.items():
    _check_argument(official[kind], key, value, defaults)
  c = config_lib.default()
  config_lib.use_backbone(c, kind)
  backbone, moe = c.backbone, c.moe
  if 'num_experts' in a:
    moe.num_experts, moe.top_k, moe.noisy = a['num_experts'], a['top_k'], a['noisy_gating']
    if a['gate'] not in ('cosine', 'linear'):
      raise UserError(f"gate={a['gate']!r}: expected 'cosine' or 'linear'")
    moe.gate = a['gate']
  official[kind].read(a, backbone, moe)
  if len(moe.blocks) < len(backbone.depths):
    moe.blocks = ((),) * len(backbone.depths)
  backbone.drop_path_rate = float(a['drop_path_rate'])
  return backbone, moe


def _check_argument(kind, key, value, defaults):
  if key == 'norm_cfg':
    wrong = value is not None and not kind.norm(value)
  elif key in FIXED:
    wrong = (tuple(value) if isinstance(value, list) else value) != FIXED[key]
  elif key in defaults or key in UNUSED:
    wrong = False
  else:
    near = difflib.get_close_matches(key, list(defaults), 3) or sorted(defaults)
    raise UserError(f'backbone: unknown argument {key!r}; near it: {", ".join(near)}')
  if wrong:
    raise UserError(f'backbone: {key}={value!r} is not supported here')


def blocks(depths: tuple[int, ...], blocks: tuple) -> tuple[tuple[int, ...], ...]:
  """MoE blocks of each stage; the official code drops those beyond the depth."""
  return tuple(
    tuple(sorted({range(depth)[j] for j in stage if j < depth}))
    for depth, stage in zip(depths, blocks, strict=False)
  )


def entries(config) -> list[Entry]:
  """Every array of the backbone of a config, ours (paths inside of it) and theirs.

  A task's own stem is to the shared one as `dataset_stems.<task>` is to `dataset_stems.single`.

  Raises:
    UserError: the kind has no official names.
  """
  kind = config.backbone.type
  if not (official := find(kind)):
    raise UserError(f'backbone {kind!r} has no official name')
  table = official.entries(config.backbone, config.moe)
  if config.backbone.get('stems') != 'per_task':
    return table
  stem = resolve(BACKBONES[kind].module).stem_name
  shared = [e for e in table if e.path[0] in (stem, f'{stem}_norm')]
  own = [_own_stem(entry, task) for task in config.tasks for entry in shared]
  return own + [e for e in table if e not in shared]


def _own_stem(entry, task):
  (module, *rest), (name,) = entry.path, entry.names
  own = f'{module.removesuffix("_norm")}_{task}' + '_norm' * module.endswith('_norm')
  stem, _, part = name.rpartition('.')
  name = f'{stem.removesuffix(".single")}.{task}.{part}'
  return entry._replace(path=(own, *rest), names=(name,))


def blocks_of(backbone):
  return [(i, j) for i, depth in enumerate(backbone.depths) for j in range(depth)]


def moe_entries(path, name, moe, layers, layout='linear') -> list[Entry]:
  """Router and experts of `layers`, which are named 1, 2 where there are several."""
  table = router_entries(path, name, moe)
  for k, layer in enumerate(layers, 1):
    number = k if len(layers) > 1 else ''
    names = [f'{name}.experts.{e}.{layer}'.rstrip('.') for e in range(moe.num_experts)]
    for ours, theirs, how in (('w', 'weight', layout), ('b', 'bias', 'same')):
      official = tuple(f'{n}.{theirs}' for n in names)
      table += [Entry((*path, f'experts_{ours}{number}'), official, f'{how}*')]
  return table


def router_entries(path, name, moe) -> list[Entry]:
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
