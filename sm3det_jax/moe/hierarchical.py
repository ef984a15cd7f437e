"""Hierarchical experts (RingMoE, arXiv 2504.03166): y = specialised + collaborative + shared.

A token of modality m goes to the top k of the S specialised experts of m, by a router of m, to the
top k of the E collaborative experts, by one router for all modalities, and to the shared FFN. All
routed experts are of one dispatch plan: specialised ones are numbered m S + s, collaborative ones
come behind them. Profile `paper` is the defaults; the released code differs in the weight of an
expert, in the balance loss, by a capacity and by tanh GELU (`combine`, `balance`, ..).

A layer is a plain dict of arrays, any of the three groups of which may be absent, M modalities:

    spec.router [M, S, C]  spec.w1 [M, S, C, D]  spec.b1 [M, S, D]  spec.w2 [M, S, D, C]  spec.b2
    coll.router [E, C]     coll.w1 [E, C, D]     ..
                           shared.w1 [C, D]      ..
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_pipelines.errors import UserError
from sm3det_jax.layers.initialisers import truncated_normal
from sm3det_jax.moe import expert_parallel
from sm3det_jax.moe.experts import FFNS
from sm3det_jax.moe.group_routing import BALANCE, COMBINE, Choices, choose
from sm3det_jax.moe.hidden_parallel import dense_ffn
from sm3det_jax.precision import wide, wide_dtype

FFN = ('w1', 'b1', 'w2', 'b2')
OPTIONS = (
  'top_k', 'combine', 'capacity_factor', 'groups', 'balance', 'gelu', 'implementation'
)  # fmt: skip


class Routing(NamedTuple):
  """Where `N` tokens went in one group of experts."""

  indices: jax.Array  # [N, K] choices, dropped ones too; specialised: of the token's own modality
  weights: jax.Array  # [N, K] as applied, 0 where dropped


def rmoe(
  layer: dict[str, jax.Array], x: jax.Array, modality: jax.Array, top_k: int = 1,
  combine: str = 'probability', capacity_factor: float | None = None, groups: int = 1,
  balance: str = 'paper', gelu: str = 'erf', implementation: str = 'blocked',
) -> tuple[jax.Array, jax.Array, dict[str, Routing]]:  # fmt: skip
  """The layer for the tokens of a batch, global arrays on a mesh: see `expert_parallel`.

  Args:
    layer: see above.
    x: [N, C] tokens; their dtype is that of the products, routers are at least float32.
    modality: [N] of each token, 0 to M - 1, in any order.
    top_k: experts of each group that a token goes to.
    combine: weight of an expert, its 'probability' p, or 'renormalised', p kept / (sum of p kept +
      1e-9) over the choices, which are made one after the other: a token that was dropped may
      choose the same expert again.
    capacity_factor: None drops nothing. Else an expert takes the first ceil(K T factor / (groups
      n)) of its choices in each group of tokens, n being the experts of its router and T that
      router's tokens; a second choice queues behind all first ones.
    groups: equal runs, in order, of a router's tokens.
    balance: 'paper', n sum_k f P, summed over routers; 'released', 64 / n sum_k f P, the mean over
      groups of tokens, summed over choices, and the mean over modalities' routers. f is the share
      of tokens that choose an expert, dropped or not, P its mean probability.
    gelu: 'erf' or 'tanh'.
    implementation: as `dispatch.expert_ffn`.

  Returns:
    (y [N, C], balance loss without a weight, {'spec': Routing, 'coll': Routing}).

  Raises:
    UserError: an unknown option, more choices than experts, a layer without experts, a mesh that
      does not divide experts or hidden channels.
  """
  _check(layer, top_k, combine, capacity_factor, balance, gelu)
  options = dict(
    top_k=top_k, combine=combine, capacity_factor=capacity_factor, groups=groups, balance=balance
  )
  modality = jnp.asarray(modality, jnp.int32)
  chosen: dict[str, Choices] = {}
  loss = jnp.zeros((), wide_dtype(x.dtype))
  if 'spec.router' in layer:
    with jax.named_scope('router'):
      chosen['spec'] = c = choose(x, layer['spec.router'], modality, **options)
    loss += c.balance.sum() if balance == 'paper' else c.balance.mean()
  if 'coll.router' in layer:
    member = jnp.zeros_like(modality)
    with jax.named_scope('router'):
      chosen['coll'] = c = choose(x, layer['coll.router'][None], member, **options)
    loss += c.balance.sum()
  y = jnp.zeros(x.shape, loss.dtype)
  if chosen:
    y += wide(_routed(layer, x, modality, chosen, FFNS[gelu], implementation))
  if 'shared.w1' in layer:
    with jax.named_scope('experts_shared'):
      y += wide(dense_ffn(FFNS[gelu], x, tuple(layer[f'shared.{k}'] for k in FFN)))
  return y.astype(x.dtype), loss, {k: Routing(c.indices, c.weights) for k, c in chosen.items()}


def _check(layer, top_k, combine, capacity_factor, balance, gelu):
  for name, value, known in (
    ('combine', combine, COMBINE), ('balance', balance, BALANCE), ('gelu', gelu, tuple(FFNS))
  ):  # fmt: skip
    if value not in known:
      raise UserError(f'{name}={value!r}: expected one of {known}')
  if capacity_factor is not None and capacity_factor <= 0:
    raise UserError(f'{capacity_factor=}: expected a number above 0, or None')
  if not layer:
    raise UserError('a layer without experts: none of the groups spec, coll and shared')
  for key in ('spec.router', 'coll.router'):
    if key in layer and not 1 <= top_k <= layer[key].shape[-2]:
      raise UserError(f'{top_k=} must be 1 to {layer[key].shape[-2]}, the experts of {key}')


def _routed(layer, x, modality, chosen, kind, implementation):
  """Specialised and collaborative experts, by one plan."""
  stacks, indices, total = [], [], 0
  for name, c in chosen.items():
    router = layer[f'{name}.router']
    first = total + (modality[:, None] * router.shape[1] if name == 'spec' else 0)
    indices.append(c.indices + first)
    arrays = (layer[f'{name}.{k}'] for k in FFN)
    lead = router.ndim - 1
    stacks.append(tuple(a.reshape(-1, *a.shape[lead:]) for a in arrays))
    total += math.prod(router.shape[:-1])
  joined = lambda k: jnp.concatenate([getattr(c, k) for c in chosen.values()], 1)
  indices = jnp.where(joined('kept'), jnp.concatenate(indices, 1), total)
  weights = joined('weights')
  return expert_parallel.run(kind, x, indices, weights, stacks, implementation=implementation)


def _uniform(key, shape, dtype=jnp.float32):
  """As the released code's framework begins linear layers: up to 1 / sqrt(C)."""
  bound = shape[-1] ** -0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


INITS = {'router': _uniform, 'w1': truncated_normal, 'w2': truncated_normal}  # biases: zero


class RMoE(nn.Module, kw_only=True):
  """The layer over grid cells; its parameters are the arrays of `rmoe` by their names.

  Attributes:
    hidden: channels inside of an expert.
    modalities, specialised, collaborative, shared: M, S, E and whether there is a shared FFN; no
      experts of a kind: 0.
    top_k, combine, capacity_factor, groups, balance, gelu, implementation: as `rmoe`.
  """

  hidden: int
  modalities: int
  specialised: int
  collaborative: int
  shared: bool = True
  top_k: int = 1
  combine: str = 'probability'
  capacity_factor: float | None = None
  groups: int = 1
  balance: str = 'paper'
  gelu: str = 'erf'
  implementation: str = 'blocked'

  @nn.compact
  def __call__(self, x: jax.Array, modality: jax.Array):
    """x [B, H, W, C] of the modalities [B] -> as `rmoe`, arrays of tokens [B, H, W, ..]."""
    b, h, w, c = x.shape
    layer, d = {}, self.hidden
    shapes = {'w1': (c, d), 'b1': (d,), 'w2': (d, c), 'b2': (c,)}
    for name, lead in (
      ('spec', (self.modalities, self.specialised)),
      ('coll', (self.collaborative,)),
      ('shared', ()),
    ):
      if not (all(lead) if lead else self.shared):
        continue
      for key, shape in (shapes | ({'router': (c,)} if lead else {})).items():
        init = INITS.get(key, nn.initializers.zeros)
        layer[f'{name}.{key}'] = self.param(f'{name}.{key}', init, (*lead, *shape))
    options = {k: getattr(self, k) for k in OPTIONS}
    y, balance, routing = rmoe(layer, x.reshape(-1, c), jnp.repeat(modality, h * w), **options)
    by_cell = lambda a: a.reshape(b, h, w, -1)
    return by_cell(y), balance, jax.tree.map(by_cell, routing)
