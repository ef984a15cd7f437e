"""Parameters of the parts of a model that are deployed, from its shapes alone.

RingMoE's sub-models (arXiv 2504.03166, section 3.4): A of attention, norms and merging, F of one
FFN a block, R of one output of a router, P of a patch embedding. The whole encoder is A + 21 F +
20 R + P of four modalities, one modality's A + 9 F + 8 R + P, a dense one A + F + P.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

OUTSIDE = ('mask_token',)  # of the backbone, but not of an encoder
GIANT = 448  # channels of the first stage of the model that the paper counts
# of the paper, in 1e9: the whole encoder, one modality's, its collaborative experts that stay
PAPER = {'all modalities': 14.7, 'one modality': 6.5, 3: 5.7, 2: 5.0, 1: 4.3, 'dense': 1.0}
REASON = (
  'Keeping one of four collaborative experts leaves A + 6 F = 4.48e9, not 4.3e9: all three of the '
  'paper’s numbers for EP are 0.13e9 to 0.20e9 below the sum of what stays, and nothing that it '
  'prints accounts for that; keeping the union of several modalities only adds to it.'
)


def encoder(params: Any) -> int:
  """Parameters of the backbone, without a mask token."""
  return sum(_sizes(params).values())


def active(params: Any, config: ConfigDict) -> int:
  """Of the encoder, those that one token of the first task meets.

  That are all but the stems and specialised experts of other tasks and what top-k leaves out.
  """
  k, total = config.moe.top_k, 0
  first = next(iter(config.tasks))
  for (path, shape), size in _sizes(params).items():
    name = path[-1]
    if _is_stem_of_another(path[0], config.tasks, first):
      continue
    if name.startswith('spec.'):
      size //= shape[0]
      size = size if name == 'spec.router' else size // shape[1] * k
    elif name.startswith(('coll.', 'experts_')) and name != 'coll.router':
      size = size // shape[0] * k
    total += size
  return total


def sub_models(params: Any, config: ConfigDict) -> list[dict]:
  """What pruning leaves of a model with hierarchical experts, of its first modality.

  Returns:
    [{'name', 'params', 'paper'}]: counts of encoders, the paper's beside those of the giant. [] of
    other models.
  """
  if config.backbone.type != 'ringmoe' or not any(config.moe.blocks):
    return []
  first = next(iter(config.tasks))
  most = max(max(stage, default=0) for stage in config.backbone.collaborative)
  giant = config.backbone.channels[0] == GIANT
  rows = [('all modalities', _left(params, config, tuple(config.tasks), most))]
  rows.append(('one modality', _left(params, config, (first,), most)))
  rows += [(n, _left(params, config, (first,), n)) for n in range(most - 1, 0, -1)]
  rows.append(('dense', _left(params, config, (first,), 0, dense=True)))
  name = lambda n: n if isinstance(n, str) else f'one modality, EP: {n} of {most} collaborative'
  return [
    {'name': name(n), 'params': count, 'paper': PAPER.get(n) if giant else None}
    for n, count in rows
  ]


def table(counts: dict) -> str:
  """The rows of `account`'s 'sub_models' as text, '' where there are none."""
  if not counts.get('sub_models'):
    return ''
  paper = lambda row: '' if row['paper'] is None else f'{row["paper"]:8.1f}'
  rows = [
    f'{row["name"]:44}{row["params"] / 1e9:10.3f}{paper(row)}' for row in counts['sub_models']
  ]
  head = f'{"encoder":44}{"params 1e9":>10}'
  if any(row['paper'] for row in counts['sub_models']):
    rows = [f'{head}{"paper":>8}', *rows, textwrap.fill(REASON, 100)]
  else:
    rows = [head, *rows]
  return '\n'.join(rows)


def _sizes(params):
  """{(path in the backbone, shape): size} of the encoder's parameters."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params['backbone']):
    names = tuple(str(key.key) for key in path)
    if names[0] not in OUTSIDE:
      found[names, leaf.shape] = math.prod(leaf.shape)
  return found


def _is_stem_of_another(module: str, tasks: Sequence[str], *own: str) -> bool:
  """Whether a module of the backbone is a stem of a task that is not among `own`."""
  return any(module in (f'stem_{t}', f'stem_{t}_norm') for t in tasks if t not in own)


def _left(params, config, modalities, collaborative, dense=False):
  """Parameters of the encoder of some modalities that keeps so many collaborative experts."""
  total = 0
  for (path, shape), size in _sizes(params).items():
    group = path[-1].partition('.')[0]
    if _is_stem_of_another(path[0], config.tasks, *modalities):
      continue
    if dense and group in ('spec', 'coll'):  # the merged FFN has the shape of the shared one
      continue
    if group == 'spec':
      size = size // shape[0] * len(modalities)
    elif group == 'coll':
      size = size // shape[0] * min(collaborative, shape[0])
    total += size
  return total
