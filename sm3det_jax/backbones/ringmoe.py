"""RingMoE's backbone (arXiv 2504.03166): Swin-v2 with hierarchical experts in its FFN slots.

A block has the specialised experts of each modality, collaborative ones for all, and a shared one;
see `moe.hierarchical`. Its MoE layers are called '<block>/spec' and '<block>/coll'.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm3det_jax.backbones import swin_v2
from sm3det_jax.config.modality import MODALITIES
from sm3det_jax.layers.initialisers import truncated_normal
from sm3det_jax.moe.hierarchical import RMoE
from sm3det_jax.moe.layer import Routed

OF_MOE = ('top_k', 'capacity_factor', 'implementation')  # keys of config.moe that count here


class MaskToken(nn.Module):
  """What stands in the place of a masked patch, one for all modalities."""

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    token = self.param('token', truncated_normal, x.shape[-1:]).astype(x.dtype)
    mask = mask[..., None].astype(x.dtype)
    return x * (1 - mask) + token[None, None, None] * mask


class Block(swin_v2.Block, kw_only=True):
  """A block of Swin-v2 whose FFN, if it has experts, are hierarchical ones.

  Attributes:
    moe: keyword arguments of `RMoE`, None for a dense block.
  """

  def feed_forward(self, x, key, tasks):
    if self.moe is None:
      return super().feed_forward(x, key, tasks)
    moe = RMoE(hidden=self.hidden, gelu=self.gelu, name='moe', **self.moe)
    if self.moe['capacity_factor'] is None:
      y, balance, routing = moe(x, tasks)
    else:  # queues are modality by modality, as the released batch is
      order = jnp.argsort(tasks, stable=True)
      back = jnp.argsort(order)
      y, balance, routing = moe(x[order], tasks[order])
      y, routing = jax.tree.map(lambda a: a[back], (y, routing))
    return y, {group: self._routed(r, balance / len(routing)) for group, r in routing.items()}

  def _routed(self, routing, balance):
    """A group's part of the layer; the block's balance loss is shared out among the groups."""
    dropped = None
    if self.moe['capacity_factor'] is not None:
      dropped = (routing.weights == 0).astype(balance.dtype).mean((1, 2, 3))
    return Routed(balance[None], routing.indices, routing.weights, dropped)


class RingMoE(swin_v2.SwinV2, kw_only=True):
  """The whole network.

  Attributes:
    modalities: of each task; those of one modality share its stem and its specialised experts.
    specialised: S, experts of a modality in each MoE layer; 0: none.
    collaborative: E of each block of each stage; 0: none.
    shared: whether MoE layers have a shared expert.
    combine, groups, balance: as `hierarchical.rmoe`.
  """

  modalities: tuple[str, ...]
  specialised: int
  collaborative: tuple[tuple[int, ...], ...]
  shared: bool = True
  combine: str = 'probability'
  groups: int = 1
  balance: str = 'paper'

  block_type = Block
  loops = True

  def setup(self):
    super().setup()
    self.mask_token = MaskToken()

  def stem_owner(self, task):
    return self.modalities[self.tasks.index(task)]

  def _run(self, x, key, tasks):
    present = [m for m in MODALITIES if m in self.modalities]
    index = jnp.asarray([present.index(m) for m in self.modalities], jnp.int32)
    return super()._run(x, key, index[tasks])

  def experts(self, stage, j):
    return dict(
      modalities=len(set(self.modalities)),
      specialised=self.specialised,
      collaborative=self.collaborative[stage][j],
      shared=self.shared,
      combine=self.combine,
      groups=self.groups,
      balance=self.balance,
      **{key: self.moe[key] for key in OF_MOE},
    )

  def masked(self, x, mask):
    return self.mask_token(x, mask)

  def balance_loss(self, usage, weight):
    """weight times the sum over blocks."""
    return weight * sum(u.sum() for u in usage)
