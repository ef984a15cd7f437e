"""A small SM3Det on drawn scenes: what `sm3det quickstart` trains, in minutes on two CPU cores.

    sm3det quickstart --workdir=runs/quickstart

Everything of the large model is in it: three tasks, MoE in the last three stages, DLA.
"""

from ml_collections import ConfigDict

from data_pipelines.scenes import CLASSES
from sm3det_jax import config as config_lib

SIZE = 192  # px


def get_config() -> ConfigDict:
  c = config_lib.default()
  c.tasks = ConfigDict(sort_keys=False)
  c.tasks.sar = config_lib.task('hbb', 'scenes_sar', CLASSES['sar'])
  c.tasks.rgb = config_lib.task('obb', 'scenes_optical', CLASSES['optical'])
  c.tasks.ifr = config_lib.task('obb', 'scenes_infrared', CLASSES['infrared'])
  c.tasks.rgb.train.right_angles = ('storage-tank',)
  c.label_space = 'per_task'
  for t in c.tasks.values():
    t.size, t.max_objects = (SIZE, SIZE), 48
    t.head.channels = 64
    if t.kind == 'hbb':
      t.head.update(convs=2, anchor_scale=4.0, pre_nms=200, max_detections=60)
      t.train.flip = (0.25, 0.25, 0.25)
    else:
      t.head.anchor_scales = (5.0,)  # 20 px and up: nearly every object has one of IoU 0.5
      t.head.proposals.update(pre_nms=300, max_proposals=200)
      t.head.roi.update(fc_channels=256, samples=96, positive_fraction=0.5, finest_scale=28.0)
      t.head.update(max_detections=80)
  c.backbone.update(depths=(1, 1, 2, 1), channels=(32, 64, 128, 256), drop_path_rate=0.0)
  c.backbone.layer_scale = 1.0  # from scratch
  c.moe.update(blocks=((), (0,), (0,), (0,)), num_experts=4, top_k=2)
  c.neck.channels = 64
  c.batch_size = 6
  c.optim.update(lr=5e-4, steps=1200, milestones=(850, 1100), warmup_steps=50, ema=0.0)
  c.dla.update(warmup_steps=50, decay=0.02)
  c.log_every, c.checkpoint_every = 10, 400
  return c
