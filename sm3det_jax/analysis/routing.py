"""Which experts each modality uses: participation and top-1 share per MoE layer.

Hierarchical experts count group by group: of a modality's own experts '<block>/spec', of the
collaborative ones '<block>/coll', which all modalities have in common. How much the modalities
agree about the latter is `overlap`.
"""

import collections
import json
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from data_pipelines import mixture
from data_pipelines.errors import UserError
from sm3det_jax.config import ConfigDict
from sm3det_jax.inference import on_files
from sm3det_jax.model import build
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
    {'num_experts' (the most of a layer), 'top_k', 'layers': [{'name', 'participation': {task: [E]},
    'top1': {task: [E]}}]}; shares of the grid cells that are not padding. A layer of collaborative
    experts has 'overlap', of its 'top1'.

  Raises:
    UserError: a model without MoE layers.
  """
  if not any(config.moe.blocks):
    raise UserError('this model has no MoE layer: config.moe.blocks is empty')
  model, layers = build(config), collections.defaultdict(dict)
  for task, c in config.tasks.items():
    counts = collections.defaultdict(list)
    run = lambda variables, images, _, task=task: model.routing(variables, images, task)
    step = on_files(run, config, task)
    for batch in mixture.eval_batches(config, task, split, BATCH):
      for name, indices in step(variables, batch['images'], batch['shapes']).items():
        cells = _inside(np.asarray(indices), batch['shapes'][: len(batch['ids'])], c.size)
        counts[name].append(stats.count(cells, _experts(config, name)))
    for name, parts in counts.items():
      layers[name][task] = stats.shares(parts)
  return {
    'num_experts': max(_experts(config, name) for name in layers),
    'top_k': config.moe.top_k,
    'layers': [_layer(name, tasks) for name, tasks in layers.items()],
  }


def _layer(name, tasks):
  found = {k: {t: s[k] for t, s in tasks.items()} for k in ('participation', 'top1')}
  if name.endswith('/coll'):
    found['overlap'] = overlap(found['top1'])
  return {'name': name} | found


def overlap(shares: dict[str, Sequence[float]]) -> dict[str, dict[str, float]]:
  """How much tasks agree about the experts: the sum over experts of the smaller share.

  It is 1 where two tasks choose experts equally often and 0 where they have none in common.

  Args:
    shares: of each task, [E] that sum to 1.

  Returns:
    {task: {task: overlap}}, symmetric.
  """
  common = lambda a, b: float(np.minimum(shares[a], shares[b]).sum())
  return {a: {b: common(a, b) for b in shares} for a in shares}


def _experts(config, layer):
  """Experts that a task chooses from in a MoE layer."""
  if config.backbone.type != 'ringmoe':
    return config.moe.num_experts
  block, _, group = layer.partition('/')
  if group == 'spec':
    return config.backbone.specialised
  stage, j = map(int, re.findall(r'\d+', block))
  return config.backbone.collaborative[stage][j]


def _inside(indices, shapes, size):
  """Choices [N, K] of the cells whose corner is in the image, of [B, h, w, K]."""
  h, w = indices.shape[1:3]
  rows, columns = np.arange(h) * size[0] / h, np.arange(w) * size[1] / w
  keep = [np.ix_(rows < s[0], columns < s[1]) for s in shapes]
  parts = [i[k].reshape(-1, indices.shape[-1]) for i, k in zip(indices, keep, strict=False)]
  return np.concatenate(parts)


def write(routing: dict, out: str | os.PathLike) -> pathlib.Path:
  """Writes routing.json and routing.png into folder `out`; returns the figure's path.

  Where there are collaborative experts, overlap.png too.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  (out / 'routing.json').write_text(json.dumps(routing, indent=1) + '\n')
  figures.routing(routing, out / 'routing.png')
  if any('overlap' in layer for layer in routing['layers']):
    figures.overlap(routing, out / 'overlap.png')
  return out / 'routing.png'
