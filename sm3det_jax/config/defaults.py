"""What a config holds: by default the released SM3Det-T on SOI-Det."""

from collections.abc import Sequence

from ml_collections import ConfigDict, config_dict

from data_pipelines.classes import DOTA_CLASSES, DRONEVEHICLE_CLASSES, SAR_CLASSES
from data_pipelines.errors import UserError
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.heads import DEFAULT, HEADS

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def task(
  kind: str, dataset: str, classes: Sequence[str] = (), ratio: int = 1, **changes
) -> ConfigDict:
  """One task: what it learns, the prepared data set it reads, its head.

  Args:
    kind: 'hbb' (objects as x1, y1, x2, y2), 'obb' (cx, cy, w, h, theta; le90) or 'image' (images
      alone: no objects and no head, so none of their keys).
    dataset: name of the prepared data set below `config.data_root`.
    classes: class names; the order is the label order.
    ratio: images of this task in a group (2:1:1 in the paper).
    **changes: any other key, nested ones as dicts.
  """
  c = ConfigDict(
    dict(
      kind=kind,
      dataset=dataset,
      classes=tuple(classes),
      ratio=ratio,
      modality='auto',  # by name or bands; or RingMoE's 'opt', 'sar_l1', 'sar_l2', 'ms'
      bands=3,  # a one-band file is repeated to three, as upstream reads it
      mean=IMAGENET_MEAN,
      std=IMAGENET_STD,
      input=dict(  # how a file's values become the model's, before mean and std; docs/radiometry.md
        bands=(),  # those of the file, from 1 on, in the model's order; (): all
        unit='as_is',  # 'power_to_db', 'amplitude_to_db'
        range='as_is',  # 'fixed', 'percentiles': low to high, in that unit, become 0 to 255
        low=(),  # of each band or of all; of percentiles, the data set's when training starts
        high=(),
        percentiles=(0.5, 99.5),
      ),
      size=(800, 800),  # height, width of the padded canvas
      train=dict(
        split='train',
        tile=dict(size=0, overlap=0, keep=0.7),  # size 0: whole images
        # horizontal, vertical, diagonal
        flip=(0.25, 0.25, 0.25) if kind == 'obb' else (0.5, 0.0, 0.0),
        rotate=0.5 if kind == 'obb' else 0.0,  # probability of a rotation by U(-180, 180) degrees
      ),
      test=dict(split='test', tile=dict(size=0, overlap=0, keep=0.7)),
    )
  )
  if kind == 'image':
    # least and largest share of an image that is cut out, width / height of it; (): the whole image
    c.train.crop = dict(area=(), aspect=(3 / 4, 4 / 3))
    c.target = 'pixel'  # what a masked image's model reconstructs; 'power': the sum of squares
  else:
    c.head = head(DEFAULT[kind])
    c.max_objects = 512  # padding; what does not fit is counted and reported
    c.train.right_angles = ()  # classes that allow only rotations by 90, 180, 270 degrees
    c.train.min_side = 5.0 if kind == 'obb' else 0.0  # px; smaller boxes are not trained on
    c.train.keep_empty = False
  c.update(changes)
  return c


def default() -> ConfigDict:
  """SM3Det-T on SOI-Det as published (34k steps, batch 32, ratio 2:1:1)."""
  round_classes = ('roundabout', 'storage-tank')  # boxes of round things do not turn with them
  c = ConfigDict(sort_keys=False)
  c.seed = 0
  c.model = 'm2det'  # see sm3det_jax.model
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
  c.mesh = dict(data=-1, expert=1, model=1)  # -1: all remaining devices
  c.remat = ()  # 'backbone', 'heads': what is computed anew in the backward pass to save memory
  c.optim = dict(
    kind='adamw',  # or 'sgd'
    lr=1e-4,
    lr_scaling='none',  # 'linear', 'sqrt': rate and schedule follow batch_size / reference_batch
    reference_batch=32,
    betas=(0.9, 0.999),  # of AdamW
    momentum=0.9,  # of SGD
    bias_correction=True,  # of AdamW; False: its first steps are larger
    weight_decay=0.05,
    clip_norm=35.0,
    steps=33_468,
    milestones=(22_312, 30_679),
    schedule='step',  # x gamma a milestone; 'cosine': to min_lr at the last step
    min_lr=0.0,  # where the cosine ends
    gamma=0.1,
    warmup_steps=500,
    warmup_ratio=1 / 3,
    accumulate=1,  # batch_size / accumulate images at once; their mean gradient makes a step
    groups=(),  # (regex of parameter paths, rate factor, decay factor); rate None: frozen
    zero1=False,  # each device keeps its share of the optimizer's moments
    ema=0.0,  # decay of the parameters' running average; 0 = off
  )
  c.phases = ()  # (until step or None, terms that count or None: all, frozen parameter paths)
  c.task_balance = 'dla'  # of the tasks: 'none', 'dla', 'uncertainty', 'dwa' or 'gradnorm'
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
  c.simmim = dict(  # of config.model='simmim'
    cell=32,  # px, side of what is masked or not
    ratio=0.6,  # of the cells that are masked
    loss='l2',  # mean square of what is masked; 'l1': as released
  )
  c.workers = config_dict.FieldReference('auto', field_type=object)  # or a number of processes
  c.log_every = 50
  c.checkpoint_every = 2_789
  c.keep_checkpoints = 2
  return c


def head(kind: str) -> ConfigDict:
  """The released settings of a head; ValueError for an unknown kind."""
  if kind not in HEADS:
    raise UserError(f'head {kind!r}: expected {", ".join(HEADS)}')
  return HEADS[kind].defaults()


def use_backbone(config: ConfigDict, kind: str, size: str = 'T') -> None:
  """Puts in a backbone as the paper uses it: `config.backbone`, and where MoE layers are.

  Args:
    config: changed in place.
    kind: a key of `BACKBONES`.
    size: 'T', 'S' or 'B'; 'L' for ConvNeXt and the two Swins; of RingMoE
      'tiny' (or 'T'), 'base', 'giant'.

  Raises:
    UserError: another kind or size.
  """
  if kind not in BACKBONES:
    raise UserError(f'backbone {kind!r}: expected {sorted(BACKBONES)}')
  config.backbone, moe = backbone(kind, size)
  config.moe.update(moe)


def backbone(kind, size: str = 'T') -> tuple[ConfigDict, dict]:
  """(`config.backbone`, changes of `config.moe`) of a kind and size."""
  made, moe = BACKBONES[kind].defaults(size)
  made.stems = 'shared'  # 'per_task': a stem a task, as tasks of different bands need it
  return made, moe


def copied(config: ConfigDict) -> ConfigDict:
  """A copy that shares nothing and keeps the order of tasks; ml_collections' own copies sort it."""
  copy = ConfigDict(sort_keys=False)
  for key, value in config.items():
    copy[key] = copied(value) if isinstance(value, ConfigDict) else value
  return copy


def complete(config: ConfigDict) -> ConfigDict:
  """`config`, written before some keys were there, with these keys at their defaults."""
  if 'balance' in config:  # its name before there were other balances
    config.task_balance = config.balance
    del config.balance
  _fill(config.backbone, backbone(config.backbone.type)[0])
  for c in config.tasks.values():
    if 'box' in c:  # its name before there were tasks without boxes
      c.kind = c.box
      del c.box
    if 'head' in c:
      _fill(c.head, head(c.head.type))
    _fill(c, task(c.kind, ''))
  _fill(config, default())
  return config


def _fill(config, reference):
  for key, value in reference.items():
    if key not in config:
      config[key] = value
    elif isinstance(value, ConfigDict) and key not in ('tasks', 'backbone', 'head'):
      _fill(config[key], value)
