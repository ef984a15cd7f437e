"""The backbones that a config may name, and how one is made."""

from typing import Any

import flax.linen as nn

from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.registry import resolve


def build(config: Any, groups: int = 1) -> nn.Module:
  """The backbone of a config: (images [B, H, W, bands], key, task) -> (stage outputs, usages).

  Batch norm trains while the collection `batch_stats` is mutable; gates are noisy and paths dropped
  when the call is given a key.

  Args:
    config: uses `backbone`, `moe` and `remat`.
    groups: of images whose balance of experts is judged apart (`moe.aux_stats`).
  """
  arguments = dict(config.backbone)
  kind = resolve(BACKBONES[arguments.pop('type')].module)
  same_start = arguments.pop('experts_from_one')
  names = ('num_experts', 'top_k', 'noisy', 'gate', 'softmax', 'level', 'implementation')
  moe = {k: config.moe[k] for k in names} | {'stat_groups': groups, 'same_start': same_start}
  moe['capacity_factor'] = config.moe.capacity_factor or None
  remat = 'backbone' in config.remat
  return kind(moe_blocks=config.moe.blocks, moe=moe, remat=remat, **arguments)
