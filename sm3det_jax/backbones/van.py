"""VAN, the visual attention network (Guo et al. 2022), with routed linear layers in its FFN."""

import flax.linen as nn
import jax

from sm3det_jax.backbones.pyramid import MixFFN, Pyramid
from sm3det_jax.layers.activations import gelu
from sm3det_jax.layers.convolution import DepthwiseConv
from sm3det_jax.layers.initialisers import depthwise_fan_out_init, fan_out_init
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import BatchNorm
from sm3det_jax.layers.regularisation import drop_path, split


def local_then_wide(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Depthwise 5x5 of x, and depthwise 7x7 of dilation 3 of that; called inside a module."""
  local = DepthwiseConv(5, kernel_init=depthwise_fan_out_init, name='local')(x)
  return local, DepthwiseConv(7, 3, depthwise_fan_out_init, name='wide')(local)


class LargeKernelGate(nn.Module):
  """x times a 1x1 convolution of its 21x21 surroundings (5x5, then dilated 7x7)."""

  @nn.compact
  def __call__(self, x):
    _, y = local_then_wide(x)
    return x * Dense(x.shape[-1], fan_out_init, name='mix')(y)


class Attention(nn.Module):
  """1x1, GELU, spatial gate, 1x1, with a shortcut of its own."""

  gate: type[nn.Module]

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    y = gelu(Dense(c, fan_out_init, name='proj1')(x))
    return x + Dense(c, fan_out_init, name='proj2')(self.gate(name='gate')(y))


class Block(nn.Module):
  """x + s1 Attention(BN(x)), then x + s2 FFN(BN(x)), with drop path."""

  gate: type[nn.Module]
  ffn: dict
  drop_path_rate: float
  layer_scale: float

  @nn.compact
  def __call__(self, x, key=None, tasks=None):
    ffn_key, key1, key2 = split(key, 3)
    y = Attention(self.gate, name='attention')(BatchNorm(name='norm1')(x))
    x = x + drop_path(self._scaled('scale1', y), self.drop_path_rate, key1)
    y, layers = MixFFN(**self.ffn, name='mlp')(BatchNorm(name='norm2')(x), ffn_key)
    return x + drop_path(self._scaled('scale2', y), self.drop_path_rate, key2), layers

  def _scaled(self, name, y):
    scale = self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],))
    return y * scale.astype(y.dtype)[None, None, None]


class VAN(Pyramid, kw_only=True):
  """The whole network; `layer_scale` is the initial scale of a block's two branches."""

  layer_scale: float = 1e-2

  embed_norm = BatchNorm
  gate = LargeKernelGate

  def block_of(self, stage, ffn, drop_path_rate, name):
    return Block(self.gate, ffn, drop_path_rate, self.layer_scale, name=name)
