"""Swin transformer, version 1 (Liu et al. 2021), with mixtures of experts in its FFN slots.

Squads of experts are of the released code: FFNs beside convolutions that read the neighbours.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm3det_jax.backbones.stages import run_block, stem_name
from sm3det_jax.layers.activations import gelu
from sm3det_jax.layers.convolution import Conv, Patchify
from sm3det_jax.layers.feed_forward import FeedForward
from sm3det_jax.layers.initialisers import truncated_normal
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import drop_path, drop_path_rates
from sm3det_jax.layers.windows import (  # noqa: F401
  WindowAttention,
  pad_to,
  relative_positions,
  shift_mask,
)
from sm3det_jax.moe.layer import MoE, MoELayer, Usage
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
    return total.astype(x.dtype)


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
  def __call__(self, x, key=None) -> tuple[jax.Array, Usage | None]:
    noise, key1, key2 = (None,) * 3 if key is None else jax.random.split(key, 3)
    y, usage = WindowAttention(**self.attention, name='attention')(norm(name='norm1')(x)), None
    x = x + drop_path(y, self.drop_path_rate, key1)
    y = norm(name='norm2')(x)
    if self.moe is None:
      y = FeedForward(self.hidden, name='ffn')(y)
    elif self.squad:
      layer = SquadMoE(hidden=self.hidden, squad=self.squad, name='moe', **self.moe)
      y, usage = layer(y, noise)
    else:
      y, usage = MoE(hidden=self.hidden, name='moe', **self.moe)(y, noise)
    return x + drop_path(y, self.drop_path_rate, key2), usage


class PatchMerging(nn.Module):
  """2x2 patches to one location each: norm, linear without bias."""

  features: int
  patch_norm: bool

  @nn.compact
  def __call__(self, x):
    x = pad_to(x, 2)
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, h // 2, w // 2, 4 * c)
    x = norm(name='norm')(x) if self.patch_norm else x
    return Dense(self.features, use_bias=False, name='reduction')(x)


class Swin(nn.Module):
  """Four stages at strides 4, 8, 16, 32, each output normalised.

  Attributes:
    depths, channels, heads: blocks, channels and attention heads of each stage.
    window, mlp_ratio, qkv_bias: side of a window; hidden channels of an FFN over the block's; bias
      of the attention's projection.
    patch_norm: norms in the patch embedding and merging.
    squad: kinds of experts, () = FFNs.
    moe_blocks: for each stage, the blocks whose FFN is an MoE layer.
    moe: keyword arguments of every MoE layer.
    drop_path_rate: of the last block; it grows linearly from 0 at the first.
    stems: 'shared' by all tasks, or 'per_task'.
    remat: blocks keep their input alone for the backward pass.
  """

  depths: tuple[int, ...]
  channels: tuple[int, ...]
  heads: tuple[int, ...]
  moe_blocks: tuple[tuple[int, ...], ...]
  moe: dict
  window: int = 7
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  patch_norm: bool = True
  squad: tuple[str, ...] = ()
  drop_path_rate: float = 0.1
  stems: str = 'shared'
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, rng: jax.Array | None = None, task: str = ''):
    """Images [B, H, W, bands] -> (stage outputs, finest first; Usage of each MoE layer).

    With `rng` the gates are noisy and paths dropped (training), without it neither is. `task` says
    whose stem, where tasks have their own.
    """
    stem = stem_name('stem', self.stems, task)
    rates = drop_path_rates(self.depths, self.drop_path_rate)
    outs, usages, index = [], [], 0
    x = Patchify(self.channels[0], 4, name=stem)(pad_to(x, 4))
    x = norm(name=f'{stem}_norm')(x) if self.patch_norm else x
    for stage, (depth, channels) in enumerate(zip(self.depths, self.channels, strict=True)):
      if stage:
        x = PatchMerging(channels, self.patch_norm, name=f'downsample{stage}')(x)
      for j in range(depth):
        block = Block(
          self._attention(stage, j),
          int(channels * self.mlp_ratio),
          dict(self.moe) if j in self.moe_blocks[stage] else None,
          self.squad,
          rates[index],
          name=f'stage{stage}_block{j}',
        )
        key = None if rng is None else jax.random.fold_in(rng, index)
        x, usage = run_block(block, self.remat, x, key)
        usages += [] if usage is None else [usage]
        index += 1
      outs.append(norm(name=f'norm{stage}')(x))
    return outs, usages

  def _attention(self, stage, j):
    shift = j % 2 * (self.window // 2)
    return dict(heads=self.heads[stage], size=self.window, shift=shift, qkv_bias=self.qkv_bias)
