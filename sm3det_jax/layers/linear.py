"""Linear layers."""

import flax.linen as nn

from sm3det_jax.layers.initialisers import truncated_normal


class Dense(nn.Module):
  """Linear layer over the last axis, in the dtype of its input."""

  features: int
  kernel_init: nn.initializers.Initializer = truncated_normal
  bias_init: nn.initializers.Initializer = nn.initializers.zeros
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    y = x @ self.param('kernel', self.kernel_init, (x.shape[-1], self.features)).astype(x.dtype)
    if not self.use_bias:
      return y
    b = self.param('bias', self.bias_init, (self.features,)).astype(x.dtype)
    return y + b.reshape((1,) * (x.ndim - 1) + (-1,))
