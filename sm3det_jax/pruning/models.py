"""Whole models cut down, one block at a time (RingMoE, section 3.4).

A sub-model has what some modalities use: their patch embeddings, specialised experts and routers,
all else that modalities share, neither mask token nor decoders. Of it expert pruning keeps some
collaborative experts of each layer, and merging makes one dense FFN of a layer.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import copied
from sm3det_jax.pruning import layers


def submodel(
  config: ConfigDict, variables: dict, modalities: Sequence[str]
) -> tuple[ConfigDict, dict]:
  """The part of a pre-trained encoder that some modalities use, without mask token and decoders.

  Args:
    config: of the model.
    variables: its Flax dict.
    modalities: names of those that stay; they keep their order.

  Returns:
    (config, variables); of these modalities, features are as the whole model's.

  Raises:
    UserError: a modality that the model lacks, or none.
  """
  tasks = list(config.tasks)
  for name in modalities:
    if name not in tasks:
      raise UserError(f'modality {name!r} is none of the model, which has {", ".join(tasks)}')
  if not modalities:
    raise UserError(f'no modality to keep; the model has {", ".join(tasks)}')
  keep = [i for i, name in enumerate(tasks) if name in modalities]
  gone = [name for name in tasks if name not in modalities]
  small = copied(config)
  for name in gone:
    del small.tasks[name]
  group, left = (sum(task.ratio for task in c.tasks.values()) for c in (config, small))
  small.batch_size = config.batch_size // group * left
  out = {f'stem_{name}{end}' for name in gone for end in ('', '_norm')} | {'mask_token'}
  own = lambda name, a: np.asarray(a)[keep] if name.startswith('spec.') else a

  def part(tree):
    return {
      name: part(value) if isinstance(value, Mapping) else own(name, value)
      for name, value in tree.items()
      if name not in out
    }

  return small, {'params': {'backbone': part(variables['params']['backbone'])}}


def pruned(
  config: ConfigDict, variables: dict, keep: Mapping[str, np.ndarray]
) -> tuple[ConfigDict, dict]:
  """EP: the model whose layers have the collaborative experts `keep` alone.

  Args:
    config: of the model.
    variables: its Flax dict.
    keep: {block, such as 'stage0_block1': bool [E] of its layer}, of every MoE layer.

  Raises:
    UserError: a dense model, one without collaborative experts; as `layers.restrict`.
  """
  restrict = lambda block, layer: {'moe': layers.restrict(layer, keep[block])}
  config, variables = _by_block(config, variables, restrict)
  counts = [list(stage) for stage in config.backbone.collaborative]
  for stage, j, block in moe_blocks(config):
    counts[stage][j] = int(np.sum(keep[block]))
  config.backbone.collaborative = tuple(map(tuple, counts))
  return config, variables


def dense(
  config: ConfigDict, variables: dict, how: str = 'kc', rank: str = 'min_dim'
) -> tuple[ConfigDict, dict]:
  """KS, KA, KC: the model with one FFN in the place of the experts of all its modalities.

  Args:
    config: of the model.
    variables: its Flax dict.
    how, rank: as `layers.merge`.

  Raises:
    UserError: a dense model; as `layers.merge`.
  """
  everyone = range(len(config.tasks))

  def merge(_, layer):
    one = layers.merge(layer, everyone, how, rank)
    return {'ffn': {f'fc{i}': {'kernel': one[f'w{i}'], 'bias': one[f'b{i}']} for i in (1, 2)}}

  config, variables = _by_block(config, variables, merge)
  config.moe.blocks = ((),) * len(config.backbone.depths)
  return config, variables


def moe_blocks(config: ConfigDict) -> list[tuple[int, int, str]]:
  """(stage, number in it, name) of every block with hierarchical experts.

  Raises:
    UserError: there is none.
  """
  if config.backbone.type != 'ringmoe':
    raise UserError(
      f'config.backbone.type={config.backbone.type!r} has no hierarchical experts to prune'
    )
  found = [(i, j, f'stage{i}_block{j}') for i, own in enumerate(config.moe.blocks) for j in own]
  if not found:
    raise UserError('the model is dense already: config.moe.blocks is empty')
  return found


def _by_block(config, variables, change: Callable):
  """Copies of config and variables whose MoE layers are as `change(block, layer)` makes them."""
  backbone = dict(variables['params']['backbone'])
  for _, _, name in moe_blocks(config):
    block = dict(backbone[name])
    layer = block.pop('moe')
    backbone[name] = block | change(name, layer)
  return copied(config), {**variables, 'params': {**variables['params'], 'backbone': backbone}}
