"""The dense feed-forward network of a block."""

import flax.linen as nn

from sm3det_jax.layers.activations import GELUS
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import GRN


class FeedForward(nn.Module):
  """Linear to `hidden`, GELU, linear back.

  Attributes:
    hidden: channels inside.
    grn: global response normalisation behind GELU.
    gelu: a key of `activations.GELUS`.
  """

  hidden: int
  grn: bool = False
  gelu: str = 'erf'

  @nn.compact
  def __call__(self, x):
    y = GELUS[self.gelu](Dense(self.hidden, name='fc1')(x))
    return Dense(x.shape[-1], name='fc2')(GRN(name='grn')(y) if self.grn else y)
