"""Buffers of the official modules, without which PyTorch refuses a state dict (strict loading)."""

import numpy as np

from sm3det_jax.heads.s2anet import RING
from sm3det_jax.layers.windows import relative_positions


def of(state: dict) -> dict[str, np.ndarray]:
  """The buffers (all constant) that go with a state dict of parameters, {official name: array}."""
  constants = {}
  for name, array in state.items():
    for ending, make in BESIDE.items():
      if name.endswith(ending):
        constants |= {f'{name.removesuffix(ending)}.{n}': a for n, a in make(array).items()}
  return constants


def _gate(_):
  return {'mean': np.zeros(1, np.float32), 'std': np.ones(1, np.float32)}


def _bins(regression):
  """Of GFL: the distances that a distribution of each side is over."""
  last = len(regression) // 4 - 1
  return {'integral.project': np.linspace(0, last, last + 1, dtype=np.float32)}


def _turned(_):
  """Of an oriented convolution: where each tap, counted from 1, goes in each of eight turns."""
  indices = np.full((9, 8), 5, np.int32)
  for place, tap in enumerate(RING):
    indices[tap] = np.roll(RING, -place) + 1
  return {'or_conv.indices': indices.reshape(1, 3, 3, 8)}


def _pairs(table):
  """Of window attention: the row of the table for each pair of cells."""
  side = (int(len(table) ** 0.5) + 1) // 2  # of a window, whose table has (2 side - 1)^2 rows
  return {'relative_position_index': relative_positions(side)}


BESIDE = {  # ending of a parameter's name -> the buffers of its module
  '.w_noise': _gate,
  '.gfl_reg.weight': _bins,
  '.or_conv.weight': _turned,
  '.relative_position_bias_table': _pairs,
  '.running_mean': lambda _: {'num_batches_tracked': np.zeros((), np.int64)},
}
