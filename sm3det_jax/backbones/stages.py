"""What the loops over stages and blocks share."""

import flax.linen as nn


def stem_name(name: str, stems: str, task: str) -> str:
  """`name` of the stem that all tasks share, or of a task's own ('per_task')."""
  return f'{name}_{task}' if stems == 'per_task' else name


def run_block(block: nn.Module, remat: bool, *args):
  """`block(*args)`; with `remat` its activations are computed anew in the backward pass."""
  return (nn.remat(lambda block, *args: block(*args)) if remat else type(block).__call__)(
    block, *args
  )
