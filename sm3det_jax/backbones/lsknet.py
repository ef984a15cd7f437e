"""LSKNet, the large selective kernel network (Li et al. 2023): VAN with another spatial gate."""

import flax.linen as nn
import jax.numpy as jnp

from sm3det_jax.backbones.van import VAN, local_then_wide
from sm3det_jax.layers.convolution import Conv
from sm3det_jax.layers.initialisers import fan_out_init
from sm3det_jax.layers.linear import Dense


class SelectiveGate(nn.Module):
  """x times a mixture of its 5x5 and 21x21 surroundings, weighted at every location."""

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    parts = [
      Dense(c // 2, fan_out_init, name=f'reduce{i + 1}')(y)
      for i, y in enumerate(local_then_wide(x))
    ]
    both = jnp.concatenate(parts, -1)
    summary = jnp.concatenate([both.mean(-1, keepdims=True), both.max(-1, keepdims=True)], -1)
    weights = nn.sigmoid(Conv(2, 7, kernel_init=fan_out_init, name='squeeze')(summary))
    y = parts[0] * weights[..., :1] + parts[1] * weights[..., 1:]
    return x * Dense(c, fan_out_init, name='mix')(y)


class LSKNet(VAN, kw_only=True):
  """The whole network; arguments as `VAN`."""

  gate = SelectiveGate
