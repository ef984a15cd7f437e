"""RingMoE's experiments (arXiv 2504.03166): modalities, profiles, settings of its pre-training.

Profile `paper` is the paper's reading, with the released numbers for what it does not print; `code`
is the released code's arithmetic.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from data_pipelines.modalities import BANDS
from sm3det_jax.config import defaults
from sm3det_jax.config.defaults import IMAGENET_MEAN, IMAGENET_STD
from sm3det_jax.config.modality import MODALITIES

PROFILES = {
  'paper': dict(
    backbone=dict(attention='cosine', key_bias=False, gelu='erf', epsilons=(1e-5,) * 4,
                  combine='probability', balance='paper'),
    moe=dict(capacity_factor=0.0),
    simmim=dict(loss='l2'),
    optim=dict(lr=2e-4, min_lr=4e-7, bias_correction=True),
    bands=BANDS,
    targets=dict(sar_l1='power'),
    area=(0.2, 1.0),
  ),
  'code': dict(
    backbone=dict(attention='table', key_bias=True, gelu='tanh',
                  epsilons=(1e-6, 1e-6, 1e-4, 1e-6), combine='renormalised', balance='released'),
    moe=dict(capacity_factor=1.2),
    simmim=dict(loss='l1'),
    # 2.5e-4 x 1 image a device / 512
    optim=dict(lr=2.5e-4 / 512, min_lr=5e-7 / 512, bias_correction=False),
    bands=BANDS | {'sar_l2': 3},
    targets={},
    area=(0.2, 0.5),  # of tiles that are larger
  ),
}  # fmt: skip
# vectors, biases of experts too, the mask token and tables of relative positions
NO_DECAY = r'.*(bias|scale|position_b1|\.b[12]|mask_token/token|bias_table)'
TILE = 192  # px
GREY = tuple((sum(values) / 3,) for values in (IMAGENET_MEAN, IMAGENET_STD))


def ringmoe(
  size: str = 'giant', profile: str = 'paper', modalities: Sequence[str] = MODALITIES
) -> ConfigDict:
  """Pre-training of RingMoE on tiles of some modalities, 32 of each a step.

  Args:
    size: 'giant', 'base' or 'tiny'.
    profile: a key of `PROFILES`.
    modalities: of `MODALITIES`.

  Raises:
    UserError: another size, profile or modality, one that stands twice, or none.
  """
  if profile not in PROFILES:
    raise UserError(f'profile={profile!r}: expected {", ".join(PROFILES)}')
  for name in modalities:
    if name not in MODALITIES or list(modalities).count(name) > 1:
      raise UserError(f'modality {name!r}: expected some of {", ".join(MODALITIES)}, each once')
  if not modalities:
    raise UserError(f'no modality: expected some of {", ".join(MODALITIES)}')
  p, c = PROFILES[profile], defaults.default()
  c.model, c.task_balance, c.label_space = 'simmim', 'none', 'per_task'
  c.tasks = ConfigDict(sort_keys=False)
  for name in [n for n in MODALITIES if n in modalities]:
    c.tasks[name] = modality(name, p['bands'][name], p['targets'].get(name, 'pixel'))
    c.tasks[name].train.crop.area = p['area']
  defaults.use_backbone(c, 'ringmoe', size)
  c.backbone.stems = 'per_task'
  for part in ('backbone', 'moe', 'simmim'):
    c[part].update(p[part])
  c.batch_size = 32 * len(c.tasks)
  c.optim.update(
    p['optim'], weight_decay=0.05, clip_norm=5.0, schedule='cosine', milestones=(),
    warmup_steps=200, warmup_ratio=0.004, groups=((NO_DECAY, 1.0, 0.0),),
    steps=9_464_445,  # the optical tiles, once
  )  # fmt: skip
  c.checkpoint_every = 2000
  return c


def modality(name: str, bands: int, target: str = 'pixel') -> ConfigDict:
  """The task of a modality: tiles of 192 px, normalised as the released code does."""
  normal = {
    3: (IMAGENET_MEAN, IMAGENET_STD),
    4: tuple((*values, values[-1]) for values in (IMAGENET_MEAN, IMAGENET_STD)),
    1: GREY,
  }
  mean, std = normal.get(bands, ((0.0,) * bands, (1.0,) * bands))  # complex ones stay as they are
  return defaults.task(
    'image', f'tiles_{name}', bands=bands, mean=mean, std=std, size=(TILE, TILE), target=target
  )


def keep_collaborative(config: ConfigDict, count: int) -> None:
  """Gives every MoE layer so many collaborative experts, in place."""
  config.backbone.collaborative = tuple((count,) * depth for depth in config.backbone.depths)


def make_dense(config: ConfigDict) -> None:
  """Puts a dense FFN in the place of every MoE layer, in place."""
  config.moe.blocks = ((),) * len(config.backbone.depths)
