"""Smaller layers made of a trained hierarchical one (RingMoE, sections 3.4 and B.4).

Expert pruning (EP) keeps the collaborative experts that a modality really uses. Knowledge
summation, averaging and concatenation (KS, KA, KC) make one FFN of all experts of a modality; KC,
the sum of low-rank approximations, is the concatenation of their factors multiplied out. Layers
are dicts of arrays as in `moe.hierarchical`; all this is NumPy on the host, in float64.
"""

import logging
from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import UserError

MERGE, RANK = ('kc', 'ks', 'ka'), ('min_dim', 'columns', 'literal')

logger = logging.getLogger(__name__)


def frequencies(
  indices: np.ndarray, modality: np.ndarray, modalities: int, experts: int
) -> np.ndarray:
  """Share of each modality's tokens that choose an expert.

  Args:
    indices: [N, K] collaborative experts of each token.
    modality: [N] of each token.
    modalities, experts: M and E, their numbers.

  Returns:
    [M, E]; a row sums to K, that of a modality without tokens to 0.
  """
  indices, modality = np.asarray(indices), np.asarray(modality)
  count = np.zeros((modalities, experts))
  np.add.at(count, (modality[:, None], indices), 1)
  return count / np.maximum(np.bincount(modality, minlength=modalities), 1)[:, None]


def kept(
  frequency: np.ndarray, percentile: float = 75.0, threshold: float | None = None
) -> np.ndarray:
  """Which experts stay: those used more often than the threshold.

  Args:
    frequency: [.., E] of each expert.
    percentile: of the E frequencies, linearly interpolated: the threshold of their row.
    threshold: one for all rows instead.

  Returns:
    bool [.., E]. Where ties leave no expert above the threshold the most used stay, which is
    logged. A model of several modalities keeps `.any(0)` of their rows.
  """
  frequency = np.asarray(frequency, np.float64)
  least = threshold
  if threshold is None:
    least = np.percentile(frequency, percentile, axis=-1, keepdims=True)
  above = frequency > least
  none = ~above.any(-1, keepdims=True)
  if none.any():
    logger.warning(
      'no expert is used more often than the threshold in %d of %d rows: the most used stay there',
      none.sum(), none.size,
    )  # fmt: skip
  return np.where(none, frequency == frequency.max(-1, keepdims=True), above)


def restrict(layer: dict[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
  """EP: the layer with the collaborative experts `keep` [E], its router's softmax over them alone.

  Raises:
    UserError: a layer without collaborative experts, another number of them, none that stays.
  """
  keep = np.asarray(keep, bool)
  if 'coll.router' not in layer:
    raise UserError(f'a layer without collaborative experts cannot be pruned: {_groups(layer)}')
  if keep.shape != (experts := len(layer['coll.router']),) or not keep.any():
    raise UserError(f'keep={keep.tolist()}: expected one truth value for each of {experts} experts')
  pruned = lambda name, a: np.asarray(a)[keep] if name.startswith('coll.') else a
  return {name: pruned(name, a) for name, a in layer.items()}


def merge(
  layer: dict[str, np.ndarray],
  modalities: Sequence[int] = (0,),
  how: str = 'kc',
  rank: str = 'min_dim',
) -> dict[str, np.ndarray]:
  """One dense FFN of all experts of some modalities.

  Args:
    layer: with routed experts.
    modalities: whose specialised experts take part.
    how: 'ks', the sum; 'ka', the mean; 'kc', the sum of low-rank approximations of the routed
      experts' matrices, and of the shared expert's whole ones. Biases are summed, averaged, summed.
    rank: of an approximation, over the number n of experts of its group: 'min_dim', the shorter
      side / n; 'columns', the matrix's columns / n; 'literal', the hidden channels / n.

  Returns:
    {'w1': [C, D], 'b1': [D], 'w2': [D, C], 'b2': [C]} in the layer's dtype.

  Raises:
    UserError: an unknown option, a modality that the layer lacks, a layer that is dense already.
  """
  for name, value, known in (('how', how, MERGE), ('rank', rank, RANK)):
    if value not in known:
      raise UserError(f'{name}={value!r}: expected one of {known}')
  if not {'spec.router', 'coll.router'} & set(layer):
    raise UserError(f'a layer without routed experts is dense already: {_groups(layer)}')
  if 'spec.router' in layer and (absent := set(modalities) - set(range(len(layer['spec.router'])))):
    has = len(layer['spec.router'])
    raise UserError(f'modality {min(absent)} is none of the {has} of the layer')
  return {key: _merged(layer, key, list(modalities), how, rank) for key in ('w1', 'b1', 'w2', 'b2')}


def _groups(layer):
  return f'it has {", ".join(sorted({name.partition(".")[0] for name in layer})) or "nothing"}'


def _merged(layer, key, modalities, how, rank):
  """One array of the merged FFN."""
  total, number = 0.0, 0
  for group in ('spec', 'coll', 'shared'):
    if f'{group}.{key}' not in layer:
      continue
    stack = np.asarray(layer[f'{group}.{key}'])
    dtype, experts = stack.dtype, 1
    if group == 'shared':
      stack = stack[None]
    else:
      experts = layer[f'{group}.router'].shape[-2]
      stack = stack[modalities].reshape(-1, *stack.shape[2:]) if group == 'spec' else stack
    for array in stack:
      array = array.astype(np.float64)
      if how == 'kc' and group != 'shared' and array.ndim == 2:
        array = _truncated(array, _rank(array, key, rank) // experts)
      total, number = total + array, number + 1
  return (total / number if how == 'ka' else total).astype(dtype)


def _rank(matrix, key, rank):
  """What the experts of a group share out."""
  hidden = matrix.shape[1] if key == 'w1' else matrix.shape[0]
  return {'min_dim': min(matrix.shape), 'columns': matrix.shape[1], 'literal': hidden}[rank]


def _truncated(matrix, rank):
  """The nearest matrix of a rank, at least 1 (Eckart and Young 1936)."""
  if rank >= min(matrix.shape):
    return matrix
  rank = max(rank, 1)
  u, s, v = np.linalg.svd(matrix, full_matrices=False)
  return (u[:, :rank] * s[:rank]) @ v[:rank]
