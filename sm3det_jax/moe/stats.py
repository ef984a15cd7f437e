"""Routing statistics: which share of a modality's grid cells uses which expert."""

from collections.abc import Iterable

import numpy as np


def count(indices: np.ndarray, num_experts: int) -> dict[str, np.ndarray]:
  """Cells [E] that use each expert, or have it as first choice; `indices` [N, K], best first."""
  return {
    'participation': np.bincount(indices.reshape(-1), minlength=num_experts),
    'top1': np.bincount(indices[:, 0], minlength=num_experts),
    'cells': np.asarray(len(indices)),
  }


def shares(counts: Iterable[dict[str, np.ndarray]]) -> dict[str, list[float]]:
  """Shares of all cells: `participation` sums to K, `top1` to 1 over the experts."""
  total = {}
  for c in counts:
    total = {k: total.get(k, 0) + v for k, v in c.items()}
  return {k: (total[k] / total['cells']).tolist() for k in ('participation', 'top1')}
