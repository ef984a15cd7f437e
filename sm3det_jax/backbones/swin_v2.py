"""Swin transformer, version 2 (Liu et al. 2022), with mixtures of experts in its FFN slots.

Cosine attention, a bias that a small network makes of relative positions, norms behind what they
normalise. RingMoE (arXiv 2504.03166) stands on it; the options are what its released code does.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sm3det_jax.backbones.stages import Backbone
from sm3det_jax.layers.attention import attend
from sm3det_jax.layers.convolution import Patchify
from sm3det_jax.layers.feed_forward import FeedForward
from sm3det_jax.layers.initialisers import truncated_normal
from sm3det_jax.layers.linear import Dense
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.regularisation import drop_path, split
from sm3det_jax.layers.windows import (
  from_windows,
  mask_of_map,
  merge_patches,
  pad_to,
  relative_positions,
  table_bias,
  to_windows,
  window_bias,
)
from sm3det_jax.moe.layer import MoE, Routed
from sm3det_jax.precision import wide, wide_dtype

LARGEST_LOG_SCALE = float(np.log(100))
HIDDEN = 512  # of the network that makes the position bias
REACH, BIAS = 8, 16  # farthest coordinate before its logarithm; the largest bias


def position_bias(size: int, w1: jax.Array, b1: jax.Array, w2: jax.Array) -> jax.Array:
  """Continuous position bias, 16 sigmoid(relu(coordinates w1 + b1) w2), of a window.

  Coordinates are (row, column) of query - key, -8 to 8 across the window whatever its size, on a
  scale of logarithms.

  Args:
    size: side of the window.
    w1, b1, w2: [2, hidden], [hidden], [hidden, heads].

  Returns:
    [heads, size^2, size^2] of (query, key), at least float32.
  """
  offsets = np.arange(1 - size, size) * (REACH / max(size - 1, 1))
  offsets = np.sign(offsets) * np.log2(np.abs(offsets) + 1) / np.log2(REACH)
  coordinates = np.stack(np.meshgrid(offsets, offsets, indexing='ij'), -1).reshape(-1, 2)
  dtype = wide_dtype(w1.dtype)
  w1, b1, w2 = (a.astype(dtype) for a in (w1, b1, w2))
  hidden = nn.relu(jnp.asarray(coordinates, dtype) @ w1 + b1[None])
  table = BIAS * nn.sigmoid(hidden @ w2)  # once for each offset, not for each pair
  return table[relative_positions(size)].transpose(2, 0, 1)


def cosine_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_scale: jax.Array,
  bias: jax.Array,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Attention by the cosines of queries and keys times exp(min(log_scale, log 100)).

  Args:
    q, k, v: [.., T, heads, c].
    log_scale: [heads].
    bias: [heads, T, T], added to the logits.
    mask: [.., T, T], added too, for all heads alike.

  Returns:
    [.., T, heads, c] in the dtype of v.
  """
  q, k = _unit(q), _unit(k)
  scale = jnp.exp(jnp.minimum(log_scale.astype(q.dtype), LARGEST_LOG_SCALE))
  q = q * scale.reshape((1,) * (q.ndim - 2) + (-1, 1))
  return attend(q, k, v, window_bias(bias, mask, q.ndim - 3), scale=1.0)


def _unit(x):
  """Vectors of length 1, at least float32: half precision errs by 0.4 in a logit of 100.

  Zeros, the keys of padding, stay zeros and have no slope.
  """
  x = wide(x)
  square = (x * x).sum(-1, keepdims=True)
  zero = square < 1e-24
  return jnp.where(zero, 0, x * jax.lax.rsqrt(jnp.where(zero, 1, square)))


class Attention(nn.Module):
  """Attention among the locations of a window; maps are padded with zeros to a multiple of it.

  Attributes:
    heads: of the channels.
    size: side of a window. A map that is no larger, by its smaller side, is cut into windows of
      that side which are not shifted.
    shift: the windows lie this much lower and further to the right, cyclically.
    kind: 'cosine', with a continuous position bias, or 'table': scaled dot products and a table of
      biases (version 1).
    key_bias: keys have a bias, as queries and values do.
  """

  heads: int
  size: int
  shift: int
  kind: str
  key_bias: bool

  @nn.compact
  def __call__(self, x):
    _, h, w, c = x.shape
    size, shift = (self.size, self.shift) if min(h, w) > self.size else (min(h, w), 0)
    x = to_windows(x, size, shift)
    by_head = lambda y: y.reshape(*x.shape[:-1], self.heads, -1)
    q, v = (by_head(Dense(c, name=name)(x)) for name in 'qv')
    k = by_head(Dense(c, use_bias=self.key_bias, name='k')(x))
    run = self._cosine if self.kind == 'cosine' else self._table
    x = Dense(c, name='proj')(run(q, k, v, size, mask_of_map(h, w, size, shift)).reshape(x.shape))
    return from_windows(x, h, w, size, shift)

  def _cosine(self, q, k, v, size, mask):
    log_scale = self.param('log_scale', nn.initializers.constant(np.log(10)), (self.heads,))
    w1 = self.param('position_w1', truncated_normal, (2, HIDDEN))
    b1 = self.param('position_b1', nn.initializers.zeros, (HIDDEN,))
    w2 = self.param('position_w2', truncated_normal, (HIDDEN, self.heads))
    return cosine_attention(q, k, v, log_scale, position_bias(size, w1, b1, w2), mask)

  def _table(self, q, k, v, size, mask):
    table = self.param('bias_table', truncated_normal, ((2 * self.size - 1) ** 2, self.heads))
    bias = window_bias(table_bias(table, size, self.size), mask, leading=2)
    return attend(q, k, v, bias)


class Block(nn.Module, kw_only=True):
  """x + LN(Attention(x)), then x + LN(FFN or MoE(x)), with drop path.

  Attributes:
    attention: arguments of `Attention`.
    hidden, gelu: of the FFN, as `FeedForward`.
    moe: keyword arguments of the MoE layer, None for a dense block.
    epsilon: of the norms.
    drop_path_rate: of this block.
  """

  attention: dict
  hidden: int
  gelu: str
  moe: dict | None
  epsilon: float
  drop_path_rate: float

  @nn.compact
  def __call__(self, x, key=None, tasks=None) -> tuple[jax.Array, dict[str, Routed]]:
    noise, key1, key2 = split(key, 3)
    norm = functools.partial(Norm, self.epsilon)
    y = norm(name='norm1')(Attention(**self.attention, name='attention')(x))
    x = x + drop_path(y, self.drop_path_rate, key1)
    y, layers = self.feed_forward(x, noise, tasks)
    return x + drop_path(norm(name='norm2')(y), self.drop_path_rate, key2), layers

  def feed_forward(
    self, x: jax.Array, key: jax.Array | None, tasks: jax.Array | None
  ) -> tuple[jax.Array, dict[str, Routed]]:
    """What stands in the FFN's place, with the arguments and results of a block.

    A kind of backbone with other experts overrides it and names its block as `SwinV2.block_type`.
    """
    del tasks
    if self.moe is None:
      return FeedForward(self.hidden, gelu=self.gelu, name='ffn')(x), {}
    y, routed = MoE(hidden=self.hidden, name='moe', **self.moe)(x, key)
    return y, {'': routed}


class SwinV2(Backbone, kw_only=True):
  """The whole network; maps are padded with zeros where patches or windows do not fit.

  Attributes:
    heads, windows: of the attention, of each stage; sides of the windows.
    mlp_ratio, gelu: hidden channels of an FFN over the block's; as `FeedForward`.
    attention, key_bias: as `Attention.kind`, `Attention.key_bias`.
    epsilons: of the norms of the stem, of blocks, of merging, of the outputs.
    output_norms: 'all' stages' outputs have a norm, or the 'last' alone.
  """

  heads: tuple[int, ...]
  windows: tuple[int, ...]
  mlp_ratio: float = 4.0
  attention: str = 'cosine'
  key_bias: bool = False
  gelu: str = 'erf'
  epsilons: tuple[float, float, float, float] = (1e-5,) * 4
  output_norms: str = 'all'

  block_type = Block

  def stem(self, name):
    patches = functools.partial(pad_to, size=4), Patchify(self.channels[0], 4, name=name)
    return *patches, Norm(self.epsilons[0], name=f'{name}_norm')

  def downsampling(self, stage):
    name = f'downsample{stage}'
    reduction = Dense(self.channels[stage], use_bias=False, name=name)
    return merge_patches, reduction, Norm(self.epsilons[2], name=f'{name}_norm')

  def block(self, stage, j, drop_path_rate, name):
    size = self.windows[stage]
    attention = dict(
      heads=self.heads[stage],
      size=size,
      shift=j % 2 * (size // 2),
      kind=self.attention,
      key_bias=self.key_bias,
    )
    return self.block_type(
      attention=attention,
      hidden=int(self.channels[stage] * self.mlp_ratio),
      gelu=self.gelu,
      moe=self.experts(stage, j) if j in self.moe_blocks[stage] else None,
      epsilon=self.epsilons[1],
      drop_path_rate=drop_path_rate,
      name=name,
    )

  def experts(self, stage: int, j: int) -> dict:
    """Keyword arguments of the MoE layer of a block."""
    del stage, j
    return self.moe

  def output_norm(self, name):
    if self.output_norms == 'last' and name != f'norm{len(self.depths) - 1}':
      return lambda x: x
    return Norm(self.epsilons[3], name=name)
