"""What a config holds: by default the released SM3Det-T on SOI-Det. `check` refuses the rest.

A config is an `ml_collections.ConfigDict`. The files in `configs/` start from `default()` and
change what their experiment changes; the command line changes single values
(`--config.optim.lr=3e-4`).
"""

import difflib
import pathlib

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

import configs
from sm3det_jax import backbone_configs
from sm3det_jax.head_configs import DEFAULT, HEADS

ConfigDict = ml_collections.ConfigDict

CHOICES = {
  'label_space': ('joint', 'per_task'),
  'balance': ('none', 'dla', 'uncertainty', 'dwa', 'gradnorm'),
  'sampling': ('ratio', 'random'),
  'moe.softmax': ('after', 'before'),
  'moe.level': ('grid', 'image'),
  'backbone.stems': ('shared', 'per_task'),
  'optim.lr_scaling': ('none', 'linear', 'sqrt'),
}

SAR_CLASSES = ('ship', 'aircraft', 'car', 'tank', 'bridge', 'harbor')
# SOI-Det renames three DOTA classes, so that the joint label space has no name twice.
DOTA_CLASSES = (
  'small-vehicle', 'large-vehicle', 'plane', 'Ship', 'Harbor', 'tennis-court', 'soccer-ball-field',
  'ground-track-field', 'baseball-diamond', 'swimming-pool', 'roundabout', 'basketball-court',
  'storage-tank', 'Bridge', 'helicopter',
)  # fmt: skip
DRONEVEHICLE_CLASSES = ('CAR', 'BUS', 'FERIGHT_CAR', 'TRUCK', 'VAN')
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def task(box: str, dataset: str, classes: tuple, ratio: int = 1, **changes) -> ConfigDict:
  """One task: what it detects, the prepared data set it reads, its head.

  Args:
    box: 'hbb' (x1, y1, x2, y2) or 'obb' (cx, cy, w, h, theta; le90).
    dataset: name of the prepared data set below `config.data_root`.
    classes: class names; the order is the label order.
    ratio: images of this task in a group (2:1:1 in the paper).
    **changes: any other key, nested ones as dicts.
  """
  c = ConfigDict(
    dict(
      box=box,
      dataset=dataset,
      classes=tuple(classes),
      ratio=ratio,
      head=head(DEFAULT[box]),
      bands=3,  # a one-band file is repeated to three, as upstream reads it
      mean=IMAGENET_MEAN,
      std=IMAGENET_STD,
      size=(800, 800),  # height, width of the padded canvas
      max_objects=512,  # padding; what does not fit is counted and reported
      train=dict(
        split='train',
        tile=dict(size=0, overlap=0, keep=0.7),  # size 0: whole images
        flip=(0.5, 0.0, 0.0)
        if box == 'hbb'
        else (0.25, 0.25, 0.25),  # horizontal, vertical, diagonal
        rotate=0.0 if box == 'hbb' else 0.5,  # probability of a rotation by U(-180, 180) degrees
        right_angles=(),  # classes that allow only rotations by 90, 180, 270 degrees
        min_side=0.0 if box == 'hbb' else 5.0,  # px; smaller boxes are not trained on
        keep_empty=False,
      ),
      test=dict(split='test', tile=dict(size=0, overlap=0, keep=0.7)),
    )
  )
  c.update(changes)
  return c


def default() -> ConfigDict:
  """SM3Det-T on SOI-Det as published (34k steps, batch 32, ratio 2:1:1)."""
  round_classes = ('roundabout', 'storage-tank')
  c = ConfigDict(sort_keys=False)
  c.seed = 0
  c.data_root = 'data'
  c.init_from = ''  # workdir or file of official weights: what fits of it is where training starts
  c.label_space = 'joint'  # or 'per_task'
  c.tasks = ConfigDict(sort_keys=False)
  c.tasks.sar = task('hbb', 'soi_det_sar', SAR_CLASSES, ratio=2)
  c.tasks.rgb = task('obb', 'soi_det_rgb', DOTA_CLASSES, train=dict(right_angles=round_classes))
  c.tasks.ifr = task('obb', 'soi_det_ifr', DRONEVEHICLE_CLASSES)
  c.moe = dict(
    blocks=(),  # MoE blocks of each stage
    num_experts=8,
    top_k=2,
    noisy=True,
    gate='cosine',
    softmax='after',  # the top-k, as released; 'before' it, as the paper's equation 2
    level='grid',  # every grid cell has its experts; 'image': one set for all cells of an image
    balance_weight=0.01,
    implementation='blocked',
    capacity_factor=0.0,  # choices of an expert beyond this times the mean are lost; 0: none are
    aux_stats='global',  # or 'per_device', as the reference
  )
  use_backbone(c, 'convnext', 'T')
  # without convolutions of their own the coarsest levels repeat every second cell
  c.neck = dict(type='fpn', channels=256, extra_convs=True)
  c.dtype = 'auto'  # of the compute: bfloat16 on accelerators, float32 on CPU
  c.batch_size = 32  # images a step, over all tasks and devices
  c.sampling = 'ratio'  # of the tasks; 'random': each part of a batch is of a random task
  c.mesh = dict(data=-1, expert=1)  # -1: all remaining devices
  c.remat = ()  # 'backbone', 'heads': what is computed anew in the backward pass to save memory
  c.optim = dict(
    lr=1e-4,
    lr_scaling='none',  # 'linear', 'sqrt': rate and schedule follow batch_size / reference_batch
    reference_batch=32,
    betas=(0.9, 0.999),
    weight_decay=0.05,
    clip_norm=35.0,
    steps=33_468,
    milestones=(22_312, 30_679),
    gamma=0.1,
    warmup_steps=500,
    warmup_ratio=1 / 3,
    accumulate=1,  # batch_size / accumulate images at once; their mean gradient makes a step
    zero1=False,  # each device keeps its share of the optimizer's moments
    ema=0.0,  # decay of the parameters' running average; 0 = off
  )
  c.balance = 'dla'  # of the tasks: 'none', 'dla', 'uncertainty', 'dwa' or 'gradnorm'
  c.dla = dict(
    variant='released',
    temperature=3.0,
    bias=0.4,
    decay=0.001,
    warmup_steps=500,
    head_policy='normal',
    shared_policy='sigmoid_kl',
    max_ratio=10.0,
  )
  c.dwa = dict(temperature=2.0, period=500)  # steps that a loss is averaged over
  c.gradnorm = dict(alpha=1.5, lr=0.025)
  c.workers = config_dict.FieldReference('auto', field_type=object)  # or a number of processes
  c.log_every = 50
  c.checkpoint_every = 2_789
  c.keep_checkpoints = 2
  return c


def head(kind: str) -> ConfigDict:
  """The released settings of a head; ValueError for an unknown kind."""
  if kind not in HEADS:
    raise ValueError(f'head {kind!r}: expected {", ".join(HEADS)}')
  return HEADS[kind][1]()


def use_backbone(config: ConfigDict, kind: str, size: str = 'T') -> None:
  """Puts in a backbone as the paper uses it: `config.backbone`, and where MoE layers are.

  Args:
    config: changed in place.
    kind: 'convnext', 'van', 'lsknet', 'pvt_v2' or 'swin'.
    size: 'T', 'S' or 'B'; 'L' for ConvNeXt and Swin.

  Raises:
    ValueError: another kind or size.
  """
  if kind not in backbone_configs.BACKBONES:
    raise ValueError(f'backbone {kind!r}: expected {sorted(backbone_configs.BACKBONES)}')
  config.backbone, moe = _backbone(kind, size)
  config.moe.update(moe)


def _backbone(kind, size='T'):
  backbone, moe = backbone_configs.BACKBONES[kind](size)
  backbone.stems = 'shared'  # 'per_task': a stem a task, as tasks of different bands need it
  return backbone, moe


def check(config: ConfigDict) -> ConfigDict:
  """Returns `config` if it holds together.

  Raises:
    ValueError: a key that `default()` lacks (its neighbours are named), an unknown task kind, or
      values that contradict each other.
  """
  reference = default()
  _unknown_keys(config, reference, 'config', skip=('tasks', 'backbone'))
  _check_backbone(config)
  if not len(config.tasks):
    raise ValueError('config.tasks is empty: a model needs at least one task')
  for name, c in config.tasks.items():
    if c.get('box') not in ('hbb', 'obb'):
      raise ValueError(f"config.tasks.{name}.box={c.get('box')!r}: expected 'hbb' or 'obb'")
    _unknown_keys(c, task(c.box, '', ()), f'config.tasks.{name}', skip=('head',))
    if c.head.type not in HEADS:
      raise ValueError(f'config.tasks.{name}.head.type={c.head.type!r}: expected {sorted(HEADS)}')
    box, head = HEADS[c.head.type]
    _unknown_keys(c.head, head(), f'config.tasks.{name}.head')
    if box != c.box:
      raise ValueError(
        f'config.tasks.{name}: head {c.head.type!r} gives {box}, the task is {c.box}'
      )
    if not c.classes:
      raise ValueError(f'config.tasks.{name}.classes is empty')
    if len(set(c.classes)) != len(c.classes):
      raise ValueError(f'config.tasks.{name}.classes has a name twice: {c.classes}')
    if not len(c.mean) == len(c.std) == c.bands:
      raise ValueError(
        f'config.tasks.{name}: bands={c.bands} but {len(c.mean)} means and {len(c.std)} stds'
      )
  bands = {name: c.bands for name, c in config.tasks.items()}
  if config.backbone.stems == 'shared' and len(set(bands.values())) > 1:
    raise ValueError(
      f'config.tasks have different bands, {bands}, which one stem cannot read: set '
      "config.backbone.stems='per_task'"
    )
  unknown = set(config.remat) - {'backbone', 'heads'}
  if unknown:
    raise ValueError(f"config.remat={config.remat}: expected some of ('backbone', 'heads')")
  if config.optim.accumulate < 1:
    raise ValueError(f'config.optim.accumulate={config.optim.accumulate}: at least 1')
  for key, values in CHOICES.items():
    section, _, name = key.rpartition('.')
    value = (config[section] if section else config)[name]
    if value not in values:
      raise ValueError(f'config.{key}={value!r}: expected {" or ".join(map(repr, values))}')
  if not 1 <= config.moe.top_k <= config.moe.num_experts:
    raise ValueError(f'config.moe: top_k={config.moe.top_k}, num_experts={config.moe.num_experts}')
  group = sum(c.ratio for c in config.tasks.values())
  if config.sampling == 'random' and config.optim.accumulate > 1:
    raise ValueError(
      "config.sampling='random' gives micro-batches of several mixes, which do not add up: set "
      f'config.optim.accumulate=1, not {config.optim.accumulate}'
    )
  micro = config.optim.accumulate
  if config.batch_size % (micro * group):
    raise ValueError(
      f'config.batch_size={config.batch_size} is not a multiple of '
      f'{f"{micro} micro-batches x " if micro > 1 else ""}'
      f'{" + ".join(str(c.ratio) for c in config.tasks.values())} = {group}, one group of images'
    )
  return config


def _check_backbone(config):
  kinds, kind = backbone_configs.BACKBONES, config.backbone.get('type')
  if kind not in kinds:
    raise ValueError(f'config.backbone.type={kind!r}: expected {sorted(kinds)}')
  _unknown_keys(config.backbone, _backbone(kind)[0], f'config.backbone ({kind})')
  backbone_configs.check(config.backbone, config.moe)


def copied(config: ConfigDict) -> ConfigDict:
  """A copy that shares nothing and keeps the order of tasks; ml_collections' own copies sort it."""
  copy = ConfigDict(sort_keys=False)
  for key, value in config.items():
    copy[key] = copied(value) if isinstance(value, ConfigDict) else value
  return copy


def complete(config: ConfigDict) -> ConfigDict:
  """`config`, written before some keys were there, with these keys at their defaults."""
  _fill(config.backbone, _backbone(config.backbone.type)[0])
  for c in config.tasks.values():
    _fill(c.head, head(c.head.type))
    _fill(c, task(c.box, '', ()))
  _fill(config, default())
  return config


def _fill(config, reference):
  for key, value in reference.items():
    if key not in config:
      config[key] = value
    elif isinstance(value, ConfigDict) and key not in ('tasks', 'backbone', 'head'):
      _fill(config[key], value)


def _unknown_keys(config, reference, where, skip=()):
  for key in config:
    if key not in reference:
      near = difflib.get_close_matches(key, list(reference), 3) or sorted(reference)
      raise ValueError(f'{where}.{key} is not a known key; near it: {", ".join(near)}')
    if key not in skip and isinstance(reference[key], ConfigDict):
      _unknown_keys(config[key], reference[key], f'{where}.{key}')


def joint_classes(config: ConfigDict) -> tuple[str, ...]:
  """Every class name once, tasks in order (for SOI-Det the paper's 26)."""
  return tuple(dict.fromkeys(n for c in config.tasks.values() for n in c.classes))


def label_space(config: ConfigDict, name: str) -> tuple[str, ...]:
  """Class names that the head of task `name` scores, in label order."""
  return (
    joint_classes(config) if config.label_space == 'joint' else tuple(config.tasks[name].classes)
  )


def arguments(text: str, **defaults) -> ConfigDict:
  """The arguments of a config file, 'key=value,key=value', as `FILE:key=value,...` hands them over.

  Args:
    text: each value is read as the type of its default.
    **defaults: all keys.

  Raises:
    ValueError: an unknown key, or a value of another type.
  """
  values = ConfigDict(defaults)
  for pair in filter(None, text.split(',')):
    key, _, value = pair.partition('=')
    if key not in defaults:
      raise ValueError(f'argument {pair!r}: expected KEY=VALUE with a key of {sorted(defaults)}')
    try:
      values[key] = type(defaults[key])(value)
    except ValueError:
      kind = type(defaults[key]).__name__
      raise ValueError(f'argument {pair!r}: {value!r} is no {kind}') from None
  return values


def load(arguments: list[str]) -> ConfigDict:
  """The config that command-line arguments name.

  Args:
    arguments: `--config=FILE` (a path, or the name of a shipped config; `FILE:argument` hands the
      argument to its `get_config`), and any number of `--config.a.b=value`.

  Raises:
    FileNotFoundError: no such file; the shipped ones are listed.
    ValueError: no --config, an unknown key, a value of another type, or as `check`.
  """
  named = [i for i, a in enumerate(arguments) if a.startswith('--config=')]
  if not named:
    raise ValueError('which config? say --config=FILE or --config=NAME of a shipped one')
  arguments = list(arguments)
  arguments[named[-1]] = f'--config={_find(arguments[named[-1]].removeprefix("--config="))}'
  return check(_parsed(config_flags.DEFINE_config_file, arguments))


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
  """`config` with `--config.a.b=value` changes, checked; errors as `load`."""
  define = lambda name, **options: config_flags.DEFINE_config_dict(name, config, **options)
  return check(_parsed(define, arguments))


def _parsed(define, arguments):
  values = flags.FlagValues()
  arguments = ['sm3det', *arguments]
  define('config', flag_values=values, sys_argv=arguments)
  try:
    values(arguments)
    config = values.config
  except (AttributeError, KeyError, TypeError, flags.Error) as error:
    # what a config file raised is the last line of a traceback
    text = str(error).strip('"\'\n').splitlines()[-1].removeprefix('ValueError: ')
    raise ValueError(text) from error
  config.unlock()
  return config


def _find(name):
  """Path of a config file, with its argument after a colon, by path or by shipped name."""
  file, colon, argument = name.partition(':')
  shipped = pathlib.Path(configs.__file__).parent
  for path in (pathlib.Path(file), shipped / file, shipped / f'{file}.py'):
    if path.is_file():
      return f'{path}{colon}{argument}'
  names = sorted(p.stem for p in shipped.glob('*.py') if p.stem != '__init__')
  raise FileNotFoundError(f'no config file {file!r}; shipped ones: {", ".join(names)}')
