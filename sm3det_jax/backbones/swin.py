"""Swin transformer, version 1 (Liu et al. 2021), with mixtures of experts in its FFN slots.

Squads of experts are of the released code: FFNs beside convolutions that read the neighbours.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm3det_jax.backbones.stages import Backbone
from sm3det_jax.layers.activations import gelu
from sm3det_jax.layers.convolution import Conv, Patchify
from sm3det_jax.layers.feed_forward import FeedForward
from sm3det_jax.layers.initialisers import truncated_normal
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import drop_path, split
from sm3det_jax.layers.windows import (  # noqa: F401
  WindowAttention,
  merge_patches,
  pad_to,
  relative_positions,
  shift_mask,
)
from sm3det_jax.moe.layer import MoE, MoELayer, Routed
from sm3det_jax.precision import wide, wide_dtype

SQUAD = {'ffn': 1, 'conv3x3': 3, 'conv5x5': 5}  # experts of a squad: side of their neighbourhood
norm = functools.partial(Norm, 1e-5)


class SquadMoE(MoELayer, kw_only=True):
  """Experts of several kinds: 1x1, 3x3 or 5x5 convolution to `hidden`, exact GELU, linear back.

  Attributes:
    hidden: channels inside.
    squad: keys of `SQUAD`; the experts are this list again and again.

  Every expert is computed everywhere (docs/decisions).
  """

  hidden: int
  squad: tuple[str, ...]

  def experts(self, x, routing):
    e, total = self.num_experts, 0
    gates = jnp.einsum(
      'nk,nke->ne', routing.weights, jax.nn.one_hot(routing.indices, e, dtype=wide_dtype(x.dtype))
    ).reshape(*x.shape[:-1], e)
    for i in range(e):
      size = SQUAD[self.squad[i % len(self.squad)]]
      y = Conv(self.hidden, size, kernel_init=truncated_normal, name=f'expert{i}_in')(x)
      y = Dense(x.shape[-1], name=f'expert{i}_out')(gelu(y))
      total = total + wide(y) * gates[..., i : i + 1]
    return total.astype(x.dtype), None


class Block(nn.Module):
  """x + Attention(LN(x)), then x + FFN or MoE(LN(x)), with drop path.

  An official expert adds the shortcut itself; the gates sum to 1, so that is the same. The official
  code drops paths of experts by token, this one by sample.
  """

  attention: dict
  hidden: int
  moe: dict | None
  squad: tuple[str, ...]
  drop_path_rate: float

  @nn.compact
  def __call__(self, x, key=None, tasks=None) -> tuple[jax.Array, dict[str, Routed]]:
    noise, key1, key2 = split(key, 3)
    y, layers = WindowAttention(**self.attention, name='attention')(norm(name='norm1')(x)), {}
    x = x + drop_path(y, self.drop_path_rate, key1)
    y = norm(name='norm2')(x)
    if self.moe is None:
      y = FeedForward(self.hidden, name='ffn')(y)
    elif self.squad:
      layer = SquadMoE(hidden=self.hidden, squad=self.squad, name='moe', **self.moe)
      y, layers[''] = layer(y, noise)
    else:
      y, layers[''] = MoE(hidden=self.hidden, name='moe', **self.moe)(y, noise)
    return x + drop_path(y, self.drop_path_rate, key2), layers


class PatchMerging(nn.Module):
  """2x2 patches to one location each: norm, linear without bias."""

  features: int
  patch_norm: bool

  @nn.compact
  def __call__(self, x):
    x = merge_patches(x)
    x = norm(name='norm')(x) if self.patch_norm else x
    return Dense(self.features, use_bias=False, name='reduction')(x)


class Swin(Backbone, kw_only=True):
  """The whole network; maps are padded with zeros where patches or windows do not fit.

  Attributes:
    heads: of the attention, of each stage.
    window, mlp_ratio, qkv_bias: side of a window; hidden channels of an FFN over the block's; bias
      of the attention's projection.
    patch_norm: norms in the patch embedding and merging.
    squad: kinds of experts, () = FFNs.
  """

  heads: tuple[int, ...]
  window: int = 7
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  patch_norm: bool = True
  squad: tuple[str, ...] = ()

  def stem(self, name):
    patches = functools.partial(pad_to, size=4), Patchify(self.channels[0], 4, name=name)
    return (*patches, norm(name=f'{name}_norm')) if self.patch_norm else patches

  def downsampling(self, stage):
    return (PatchMerging(self.channels[stage], self.patch_norm, name=f'downsample{stage}'),)

  def block(self, stage, j, drop_path_rate, name):
    shift = j % 2 * (self.window // 2)
    attention = dict(heads=self.heads[stage], size=self.window, shift=shift, qkv_bias=self.qkv_bias)
    hidden = int(self.channels[stage] * self.mlp_ratio)
    moe = self.moe if j in self.moe_blocks[stage] else None
    return Block(attention, hidden, moe, self.squad, drop_path_rate, name=name)

  def output_norm(self, name):
    return norm(name=name)
