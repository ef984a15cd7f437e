"""The names that official weights have in other files -> the official detector's, and back.

A file of one data set lacks the tasks' names and calls its pyramid's levels otherwise; one of
ImageNet has the names of its own repository.
"""

import re

import numpy as np

from data_pipelines.errors import UserError
from sm3det_jax.heads.common import start_stage
from sm3det_jax.interop import heads

# mmcv's files with averages have these by the plain names and the parameters as ema_*; the masks of
# Swin's shifted windows are constants; the authors' learned weights of losses are training's
DROPPED = r'ema_.*|.*\.attn_mask|mtl_sigma'
CLASSIFIER = r'(head|fc|classifier)\d?\..*'


def of_one_task(state: dict, task: str, strides: tuple, stages: int, wanted: set[str]) -> dict:
  """A detector of one task -> that task of the official detector, with its pyramid.

  Its pyramid counts from the first stage that it reads; a last level by max pooling (kernel 1,
  stride 2) becomes the convolution that does the same, where the model has one.

  Raises:
    UserError: it reads other stages than a head with these strides.
  """
  laterals = sum(bool(re.fullmatch(r'neck\.lateral_convs\.\d+\.conv\.weight', n)) for n in state)
  start = start_stage(strides)
  if laterals != stages - start:
    raise UserError(
      f'the pyramid of the file reads {laterals} stages of the backbone, task {task} reads '
      f'{stages - start} (strides {tuple(strides)})'
    )

  def shifted(name):
    level = r'^(neck\.(?:lateral|fpn)_convs\.)(\d+)'
    return re.sub(level, lambda m: f'{m[1]}{int(m[2]) + start}', name)

  state = {shifted(name): array for name, array in state.items()}
  extra, last = (f'neck.fpn_convs.{i}.conv' for i in (stages, stages - 1))
  if f'{extra}.weight' in wanted - state.keys() and f'{last}.weight' in state:
    pool = np.zeros_like(state[f'{last}.weight'])
    pool[:, :, 1, 1] = np.eye(len(pool), dtype=pool.dtype)
    state |= {f'{extra}.weight': pool, f'{extra}.bias': np.zeros(len(pool), pool.dtype)}
  own = heads.modules()
  return {f'{task}_{n}' if n.split('.')[0] in own else n: a for n, a in state.items()}


def to_one_task(state: dict, task: str, strides: tuple, plain: tuple) -> dict:
  """The official detector with one task -> a detector of that task, as `of_one_task` takes it.

  Without experts the backbone gets the names of mmpretrain or of its own repository, by the rules
  `plain` (`backbones.OfficialBackbone`).
  """
  start, named = start_stage(strides), {}
  dense = not any('.experts.' in name for name in state)
  for name, array in state.items():
    if level := re.fullmatch(r'(neck\.\w+_convs)\.(\d+)\.(.*)', name):
      number = int(level[2]) - start
      if not 0 <= number < len(strides):
        continue  # no head reads it
      name = f'{level[1]}.{number}.{level[3]}'
    for pattern, replacement in plain if dense else ():
      name, changed = re.subn(rf'^backbone\.{pattern}', f'backbone.{replacement}', name)
      if changed:
        break
    named[name.removeprefix(f'{task}_')] = array
  return named


def renamed(state: dict, rules: tuple) -> dict:
  """The arrays by other names: each (pattern, replacement) from the name's start, in order."""
  named = {}
  for name, array in state.items():
    for pattern, replacement in rules:
      name = re.sub(f'^{pattern}', replacement, name)
    named[name] = array
  return named
