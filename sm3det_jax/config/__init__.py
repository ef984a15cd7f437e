"""What a config holds: by default the released SM3Det-T on SOI-Det. `check` refuses the rest.

A config is an `ml_collections.ConfigDict`. The files in `configs/` start from `default()` and
change what their experiment changes; the command line changes single values
(`--config.optim.lr=3e-4`).
"""

from ml_collections import ConfigDict

from data_pipelines.classes import (
  DOTA_CLASSES,
  DRONEVEHICLE_CLASSES,
  SAR_CLASSES,
  joint_classes,
  label_space,
)
from sm3det_jax.config.checks import check
from sm3det_jax.config.choices import CHOICES
from sm3det_jax.config.defaults import (
  IMAGENET_MEAN,
  IMAGENET_STD,
  complete,
  copied,
  default,
  head,
  task,
  use_backbone,
)
from sm3det_jax.config.files import arguments, load, override

__all__ = [
  'CHOICES', 'ConfigDict', 'DOTA_CLASSES', 'DRONEVEHICLE_CLASSES', 'IMAGENET_MEAN', 'IMAGENET_STD',
  'SAR_CLASSES', 'arguments', 'check', 'complete', 'copied', 'default', 'head', 'joint_classes',
  'label_space', 'load', 'override', 'task', 'use_backbone',
]  # fmt: skip
