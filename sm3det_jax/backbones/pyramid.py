"""What VAN, LSKNet and PVT-v2 share: overlapping patches, stages, an FFN with a 3x3 inside."""

import flax.linen as nn
import jax

from sm3det_jax.backbones.stages import Backbone
from sm3det_jax.layers.activations import gelu
from sm3det_jax.layers.convolution import Conv, DepthwiseConv
from sm3det_jax.layers.initialisers import depthwise_fan_out_init, fan_out_init
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import dropout, split
from sm3det_jax.moe.layer import MoELinear, Routed


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
  def __call__(self, x, key=None) -> tuple[jax.Array, dict[str, Routed]]:
    keys, layers = split(key, 4), {}

    def linear(i, x, features):
      name = f'fc{i + 1}'
      if self.moe[i] is None:
        return Dense(features, self.kernel_init, name=name)(x)
      layer = MoELinear(features=features, kernel_init=self.kernel_init, name=name, **self.moe[i])
      y, layers[name] = layer(x, keys[i])
      return y

    y = linear(0, x, self.hidden)
    y = DepthwiseConv(3, kernel_init=depthwise_fan_out_init, name='dwconv')(y)
    y = dropout(gelu(y), self.drop_rate, keys[2])
    y = dropout(linear(1, y, x.shape[-1]), self.drop_rate, keys[3])
    return y, layers


class Pyramid(Backbone, kw_only=True):
  """Stages whose normalised output is the next one's input, behind overlapping patches.

  Attributes:
    mlp_ratios: of each stage, hidden channels of the FFN over `channels`.
    moe_blocks: for each stage, the blocks whose first linear layer is routed.
    fc2_blocks: the same for the second one; () = as `moe_blocks`.
    drop_rate: as `MixFFN`.
  """

  mlp_ratios: tuple[float, ...]
  fc2_blocks: tuple[tuple[int, ...], ...] = ()
  drop_rate: float = 0.0

  stem_name = 'embed0'
  feeds_normed = True
  embed_norm = Norm
  linear_init = staticmethod(fan_out_init)

  def stem(self, name):
    return self._embedding(0, 7, 4, name)

  def downsampling(self, stage):
    return self._embedding(stage, 3, 2, f'embed{stage}')

  def block(self, stage, j, drop_path_rate, name):
    routed = (self.moe_blocks[stage], (self.fc2_blocks or self.moe_blocks)[stage])
    ffn = dict(
      hidden=int(self.channels[stage] * self.mlp_ratios[stage]),
      moe=tuple(self.moe if j in blocks else None for blocks in routed),
      drop_rate=self.drop_rate,
      kernel_init=self.linear_init,
    )
    return self.block_of(stage, ffn, drop_path_rate, name)

  def block_of(self, stage: int, ffn: dict, drop_path_rate: float, name: str) -> nn.Module:
    """`block` with the arguments of its `MixFFN`."""
    raise NotImplementedError

  def _embedding(self, stage, size, stride, name):
    conv = Conv(self.channels[stage], size, stride, kernel_init=fan_out_init, name=name)
    return conv, self.embed_norm(name=f'{name}_norm')
