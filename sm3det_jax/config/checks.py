"""What a config must hold to: `check` refuses the rest, in one line that says what is allowed."""

import difflib

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import backbones, defaults
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.heads import HEADS

CHOICES = {
  'label_space': ('joint', 'per_task'),
  'task_balance': ('none', 'dla', 'uncertainty', 'dwa', 'gradnorm'),
  'sampling': ('ratio', 'random'),
  'moe.softmax': ('after', 'before'),
  'moe.level': ('grid', 'image'),
  'backbone.stems': ('shared', 'per_task'),
  'optim.lr_scaling': ('none', 'linear', 'sqrt'),
}


def check(config: ConfigDict) -> ConfigDict:
  """Returns `config` if it holds together.

  Raises:
    UserError: a key that `default()` lacks (its neighbours are named), an unknown task kind, or
      values that contradict each other.
  """
  reference = defaults.default()
  _unknown_keys(config, reference, 'config', skip=('tasks', 'backbone'))
  _check_backbone(config)
  if not len(config.tasks):
    raise UserError('config.tasks is empty: a model needs at least one task')
  for name, c in config.tasks.items():
    if 'box' in c:
      raise UserError(f'config.tasks.{name}.box={c.box!r}: the key is called `kind` now')
    if c.get('kind') not in ('hbb', 'obb'):
      raise UserError(f"config.tasks.{name}.kind={c.get('kind')!r}: expected 'hbb' or 'obb'")
    _unknown_keys(c, defaults.task(c.kind, '', ()), f'config.tasks.{name}', skip=('head',))
    if c.head.type not in HEADS:
      raise UserError(f'config.tasks.{name}.head.type={c.head.type!r}: expected {sorted(HEADS)}')
    row = HEADS[c.head.type]
    _unknown_keys(c.head, row.defaults(), f'config.tasks.{name}.head')
    if row.box != c.kind:
      raise UserError(
        f'config.tasks.{name}: head {c.head.type!r} gives {row.box}, the task is {c.kind}'
      )
    if not c.classes:
      raise UserError(f'config.tasks.{name}.classes is empty')
    if len(set(c.classes)) != len(c.classes):
      raise UserError(f'config.tasks.{name}.classes has a name twice: {c.classes}')
    if not len(c.mean) == len(c.std) == c.bands:
      raise UserError(
        f'config.tasks.{name}: bands={c.bands} but {len(c.mean)} means and {len(c.std)} stds'
      )
  bands = {name: c.bands for name, c in config.tasks.items()}
  if config.backbone.stems == 'shared' and len(set(bands.values())) > 1:
    raise UserError(
      f'config.tasks have different bands, {bands}, which one stem cannot read: set '
      "config.backbone.stems='per_task'"
    )
  unknown = set(config.remat) - {'backbone', 'heads'}
  if unknown:
    raise UserError(f"config.remat={config.remat}: expected some of ('backbone', 'heads')")
  if config.optim.accumulate < 1:
    raise UserError(f'config.optim.accumulate={config.optim.accumulate}: at least 1')
  for key, values in CHOICES.items():
    section, _, name = key.rpartition('.')
    value = (config[section] if section else config)[name]
    if value not in values:
      raise UserError(f'config.{key}={value!r}: expected {" or ".join(map(repr, values))}')
  if not 1 <= config.moe.top_k <= config.moe.num_experts:
    raise UserError(f'config.moe: top_k={config.moe.top_k}, num_experts={config.moe.num_experts}')
  group = sum(c.ratio for c in config.tasks.values())
  if config.sampling == 'random' and config.optim.accumulate > 1:
    raise UserError(
      "config.sampling='random' gives micro-batches of several mixes, which do not add up: set "
      f'config.optim.accumulate=1, not {config.optim.accumulate}'
    )
  micro = config.optim.accumulate
  if config.batch_size % (micro * group):
    raise UserError(
      f'config.batch_size={config.batch_size} is not a multiple of '
      f'{f"{micro} micro-batches x " if micro > 1 else ""}'
      f'{" + ".join(str(c.ratio) for c in config.tasks.values())} = {group}, one group of images'
    )
  return config


def _check_backbone(config):
  kinds, kind = BACKBONES, config.backbone.get('type')
  if kind not in kinds:
    raise UserError(f'config.backbone.type={kind!r}: expected {sorted(kinds)}')
  _unknown_keys(config.backbone, defaults.backbone(kind)[0], f'config.backbone ({kind})')
  backbones.check(config.backbone, config.moe)


def _unknown_keys(config, reference, where, skip=()):
  for key in config:
    if key not in reference:
      near = difflib.get_close_matches(key, list(reference), 3) or sorted(reference)
      raise UserError(f'{where}.{key} is not a known key; near it: {", ".join(near)}')
    if key not in skip and isinstance(reference[key], ConfigDict):
      _unknown_keys(config[key], reference[key], f'{where}.{key}')
