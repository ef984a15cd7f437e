"""The words that a config's keys may be: one table for all of them.

A key is named by its section, wherever in the section it lies: 'optim.schedule' is
`config.optim.schedule`, 'head.type' the `type` of every task's head, 'task.split' that of a task's
train and test parts. What a tuple holds is chosen element by element.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from data_pipelines.batch import KINDS
from data_pipelines.errors import UserError
from data_pipelines.radiometry import DECIBELS
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.heads import HEADS
from sm3det_jax.config.modality import MODALITIES
from sm3det_jax.config.models import MODELS
from sm3det_jax.config.necks import NECKS

CHOICES = {
  'model': MODELS,
  'label_space': ('joint', 'per_task'),
  'dtype': ('auto', 'float32', 'bfloat16'),
  'sampling': ('ratio', 'random'),
  'remat': ('backbone', 'heads'),
  'task_balance': ('none', 'dla', 'uncertainty', 'dwa', 'gradnorm'),
  'task.kind': KINDS,
  'task.modality': ('auto', *MODALITIES),
  'task.target': ('pixel', 'power'),
  'input.unit': ('as_is', *DECIBELS),
  'input.range': ('as_is', 'fixed', 'percentiles'),
  'head.type': HEADS,
  'backbone.type': BACKBONES,
  'backbone.stems': ('shared', 'per_task'),
  'backbone.squad': ('ffn', 'conv3x3', 'conv5x5'),
  'backbone.attention': ('cosine', 'table'),
  'backbone.gelu': ('erf', 'tanh'),
  'backbone.output_norms': ('all', 'last'),
  'backbone.combine': ('probability', 'renormalised'),
  'backbone.balance': ('paper', 'released'),
  'neck.type': NECKS,
  'moe.gate': ('cosine', 'linear'),
  'moe.softmax': ('after', 'before'),
  'moe.level': ('grid', 'image'),
  'moe.implementation': ('blocked', 'dense'),
  'moe.aux_stats': ('global', 'per_device'),
  'optim.kind': ('adamw', 'sgd'),
  'optim.lr_scaling': ('none', 'linear', 'sqrt'),
  'optim.schedule': ('step', 'cosine'),
  'simmim.loss': ('l2', 'l1'),
  'dla.variant': ('released', 'paper'),
  'dla.head_policy': ('normal', 'reverse', 'none'),
  'dla.shared_policy': ('sigmoid_kl', 'kl', 'min', 'avg', 'max', 'none'),
}
# any text: names that the user gives, files and folders
TEXTS = (
  'data_root', 'init_from', 'task.dataset', 'task.classes', 'task.split', 'task.right_angles',
)  # fmt: skip


def refuse(where: str, value: Any, choices: Iterable[str]) -> None:
  """Raises UserError if `value` of the key `where` is none of `choices`; the nearest is named."""
  choices = tuple(choices)
  if isinstance(value, str) and value in choices:
    return
  near = difflib.get_close_matches(str(value), choices, 1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  raise UserError(f'{where}={value!r}: expected {" or ".join(map(repr, choices))}{hint}')
