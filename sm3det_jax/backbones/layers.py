"""Layers that several backbones share. Images are [B, H, W, C]."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sm3det_jax.precision import wide


def _padded(x, a, b):
  return jnp.pad(x, ((0, 0), (a // 2,) * 2, (b // 2,) * 2, (0, 0)))


def _shifted(x, k):
  """A sum of shifted slices: one fused loop on XLA:CPU, where a grouped one is 20x slower."""
  _, h, w, _ = x.shape
  a, b, _ = k.shape
  p = _padded(x, a, b)
  taps = [(i, j) for i in range(a) for j in range(b)]
  return sum(p[:, i : i + h, j : j + w] * k[i, j][None, None, None] for i, j in taps)


def _grouped(x, k):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(
    x, k[:, :, None], (1, 1), 'SAME', dimension_numbers=numbers, feature_group_count=x.shape[-1]
  )


def _kernel_gradient_by_tap(x, k, g):
  """One reduction a turn: XLA:CPU is slow when it fuses all of them."""
  n, h, w, c = x.shape
  a, b, _ = k.shape
  p = _padded(x, a, b)
  tap = lambda t: (lax.dynamic_slice(p, (0, t // b, t % b, 0), (n, h, w, c)) * g).sum((0, 1, 2))
  return lax.map(tap, jnp.arange(a * b)).reshape(a, b, c)


def _kernel_gradient_grouped(x, k, g):
  return jax.linear_transpose(functools.partial(_grouped, x), k)(g)[0]


@jax.custom_vjp
def depthwise(x: jax.Array, k: jax.Array) -> jax.Array:
  """Depthwise convolution, stride 1, 'SAME': [B, H, W, C], k [h, w, C] (odd h, w).

  The form that is fast on the platform it is compiled for.
  """
  return lax.platform_dependent(x, k, cpu=_shifted, default=_grouped)


def _depthwise_backward(saved, g):
  x, k = saved
  dk = lax.platform_dependent(
    x, k, g, cpu=_kernel_gradient_by_tap, default=_kernel_gradient_grouped
  )
  return depthwise(g, k[::-1, ::-1]), dk


depthwise.defvjp(lambda x, k: (depthwise(x, k), (x, k)), _depthwise_backward)


def kernel_init(key, shape, dtype=jnp.float32):
  """Truncated normal 0.02, as ConvNeXt."""
  return nn.initializers.truncated_normal(0.02)(key, shape, dtype)


class DepthwiseConv(nn.Module):
  """Depthwise convolution with bias."""

  size: int = 7

  @nn.compact
  def __call__(self, x):
    k = self.param('kernel', kernel_init, (self.size, self.size, x.shape[-1]))
    b = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    return depthwise(x, k.astype(x.dtype)) + b.astype(x.dtype)[None, None, None]


class Patchify(nn.Module):
  """Convolution whose kernel is as large as its stride: one matrix product over whole patches."""

  features: int
  size: int

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    s, h, w = self.size, h // self.size, w // self.size
    k = self.param('kernel', kernel_init, (s, s, c, self.features)).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(x.dtype)
    x = x[:, : h * s, : w * s].reshape(b, h, s, w, s, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h, w, -1) @ k.reshape(-1, self.features) + bias[None, None, None]


class Dense(nn.Module):
  """Linear layer over the last axis, in the dtype of its input."""

  features: int
  init: nn.initializers.Initializer = kernel_init
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    k = self.param('kernel', self.init, (x.shape[-1], self.features)).astype(x.dtype)
    b = self.param('bias', self.bias_init, (self.features,)).astype(x.dtype)
    return x @ k + b.reshape((1,) * (x.ndim - 1) + (-1,))


class Conv(nn.Module):
  """Convolution with padding size // 2 in the dtype of its input."""

  features: int
  size: int = 3
  stride: int = 1
  use_bias: bool = True
  init: nn.initializers.Initializer = nn.initializers.normal(0.01)
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    k = self.param('kernel', self.init, shape).astype(x.dtype)
    pad = ((self.size // 2,) * 2,) * 2
    numbers = ('NHWC', 'HWIO', 'NHWC')
    y = lax.conv_general_dilated(x, k, (self.stride,) * 2, pad, dimension_numbers=numbers)
    if not self.use_bias:
      return y
    return (
      y + self.param('bias', self.bias_init, (self.features,)).astype(x.dtype)[None, None, None]
    )


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


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes whole samples with probability `rate` and scales the rest (stochastic depth)."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
  return jnp.where(keep, x / (1 - rate), 0)
