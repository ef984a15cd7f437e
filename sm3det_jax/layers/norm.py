"""Normalisation, computed in at least float32."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from sm3det_jax.precision import wide


class GroupNorm(nn.Module):
  """Group norm over (H, W, C / groups), computed in at least float32."""

  groups: int = 32
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    y = wide(x).reshape(b, h * w, self.groups, -1)
    y = y - y.mean((1, 3), keepdims=True)
    y = y * lax.rsqrt((y * y).mean((1, 3), keepdims=True) + self.epsilon)
    y = y.reshape(x.shape) * scale.astype(y.dtype)[None, None, None]
    return (y + bias.astype(y.dtype)[None, None, None]).astype(x.dtype)


class Norm(nn.Module):
  """Layer norm over channels, computed in at least float32, returned in the input's dtype."""

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x):
    y = wide(x)
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],)).astype(y.dtype)
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],)).astype(y.dtype)
    y = y - y.mean(-1, keepdims=True)
    y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + self.epsilon)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (y * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


class BatchNorm(nn.Module):
  """Batch norm over (B, H, W) with torch's momentum: new average = 0.9 old + 0.1 batch.

  It normalises by the statistics of the batch, which under jit is the global one, and moves the
  running averages (variance unbiased) while the collection `batch_stats` is mutable: that is
  training. Otherwise it normalises by the running averages.
  """

  momentum: float = 0.1
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (c,))
    running_var = self.variable('batch_stats', 'var', jnp.ones, (c,))
    y = wide(x)
    if self.is_mutable_collection('batch_stats') and not self.is_initializing():
      mean, var, n = y.mean((0, 1, 2)), y.var((0, 1, 2)), y.size // c
      for average, value in ((running_mean, mean), (running_var, var * (n / max(n - 1, 1)))):
        value = lax.stop_gradient(value).astype(average.value.dtype)
        average.value = average.value + self.momentum * (value - average.value)
    else:
      mean, var = running_mean.value.astype(y.dtype), running_var.value.astype(y.dtype)
    factor = scale.astype(y.dtype) * lax.rsqrt(var + self.epsilon)
    y = (y - mean[None, None, None]) * factor[None, None, None]
    return (y + bias.astype(y.dtype)[None, None, None]).astype(x.dtype)


class GRN(nn.Module):
  """Global response normalisation over (H, W) (ConvNeXt V2)."""

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x):
    gamma = self.param('gamma', nn.initializers.zeros, (x.shape[-1],))
    beta = self.param('beta', nn.initializers.zeros, (x.shape[-1],))
    y = wide(x)
    norm = jnp.sqrt(jnp.maximum((y * y).sum((1, 2), keepdims=True), 1e-24))
    response = norm / (norm.mean(-1, keepdims=True) + self.epsilon)
    gamma, beta = (v.astype(y.dtype)[None, None, None] for v in (gamma, beta))
    return (gamma * (y * response) + beta + y).astype(x.dtype)
