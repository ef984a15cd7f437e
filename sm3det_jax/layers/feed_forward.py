"""The dense feed-forward network of a block."""

import flax.linen as nn

from sm3det_jax.layers.activations import gelu
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import GRN


class FeedForward(nn.Module):
  """Linear to `hidden`, exact GELU, linear back; `grn`: global response normalisation between."""

  hidden: int
  grn: bool = False

  @nn.compact
  def __call__(self, x):
    y = gelu(Dense(self.hidden, name='fc1')(x))
    return Dense(x.shape[-1], name='fc2')(GRN(name='grn')(y) if self.grn else y)
