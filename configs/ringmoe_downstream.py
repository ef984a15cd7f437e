"""Detectors on RingMoE's backbone, as the paper fine-tunes them: `--config=ringmoe_downstream:DATA`.

    sm3det prepare --dataset=dior --source=DIOR --data_root=data
    sm3det prune --workdir=runs/ringmoe --keep=opt --kc --out=runs/ringmoe_kc_opt
    sm3det train --config=ringmoe_downstream:dior --workdir=runs/dior
    sm3det evaluate --workdir=runs/dior

DATA and its detector: dior, hrsid, sar_aircraft, sardet100k with Faster R-CNN; dior_r, hrsc2016 with
Oriented R-CNN. Arguments behind it, all optional:

    size       giant, base, tiny
    experts    kc, ks, ka (one dense FFN a block), ep (one collaborative expert a block), sparse (all)
    trained    where the pre-training lies: weights are TRAINED_EXPERTS_MODALITY, as `sm3det prune` is
               told above; none: from scratch
    frozen     1: the backbone stays as it is
    small      1: in two minutes on a laptop, from scratch, on drawn scenes

The paper's (arXiv 2504.03166, supplement): 12 epochs at 800 px, SGD, rate 0.01, decay 0.05, drop path
0.3, linear warm-up from 0.001 of the rate, flips. It does not print the rest: batch 8, momentum 0.9, rates
a tenth after epochs 8 and 11, 500 warm-up steps, gradient norm 35 are ours. Its decay is 500 times the
usual one of SGD: try `--config.optim.weight_decay=1e-4` too.
"""  # noqa: E501

from typing import NamedTuple

from configs import sm3det
from data_pipelines.classes import DIOR_CLASSES, SAR_AIRCRAFT_CLASSES, SAR_CLASSES
from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config import ringmoe
from sm3det_jax.config.small import takes_small


class Data(NamedTuple):
  """A data set: images to train on, their split, classes, modality, kind of boxes."""

  images: int
  split: str
  classes: tuple[str, ...]
  modality: str = 'opt'
  kind: str = 'hbb'


DATA = {
  'dior': Data(11_725, 'trainval', DIOR_CLASSES),
  'dior_r': Data(11_725, 'trainval', DIOR_CLASSES, kind='obb'),
  'hrsc2016': Data(617, 'trainval', ('ship',), kind='obb'),
  'hrsid': Data(3_642, 'train', ('ship',), 'sar_l2'),
  'sar_aircraft': Data(3_058, 'train', SAR_AIRCRAFT_CLASSES, 'sar_l2'),
  'sardet100k': Data(94_493, 'train', SAR_CLASSES, 'sar_l2'),
}
HEADS = {'hbb': 'faster_rcnn', 'obb': 'oriented_rcnn'}
EXPERTS = ('kc', 'ks', 'ka', 'ep', 'sparse')
BATCH = 8


@takes_small
def get_config(text: str = 'dior') -> config_lib.ConfigDict:
  """The detector of the data set that the text begins with, `DATA` or `DATA,KEY=VALUE,..`."""
  name, _, rest = text.partition(',')
  if name not in DATA:
    raise UserError(f'ringmoe_downstream:{name}: expected one of {", ".join(DATA)}')
  a = config_lib.arguments(rest, size='giant', experts='kc', trained='runs/ringmoe', frozen=0)
  if a.experts not in EXPERTS:
    raise UserError(f'argument experts={a.experts}: expected {", ".join(EXPERTS)}')
  d, c = DATA[name], config_lib.default()
  del c.tasks
  c.tasks = config_lib.ConfigDict(sort_keys=False)
  task = c.tasks[name] = config_lib.task(d.kind, name, d.classes)
  task.head = config_lib.head(HEADS[d.kind])
  task.train.split, task.train.rotate = d.split, 0.0
  c.label_space, c.task_balance, c.neck.extra_convs = 'per_task', 'none', False
  sm3det.use_ringmoe(c, a.size, {name: d.modality})
  _use_experts(c, a.experts)
  if a.trained != 'none':
    c.init_from = f'{a.trained}_{a.experts}_{d.modality}'
  _twelve_epochs(c, d.images)
  if a.frozen:
    c.optim.groups = (('backbone/.*', None),)
  return c


def _use_experts(c, experts):
  if experts == 'ep':
    ringmoe.keep_collaborative(c, 1)
  elif experts != 'sparse':
    ringmoe.make_dense(c)


def _twelve_epochs(c, images):
  epoch = images // BATCH
  c.batch_size = c.optim.reference_batch = BATCH
  c.checkpoint_every = epoch
  c.optim.update(
    kind='sgd',
    lr=0.01,
    weight_decay=0.05,
    warmup_ratio=1e-3,
    steps=sm3det.EPOCHS * epoch,
    milestones=tuple(n * epoch for n in sm3det.MILESTONES),
  )
