"""ConvNeXt with mixture-of-experts FFNs (Liu et al. 2022; SM3Det section 3.3, released code)."""

import flax.linen as nn
import jax
import numpy as np

from sm3det_jax.backbones.layers import Dense, DepthwiseConv, Norm, Patchify, drop_path
from sm3det_jax.moe.layer import MoE, Usage


class FFN(nn.Module):
  """Linear to 4C, exact GELU, linear back."""

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    return Dense(c, name='fc2')(nn.gelu(Dense(4 * c, name='fc1')(x), approximate=False))


class Block(nn.Module):
  """Depthwise 7x7, norm, FFN or MoE, layer scale, drop path, shortcut.

  Attributes:
    moe: keyword arguments of the MoE layer, None for a dense block.
    layer_scale: initial gamma.
    drop_path_rate: of this block.
  """

  moe: dict | None
  layer_scale: float
  drop_path_rate: float

  @nn.compact
  def __call__(self, x, noise_key=None, drop_key=None) -> tuple[jax.Array, Usage | None]:
    y, usage = Norm(name='norm')(DepthwiseConv(name='dwconv')(x)), None
    if self.moe is None:
      y = FFN(name='ffn')(y)
    else:
      y, usage = MoE(hidden=4 * x.shape[-1], name='moe', **self.moe)(y, noise_key)
    gamma = self.param('gamma', nn.initializers.constant(self.layer_scale), (x.shape[-1],))
    return x + drop_path(
      y * gamma.astype(y.dtype)[None, None, None], self.drop_path_rate, drop_key
    ), usage


class ConvNeXt(nn.Module):
  """Four stages at strides 4, 8, 16, 32, each output normalised.

  Attributes:
    depths, channels: blocks and channels of each stage.
    moe_blocks: for each stage, the blocks whose FFN is an MoE layer.
    moe: keyword arguments of every MoE layer.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    layer_scale: initial gamma of the blocks.
  """

  depths: tuple[int, ...]
  channels: tuple[int, ...]
  moe_blocks: tuple[tuple[int, ...], ...]
  moe: dict
  drop_path_rate: float = 0.1
  layer_scale: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array, rng: jax.Array | None = None):
    """Images [B, H, W, bands] -> (stage outputs, finest first; Usage of each MoE layer).

    With `rng` the gates are noisy and paths dropped (training), without it neither is.
    """
    rates = np.linspace(0, self.drop_path_rate, sum(self.depths)).tolist()
    outs, usages, index = [], [], 0
    for stage, (depth, channels) in enumerate(zip(self.depths, self.channels, strict=True)):
      if stage == 0:
        x = Norm(name='stem_norm')(Patchify(channels, 4, name='stem')(x))
      else:
        x = Norm(name=f'downsample{stage}_norm')(x)
        x = Patchify(channels, 2, name=f'downsample{stage}')(x)
      for j in range(depth):
        moe = dict(self.moe) if j in self.moe_blocks[stage] else None
        keys = (None, None) if rng is None else jax.random.split(jax.random.fold_in(rng, index))
        block = Block(moe, self.layer_scale, rates[index], name=f'stage{stage}_block{j}')
        x, usage = block(x, *keys)
        usages += [] if usage is None else [usage]
        index += 1
      outs.append(Norm(name=f'norm{stage}')(x))
    return outs, usages
