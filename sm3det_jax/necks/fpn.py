"""The multi-task feature pyramid: one set of weights, entered at stride 4 or at stride 8."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm3det_jax.layers.convolution import Conv


def upsample(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Nearest neighbour to (H, W), cell i reading floor(i * in / out)."""
  rows, columns = (jnp.arange(n) * old // n for n, old in zip(shape, x.shape[1:3], strict=True))
  return x[:, rows][:, :, columns]


class FPN(nn.Module):
  """MultitaskFPN of the released code: no norm, no activation, strided convolutions beyond.

  A head that starts at stage 1 reads strides 8..128 (two extra levels), one that starts at stage 0
  reads strides 4..64 (the first extra convolution only).

  Attributes:
    channels: of every level.
    extra_convs: levels beyond the stages have strided convolutions; or they are every second cell.
    stages: of the backbone.
    levels: given to a head.
  """

  channels: int
  extra_convs: bool = True
  stages: int = 4
  levels: int = 5

  def setup(self):
    init = nn.initializers.xavier_uniform()
    conv = lambda size, stride: Conv(self.channels, size, stride, kernel_init=init)
    self.lateral = [conv(1, 1) for _ in range(self.stages)]
    self.output = [conv(3, 1) for _ in range(self.stages)]
    count = self.levels - self.stages + 1
    thinned = lambda x: x[:, ::2, ::2]
    self.extra = [conv(3, 2) if self.extra_convs else thinned for _ in range(count)]

  def __call__(self, features: list[jax.Array], start: int) -> list[jax.Array]:
    """Stage outputs -> `levels` maps from stage `start` on, finest first."""
    maps = [self.lateral[i](features[i]) for i in range(start, self.stages)]
    for i in reversed(range(len(maps) - 1)):
      maps[i] = maps[i] + upsample(maps[i + 1], maps[i].shape[1:3])
    maps = [self.output[start + i](m) for i, m in enumerate(maps)]
    for layer in self.extra[: self.levels - len(maps)]:
      maps.append(layer(maps[-1]))
    return maps

  def touch(self, features):
    """Runs every layer once, so that `init` makes all parameters whatever the heads read."""
    return self(features, 0), self(features, 1)
