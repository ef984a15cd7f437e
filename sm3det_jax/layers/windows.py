"""Attention within windows (Swin, Liu et al. 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sm3det_jax.layers.attention import attend
from sm3det_jax.layers.initialisers import truncated_normal
from sm3det_jax.layers.linear import Dense
from sm3det_jax.precision import wide, wide_dtype


def pad_to(x: jax.Array, size: int) -> jax.Array:
  """Zeros below and to the right, until height and width are multiples of `size`."""
  h, w = x.shape[1:3]
  return jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))


def merge_patches(x: jax.Array) -> jax.Array:
  """2x2 neighbours to one location each, row by row: [B, H, W, C] -> [B, H / 2, W / 2, 4 C]."""
  x = pad_to(x, 2)
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // 2, w // 2, 4 * c)


def to_windows(x: jax.Array, size: int, shift: int) -> jax.Array:
  """A map [B, H, W, C], padded to a multiple of `size`, as windows [B, windows, size^2, C].

  Args:
    shift: the windows lie this much lower and further to the right, cyclically.
  """
  x = jnp.roll(pad_to(x, size), (-shift, -shift), (1, 2))
  b, h, w, c = x.shape
  x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, -1, size * size, c)


def from_windows(x: jax.Array, h: int, w: int, size: int, shift: int) -> jax.Array:
  """The map [B, h, w, C] of which `to_windows` made these windows."""
  rows, columns = -(-h // size), -(-w // size)
  x = x.reshape(len(x), rows, columns, size, size, -1).transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(len(x), rows * size, columns * size, -1)
  return jnp.roll(x, (shift, shift), (1, 2))[:, :h, :w]


def relative_positions(size: int, largest: int | None = None) -> np.ndarray:
  """Row of the bias table for each (query, key) of a window: [size^2, size^2].

  Args:
    size: side of the window.
    largest: side of the windows that the table is made for, by default `size`.
  """
  largest = size if largest is None else largest
  y, x = np.divmod(np.arange(size * size), size)
  row, column = (v[:, None] - v[None] + largest - 1 for v in (y, x))
  return row * (2 * largest - 1) + column


def shift_mask(h: int, w: int, size: int, shift: int) -> np.ndarray:
  """[windows, size^2, size^2]: -100 where a shifted window joins what is apart in the map."""
  region = lambda n: np.digitize(np.arange(n), [n - size, n - shift])
  regions = region(h)[:, None] * 3 + region(w)[None]
  windows = regions.reshape(h // size, size, w // size, size).transpose(0, 2, 1, 3)
  windows = windows.reshape(-1, size * size)
  return np.where(windows[:, :, None] == windows[:, None], 0.0, -100.0).astype(np.float32)


def mask_of_map(h: int, w: int, size: int, shift: int) -> np.ndarray | None:
  """`shift_mask` of what `to_windows` makes of maps, with an axis in front; None without shift."""
  return shift_mask(h + -h % size, w + -w % size, size, shift)[None] if shift else None


def table_bias(table: jax.Array, size: int, largest: int | None = None) -> jax.Array:
  """[heads, size^2, size^2] of a table [(2 largest - 1)^2, heads] of relative positions."""
  return wide(table)[relative_positions(size, largest)].transpose(2, 0, 1)


def window_bias(bias: jax.Array, mask: jax.Array | np.ndarray | None, leading: int) -> jax.Array:
  """What windows with `leading` axes in front add to their logits [.., heads, T, T].

  Args:
    bias: [heads, T, T].
    mask: [.., T, T] with all leading axes, or None.
    leading: their number.
  """
  bias = bias.reshape((1,) * leading + bias.shape)
  if mask is None:
    return bias
  return bias + jnp.asarray(mask, wide_dtype(bias.dtype))[..., None, :, :]


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
    x = to_windows(x, self.size, self.shift)
    qkv = Dense(3 * c, use_bias=self.qkv_bias, name='qkv')(x)
    q, k, v = (y.reshape(*x.shape[:-1], self.heads, -1) for y in jnp.split(qkv, 3, -1))
    table = self.param('bias_table', truncated_normal, ((2 * self.size - 1) ** 2, self.heads))
    mask = mask_of_map(h, w, self.size, self.shift)
    bias = window_bias(table_bias(table, self.size), mask, leading=2)
    x = Dense(c, name='proj')(attend(q, k, v, bias).reshape(x.shape))
    return from_windows(x, h, w, self.size, self.shift)
