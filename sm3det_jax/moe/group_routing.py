"""Choices of the routers of one group of experts: a linear gate, a softmax, top-k, capacity.

A group has `R` routers over `n` experts each, and a token has one of these routers: RingMoE's
specialised experts have one a modality, its collaborative ones a single one.
"""

import fractions
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sm3det_jax.moe import dispatch
from sm3det_jax.precision import wide

COMBINE, BALANCE = ('probability', 'renormalised'), ('paper', 'released')
EPSILON = 1e-9  # of the released code


class Choices(NamedTuple):
  """Where `N` tokens go."""

  indices: jax.Array  # [N, K] experts of the token's router, dropped choices too
  weights: jax.Array  # [N, K] as applied, 0 where dropped
  kept: jax.Array  # [N, K]
  balance: jax.Array  # [R] loss of each router


def choose(
  x: jax.Array, router: jax.Array, member: jax.Array, top_k: int, combine: str,
  capacity_factor: float | None, groups: int, balance: str,
) -> Choices:  # fmt: skip
  """Choices of tokens x [N, C] by routers [R, n, C], that of a token being `member` [N].

  All else is explained at `hierarchical.rmoe`.
  """
  x, (r, n, _) = wide(x), router.shape
  own = jax.nn.one_hot(member, r, dtype=x.dtype)  # [N, R]
  logits = (x @ router.reshape(r * n, -1).T.astype(x.dtype)).reshape(-1, r, n)
  p = jax.nn.softmax((logits * own[..., None]).sum(1), -1)  # [N, n]
  tokens = own.sum(0).astype(jnp.int32)  # [R]
  run = _runs(member, own, tokens, groups)
  in_run = jax.nn.one_hot(run, r * groups, dtype=x.dtype)
  by_run = lambda a: jnp.einsum('nr,ne->re', in_run, a, precision='highest').reshape(r, groups, n)
  limit = None if capacity_factor is None else _capacity(tokens, n, top_k, capacity_factor, groups)
  out, taken = jnp.zeros(p.shape, bool), jnp.zeros((r, groups, n), jnp.int32)
  found, counts, sums = [], [], []
  for _ in range(top_k):
    index = jnp.argmax(jnp.where(out, -1, p), -1).astype(jnp.int32)
    hot = jax.nn.one_hot(index, n, dtype=x.dtype)
    left = jnp.where(out, 0, p)
    counts.append(by_run(hot))
    sums.append(by_run(left / (left.sum(-1, keepdims=True) + EPSILON)))
    kept = jnp.ones(index.shape, bool)
    if limit is not None:
      place = _place(index, member, run, counts[-1].astype(jnp.int32), taken)
      kept = place < limit[member]
    done = hot * kept[:, None].astype(hot.dtype)
    taken += by_run(done).astype(jnp.int32)
    out |= (done if combine == 'renormalised' else hot) > 0
    found.append((index, (p * done).sum(-1), kept))
  indices, weights, kept = (jnp.stack(a, 1) for a in zip(*found, strict=True))
  if combine == 'renormalised':
    weights = weights / (weights.sum(1, keepdims=True) + EPSILON)
  loss = _balance(balance, counts, sums, in_run.sum(0).reshape(r, groups, 1))
  return Choices(indices, weights, kept, loss)


def _runs(member, own, tokens, groups):
  """Which of the R `groups` equal runs of the routers' tokens each token [N] is in."""
  if groups == 1:
    return member
  rank = dispatch.row_of_choice(own.astype(jnp.int32), jnp.zeros(own.shape[1], jnp.int32))
  return member * groups + rank * groups // jnp.maximum(tokens[member], 1)


def _capacity(tokens, n, top_k, factor, groups):
  """ceil(K T factor / (groups n)) for T `tokens` [R], exact to three decimals of the factor."""
  share = fractions.Fraction(str(factor)).limit_denominator(1000) * top_k / (groups * n)
  above, below = share.numerator, share.denominator
  return tokens // below * above - (-(tokens % below) * above // below)  # far from overflow


def _place(index, member, run, count, taken):
  """Of each token [N] in the queue of its expert and run, which had `taken` [R, groups, n]."""
  r, groups, n = count.shape
  queue = jax.nn.one_hot(member * n + index, r * n, dtype=jnp.int32)
  among_all = dispatch.row_of_choice(queue, jnp.zeros(r * n, jnp.int32))
  before = jnp.cumsum(count, 1) - count  # in earlier runs
  return among_all + (taken - before).reshape(r * groups, n)[run, index]


def _balance(kind: str, counts: Sequence, sums: Sequence, size):
  """Loss [R] of the choices' counts and summed probabilities [R, groups, n] of `size` tokens."""
  n = counts[0].shape[-1]
  share = lambda a, b, size: (a * b / jnp.maximum(size, 1) ** 2).sum(-1)  # sum_k f P
  if kind == 'released':  # 64: the square of a number of experts of the released config
    each = [share(c, s, size).mean(-1) for c, s in zip(counts, sums, strict=True)]
    return 64 / n * sum(each)
  return n * share(sum(counts).sum(1), sums[0].sum(1), size.sum(1))
