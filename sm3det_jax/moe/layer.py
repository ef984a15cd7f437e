"""The MoE layers of backbone blocks: router, experts, the sums that the balance loss needs."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm3det_jax.moe import expert_parallel
from sm3det_jax.moe.router import Router, Routing, cv_squared
from sm3det_jax.precision import wide


class Usage(NamedTuple):
  """What `G` groups of tokens asked of the experts; adds up over passes of the backbone.

  The groups of all MoE layers of one block stand side by side, so that their mean is the block's.
  """

  importance: jax.Array  # [G, E] sum of gates
  load: jax.Array  # [G, E] sum of (smooth) choices


class Routed(NamedTuple):
  """What a layer did with the grid cells [B, H, W] of a batch."""

  usage: Usage
  experts: jax.Array  # [B, H, W, K] of each cell, the best first
  gates: jax.Array  # [B, H, W, K] their weights
  dropped: jax.Array | None  # [B] share of an image's choices that were lost; None: none can be

  def taps(self, layer: str) -> dict[str, jax.Array]:
    """{'<layer>/<what>': array with the images in front} of all but the usage."""
    named = {k: v for k, v in self._asdict().items() if k != 'usage' and v is not None}
    return {f'{layer}/{k}': v for k, v in named.items()}


def balance_loss(usage: list[Usage], weight: float) -> jax.Array:
  """Mean over blocks of weight (CV²(importance) + CV²(load)), mean over groups (released code)."""
  terms = [jnp.mean(cv_squared(u.importance) + cv_squared(u.load)) for u in usage]
  return weight * sum(terms) / len(terms)


def add_usage(passes: list[list[Usage]]) -> list[Usage]:
  """Sums the passes' usages, block by block."""
  return [jax.tree.map(lambda *x: sum(x), *block) for block in zip(*passes, strict=True)]


def block_usage(layers: list[Usage]) -> Usage:
  """Usage of a block with one or several MoE layers."""
  return jax.tree.map(lambda *x: jnp.concatenate(x), *layers)


class MoELayer(nn.Module, kw_only=True):
  """A routed layer over grid cells (SM3Det section 3.3; released code); `experts` says of what.

  Attributes:
    num_experts, top_k, noisy, gate, softmax: as `Router`.
    level: what has experts of its own, every cell of the 'grid' or an 'image' (by its mean).
    implementation, capacity_factor: as `expert_parallel.expert_ffn`.
    stat_groups: of tokens whose balance is judged apart: 1, or the number of devices.
    same_start: every expert starts as a copy of one random one.
    kernel_init: of an expert's kernels.
  """

  num_experts: int
  top_k: int
  noisy: bool = True
  gate: str = 'cosine'
  softmax: str = 'after'
  level: str = 'grid'
  implementation: str = 'blocked'
  capacity_factor: float | None = None
  stat_groups: int = 1
  same_start: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.truncated_normal(0.02)

  @nn.compact
  def __call__(self, x: jax.Array, noise_key: jax.Array | None = None):
    """x [B, H, W, C] -> (y [B, H, W, D], Routed)."""
    router = Router(
      self.num_experts, self.top_k, self.noisy, self.gate, self.softmax, name='router'
    )
    tokens = x if self.level == 'grid' else wide(x).mean((1, 2))
    routing = router(tokens.reshape(-1, x.shape[-1]), noise_key)
    if self.level == 'image':
      to_cells = lambda v: jnp.repeat(v, x.shape[1] * x.shape[2], axis=0)
      routing = routing._replace(
        indices=to_cells(routing.indices), weights=to_cells(routing.weights)
      )
    by_group = lambda v: v.reshape(self.stat_groups, -1, self.num_experts).sum(1)
    usage = Usage(by_group(routing.importance), by_group(routing.load))
    y, dropped = self.experts(x, routing)
    by_cell = lambda v: v.reshape(*x.shape[:-1], -1)
    return y, Routed(usage, by_cell(routing.indices), by_cell(routing.weights), dropped)

  def experts(self, x: jax.Array, routing: Routing) -> tuple[jax.Array, jax.Array | None]:
    """x [B, H, W, C] -> ([B, H, W, D], `Routed.dropped`), parameters made on the way."""
    raise NotImplementedError

  def expert_params(self, name: str, c: int, d: int) -> tuple[jax.Array, jax.Array]:
    """Kernels [E, c, d] and biases [E, d] of one layer of every expert."""
    e, init = self.num_experts, stacked(self.kernel_init, self.same_start)
    kernel = self.param(f'experts_w{name}', init, (e, c, d))
    return kernel, self.param(f'experts_b{name}', nn.initializers.zeros, (e, d))

  def send(self, experts, x, routing, params):
    """`experts`: one of expert_parallel's functions; `params` in its order."""
    y, stats = experts(
      x.reshape(-1, x.shape[-1]), routing.indices, routing.weights, *params, return_stats=True,
      capacity_factor=self.capacity_factor, implementation=self.implementation,
    )  # fmt: skip
    dropped = None
    if self.capacity_factor is not None:
      dropped = stats['dropped_of_token'].reshape(len(x), -1).mean(1)
    return y.reshape(*x.shape[:-1], -1), dropped


class MoE(MoELayer, kw_only=True):
  """Experts are FFNs: linear to `hidden`, exact GELU, linear back."""

  hidden: int

  def experts(self, x, routing):
    c = x.shape[-1]
    params = (*self.expert_params('1', c, self.hidden), *self.expert_params('2', self.hidden, c))
    return self.send(expert_parallel.expert_ffn, x, routing, params)


class MoELinear(MoELayer, kw_only=True):
  """Experts are linear layers (1x1 convolutions) to `features`."""

  features: int

  def experts(self, x, routing):
    params = self.expert_params('', x.shape[-1], self.features)
    return self.send(expert_parallel.expert_linear, x, routing, params)


def stacked(init, same: bool):
  """`init` for every expert; if `same`, one draw for all of them."""

  def stack(key, shape, dtype=jnp.float32):
    if same:
      return jnp.tile(init(key, shape[1:], dtype)[None], (shape[0], *(1,) * (len(shape) - 1)))
    return jax.vmap(lambda k: init(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

  return stack
