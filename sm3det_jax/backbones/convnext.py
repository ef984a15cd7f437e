"""ConvNeXt with mixture-of-experts FFNs (Liu et al. 2022; SM3Det section 3.3, released code)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm3det_jax.backbones.stages import Backbone
from sm3det_jax.layers.convolution import DepthwiseConv, Patchify
from sm3det_jax.layers.feed_forward import FeedForward
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import drop_path, split
from sm3det_jax.moe.layer import MoE, Routed


class Adapter(nn.Module):
  """Squeeze and excitation: weights of channels by what the whole map holds (Hu et al. 2018)."""

  reduction: int = 16

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> [B, 1, 1, C]."""
    c = x.shape[-1]
    y = nn.relu(Dense(max(c // self.reduction, 1), name='fc1')(x.mean((1, 2), keepdims=True)))
    return nn.sigmoid(Dense(c, name='fc2')(y))


class Block(nn.Module):
  """Depthwise 7x7, norm, FFN or MoE, layer scale, drop path, shortcut.

  Attributes:
    moe: keyword arguments of the MoE layer, None for a dense block.
    layer_scale: initial gamma; 0: there is none.
    grn: as `FeedForward`; experts have none.
    adapters: tasks that have an adapter of their own behind FFN or MoE.
    drop_path_rate: of this block.
  """

  moe: dict | None
  layer_scale: float
  grn: bool
  adapters: tuple[str, ...]
  drop_path_rate: float

  @nn.compact
  def __call__(self, x, key=None, tasks=None) -> tuple[jax.Array, dict[str, Routed]]:
    noise_key, drop_key = split(key, 2)
    y, layers = Norm(name='norm')(DepthwiseConv(name='dwconv')(x)), {}
    if self.moe is None:
      y = FeedForward(4 * x.shape[-1], self.grn, name='ffn')(y)
    else:
      y, layers[''] = MoE(hidden=4 * x.shape[-1], name='moe', **self.moe)(y, noise_key)
    if self.adapters:
      weights = jnp.stack([Adapter(name=f'adapter_{task}')(y) for task in self.adapters])
      y = y * weights[tasks, jnp.arange(len(y))]  # [tasks, B, 1, 1, C]: of each image its task's
    if self.layer_scale:
      gamma = self.param('gamma', nn.initializers.constant(self.layer_scale), (x.shape[-1],))
      y = y * gamma.astype(y.dtype)[None, None, None]
    return x + drop_path(y, self.drop_path_rate, drop_key), layers


class ConvNeXt(Backbone, kw_only=True):
  """The whole network.

  Attributes:
    layer_scale, grn: as `Block`.
    adapters: every block has an adapter of each task (Wang et al. 2019, with known domains).
  """

  layer_scale: float = 1e-6
  grn: bool = False
  adapters: bool = False

  def stem(self, name):
    return Patchify(self.channels[0], 4, name=name), Norm(name=f'{name}_norm')

  def downsampling(self, stage):
    name = f'downsample{stage}'
    return Norm(name=f'{name}_norm'), Patchify(self.channels[stage], 2, name=name)

  def block(self, stage, j, drop_path_rate, name):
    adapters = self.tasks if self.adapters else ()
    moe = self.moe if j in self.moe_blocks[stage] else None
    return Block(moe, self.layer_scale, self.grn, adapters, drop_path_rate, name=name)

  @classmethod
  def beyond_classifier(cls, path, tasks, stages):
    adapters = {f'adapter_{task}' for task in tasks}
    return bool(adapters & set(path)) or super().beyond_classifier(path, tasks, stages)
