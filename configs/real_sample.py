"""SM3Det on a small sample of real images: SSDD + HRSID, DOTA + dota8, HIT-UAV.

With the sample's folders below `S` and the prepared sets to go below `data`:

    sm3det prepare --name=real_sar --dataset=ssdd,hrsid --source=S/sar_ssdd,S/sar_hrsid \
      --data_root=data \
      --splits=train=Annotations/train.json:JPEGImages/train,test=Annotations/test.json:JPEGImages/test \
      --splits=train=Annotations/offshore_train.json:JPEGImages,test=Annotations/inshore_test.json:official_samples
    sm3det prepare --name=real_rgb --dataset=dota,dota,yolo_obb --data_root=data \
      --source=S/optical_dota,S/optical_dota/val_tiles_labels_by_full_image,S/optical_dota8 \
      --splits=train=labelTxt:images --splits=test=full_image_labelTxt:images \
      --splits=train=labels/train:images/train,test=labels/val:images/val
    sm3det prepare --name=real_ifr --dataset=hituav --source=S/ir_hituav --data_root=data
    sm3det train --config=real_sample --workdir=runs/real --config.data_root=data
    sm3det evaluate --workdir=runs/real

A small model at 320 px, about half an hour on two CPU cores; docs/benchmarks.md has what it scores.
`--config=real_sample:overfit` learns twelve images a task by heart (prepare them with `--subset` and
`--name=few_sar`, ...), `--config=real_sample:full` is SM3Det-T at 800 px for an accelerator.
"""  # noqa: E501

from ml_collections import ConfigDict

from data_pipelines.classes import DOTA_V10, HITUAV_CLASSES
from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config.small import shrink, takes_small

VARIANTS = ('small', 'overfit', 'full')


@takes_small
def get_config(variant: str = 'small') -> ConfigDict:
  """Three tasks of real windows; the variants are small, overfit and full."""
  if variant not in VARIANTS:
    raise UserError(f'real_sample:{variant}: expected one of {", ".join(VARIANTS)}')
  c = config_lib.default()
  c.tasks = ConfigDict(sort_keys=False)
  c.tasks.sar = config_lib.task('hbb', 'real_sar', ('ship',), ratio=2)
  c.tasks.rgb = config_lib.task('obb', 'real_rgb', DOTA_V10)
  c.tasks.ifr = config_lib.task('obb', 'real_ifr', HITUAV_CLASSES)
  c.label_space = 'per_task'
  c.tasks.rgb.train.right_angles = ('roundabout', 'storage-tank')
  # Half of HIT-UAV's boxes are persons of 11 x 19 px: its windows are enlarged.
  for t, window in ((c.tasks.rgb, 800 if variant == 'full' else 320), (c.tasks.ifr, 256)):
    t.train.tile = t.test.tile = ConfigDict(dict(size=window, overlap=window // 4, keep=0.7))
    t.train.min_side = 2.0
  if variant != 'full':
    _small(c)
  if variant == 'overfit':
    _overfit(c)
  return c


def _small(c):
  shrink(c)
  for t in c.tasks.values():
    t.size, t.max_objects = (320, 320), 128
    if t.kind == 'hbb':
      t.head.pre_nms = 300
    else:
      t.head.anchor_scales, t.head.roi.samples = (4.0,), 128
      t.head.proposals.update(pre_nms=500, max_proposals=400)
      t.head.max_detections = 200
  c.moe.num_experts = 4
  c.tasks.sar.ratio, c.tasks.ifr.ratio = 1, 2  # the largest set, the smallest objects
  c.batch_size = 4
  # Layers over RoIs (3,136 inputs, no norm) learn from scratch at this rate, hardly at 1e-3.
  c.optim.update(lr=3e-4, steps=2000, milestones=(1400, 1850), warmup_steps=100)
  c.dla.update(warmup_steps=100, decay=0.01)
  c.log_every, c.checkpoint_every = 20, 500


def _overfit(c):
  for name, t in c.tasks.items():
    t.dataset = f'few_{name}'
    t.test.split = 'train'
    t.train.update(flip=(0.0, 0.0, 0.0), rotate=0.0)
  c.tasks.sar.ratio, c.tasks.rgb.ratio, c.tasks.ifr.ratio = 1, 2, 1  # most windows are optical
  c.optim.update(steps=3500, milestones=(2800,))
