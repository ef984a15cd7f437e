"""Experts spread over the mesh axis `expert`: tokens travel to them and their products back.

Every device holds N / devices tokens and E / P experts, P being the size of the axis. What a device
sends in a forward pass, for t tokens of C values of b bytes (results summed over experts on the way
take at least 4 bytes a value; a backward pass sends as much again, in the other direction):

    gather   t (P - 1) C (b + max(b, 4))    all-gather of tokens, reduce-scatter of results
    ragged   t K (P - 1) / P C 2 b          ragged all-to-all, of even routing
    slots    f t K (P - 1) / P C 2 b        all-to-all of a capacity factor f

The first two drop nothing. A padded all-to-all that drops nothing needs room for all t tokens on
each peer, so it sends what `gather` does and is none of them. `ragged` is used where it sends less,
on TPUs: XLA:CPU has no such collective, and on GPUs its gradients were reported wrong (XLA's
one-shot form, 8 devices). `slots` drops the choices beyond f t K / E of a device and expert.

Groups of experts, such as one of each modality, need nothing else: `indices` count over all groups,
and those of several stacks of arrays over all stacks.

On a mesh with an axis `model` the devices of each of its rows do this for all their tokens, and a
share of an FFN's hidden channels each (see `hidden_parallel`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from data_pipelines.errors import UserError
from sm3det_jax.moe import dispatch, hidden_parallel
from sm3det_jax.moe.experts import FFN, LINEAR
from sm3det_jax.precision import wide

AXIS = 'expert'


def expert_ffn(
  x, indices, weights, w1, b1, w2, b2, mesh=None, capacity_factor=None, return_stats=False,
  implementation='blocked',
):  # fmt: skip
  """`dispatch.expert_ffn` of global arrays on a mesh; call it under jit.

  Args:
    x, indices, weights, w1, b1, w2, b2: as `dispatch.expert_ffn`; tokens are taken over all axes of
      the mesh, experts over `expert`.
    mesh: default the current one.
    capacity_factor: None drops nothing; a number drops a device's choices of an expert beyond
      ceil(capacity_factor t K / E), t being the tokens of a device, the last tokens first.
    return_stats: also return {'load': [E] choices of each expert, 'dropped': share of the choices
      lost, 'dropped_of_token': [N] of each token's K}.
    implementation: of the product on a device, as `dispatch.expert_ffn`.

  Returns:
    [N, C], or a pair with the statistics.

  Raises:
    UserError: experts that the axis `expert`, or hidden channels that `model` does not divide.
  """
  stacks = ((w1, b1, w2, b2),)
  return run(FFN, x, indices, weights, stacks, mesh, capacity_factor, return_stats, implementation)


def expert_linear(
  x, indices, weights, w, b, mesh=None, capacity_factor=None, return_stats=False,
  implementation='blocked',
):  # fmt: skip
  """`dispatch.expert_linear` of global arrays on a mesh; all else as `expert_ffn`."""
  return run(
    LINEAR, x, indices, weights, ((w, b),), mesh, capacity_factor, return_stats, implementation
  )


def transport(peers: int, k: int, itemsize: int, has_ragged: bool, capacity_factor=None) -> str:
  """How tokens travel, by the bytes above: 'none', 'gather', 'ragged' or 'slots'."""
  if capacity_factor is not None:
    return 'slots'
  if peers == 1:
    return 'none'
  gather, ragged = peers * (itemsize + max(itemsize, 4)), 2 * k * itemsize
  return 'ragged' if has_ragged and ragged < gather else 'gather'


def run(
  kind, x, indices, weights, stacks, mesh=None, capacity_factor=None, return_stats=False,
  implementation='blocked',
):  # fmt: skip
  """`dispatch.run` of global arrays on a mesh; all else as `expert_ffn`.

  An index E means no expert, so that a choice may be left out. The axis `expert` has to divide the
  experts of each stack.
  """
  if implementation not in dispatch.IMPLEMENTATIONS:
    raise UserError(f'{implementation=}: expected one of {dispatch.IMPLEMENTATIONS}')
  mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
  n, sizes = len(x), [dispatch.count_experts((params,)) for params in stacks]
  num_experts = sum(sizes)
  peers, devices = mesh.shape.get(AXIS, 1), max(mesh.size, 1)  # 0 outside of a mesh
  for size in sizes:
    if size % peers:
      raise UserError(f'{size} experts do not divide over mesh axis {AXIS!r} of {peers}')
  how = transport(peers, indices.shape[1], x.dtype.itemsize, _has_ragged(mesh), capacity_factor)
  body = functools.partial(
    TRANSPORTS[how], kind, peers=peers, num_experts=num_experts, implementation=implementation,
    capacity_factor=capacity_factor,
  )  # fmt: skip
  x, weights = (_padded(a, devices, 0) for a in (x, weights))
  padded = _padded(_by_device(indices, sizes, peers), devices, num_experts)
  if devices > 1:
    tokens, lead = P(mesh.axis_names), (AXIS if AXIS in mesh.axis_names else None,)
    experts = tuple(hidden_parallel.specs(kind, params, mesh, lead) for params in stacks)
    cut = mesh.shape.get(hidden_parallel.MODEL, 1) > 1 and any(a is not None for a in kind.hidden)
    # check_vma=False: the sums over devices of the weights' gradients come from the in_specs alone
    body = jax.shard_map(
      hidden_parallel.spread(kind, body) if cut else body,
      mesh=mesh, in_specs=(tokens, tokens, tokens, experts), out_specs=(tokens, tokens),
      check_vma=False,
    )  # fmt: skip
  y, dropped = body(x, padded, weights, tuple(stacks))
  y, dropped = y[:n], dropped[:n]
  if not return_stats:
    return y
  share = dropped.astype(jnp.float32) / indices.shape[1]
  load = dispatch.load(indices, num_experts)
  return y, {'load': load, 'dropped': share.mean(), 'dropped_of_token': share}


def _by_device(indices, sizes, peers):
  """Experts of several stacks numbered device by device: each holds a part of every stack."""
  if len(sizes) == 1 or peers == 1:
    return indices
  first = np.cumsum([0, *sizes])
  parts = [np.arange(f, f + n).reshape(peers, -1) for f, n in zip(first, sizes, strict=False)]
  number = np.argsort(np.concatenate(parts, 1).reshape(-1))
  return jnp.asarray(np.append(number, first[-1]), indices.dtype)[indices]


def _has_ragged(mesh):
  """Whether the devices have a ragged all-to-all; libtpu 0.0.42 has none for v5e above 4x4."""
  device = getattr(mesh, 'abstract_mesh', mesh).abstract_device or jax.devices()[0]
  return device.platform == 'tpu' and (device.device_kind != 'TPU v5 lite' or mesh.size <= 16)


def _padded(a, multiple, value):
  rest = -len(a) % multiple
  return jnp.pad(a, ((0, rest), (0, 0)), constant_values=value) if rest else a


def _none(kind, x, indices, weights, stacks, implementation, **_):
  y = dispatch.run(kind, x, indices, weights, stacks, implementation)
  return y, jnp.zeros(len(x), jnp.int32)


def _gather(kind, x, indices, weights, stacks, peers, num_experts, implementation, **_):
  """All tokens of the peers here, this device's experts on them, results summed where they belong.

  Bodies have the tokens of one device, [t, C], and its experts; they return [t, D] and how many of
  each token's choices were dropped.
  """
  own = num_experts // peers
  everyone = lambda a: lax.all_gather(a, AXIS, tiled=True)
  local = everyone(indices) - lax.axis_index(AXIS) * own
  local = jnp.where((local >= 0) & (local < own), local, own)
  y = dispatch.run(kind, everyone(x), local, everyone(weights), stacks, implementation, peers)
  y = lax.psum_scatter(wide(y), AXIS, tiled=True).astype(x.dtype)
  return y, jnp.zeros(len(x), jnp.int32)


def _ragged(kind, x, indices, weights, stacks, peers, num_experts, implementation, **_):
  """Choices in the order of their experts, each peer's part sent to it and back."""
  own, (t, k) = num_experts // peers, indices.shape
  position, choice, count = _by_expert(indices, num_experts)
  sent = count.reshape(peers, own).sum(1)  # [P]
  counts = lax.all_gather(count, AXIS).reshape(peers, peers, own)  # [from, to, expert]
  rows, me = counts.sum(2), lax.axis_index(AXIS)
  before = lambda a: jnp.cumsum(a, 0) - a
  here = rows[:, me]  # [P] rows from each peer
  there = before(rows)[me]  # [P] where my rows begin at each peer
  home = before(rows.T)[me]  # [P] where the rows of each peer began with it
  room = peers * t * min(k, own)
  exchange = lambda a, size, at, give, to, take: lax.ragged_all_to_all(
    a, jnp.zeros((size, a.shape[1]), a.dtype), at, give, to, take, axis_name=AXIS
  )
  x = _permute(jnp.repeat(x, k, 0), choice, position.reshape(-1))
  got = exchange(x, room, before(sent), sent, there, here)
  lengths = jnp.append(counts[:, me].reshape(-1), room - here.sum())
  expert = jnp.append(jnp.tile(jnp.arange(own), peers), own)  # no expert for the empty rows
  expert = jnp.repeat(expert, lengths, total_repeat_length=room)
  share = max(1, room // (t * k))
  y = _of_rows(kind, got, expert, stacks, implementation, share)
  y = exchange(y, t * k, before(here), here, home, sent)
  y = _permute(y, position.reshape(-1), choice).reshape(t, k, -1)
  return _combine(y, weights).astype(x.dtype), jnp.zeros(t, jnp.int32)


def _slots(kind, x, indices, weights, stacks, peers, num_experts, implementation, capacity_factor):
  """As many slots for each expert on each device; what does not fit is dropped."""
  t, k = indices.shape
  slots = min(-int(-capacity_factor * t * k // num_experts), t)
  flat, number = indices.reshape(-1), jnp.arange(t * k, dtype=jnp.int32)
  hot = jax.nn.one_hot(flat, num_experts, dtype=jnp.int32)
  rank = dispatch.row_of_choice(hot, jnp.zeros(num_experts, jnp.int32))
  real = flat < num_experts
  kept = real & (rank < slots)
  nowhere = num_experts * slots
  slot = jnp.where(kept, flat * slots + rank, nowhere)
  choice = jnp.full((nowhere,), t * k, jnp.int32).at[slot].set(number, mode='drop')
  exchange = lambda a: lax.all_to_all(a, AXIS, 0, 0, tiled=True) if peers > 1 else a
  got = exchange(_permute(jnp.repeat(x, k, 0), choice, slot))  # [P (E / P) slots, C], sender first
  used = exchange(jnp.minimum(hot.sum(0, dtype=jnp.int32), slots))  # [P (E / P)]
  own = num_experts // peers
  expert = jnp.where(
    jnp.arange(slots)[None] < used[:, None], jnp.tile(jnp.arange(own), peers)[:, None], own
  ).reshape(-1)  # no expert for the empty rows
  y = exchange(_of_rows(kind, got, expert, stacks, implementation))
  y = _permute(y, slot, choice).reshape(t, k, -1)
  dropped = (real & ~kept).reshape(t, k).sum(1, dtype=jnp.int32)
  return _combine(y, weights).astype(x.dtype), dropped


TRANSPORTS = {'none': _none, 'gather': _gather, 'ragged': _ragged, 'slots': _slots}


def _by_expert(indices, num_experts):
  """Choices [t, K] sorted by expert, by counting: position of each, choice at each, counts [E]."""
  flat = indices.reshape(-1)
  hot = jax.nn.one_hot(flat, num_experts + 1, dtype=jnp.int32)  # choices of no expert come last
  count = hot.sum(0, dtype=jnp.int32)
  position = dispatch.row_of_choice(hot, jnp.cumsum(count) - count)
  number = jnp.arange(len(flat), dtype=jnp.int32)
  choice = jnp.zeros_like(number).at[position].set(number, unique_indices=True)
  return position.reshape(indices.shape), choice, count[:-1]


def _of_rows(kind, x, expert, stacks, implementation, share=1):
  """Rows [R, C] through the expert [R] of each."""
  gates = jnp.ones((len(x), 1), wide(x).dtype)
  return dispatch.run(kind, x, expert[:, None], gates, stacks, implementation, share)


def _combine(y, weights):
  return sum(wide(y[:, j]) * weights[:, j, None] for j in range(weights.shape[1]))


@jax.custom_vjp
def _permute(x, order, inverse):
  """x[order] and 0 where `order` is out of bounds, whose gradient is a gather as well."""
  return x.at[order].get(mode='fill', fill_value=0)


_permute.defvjp(
  lambda x, order, inverse: (_permute(x, order, inverse), inverse),
  lambda inverse, g: (_permute(g, inverse, None), None, None),
)
