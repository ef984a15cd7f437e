"""The backbones that a config may name, and how one is made."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax

from sm3det_jax.backbones.stages import Backbone
from sm3det_jax.config import modality
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.registry import resolve


def build(config: Any, tasks: Iterable[str]) -> Backbone:
  """The backbone of a config; see `stages.Backbone` for its call.

  With `moe.aux_stats` 'per_device' it has to be called within the mesh that it is built in.

  Args:
    config: uses `backbone`, `moe`, `remat` and, for kinds with parts for modalities, `tasks`.
    tasks: names of all tasks, in their order, which gives the indices; a frozen config sorts them.
  """
  arguments = dict(config.backbone)
  kind = resolve(BACKBONES[arguments.pop('type')].module)
  same_start = arguments.pop('experts_from_one')
  names = ('num_experts', 'top_k', 'noisy', 'gate', 'softmax', 'level', 'implementation')
  groups = max(jax.sharding.get_abstract_mesh().size, 1)  # 0 outside of a mesh
  moe = {k: config.moe[k] for k in names} | {'same_start': same_start}
  moe['stat_groups'] = groups if config.moe.aux_stats == 'per_device' else 1
  moe['capacity_factor'] = config.moe.capacity_factor or None
  remat, tasks = 'backbone' in config.remat, tuple(tasks)
  if any(field.name == 'modalities' for field in dataclasses.fields(kind)):
    arguments['modalities'] = tuple(modality.of_task(name, config.tasks[name]) for name in tasks)
  return kind(tasks=tasks, moe_blocks=config.moe.blocks, moe=moe, remat=remat, **arguments)
