"""The one loop over stages: stems, downsampling, blocks, norms of the outputs, taps.

A kind of backbone is a subclass of `Backbone` that says what these parts are. Tasks whose maps have
one shape behind the stem go through the rest as one batch.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_pipelines.errors import UserError
from sm3det_jax.backbones import scan
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import drop_path_rates
from sm3det_jax.moe.layer import Usage, add_usage, balance_loss, block_usage


class Output(NamedTuple):
  """What a backbone makes of the images of some tasks; under jit, of what is read of it.

  The taps of a task are 'embed' (behind the stem), 'stage0', 'stage1', .. (before the norm of the
  output) and, of every MoE layer, '<layer>/experts' and '<layer>/gates' [B, h, w, K] and with a
  capacity '<layer>/dropped' [B], as `moe.layer.Routed` has them. A layer is called 'stage0_block1',
  or 'stage0_block1/fc2' where a block has several.
  """

  stages: dict[str, list[jax.Array]]  # of a task [B, h, w, C], finest first
  usage: list[Usage]  # of each block with MoE layers, summed over all images
  taps: dict[str, dict[str, jax.Array]]  # of a task, by name

  def of_layers(self, task: str, what: str) -> dict[str, jax.Array]:
    """{MoE layer: its tap '<layer>/<what>'} of a task."""
    end = f'/{what}'
    return {n.removesuffix(end): x for n, x in self.taps[task].items() if n.endswith(end)}


class Backbone(nn.Module, kw_only=True):
  """Stages of blocks at strides 4, 8, 16, 32, .., each output normalised.

  Attributes:
    tasks: names of all tasks; an image's index is that of its task among them.
    depths, channels: blocks and channels of each stage.
    moe_blocks: for each stage, the blocks with MoE.
    moe: keyword arguments of every MoE layer.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    stems: 'shared' by all tasks, or 'per_task'.
    remat: blocks keep their input alone for the backward pass.
  """

  tasks: tuple[str, ...]
  depths: tuple[int, ...]
  channels: tuple[int, ...]
  moe_blocks: tuple[tuple[int, ...], ...]
  moe: dict
  drop_path_rate: float = 0.0
  stems: str = 'shared'
  remat: bool = False

  stem_name = 'stem'  # of the shared stem; a task's own is <stem_name>_<stem_owner>
  feeds_normed = False  # the normalised output of a stage, not what it is made of, goes on
  loops = False  # blocks that are alike, without state, run as one loop (see `scan`)

  def stem(self, name: str) -> Sequence[Callable]:
    """Layers from images to [B, h, w, channels[0]], called `name` and <name>_norm."""
    raise NotImplementedError

  def stem_owner(self, task: str) -> str:
    """What a stem that is not shared by all tasks is called after; tasks of one have one stem."""
    return task

  def downsampling(self, stage: int) -> Sequence[Callable]:
    """Layers between stage - 1 and `stage`, to channels[stage]."""
    raise NotImplementedError

  def block(self, stage: int, j: int, drop_path_rate: float, name: str) -> nn.Module:
    """A block: (x [B, h, w, C], key or None, tasks [B]) -> (x, {MoE layer: Routed}).

    With a key gates are noisy and paths dropped; `tasks` are the images' indices. The layer's name
    is '' where a block has one alone.
    """
    raise NotImplementedError

  def output_norm(self, name: str) -> Callable:
    """Norm of a stage's output."""
    return Norm(name=name)

  def masked(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Embedded images [B, h, w, C] with the kind's mask token where `mask` [B, h, w] is not 0."""
    raise UserError(f'{type(self).__name__} has no mask token, so it takes no mask')

  def balance_loss(self, usage: list[Usage], weight: float) -> jax.Array:
    """The loss that balances the experts, of `Output.usage`."""
    return balance_loss(usage, weight)

  @classmethod
  def beyond_classifier(cls, path: Sequence[str], tasks: Sequence[str], stages: int) -> bool:
    """Whether a classifier of this kind has no array like the one at `path` (in the backbone).

    That are a task's own modules and, unless they feed the next stage, the norms of all outputs
    but the last.
    """
    own = {f'{cls.stem_name}_{task}{end}' for task in tasks for end in ('', '_norm')}
    norms = set() if cls.feeds_normed else {f'norm{i}' for i in range(stages - 1)}
    return path[0] in own | norms

  def setup(self):
    if self.stems == 'per_task':
      owners = {task: self.stem_owner(task) for task in self.tasks}
      own = {o: tuple(self.stem(f'{self.stem_name}_{o}')) for o in dict.fromkeys(owners.values())}
      self.embeddings = {task: own[owner] for task, owner in owners.items()}
    else:
      self.embeddings = dict.fromkeys(self.tasks, tuple(self.stem(self.stem_name)))
    rates = iter(drop_path_rates(self.depths, self.drop_path_rate))
    stages = range(len(self.depths))
    self.between = [tuple(self.downsampling(i)) if i else () for i in stages]
    self.blocks = [
      [self.block(i, j, next(rates), f'stage{i}_block{j}') for j in range(self.depths[i])]
      for i in stages
    ]
    self.norms = [self.output_norm(f'norm{i}') for i in stages]

  def __call__(
    self,
    images: dict[str, jax.Array],
    rng: jax.Array | None = None,
    mask: dict[str, jax.Array] | None = None,
  ) -> Output:
    """Runs the images of some or all tasks.

    Batch norm trains, pass by pass, while the collection `batch_stats` is mutable.

    Args:
      images: by task, [B, H, W, bands].
      rng: key of gate noise, dropped paths and values (training); None: there are none.
      mask: by task, the locations behind the stem that are masked, [B, h, w].

    Raises:
      UserError: a mask for a kind that has no mask token.
    """
    output, usages = Output({n: [] for n in images}, [], {n: {} for n in images}), []
    for i, (names, x) in enumerate(self._passes(images, mask)):
      key = None if rng is None else jax.random.fold_in(rng, len(images) + i)
      index = [jnp.full(len(images[n]), self.tasks.index(n), jnp.int32) for n in names]
      stages, taps, usage = self._run(x, key, interleave(index))
      usages.append(usage)
      by_task = lambda x, n=names: zip(n, deinterleave(x, [len(images[t]) for t in n]), strict=True)
      for x in stages:
        for name, part in by_task(x):
          output.stages[name].append(part)
      for tap, x in taps.items():
        for name, part in by_task(x):
          output.taps[name][tap] = part
    return output._replace(usage=add_usage(usages))

  def _passes(self, images, mask):
    """[(tasks, their images behind the stem)], pass by pass; a shared stem reads them joined."""
    own, passes = self.stems == 'per_task', []
    if own:
      images = {name: _through(self.embeddings[name], x) for name, x in images.items()}
    for names in _of_one_shape(images):
      x = interleave([images[name] for name in names])
      x = x if own else _through(self.embeddings[names[0]], x)
      if mask is not None:
        x = self.masked(x, interleave([mask[name] for name in names]))
      passes.append((names, x))
    return passes

  def _run(self, x, key, tasks):
    """(outputs of the stages, taps, usage of each block with MoE) of embedded images."""
    outs, taps, usages, index = [], {'embed': x}, [], 0
    for stage, blocks in enumerate(self.blocks):
      x = _through(self.between[stage], x)
      x, found = self._blocks(blocks, x, key, index, tasks)
      for block, layers in zip(blocks, found, strict=True):
        usages += [block_usage([r.usage for r in layers.values()])] if layers else []
        for layer, routed in layers.items():
          taps |= routed.taps('/'.join(filter(None, (block.name, layer))))
      index += len(blocks)
      taps[f'stage{stage}'] = x
      out = self.norms[stage](x)
      outs.append(out)
      x = out if self.feeds_normed else x
    return outs, taps, usages

  def _blocks(self, blocks, x, key, first, tasks):
    """(x, what each block says of its MoE layers) behind blocks numbered from `first`."""
    layers, run = [], lambda block, *args: block(*args)
    run = nn.remat(run) if self.remat else run
    alike = self.loops and not self.is_initializing()
    for groups in scan.runs(blocks) if alike else [[(block,)] for block in blocks]:
      if len(groups) > 1:
        x, found = scan.run(groups, x, key, first, self.remat, tasks)
      else:
        own = None if key is None else jax.random.fold_in(key, first)
        x, *found = run(groups[0][0], x, own, tasks)
      layers += found
      first += len(found)
    return x, layers


def interleave(arrays: Sequence[jax.Array]) -> jax.Array:
  """One batch [sum of n, ..] of several tasks' [n, ..], group by group of the sampling ratio.

  So every device keeps the images it has, and noise falls on the same image on every mesh.
  """
  if len(arrays) == 1:
    return arrays[0]
  groups = math.gcd(*map(len, arrays))
  parts = [x.reshape(groups, -1, *x.shape[1:]) for x in arrays]
  return jnp.concatenate(parts, 1).reshape(-1, *arrays[0].shape[1:])


def deinterleave(x: jax.Array, counts: Sequence[int]) -> list[jax.Array]:
  """The arrays, of `counts` images each, that `interleave` joined to `x`."""
  groups = math.gcd(*counts)
  ends = [end // groups for end in itertools.accumulate(counts)]
  parts = jnp.split(x.reshape(groups, -1, *x.shape[1:]), ends[:-1], axis=1)
  return [p.reshape(-1, *x.shape[1:]) for p in parts]


def _of_one_shape(images):
  """Names of the tasks whose images share a shape, by shape."""
  groups = {}
  for name, x in images.items():
    groups.setdefault(x.shape[1:], []).append(name)
  return list(groups.values())


def _through(layers, x):
  for layer in layers:
    x = layer(x)
  return x
