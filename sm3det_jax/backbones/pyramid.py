"""What VAN, LSKNet and PVT-v2 share: overlapping patches, stages, an FFN with a 3x3 inside."""

import flax.linen as nn
import jax

from sm3det_jax.backbones.stages import run_block, stem_name
from sm3det_jax.layers.activations import gelu
from sm3det_jax.layers.convolution import Conv, DepthwiseConv
from sm3det_jax.layers.initialisers import depthwise_fan_out_init, fan_out_init
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import drop_path_rates, dropout
from sm3det_jax.moe.layer import MoELinear, Usage, block_usage


class MixFFN(nn.Module):
  """Linear, depthwise 3x3, exact GELU, linear; each of the two linear layers may be routed.

  Attributes:
    hidden: channels inside.
    moe: for each of the two layers the keyword arguments of its MoE layer, None where dense.
    drop_rate: of single values after GELU and at the end.
    kernel_init: of the two layers.
  """

  hidden: int
  moe: tuple[dict | None, dict | None]
  drop_rate: float
  kernel_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x, key=None) -> tuple[jax.Array, list[Usage]]:
    keys, usages = split(key, 4), []

    def linear(i, x, features):
      name = f'fc{i + 1}'
      if self.moe[i] is None:
        return Dense(features, self.kernel_init, name=name)(x)
      layer = MoELinear(features=features, kernel_init=self.kernel_init, name=name, **self.moe[i])
      y, usage = layer(x, keys[i])
      usages.append(usage)
      return y

    y = linear(0, x, self.hidden)
    y = DepthwiseConv(3, kernel_init=depthwise_fan_out_init, name='dwconv')(y)
    y = dropout(gelu(y), self.drop_rate, keys[2])
    y = dropout(linear(1, y, x.shape[-1]), self.drop_rate, keys[3])
    return y, usages


class Pyramid(nn.Module, kw_only=True):
  """Stages at strides 4, 8, 16, 32, .. whose normalised output is the next one's input.

  Attributes:
    depths, channels: blocks and channels of each stage.
    mlp_ratios: of each stage, hidden channels of the FFN over `channels`.
    moe_blocks: for each stage, the blocks whose first linear layer is routed.
    fc2_blocks: the same for the second one; () = as `moe_blocks`.
    moe: keyword arguments of every MoE layer.
    drop_rate: as `MixFFN`.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    stems: 'shared' by all tasks, or 'per_task'.
    remat: blocks keep their input alone for the backward pass.
  """

  depths: tuple[int, ...]
  channels: tuple[int, ...]
  mlp_ratios: tuple[float, ...]
  moe_blocks: tuple[tuple[int, ...], ...]
  fc2_blocks: tuple[tuple[int, ...], ...] = ()
  moe: dict
  drop_rate: float = 0.0
  drop_path_rate: float = 0.0
  stems: str = 'shared'
  remat: bool = False

  embed_norm = Norm
  linear_init = staticmethod(fan_out_init)

  @nn.compact
  def __call__(self, x: jax.Array, rng: jax.Array | None = None, task: str = ''):
    """Images [B, H, W, bands] -> (stage outputs, finest first; Usage of each block with MoE).

    With `rng` the gates are noisy and values and paths dropped (training), without it not. `task`
    says whose stem, where tasks have their own.
    """
    rates = drop_path_rates(self.depths, self.drop_path_rate)
    outs, usages, index = [], [], 0
    for stage, (depth, channels) in enumerate(zip(self.depths, self.channels, strict=True)):
      size, stride = (3, 2) if stage else (7, 4)
      embed = f'embed{stage}' if stage else stem_name('embed0', self.stems, task)
      x = Conv(channels, size, stride, kernel_init=fan_out_init, name=embed)(x)
      x = self.embed_norm(name=f'{embed}_norm')(x)
      for j in range(depth):
        key = None if rng is None else jax.random.fold_in(rng, index)
        block = self.block(stage, self._ffn(stage, j), rates[index], f'stage{stage}_block{j}')
        x, usage = run_block(block, self.remat, x, key)
        usages += [block_usage(usage)] if usage else []
        index += 1
      x = Norm(name=f'norm{stage}')(x)
      outs.append(x)
    return outs, usages

  def block(self, stage: int, ffn: dict, drop_path_rate: float, name: str) -> nn.Module:
    """A block: (x, key) -> (x, usages of its MoE layers); `ffn` are the arguments of `MixFFN`."""
    raise NotImplementedError

  def _ffn(self, stage, j):
    routed = (self.moe_blocks[stage], (self.fc2_blocks or self.moe_blocks)[stage])
    return dict(
      hidden=int(self.channels[stage] * self.mlp_ratios[stage]),
      moe=tuple(dict(self.moe) if j in blocks else None for blocks in routed),
      drop_rate=self.drop_rate,
      kernel_init=self.linear_init,
    )


def split(key: jax.Array | None, n: int):
  """`n` keys, or `n` times None."""
  return (None,) * n if key is None else jax.random.split(key, n)
