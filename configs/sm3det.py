"""SM3Det on SOI-Det with any backbone, size and pairing of heads: the paper's main results.

    sm3det train --config=sm3det:backbone=lsknet,size=S --workdir=runs/lsknet_s
    sm3det train --config=sm3det:sar=cascade_rcnn,rgb=roi_transformer --workdir=runs/cascade_roi
    sm3det evaluate --workdir=runs/lsknet_s

Arguments, all optional:

    backbone   convnext, van, lsknet, pvt_v2, swin, swin_v2, ringmoe
    size       T, S, B, and L of ConvNeXt and the two Swins; tiny, base, giant of RingMoE
    sar        gfl, retinanet, faster_rcnn, cascade_rcnn
    rgb, ifr   oriented_rcnn, roi_transformer, s2anet; ifr is by default as rgb
    experts    number of experts; 0 = the backbone's own (6 for ConvNeXt-L, as its 770 M parameters say);
               RingMoE has those of the weights that it starts from (`config.init_from`)
    small      1: in two minutes on a laptop, with drawn scenes (`sm3det quickstart --config=sm3det:small=1`)

Without arguments it is `sm3det_convnext_t`. Data as there. configs/ablations.py has the rest of what
the paper varies, configs/baselines.py what it compares with.
"""  # noqa: E501

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config import ringmoe
from sm3det_jax.config.small import takes_small

IMAGES = {'sar': 46_260, 'rgb': 25_028, 'ifr': 17_990}  # of SOI-Det, to train on
EPOCHS, MILESTONES = 12, (8, 11)


@takes_small
def get_config(text: str = '') -> config_lib.ConfigDict:
  """The main run, or what the arguments make of it: KEY=VALUE,.. as listed above."""
  a = config_lib.arguments(
    text, backbone='convnext', size='T', sar='gfl', rgb='oriented_rcnn', ifr='', experts=0
  )
  c = config_lib.default()
  if a.backbone == 'ringmoe':
    if a.experts:
      raise UserError(f'argument experts={a.experts}: backbone=ringmoe has those of its weights')
    use_ringmoe(c, a.size, {'sar': 'sar_l2', 'rgb': 'opt', 'ifr': 'opt'})
  else:
    config_lib.use_backbone(c, a.backbone, a.size)
  if (a.backbone, a.size) == ('convnext', 'L'):
    c.moe.num_experts = 6
  if a.experts:
    c.moe.num_experts = a.experts
  for name, kind in (('sar', a.sar), ('rgb', a.rgb), ('ifr', a.ifr or a.rgb)):
    c.tasks[name].head = config_lib.head(kind)
  # as released: if all heads have two stages, the last level is every second cell of the one before
  c.neck.extra_convs = any(t.head.strides[0] == 8 for t in c.tasks.values())
  return c


def use_ringmoe(c, size: str, modalities: dict[str, str]) -> None:
  """Puts in RingMoE's backbone as a detector has it, {task: modality}; SAR images have one band."""
  config_lib.use_backbone(c, 'ringmoe', size)
  # all stages are read here, in pre-training the last alone
  c.backbone.update(stems='per_task', output_norms='all', drop_path_rate=0.3)
  for name, modality in modalities.items():
    task = c.tasks[name]
    task.modality = modality
    if modality == 'sar_l2':
      mean, std = ringmoe.GREY
      task.update(bands=1, mean=mean, std=std)
      task.input.bands = (1,)  # of files that repeat it


def twelve_epochs(c) -> None:
  """Steps and milestones of a config for its tasks' images and its batch size."""
  epoch = sum(IMAGES[name] for name in c.tasks) // c.batch_size
  c.optim.steps = EPOCHS * epoch
  c.optim.milestones = tuple(n * epoch for n in MILESTONES)
  c.checkpoint_every = epoch


def mix(c, *ratios: int) -> None:
  """Images of each task in a group; eight groups a batch, one on each of the authors' GPUs."""
  for task, ratio in zip(c.tasks.values(), ratios, strict=True):
    task.ratio = ratio
  c.batch_size = 8 * sum(ratios)
  twelve_epochs(c)
