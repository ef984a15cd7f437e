"""ConvNeXt with mixture-of-experts FFNs (Liu et al. 2022; SM3Det section 3.3, released code)."""

import flax.linen as nn
import jax

from sm3det_jax.backbones.stages import run_block, stem_name
from sm3det_jax.layers.convolution import DepthwiseConv, Patchify
from sm3det_jax.layers.feed_forward import FeedForward
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import drop_path, drop_path_rates
from sm3det_jax.moe.layer import MoE, Usage


class Adapter(nn.Module):
  """Squeeze and excitation: channels weighted by what the whole map holds (Hu et al. 2018)."""

  reduction: int = 16

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    y = nn.relu(Dense(max(c // self.reduction, 1), name='fc1')(x.mean((1, 2), keepdims=True)))
    return x * nn.sigmoid(Dense(c, name='fc2')(y))


class Block(nn.Module):
  """Depthwise 7x7, norm, FFN or MoE, layer scale, drop path, shortcut.

  Attributes:
    moe: keyword arguments of the MoE layer, None for a dense block.
    layer_scale: initial gamma; 0: there is none.
    grn: as `FFN`; experts have none.
    adapter: name of the adapter behind FFN or MoE, None: there is none.
    drop_path_rate: of this block.
  """

  moe: dict | None
  layer_scale: float
  grn: bool
  adapter: str | None
  drop_path_rate: float

  @nn.compact
  def __call__(self, x, noise_key=None, drop_key=None) -> tuple[jax.Array, Usage | None]:
    y, usage = Norm(name='norm')(DepthwiseConv(name='dwconv')(x)), None
    if self.moe is None:
      y = FeedForward(4 * x.shape[-1], self.grn, name='ffn')(y)
    else:
      y, usage = MoE(hidden=4 * x.shape[-1], name='moe', **self.moe)(y, noise_key)
    if self.adapter:
      y = Adapter(name=self.adapter)(y)
    if self.layer_scale:
      gamma = self.param('gamma', nn.initializers.constant(self.layer_scale), (x.shape[-1],))
      y = y * gamma.astype(y.dtype)[None, None, None]
    return x + drop_path(y, self.drop_path_rate, drop_key), usage


class ConvNeXt(nn.Module):
  """Four stages at strides 4, 8, 16, 32, each output normalised.

  Attributes:
    depths, channels: blocks and channels of each stage.
    moe_blocks: for each stage, the blocks whose FFN is an MoE layer.
    moe: keyword arguments of every MoE layer.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    layer_scale, grn: as `Block`.
    stems: 'shared' by all tasks, or 'per_task'.
    adapters: every block has an adapter of each task (Wang et al. 2019, with known domains).
    remat: blocks keep their input alone for the backward pass.
  """

  depths: tuple[int, ...]
  channels: tuple[int, ...]
  moe_blocks: tuple[tuple[int, ...], ...]
  moe: dict
  drop_path_rate: float = 0.1
  layer_scale: float = 1e-6
  grn: bool = False
  stems: str = 'shared'
  adapters: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, rng: jax.Array | None = None, task: str = ''):
    """Images [B, H, W, bands] -> (stage outputs, finest first; Usage of each MoE layer).

    With `rng` the gates are noisy and paths dropped (training), without it neither is. `task` says
    whose stem and adapters, where tasks have their own.
    """
    stem = stem_name('stem', self.stems, task)
    adapter = f'adapter_{task}' if self.adapters else None
    rates = drop_path_rates(self.depths, self.drop_path_rate)
    outs, usages, index = [], [], 0
    for stage, (depth, channels) in enumerate(zip(self.depths, self.channels, strict=True)):
      if stage == 0:
        x = Norm(name=f'{stem}_norm')(Patchify(channels, 4, name=stem)(x))
      else:
        x = Norm(name=f'downsample{stage}_norm')(x)
        x = Patchify(channels, 2, name=f'downsample{stage}')(x)
      for j in range(depth):
        moe = dict(self.moe) if j in self.moe_blocks[stage] else None
        keys = (None, None) if rng is None else jax.random.split(jax.random.fold_in(rng, index))
        name = f'stage{stage}_block{j}'
        block = Block(moe, self.layer_scale, self.grn, adapter, rates[index], name=name)
        x, usage = run_block(block, self.remat, x, *keys)
        usages += [] if usage is None else [usage]
        index += 1
      outs.append(Norm(name=f'norm{stage}')(x))
    return outs, usages
