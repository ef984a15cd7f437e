"""Layers that several backbones share. Images are [B, H, W, C]."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sm3det_jax.precision import wide


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


def stem_name(name: str, stems: str, task: str) -> str:
  """`name` of the stem that all tasks share, or of a task's own ('per_task')."""
  return f'{name}_{task}' if stems == 'per_task' else name


def kernel_init(key, shape, dtype=jnp.float32):
  """Truncated normal 0.02, as ConvNeXt."""
  return nn.initializers.truncated_normal(0.02)(key, shape, dtype)


# Variance 2 over the fan-out, groups counted: convolutions of VAN, LSKNet and PVT-v2.
fan_out_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def depthwise_fan_out_init(key, shape, dtype=jnp.float32):
  """`fan_out_init` of a depthwise kernel [h, w, C], whose fan-out is h w."""
  return jax.random.normal(key, shape, dtype) * (2.0 / (shape[0] * shape[1])) ** 0.5


class DepthwiseConv(nn.Module):
  """Depthwise convolution with bias."""

  size: int = 7
  dilation: int = 1
  init: nn.initializers.Initializer = kernel_init

  @nn.compact
  def __call__(self, x):
    k = self.param('kernel', self.init, (self.size, self.size, x.shape[-1]))
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
    k = self.param('kernel', kernel_init, (s, s, c, self.features)).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(x.dtype)
    x = x[:, : h * s, : w * s].reshape(b, h, s, w, s, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h, w, -1) @ k.reshape(-1, self.features) + bias[None, None, None]


class Dense(nn.Module):
  """Linear layer over the last axis, in the dtype of its input."""

  features: int
  init: nn.initializers.Initializer = kernel_init
  bias_init: nn.initializers.Initializer = nn.initializers.zeros
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    y = x @ self.param('kernel', self.init, (x.shape[-1], self.features)).astype(x.dtype)
    if not self.use_bias:
      return y
    b = self.param('bias', self.bias_init, (self.features,)).astype(x.dtype)
    return y + b.reshape((1,) * (x.ndim - 1) + (-1,))


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


def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
  """Attention of q [.., N, heads, d] over k, v [.., M, heads, d]; softmax in at least float32.

  Args:
    bias: added to the logits, broadcastable to [.., heads, N, M].
  """
  logits = jnp.einsum('...nhd,...mhd->...hnm', q * q.shape[-1] ** -0.5, k)
  logits = wide(logits)
  if bias is not None:
    logits = logits + bias.astype(logits.dtype)
  return jnp.einsum('...hnm,...mhd->...nhd', nn.softmax(logits).astype(v.dtype), v)


def run_block(block: nn.Module, remat: bool, *args):
  """`block(*args)`; with `remat` its activations are computed anew in the backward pass."""
  return (nn.remat(lambda block, *args: block(*args)) if remat else type(block).__call__)(
    block, *args
  )


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes whole samples with probability `rate` and scales the rest (stochastic depth)."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
  return jnp.where(keep, x / (1 - rate), 0)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes single values with probability `rate` and scales the rest."""
  if key is None or rate == 0:
    return x
  return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def drop_path_rates(depths: tuple[int, ...], last: float) -> list[float]:
  """Rate of every block of the network: from 0 at the first one up to `last`."""
  return np.linspace(0, last, sum(depths)).tolist()
