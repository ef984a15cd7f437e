"""A small SM3Det on drawn scenes: what `sm3det quickstart` trains, in minutes on two CPU cores.

    sm3det quickstart --workdir=runs/quickstart

Everything of the large model is in it: three tasks, MoE in the last three stages, DLA. The verb takes
the other families too, made as small by `small=1`:

    sm3det quickstart --config=ablations:moe=last2,small=1 --workdir=runs/try
"""  # noqa: E501

from ml_collections import ConfigDict

from data_pipelines.scenes import CLASSES
from sm3det_jax import config as config_lib
from sm3det_jax.config import small

SIZE = 192  # px


@small.takes_small
def get_config() -> ConfigDict:
  """Three tasks of 192 px, learnt from scratch in 1,200 steps of 6 images."""
  c = config_lib.default()
  c.tasks = ConfigDict(sort_keys=False)
  c.tasks.sar = config_lib.task('hbb', 'scenes_sar', CLASSES['sar'])
  c.tasks.rgb = config_lib.task('obb', 'scenes_optical', CLASSES['optical'])
  c.tasks.ifr = config_lib.task('obb', 'scenes_infrared', CLASSES['infrared'])
  c.tasks.rgb.train.right_angles = ('storage-tank',)
  c.label_space = 'per_task'
  small.shrink(c)
  for t in c.tasks.values():
    t.size, t.max_objects = (SIZE, SIZE), 48
    if t.kind == 'hbb':
      t.head.update(pre_nms=200, max_detections=60)
      t.train.flip = (0.25, 0.25, 0.25)
    else:
      t.head.proposals.update(small.PROPOSALS)
      t.head.max_detections = 80
  c.moe.num_experts = 4
  c.batch_size = 6
  c.optim.update(lr=5e-4, steps=1200, milestones=(850, 1100), warmup_steps=50, ema=0.0)
  c.dla.update(warmup_steps=50, decay=0.02)
  c.log_every, c.checkpoint_every = 10, 400
  return c
