"""PVT-v2, the pyramid vision transformer (Wang et al. 2022), with routed linear layers in its FFN.

The released code has no PVT-v2; docs/decisions says how MoE and sizes were chosen.
"""

import flax.linen as nn
import jax.numpy as jnp

from sm3det_jax.backbones.pyramid import MixFFN, Pyramid
from sm3det_jax.layers.attention import attend
from sm3det_jax.layers.convolution import Patchify
from sm3det_jax.layers.initialisers import truncated_normal
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import drop_path, split


class Attention(nn.Module):
  """Multi-head attention whose keys and values are those of patches of `reduction` x `reduction`.

  Attributes:
    heads: of the channels.
    reduction: 1 = every location is a key.
    qkv_bias: of the projections.
  """

  heads: int
  reduction: int
  qkv_bias: bool

  @nn.compact
  def __call__(self, x):
    b, _, _, c = x.shape
    project = lambda n, name: Dense(n, use_bias=self.qkv_bias, name=name)
    by_head = lambda y: y.reshape(b, -1, self.heads, c // self.heads)
    small = x
    if self.reduction > 1:
      small = Norm(name='reduce_norm')(Patchify(c, self.reduction, name='reduce')(x))
    keys, values = jnp.split(project(2 * c, 'kv')(small), 2, -1)
    y = attend(by_head(project(c, 'q')(x)), by_head(keys), by_head(values))
    return Dense(c, name='proj')(y.reshape(x.shape))


class Block(nn.Module):
  """x + Attention(LN(x)), then x + FFN(LN(x)), with drop path."""

  attention: dict
  ffn: dict
  drop_path_rate: float

  @nn.compact
  def __call__(self, x, key=None, tasks=None):
    ffn_key, key1, key2 = split(key, 3)
    y = Attention(**self.attention, name='attention')(Norm(name='norm1')(x))
    x = x + drop_path(y, self.drop_path_rate, key1)
    y, layers = MixFFN(**self.ffn, name='mlp')(Norm(name='norm2')(x), ffn_key)
    return x + drop_path(y, self.drop_path_rate, key2), layers


class PVTv2(Pyramid, kw_only=True):
  """The whole network; `heads` and `reductions` are the attention's, of each stage."""

  heads: tuple[int, ...]
  reductions: tuple[int, ...]
  qkv_bias: bool = True

  linear_init = staticmethod(truncated_normal)

  def block_of(self, stage, ffn, drop_path_rate, name):
    attention = dict(
      heads=self.heads[stage], reduction=self.reductions[stage], qkv_bias=self.qkv_bias
    )
    return Block(attention, ffn, drop_path_rate, name=name)
