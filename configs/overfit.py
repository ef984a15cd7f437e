"""Four drawn scenes a task, learnt by heart: can a pairing of heads reach mAP@50 >= 0.9 on them?

    sm3det bench overfit --config=overfit
    sm3det bench overfit --config=overfit:sar=faster_rcnn,rgb=roi_transformer

The small model of the quickstart, without augmentation; the arguments are those of
configs/sm3det.py. docs/benchmarks.md has what it took.
"""

from ml_collections import ConfigDict

from configs import quickstart
from sm3det_jax import config as config_lib
from sm3det_jax.config import small

SIZE = 128  # px
FEW = dict(
  max_detections=80, proposals=small.PROPOSALS, train_proposals=small.PROPOSALS
)  # of every head that has such keys


@small.takes_small
def get_config(text: str = '') -> ConfigDict:
  """The quickstart's model with other heads (arguments `sar`, `rgb`, `ifr`), 800 steps."""
  a = config_lib.arguments(text, sar='gfl', rgb='oriented_rcnn', ifr='')
  c = quickstart.get_config()
  for name, kind in (('sar', a.sar), ('rgb', a.rgb), ('ifr', a.ifr or a.rgb)):
    t = c.tasks[name]
    t.head = config_lib.head(kind)
    small.update_known(t.head, small.HEAD | FEW)
    t.size = (SIZE, SIZE)
    t.train.update(flip=(0.0, 0.0, 0.0), rotate=0.0)
    t.test.split = 'train'
  c.optim.update(lr=4e-4, steps=800, milestones=(600, 740), warmup_steps=20)
  c.dla.warmup_steps = 20
  c.log_every, c.checkpoint_every = 20, 800
  return c
