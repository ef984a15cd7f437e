"""The MoE layer of a backbone block: router, expert FFNs, the sums that the balance loss needs."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sm3det_jax.moe import dispatch
from sm3det_jax.moe.router import Router, cv_squared


class Usage(NamedTuple):
  """What `G` groups of tokens asked of the experts; adds up over passes of the backbone."""

  importance: jax.Array  # [G, E] sum of gates
  load: jax.Array  # [G, E] sum of (smooth) choices


def balance_loss(usage: list[Usage], weight: float) -> jax.Array:
  """Mean over layers of weight (CV²(importance) + CV²(load)), mean over groups (released code)."""
  terms = [jnp.mean(cv_squared(u.importance) + cv_squared(u.load)) for u in usage]
  return weight * sum(terms) / len(terms)


def add_usage(passes: list[list[Usage]]) -> list[Usage]:
  """Sums the passes' usages, layer by layer."""
  return [jax.tree.map(lambda *x: sum(x), *layer) for layer in zip(*passes, strict=True)]


def token_axes() -> tuple[str, ...]:
  """Mesh axes that tokens are sharded over: all those of the current mesh."""
  return tuple(jax.sharding.get_abstract_mesh().axis_names)


def local_expert_ffn(x, indices, weights, params, implementation):
  """`dispatch.expert_ffn`, every device for its own tokens where a mesh is in use."""
  axes = token_axes()
  run = lambda x, i, w, p: dispatch.expert_ffn(x, i, w, *p, implementation=implementation)
  if jax.sharding.get_abstract_mesh().size <= 1:
    return run(x, indices, weights, params)
  # check_vma=False: the sums over devices of the weights' gradients come from the in_specs alone
  run = jax.shard_map(
    run, in_specs=(P(axes), P(axes), P(axes), P()), out_specs=P(axes), check_vma=False
  )
  return run(x, indices, weights, params)


class MoE(nn.Module):
  """Sparse mixture of FFN experts over grid cells (SM3Det section 3.3; released code).

  Attributes:
    num_experts, top_k, noisy, gate: as `Router`.
    hidden: D, channels between an expert's two layers.
    implementation: as `dispatch.expert_ffn`.
    groups: of tokens whose balance is judged apart: 1, or the number of devices.
    same_start: every expert starts as a copy of one random FFN.
  """

  num_experts: int
  top_k: int
  hidden: int
  noisy: bool = True
  gate: str = 'cosine'
  implementation: str = 'blocked'
  groups: int = 1
  same_start: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, noise_key: jax.Array | None = None):
    """x [B, H, W, C] -> (y [B, H, W, C], Usage)."""
    c, d, e = x.shape[-1], self.hidden, self.num_experts
    tokens = x.reshape(-1, c)
    routing = Router(e, self.top_k, self.noisy, self.gate, name='router')(tokens, noise_key)
    self.sow('intermediates', 'routing', routing)
    kernel, zeros = expert_init(self.same_start), nn.initializers.zeros
    params = (
      self.param('experts_w1', kernel, (e, c, d)),
      self.param('experts_b1', zeros, (e, d)),
      self.param('experts_w2', kernel, (e, d, c)),
      self.param('experts_b2', zeros, (e, c)),
    )
    y = local_expert_ffn(tokens, routing.indices, routing.weights, params, self.implementation)
    by_group = lambda v: v.reshape(self.groups, -1, e).sum(1)
    return y.reshape(x.shape), Usage(by_group(routing.importance), by_group(routing.load))


def expert_init(same: bool):
  """Truncated normal 0.02 (ConvNeXt); the same one for every expert if `same`."""
  normal = nn.initializers.truncated_normal(0.02)

  def init(key, shape, dtype=jnp.float32):
    if not same:
      return normal(key, shape, dtype)
    return jnp.tile(normal(key, shape[1:], dtype)[None], (shape[0], 1, 1))

  return init
