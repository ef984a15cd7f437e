"""What official modules keep beside their parameters, so that a strict loading is content there."""

import numpy as np

RING = (1, 2, 3, 6, 9, 8, 7, 4)  # border taps of a 3x3 kernel, clockwise, counted from 1


def of(state: dict) -> dict[str, np.ndarray]:
  """The constants that belong to a state dict of parameters, {official name: array}."""
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
  """Of an oriented convolution: where each tap goes in each of eight turns."""
  indices = np.full((9, 8), 5, np.int32)
  for place, tap in enumerate(RING):
    indices[tap - 1] = np.roll(RING, -place)
  return {'or_conv.indices': indices.reshape(1, 3, 3, 8)}


def _pairs(table):
  """Of window attention: the row of the table for each pair of cells."""
  side = (int(len(table) ** 0.5) + 1) // 2
  cell = np.stack(np.meshgrid(range(side), range(side), indexing='ij')).reshape(2, -1)
  dy, dx = cell[:, :, None] - cell[:, None] + side - 1
  return {'relative_position_index': dy * (2 * side - 1) + dx}


BESIDE = {  # ending of a parameter's name -> its neighbours
  '.w_noise': _gate,
  '.gfl_reg.weight': _bins,
  '.or_conv.weight': _turned,
  '.relative_position_bias_table': _pairs,
  '.running_mean': lambda _: {'num_batches_tracked': np.zeros((), np.int64)},
}
