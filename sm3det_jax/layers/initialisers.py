"""How kernels begin."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def truncated_normal(key, shape, dtype=jnp.float32):
  """Truncated normal 0.02, as ConvNeXt."""
  return nn.initializers.truncated_normal(0.02)(key, shape, dtype)


# Variance 2 over the fan-out, groups counted: convolutions of VAN, LSKNet and PVT-v2.
fan_out_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def depthwise_fan_out_init(key, shape, dtype=jnp.float32):
  """`fan_out_init` of a depthwise kernel [h, w, C], whose fan-out is h w."""
  return jax.random.normal(key, shape, dtype) * (2.0 / (shape[0] * shape[1])) ** 0.5
