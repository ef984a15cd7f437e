"""A config made small: the same experiment in minutes on a laptop, on drawn scenes.

Kinds stay: backbone, heads, where experts are and how many, balance, ratio, label space. Only sizes
shrink. What such a run scores means nothing; that it runs does.
"""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from data_pipelines import scenes
from sm3det_jax.config.files import arguments

SIZE = 96  # px
STEPS, STEPS_OF_MIXES = 30, 6  # every mix of tasks in a batch is a program of its own to compile
MODALITIES = {'sar': 'sar', 'rgb': 'optical', 'ifr': 'infrared'}  # of a task's scenes
DEPTHS, WIDTH = (1, 1, 2, 1), 32  # of the stages; channels of the first
CHANNELS = 64  # of neck and heads
HEAD = dict(  # of every head that has such keys
  channels=CHANNELS, convs=2, anchor_scale=4.0, anchor_scales=(5.0,),  # 20 px and up
  roi=dict(fc_channels=256, samples=96, positive_fraction=0.5, finest_scale=28.0),
)  # fmt: skip
PROPOSALS = dict(pre_nms=300, max_proposals=200)
FEW = dict(pre_nms=200, max_detections=60, proposals=PROPOSALS, train_proposals=PROPOSALS)


def takes_small(get_config: Callable) -> Callable:
  """`get_config` of a family, with one more argument: `small=1` gives its config made `small`."""

  @functools.wraps(get_config)
  def with_small(text: str = '') -> ConfigDict:
    parts = [part for part in text.split(',') if part]
    own = ','.join(part for part in parts if not part.startswith('small='))
    asked = ','.join(part for part in parts if part.startswith('small='))
    config = get_config(own) if own else get_config()
    return small(config) if arguments(asked, small=0).small else config

  return with_small


def small(config: ConfigDict) -> ConfigDict:
  """The experiment of a config in small, on the scenes that `sm3det quickstart` draws.

  Args:
    config: changed in place.
  """
  c = shrink(config)
  for name, t in c.tasks.items():
    show_scenes(t, MODALITIES.get(name, 'sar' if t.kind == 'hbb' else 'optical'))
    t.size, t.max_objects = (SIZE, SIZE), 32
    update_known(t.head, FEW)
  c.batch_size = c.optim.accumulate * sum(t.ratio for t in c.tasks.values())
  shortened(c, STEPS_OF_MIXES if c.sampling == 'random' else STEPS)
  c.optim.lr, c.dla.decay, c.dwa.period = 5e-4, 0.02, 5
  c.mesh.data = 1
  c.log_every = c.checkpoint_every = 10
  return c


def shrink(config: ConfigDict) -> ConfigDict:
  """The model of a config in small, to be learnt from scratch; experts stay in their stages.

  Args:
    config: changed in place.
  """
  c, b = config, config.backbone
  c.init_from = ''
  for t in c.tasks.values():
    update_known(t.head, HEAD)
  cut = lambda blocks: tuple(
    tuple(j for j in own if j < depth) for own, depth in zip(blocks, DEPTHS, strict=True)
  )
  width = b.channels[0]
  b.update(depths=DEPTHS, channels=tuple(n * WIDTH // width for n in b.channels))
  c.moe.blocks = cut(c.moe.blocks)
  if b.get('fc2_blocks'):
    b.fc2_blocks = cut(b.fc2_blocks)
  if 'collaborative' in b:
    pairs = zip(b.collaborative, DEPTHS, strict=True)
    b.collaborative = tuple(counts[:depth] for counts, depth in pairs)
  if 'heads' in b:
    b.heads = tuple(max(n * WIDTH // width, 1) for n in b.heads)
  update_known(b, dict(drop_path_rate=0.0, layer_scale=1.0))
  c.neck.channels = CHANNELS
  return c


def show_scenes(task: ConfigDict, modality: str) -> None:
  """Puts drawn scenes of a modality in the place of a task's data set."""
  task.dataset, task.classes = f'scenes_{modality}', scenes.CLASSES[modality]
  train = task.train
  train.right_angles = tuple(name for name in train.right_angles if name in task.classes)
  train.tile.size = task.test.tile.size = 0


def update_known(config: ConfigDict, values: dict) -> None:
  """Changes those of `values` that `config` has, in its parts too."""
  for key in set(config) & set(values):
    if isinstance(values[key], dict):
      update_known(config[key], values[key])
    else:
      config[key] = values[key]


def shortened(config: ConfigDict, steps: int) -> ConfigDict:
  """The same run in fewer (or more) steps, in place: warm-ups and milestones move along."""
  c = config
  scale = lambda n: max(n * steps // c.optim.steps, 1)
  c.optim.milestones = tuple(map(scale, c.optim.milestones))
  c.optim.warmup_steps, c.dla.warmup_steps = scale(c.optim.warmup_steps), scale(c.dla.warmup_steps)
  c.optim.steps = steps
  return c
