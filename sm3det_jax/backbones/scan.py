"""Blocks that are alike as one loop over their weights, so that each kind is compiled once.

The weights stay where they are in the tree of parameters; the loop runs over a stack of them, which
is a copy. The values are those of the blocks one after the other.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

LEAST = 3  # repetitions that are worth a copy of the weights
PERIODS = (1, 2)  # blocks that repeat: one, or a pair of one with and one without a shift


def runs(blocks: Sequence[nn.Module]) -> list[list[tuple[nn.Module, ...]]]:
  """The blocks in order, cut into runs of groups, `LEAST` or more, that are alike; else single."""
  found, at, kinds = [], 0, [_kind(block) for block in blocks]
  while at < len(blocks):
    counts = {period: _repetitions(kinds[at:], period) for period in PERIODS}
    period = max(PERIODS, key=lambda p: p * counts[p])  # the shorter one where both go as far
    if (count := counts[period]) < LEAST:
      period, count = 1, 1
    starts = range(at, at + period * count, period)
    found.append([tuple(blocks[i : i + period]) for i in starts])
    at += period * count
  return found


def _kind(block):
  """All that makes blocks differ but their name."""
  names = [f.name for f in dataclasses.fields(block) if f.name not in ('name', 'parent')]
  return type(block), {name: getattr(block, name) for name in names}


def _repetitions(kinds, period):
  """How often the first `period` kinds come one after the other."""
  count = 1
  while kinds[count * period : (count + 1) * period] == kinds[:period]:
    count += 1
  return count


def run(
  groups: Sequence[tuple[nn.Module, ...]],
  x: jax.Array,
  key: jax.Array | None,
  first: int,
  remat: bool,
  *args,
) -> tuple[jax.Array, list[dict]]:
  """One of `runs` of several groups, of blocks that hold parameters alone.

  Args:
    groups: bound blocks (x, key, *args) -> (x, tree of arrays).
    x: what the first one takes.
    key: of which block i of the backbone gets its own, folded with i; None: none.
    first: number of the first block.
    remat: blocks keep their input alone for the backward pass.
    *args: for every block.

  Returns:
    (x, the tree of each block).
  """
  period = len(groups[0])
  weights = [[block.variables for block in group] for group in groups]
  weights = jax.tree.map(lambda *a: jnp.stack(a), *weights)
  blocks = [block.clone(parent=None) for block in groups[0]]

  def step(x, one):
    (weights, at), found = one, []
    for i, block in enumerate(blocks):
      own = None if key is None else jax.random.fold_in(key, at + i)
      # within a loop nothing can be merged with what is computed anew
      apply = jax.checkpoint(block.apply, prevent_cse=False) if remat else block.apply
      x, tree = apply(weights[i], x, own, *args)
      found.append(tree)
    return x, found

  at = first + period * jnp.arange(len(groups), dtype=jnp.int32)
  x, found = lax.scan(step, x, (weights, at))
  of_group = lambda g: [jax.tree.map(lambda a: a[g], tree) for tree in found]
  return x, [tree for g in range(len(groups)) for tree in of_group(g)]
