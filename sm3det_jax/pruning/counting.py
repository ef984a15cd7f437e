"""Which collaborative experts the tokens of a modality really choose, counted on data."""

import logging

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import mixture
from data_pipelines.errors import UserError
from sm3det_jax.inference import on_files
from sm3det_jax.model import build
from sm3det_jax.pruning import layers, models

BATCH = 8

logger = logging.getLogger(__name__)


def chosen(
  config: ConfigDict, variables: dict, percent: float, split: str | None = None, images: int = 512
) -> dict[str, np.ndarray]:
  """{block: bool [E]}, the collaborative experts that a modality of the model uses most.

  Args:
    config: of the sub-model.
    variables: its Flax dict.
    percent: of a layer's experts: those used more often than all but so many, see `layers.kept`.
    split: of the data sets, by default the training one.
    images: of each modality that are counted, at most.

  Raises:
    UserError: a layer without collaborative experts.
  """
  counts = {block: config.backbone.collaborative[i][j] for i, j, block in models.moe_blocks(config)}
  if empty := [block for block, experts in counts.items() if not experts]:
    raise UserError(f'{empty[0]} has no collaborative experts that --ep could prune')
  found = {block: [] for block in counts}
  for name in config.tasks:
    for block, indices in _choices(config, variables, name, split, images).items():
      member = np.zeros(len(indices), int)
      found[block].append(layers.frequencies(indices, member, 1, counts[block]))
  return {
    block: layers.kept(np.concatenate(rows), 100 - percent).any(0) for block, rows in found.items()
  }


def _choices(config, variables, task, split, images):
  """{block: collaborative experts [N, K] of all tokens} of some images of a modality."""
  model = build(config)
  step = on_files(lambda v, x, _: model.routing(v, x, task), config, task)
  split = split or config.tasks[task].train.split
  found, left = {}, images
  for batch in mixture.eval_batches(config, task, split, BATCH):
    real = min(len(batch['ids']), left)
    for layer, indices in step(variables, batch['images'], batch['shapes']).items():
      block, _, group = layer.partition('/')
      if group == 'coll':
        rows = np.asarray(indices)[:real]
        found.setdefault(block, []).append(rows.reshape(-1, rows.shape[-1]))
    left -= real
    if not left:
      break
  logger.info('%s: %d images of %s counted', task, images - left, split)
  return {block: np.concatenate(parts) for block, parts in found.items()}
