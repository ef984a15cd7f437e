"""Four drawn scenes a task, learnt by heart: any pairing of heads reaches mAP@50 >= 0.9 on them.

    sm3det bench overfit --config=overfit
    sm3det bench overfit --config=overfit:sar=faster_rcnn,rgb=roi_transformer,ifr=roi_transformer

The small model of the quickstart, without augmentation. docs/benchmarks.md has what it took.
"""

from ml_collections import ConfigDict

from configs import quickstart
from sm3det_jax import config as configs

SIZE = 128  # px
# of every head that has such a key
SMALL = dict(
  channels=64, convs=2, max_detections=80, pre_nms=200,
  proposals=dict(pre_nms=300, max_proposals=200),
  roi=dict(fc_channels=256, samples=96, positive_fraction=0.5, finest_scale=28.0),
)  # fmt: skip


def get_config(heads: str = '') -> ConfigDict:
  c = quickstart.get_config()
  for task, kind in (pair.split('=') for pair in heads.split(',') if pair):
    c.tasks[task].head = configs.HEADS[kind][1]()
    _update(c.tasks[task].head, SMALL)
  for t in c.tasks.values():
    t.size = (SIZE, SIZE)
    t.train.update(flip=(0.0, 0.0, 0.0), rotate=0.0)
    t.test.split = 'train'
  c.batch_size = 6
  c.optim.update(lr=3e-4, steps=800, milestones=(600, 740), warmup_steps=20)
  c.dla.update(warmup_steps=20)
  c.log_every, c.checkpoint_every = 20, c.optim.steps
  return c


def _update(head, values):
  for key in head.keys() & values.keys():
    if isinstance(values[key], dict):
      _update(head[key], values[key])
    else:
      head[key] = values[key]
