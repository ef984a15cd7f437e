"""Which experts each modality uses: participation and top-1 share per MoE layer."""

import collections
import json
import os
import pathlib

import numpy as np

from data_pipelines import mixture
from data_pipelines.errors import UserError
from sm3det_jax.config import ConfigDict
from sm3det_jax.detector import build
from sm3det_jax.inference import on_files
from sm3det_jax.moe import stats
from sm3det_jax.viz import figures

BATCH = 8


def measure(config: ConfigDict, variables: dict, split: str | None = None) -> dict:
  """Routes every image of every task without noise and counts.

  Args:
    config: of the run.
    variables: Flax dict.
    split: of every task, instead of its test split.

  Returns:
    {'num_experts', 'top_k', 'layers': [{'name', 'participation': {task: [E]}, 'top1': {task:
    [E]}}]}; shares of the grid cells that are not padding.

  Raises:
    UserError: a model without MoE layers.
  """
  if not any(config.moe.blocks):
    raise UserError('this model has no MoE layer: config.moe.blocks is empty')
  detector, layers = build(config), collections.defaultdict(dict)
  for task, c in config.tasks.items():
    counts = collections.defaultdict(list)
    run = lambda variables, images, _, task=task: detector.routing(variables, images, task)
    step = on_files(run, config, task)
    for batch in mixture.eval_batches(config, task, split, BATCH):
      for name, indices in step(variables, batch['images'], batch['shapes']).items():
        cells = _inside(np.asarray(indices), batch['shapes'][: len(batch['ids'])], c.size)
        counts[name].append(stats.count(cells, config.moe.num_experts))
    for name, parts in counts.items():
      layers[name][task] = stats.shares(parts)
  return {
    'num_experts': config.moe.num_experts,
    'top_k': config.moe.top_k,
    'layers': [
      {'name': name} | {k: {t: s[k] for t, s in tasks.items()} for k in ('participation', 'top1')}
      for name, tasks in layers.items()
    ],
  }


def _inside(indices, shapes, size):
  """Choices [N, K] of the cells whose corner is in the image, of [B, h, w, K]."""
  h, w = indices.shape[1:3]
  rows, columns = np.arange(h) * size[0] / h, np.arange(w) * size[1] / w
  keep = [np.ix_(rows < s[0], columns < s[1]) for s in shapes]
  parts = [i[k].reshape(-1, indices.shape[-1]) for i, k in zip(indices, keep, strict=False)]
  return np.concatenate(parts)


def write(routing: dict, out: str | os.PathLike) -> pathlib.Path:
  """Writes routing.json and routing.png into folder `out`; returns the figure's path."""
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  (out / 'routing.json').write_text(json.dumps(routing, indent=1) + '\n')
  figures.routing(routing, out / 'routing.png')
  return out / 'routing.png'
