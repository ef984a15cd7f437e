"""What a model on RingMoE's backbone takes of another one: of a pre-training, or a pruned one.

Its experts are those of the weights, the specialised ones of its tasks' modalities alone;
tables of relative positions follow the side of its windows (continuous biases need not).
"""

import logging
import os
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax import checkpoint
from sm3det_jax.config import copied, modality

KINDS = ('ringmoe', 'swin_v2')  # a dense RingMoE is a Swin-v2
FIXED = ('channels', 'depths', 'heads', 'mlp_ratio')
EXPERTS = ('specialised', 'collaborative', 'shared')
ARITHMETIC = ('attention', 'key_bias', 'gelu', 'epsilons', 'combine')

logger = logging.getLogger(__name__)


def with_experts_of(config: ConfigDict, source: str | os.PathLike) -> ConfigDict:
  """The config of a model that is to start from weights, with the experts that these have.

  What they were trained to compute is taken over too: attention, activation, what weighs an expert.

  Args:
    config: returned itself unless its backbone is RingMoE's.
    source: a workdir; '' or a file changes nothing.

  Raises:
    FileNotFoundError: the workdir holds no run.
    UserError: weights of another backbone or width, or without a task's modality.
  """
  if config.backbone.type != 'ringmoe' or not pathlib.Path(source or ' ').is_dir():
    return config
  there = checkpoint.load_config(source)
  _check(config, there, source)
  config = copied(config)
  config.moe.update(blocks=there.moe.blocks, top_k=there.moe.top_k)
  known = [key for key in EXPERTS + ARITHMETIC if key in there.backbone]
  config.backbone.update({key: there.backbone[key] for key in known})
  dense = not any(config.moe.blocks)
  experts = 'dense' if dense else ', '.join(f'{k}={config.backbone[k]}' for k in EXPERTS)
  logger.info('experts as in %s: %s', source, experts)
  return config


def _check(config, there, source):
  if there.backbone.type not in KINDS:
    raise UserError(f"{source} has a backbone of type {there.backbone.type!r}, not 'ringmoe'")
  for key in FIXED:
    ours, theirs = config.backbone[key], there.backbone[key]
    if ours != theirs:
      raise UserError(
        f'config.backbone.{key} is {ours!r}, but {source} has weights of {theirs!r}: name the size '
        'that was trained'
      )
  known = modality.of_tasks(there)
  for name, task in config.tasks.items():
    if (wanted := modality.of_task(name, task)) not in known:
      raise UserError(
        f'{source} has weights of {", ".join(known)}, config.tasks.{name} is of {wanted!r}: keep '
        'that modality when pruning, or say another by its key `modality`'
      )


def fitted(
  values: dict, there: ConfigDict, like: dict, config: ConfigDict, source: str | os.PathLike
) -> dict:
  """The arrays of another model as a model of RingMoE's backbone takes them.

  Args:
    values: {path: array} of the other model.
    there: its config.
    like: {path: array} of the model that is to start.
    config: of that.
    source: the workdir of the other model.

  Raises:
    as `with_experts_of`.
  """
  if config.backbone.type != 'ringmoe' or there.backbone.type not in KINDS:
    return values
  _check(config, there, source)
  known = modality.of_tasks(there)
  rows = [known.index(m) for m in modality.of_tasks(config)]
  of_modalities = lambda path, a: a[np.array(rows)] if path[-1].startswith('spec.') else a
  values = {path: of_modalities(path, np.asarray(a)) for path, a in values.items()}
  tables = {p: a for p, a in values.items() if p[-1] == 'bias_table' and p in like}
  return values | {p: resized_table(a, like[p].shape[0]) for p, a in tables.items()}


def resized_table(table: np.ndarray, offsets: int) -> np.ndarray:
  """A table of biases of relative positions for windows of another side, by cubic interpolation.

  Args:
    table: [(2 a - 1)^2, heads] of windows of side a, offsets row by row.
    offsets: (2 b - 1)^2 of the others.
  """
  if len(table) == offsets:
    return table
  side, new = (round(n**0.5) for n in (len(table), offsets))
  image = jax.image.resize(table.reshape(side, side, -1), (new, new, table.shape[1]), 'cubic')
  return np.asarray(image).reshape(offsets, -1)
