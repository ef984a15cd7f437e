"""Dropless dispatch of tokens to experts: one plan, two uses (FFN experts, single-layer experts).

`dense` computes every expert for every token: the reference. `blocked` gathers the tokens of an
expert into blocks of rows, so that a block meets one expert's weights. The number of blocks is
static (ceil(N K / rows) + E), slots come from a cumulative sum (no sort), and both passes combine
by gathers alone, so that results do not depend on the order of atomic additions.

Experts may come in several stacks of arrays, which are numbered one stack after the other and share
one plan: a stack's blocks lie side by side, and so no array is copied to join them.
"""

import functools
from contextlib import nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from data_pipelines.errors import UserError
from sm3det_jax.moe.experts import FFN, LINEAR, Expert
from sm3det_jax.precision import wide


class Plan(NamedTuple):
  """Where every choice sits among the rows of the blocks."""

  slot: jax.Array  # [N, K] row of each choice; the last one, always empty, of an expert elsewhere
  choice: jax.Array  # [blocks, rows] choice (n K + k) of each row, N K where the row is empty
  token: jax.Array  # [blocks, rows] token of each row, N where the row is empty
  expert: jax.Array  # [blocks]
  end: jax.Array  # [E] blocks of each expert and those before it

  @property
  def used(self) -> jax.Array:
    """Number of blocks in use; the others come last."""
    return self.end[-1]


def make_plan(indices: jax.Array, num_experts: int, rows: int) -> Plan:
  """Expert-aligned blocks of `rows` rows for the choices `indices` [N, K].

  A choice `num_experts` is of an expert elsewhere: it takes no row.
  """
  n, k = indices.shape
  flat = indices.reshape(-1)
  blocks = -(-n * min(k, num_experts) // rows) + num_experts  # at least one more than is used
  hot = jax.nn.one_hot(flat, num_experts, dtype=jnp.int32)  # [N K, E]
  count = -(-hot.sum(0, dtype=jnp.int32) // rows)  # blocks of each expert
  end = jnp.cumsum(count)
  first = (end - count) * rows
  slot = row_of_choice(hot, first)
  slot = jnp.where(flat < num_experts, slot, blocks * rows - 1)
  number = jnp.arange(n * k, dtype=jnp.int32)
  row = jnp.where(flat < num_experts, slot, blocks * rows + number)  # unique, though out of bounds
  choice = jnp.full((blocks * rows,), n * k, jnp.int32)
  choice = choice.at[row].set(number, unique_indices=True, mode='drop').reshape(blocks, rows)
  block = jnp.arange(blocks, dtype=jnp.int32)
  expert = jnp.searchsorted(end, block, side='right').astype(jnp.int32)
  return Plan(slot.reshape(n, k), choice, choice // k, jnp.minimum(expert, num_experts - 1), end)


def row_of_choice(hot: jax.Array, first: jax.Array) -> jax.Array:
  """Row [N K] of each choice, counted from the `first` [E] one of its expert.

  `hot` [N K, E] is one-hot, and all zero for a choice that takes no row.
  """
  return ((jnp.cumsum(hot, 0) - 1 + first[None]) * hot).sum(1, dtype=jnp.int32)


def _rows(choices: int, num_experts: int) -> int:
  """Rows of a block, a power of two from 64 to 256 that gives an expert about eight blocks.

  An expert's last block is half empty on average, so eight of them waste a sixteenth. Products of
  fewer than 64 rows are bound by reading the expert's weights, and beyond 256 nothing is gained.
  """
  share = max(choices // num_experts // 8, 1)
  return min(max(1 << (share.bit_length() - 1), 64), 256)


def _pad(x):  # a last row of zeros: what an empty row reads
  return jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])


def _put(buffer, value, i):
  return lax.dynamic_update_index_in_dim(buffer, value.astype(buffer.dtype), i, 0)


def _loop(body, carry, params, plan, first):
  """`body(i, own, carry)` for the blocks i of a stack, whose experts count from `first`."""
  begin = plan.end[first - 1] if first else 0
  own = lambda i: jax.tree.map(lambda w: w[plan.expert[i] - first], params)
  end = plan.end[first + count_experts((params,)) - 1]
  # `account` finds the rows of all stacks in the loop over the first
  with jax.named_scope(f'experts_0_in_0x{plan.token.shape[1]}') if first else nullcontext():
    return lax.fori_loop(begin, end, lambda i, carry: body(i, own(i), carry), carry)


def _block_forward(kind, stacks, x, plan, saving):
  """Runs the blocks in use; what the backward pass needs is kept when `saving`."""
  padded = _pad(x)
  run = lambda own, i: kind.forward(own, padded[plan.token[i]])
  one = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape[1:], w.dtype), stacks[0])
  saved_shape, out_shape = jax.eval_shape(run, one, jnp.int32(0))
  empty = lambda s: jnp.zeros((len(plan.token), *s.shape), s.dtype)
  buffers = jax.tree.map(empty, (saved_shape if saving else (), out_shape))

  def body(i, own, buffers):
    saved, out = run(own, i)
    put = lambda b, v: _put(b, v, i)
    return jax.tree.map(put, buffers, (saved if saving else (), out))

  for first, params in _numbered(stacks):
    buffers = _loop(body, buffers, params, plan, first)
  saved, out = buffers
  return saved, out.reshape(-1, out.shape[-1])  # rows


def _combine(rows, slot, weights):
  total = sum(rows[slot[:, j]] * weights[:, j, None] for j in range(slot.shape[1]))
  return total.astype(rows.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(kind, x, plan, weights, stacks):
  _, rows = _block_forward(kind, stacks, x, plan, saving=False)
  return _combine(wide(rows), plan.slot, weights).astype(x.dtype)


def _blocked_forward(kind, x, plan, weights, stacks):
  saved, rows = _block_forward(kind, stacks, x, plan, saving=True)
  y = _combine(wide(rows), plan.slot, weights).astype(x.dtype)
  return y, (x, plan, weights, stacks, saved, rows)


def _blocked_backward(kind, residuals, dy):
  x, plan, weights, stacks, saved, rows = residuals
  k = weights.shape[1]
  wide_dy = wide(dy)
  dweights = jnp.stack([(wide(rows)[plan.slot[:, j]] * wide_dy).sum(1) for j in range(k)], 1)
  gate = _pad(weights.reshape(-1, 1))[plan.choice]  # [blocks, rows, 1]
  padded_x, padded_dy = _pad(x), _pad(dy)

  def body(first, i, own, carry):
    dparams, dx = carry
    e, token = plan.expert[i] - first, plan.token[i]
    out = (wide(padded_dy[token]) * gate[i]).astype(dy.dtype)
    dp, dxi = kind.backward(own, padded_x[token], jax.tree.map(lambda s: s[i], saved), out)
    add = lambda total, part: total.at[e].add(part.astype(total.dtype))
    return jax.tree.map(add, dparams, dp), _put(dx, dxi, i)

  dx, dstacks = jnp.zeros((*plan.token.shape, x.shape[1]), x.dtype), []
  for first, params in _numbered(stacks):
    carry = jax.tree.map(jnp.zeros_like, params), dx
    dparams, dx = _loop(functools.partial(body, first), carry, params, plan, first)
    dstacks.append(dparams)
  dx = wide(dx.reshape(-1, x.shape[1]))
  dx = sum(dx[plan.slot[:, j]] for j in range(k)).astype(x.dtype)
  return dx, None, dweights.astype(weights.dtype), tuple(dstacks)


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _dense(kind, x, indices, weights, stacks):
  """Every expert on every token; autodiff only."""
  total = 0
  for first, params in _numbered(stacks):
    hot = jax.nn.one_hot(indices - first, count_experts((params,)), dtype=weights.dtype)
    gates = jnp.einsum('nk,nke->ne', weights, hot)
    y = jax.vmap(lambda p: kind.forward(p, x)[1])(params)  # [E, N, C]
    total = total + jnp.einsum('ne,enc->nc', gates, wide(y))
  return total.astype(x.dtype)


def count_experts(stacks) -> int:
  """Of all stacks."""
  return sum(len(jax.tree.leaves(params)[0]) for params in stacks)


def _numbered(stacks):
  """(number of its first expert, arrays) of each stack."""
  return [(count_experts(stacks[:i]), params) for i, params in enumerate(stacks)]


IMPLEMENTATIONS = ('blocked', 'dense')


def run(kind: Expert, x, indices, weights, stacks, implementation='blocked', share=1):
  """sum_k weights[n, k] expert_{indices[n, k]}(x[n]), without the choices elsewhere.

  Args:
    kind: as in `experts`.
    x, indices, weights, implementation: as `expert_ffn`; an index E means an expert elsewhere, and
      a token may have several of those.
    stacks: the arrays of the E experts, those of each stack in the order of `kind`.
    share: one in so many choices is expected to be here.

  Returns:
    [N, D] in the dtype of x.
  """
  if implementation == 'dense':
    return _dense(kind, x, indices, weights, stacks)
  e, choices = count_experts(stacks), indices.size // share
  plan = make_plan(indices, e, _rows(choices, e))
  blocks, rows = plan.token.shape
  # the name tells `account` how many of the loop's rows are real
  with jax.named_scope(f'experts_{choices}_in_{blocks}x{rows}'):
    return _blocked(kind, x, plan, weights, tuple(stacks))


def load(indices: jax.Array, num_experts: int) -> jax.Array:
  """Choices of each expert: int32 [E]."""
  return jnp.zeros((num_experts,), jnp.int32).at[indices.reshape(-1)].add(1, mode='drop')


def _dispatch(kind, x, indices, weights, params, implementation, capacity_factor, return_stats):
  if implementation not in IMPLEMENTATIONS:
    raise UserError(f'implementation={implementation!r}: expected one of {IMPLEMENTATIONS}')
  if capacity_factor is not None:
    raise UserError(f'{implementation=} is dropless and takes no {capacity_factor=}')
  y = run(kind, x, indices, weights, (params,), implementation)
  if not return_stats:
    return y
  return y, {'load': load(indices, params[0].shape[0]), 'dropped': jnp.zeros((), jnp.float32)}


def expert_ffn(
  x, indices, weights, w1, b1, w2, b2, implementation='blocked', capacity_factor=None,
  return_stats=False,
):  # fmt: skip
  """sum_k weights[n, k] FFN_{indices[n, k]}(x[n]): linear, exact GELU, linear.

  Args:
    x: [N, C] tokens; their dtype is that of the products, the sum over k is at least float32.
    indices: [N, K] experts of each token, without repetition.
    weights: [N, K] gates.
    w1: [E, C, D], b1: [E, D], w2: [E, D, C], b2: [E, C].
    implementation: 'blocked' or 'dense' (every expert on every token, the reference).
    capacity_factor: None; these implementations drop no token.
    return_stats: also return {'load': [E] choices of each expert, 'dropped': share lost}.

  Returns:
    [N, C], or a pair with the statistics.

  Raises:
    UserError: an unknown implementation, or a capacity factor for a dropless one.
  """
  return _dispatch(
    FFN, x, indices, weights, (w1, b1, w2, b2), implementation, capacity_factor, return_stats
  )


def expert_linear(
  x, indices, weights, w, b, implementation='blocked', capacity_factor=None, return_stats=False
):
  """sum_k weights[n, k] (x[n] w[e] + b[e]): experts of one layer, a 1x1 convolution each.

  Arguments, returned values and errors as `expert_ffn`, with w [E, C, D], b [E, D] -> [N, D].
  """
  return _dispatch(
    LINEAR, x, indices, weights, (w, b), implementation, capacity_factor, return_stats
  )
