"""Convolutions; a depthwise one in the form that is fast on the platform it runs on."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sm3det_jax.layers.initialisers import truncated_normal


def _padded(x, k, dilation):
  pads = [(dilation * (n // 2),) * 2 for n in k.shape[:2]]
  return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _shifted(x, k, dilation):
  """A sum of shifted slices: one fused loop on XLA:CPU, where a grouped one is 20x slower."""
  _, h, w, _ = x.shape
  p, d = _padded(x, k, dilation), dilation
  taps = [(i, j) for i in range(k.shape[0]) for j in range(k.shape[1])]
  return sum(
    p[:, i * d : i * d + h, j * d : j * d + w] * k[i, j][None, None, None] for i, j in taps
  )


def _grouped(x, k, dilation=1):
  return lax.conv_general_dilated(
    x, k[:, :, None], (1, 1), 'SAME', rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=x.shape[-1],
  )  # fmt: skip


def _kernel_gradient_by_tap(x, k, g, dilation):
  """One reduction a turn: XLA:CPU is slow when it fuses all of them."""
  n, h, w, c = x.shape
  a, b, _ = k.shape
  p, d = _padded(x, k, dilation), dilation

  def tap(t):
    start = (0, t // b * d, t % b * d, 0)
    return (lax.dynamic_slice(p, start, (n, h, w, c)) * g).sum((0, 1, 2))

  return lax.map(tap, jnp.arange(a * b)).reshape(a, b, c)


def _kernel_gradient_grouped(x, k, g, dilation):
  return jax.linear_transpose(lambda k: _grouped(x, k, dilation), k)(g)[0]


# jit: blocks of one shape are traced once
@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames='dilation')
def _by_platform(cpu, default, *args, dilation):
  bind = lambda f: lambda *x: f(*x, dilation)
  return lax.platform_dependent(*args, cpu=bind(cpu), default=bind(default))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: jax.Array, k: jax.Array, dilation: int = 1) -> jax.Array:
  """Depthwise convolution, stride 1, 'SAME': [B, H, W, C], k [h, w, C] (odd h, w).

  The form that is fast on the platform it is compiled for.
  """
  return _by_platform(_shifted, _grouped, x, k, dilation=dilation)


def _depthwise_backward(dilation, saved, g):
  x, k = saved
  dk = _by_platform(_kernel_gradient_by_tap, _kernel_gradient_grouped, x, k, g, dilation=dilation)
  return depthwise(g, k[::-1, ::-1], dilation), dk


depthwise.defvjp(lambda x, k, dilation: (depthwise(x, k, dilation), (x, k)), _depthwise_backward)


class DepthwiseConv(nn.Module):
  """Depthwise convolution with bias."""

  size: int = 7
  dilation: int = 1
  kernel_init: nn.initializers.Initializer = truncated_normal

  @nn.compact
  def __call__(self, x):
    k = self.param('kernel', self.kernel_init, (self.size, self.size, x.shape[-1]))
    b = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    y = depthwise(x, k.astype(x.dtype), self.dilation)
    return y + b.astype(x.dtype)[None, None, None]


class Patchify(nn.Module):
  """Convolution whose kernel is as large as its stride: one matrix product over whole patches."""

  features: int
  size: int

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    s, h, w = self.size, h // self.size, w // self.size
    k = self.param('kernel', truncated_normal, (s, s, c, self.features)).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(x.dtype)
    x = x[:, : h * s, : w * s].reshape(b, h, s, w, s, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h, w, -1) @ k.reshape(-1, self.features) + bias[None, None, None]


class Conv(nn.Module):
  """Convolution with padding size // 2 in the dtype of its input."""

  features: int
  size: int = 3
  stride: int = 1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.01)
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    k = self.param('kernel', self.kernel_init, shape).astype(x.dtype)
    pad = ((self.size // 2,) * 2,) * 2
    numbers = ('NHWC', 'HWIO', 'NHWC')
    y = lax.conv_general_dilated(x, k, (self.stride,) * 2, pad, dimension_numbers=numbers)
    if not self.use_bias:
      return y
    return (
      y + self.param('bias', self.bias_init, (self.features,)).astype(x.dtype)[None, None, None]
    )
