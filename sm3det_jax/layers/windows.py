"""Attention within windows (Swin, Liu et al. 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sm3det_jax.layers.attention import attend
from sm3det_jax.layers.initialisers import truncated_normal
from sm3det_jax.layers.linear import Dense
from sm3det_jax.precision import wide


def pad_to(x: jax.Array, size: int) -> jax.Array:
  """Zeros below and to the right, until height and width are multiples of `size`."""
  h, w = x.shape[1:3]
  return jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))


def relative_positions(size: int) -> np.ndarray:
  """Row of the bias table for each (query, key) of a window: [size^2, size^2]."""
  y, x = np.divmod(np.arange(size * size), size)
  row, column = (v[:, None] - v[None] + size - 1 for v in (y, x))
  return row * (2 * size - 1) + column


def shift_mask(h: int, w: int, size: int, shift: int) -> np.ndarray:
  """[windows, size^2, size^2]: -100 where a shifted window joins what is apart in the map."""
  region = lambda n: np.digitize(np.arange(n), [n - size, n - shift])
  regions = region(h)[:, None] * 3 + region(w)[None]
  windows = regions.reshape(h // size, size, w // size, size).transpose(0, 2, 1, 3)
  windows = windows.reshape(-1, size * size)
  return np.where(windows[:, :, None] == windows[:, None], 0.0, -100.0).astype(np.float32)


class WindowAttention(nn.Module):
  """Attention among the locations of a window, with a bias for each relative position.

  Attributes:
    heads: of the channels.
    size: side of a window; maps are padded with zeros to a multiple.
    shift: the windows lie this much lower and further to the right, cyclically.
    qkv_bias: of the projection.
  """

  heads: int
  size: int
  shift: int
  qkv_bias: bool

  @nn.compact
  def __call__(self, x):
    _, h, w, c = x.shape
    s, x = self.size, pad_to(x, self.size)
    b, rows, columns = len(x), x.shape[1] // s, x.shape[2] // s
    x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
    x = x.reshape(b, rows, s, columns, s, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, rows * columns, s * s, c)
    qkv = Dense(3 * c, use_bias=self.qkv_bias, name='qkv')(x)
    q, k, v = (y.reshape(*x.shape[:-1], self.heads, -1) for y in jnp.split(qkv, 3, -1))
    x = attend(q, k, v, self._bias(rows * s, columns * s)).reshape(x.shape)
    x = Dense(c, name='proj')(x)
    x = x.reshape(b, rows, columns, s, s, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, rows * s, columns * s, c)
    return jnp.roll(x, (self.shift, self.shift), (1, 2))[:, :h, :w]

  def _bias(self, h, w):
    """[1, windows or 1, heads, size^2, size^2]."""
    table = self.param('bias_table', truncated_normal, ((2 * self.size - 1) ** 2, self.heads))
    bias = wide(table)[relative_positions(self.size)].transpose(2, 0, 1)[None, None]
    if not self.shift:
      return bias
    mask = shift_mask(h, w, self.size, self.shift)
    return bias + jnp.asarray(mask, bias.dtype)[None, :, None]
