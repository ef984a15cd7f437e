"""Hidden channels of FFNs cut over the mesh axis `model`: each device does its share of them.

The M devices of the axis gather each other's t tokens of C values of b bytes, and sum the results
over their shares where they belong: t (M - 1) C (b + max(b, 4)) bytes from each device in a forward
pass, and as much in a backward pass (Shoeybi et al. 2019, "Megatron-LM", its layers with the tokens
between them cut as well). So the axis spares memory of weights, and takes no device from the
batch, which is spread over all axes of the mesh.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from data_pipelines.errors import UserError
from sm3det_jax.moe.experts import Expert
from sm3det_jax.precision import wide

MODEL = 'model'


def dense_ffn(kind: Expert, x: jax.Array, params: tuple, mesh=None) -> jax.Array:
  """One FFN for all tokens of a mesh.

  Args:
    kind, params: one of `experts.FFNS` and its arrays, those of one expert.
    x: [N, C] global tokens, taken over all axes of the mesh.
    mesh: default the current one.

  Returns:
    [N, C] in the dtype of x.

  Raises:
    UserError: hidden channels that the axis `model` does not divide.
  """
  mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
  if mesh.shape.get(MODEL, 1) == 1:
    return kind.forward(params, x)[1]
  body = spread(kind, lambda x, stacks: (kind.forward(stacks[0], x)[1],))
  tokens, where = P(mesh.axis_names), specs(kind, params, mesh)
  # check_vma=False: the sums over devices of the weights' gradients come from the in_specs alone
  run = jax.shard_map(
    body, mesh=mesh, in_specs=(tokens, (where,)), out_specs=(tokens,), check_vma=False
  )
  return run(jnp.pad(x, ((0, -len(x) % mesh.size), (0, 0))), (params,))[0][: len(x)]


def specs(kind: Expert, params: Sequence, mesh, lead: tuple = ()) -> tuple[P, ...]:
  """Where the arrays of an FFN lie, behind the axes `lead` that they have in front.

  Raises:
    UserError: hidden channels that the axis `model` does not divide.
  """
  found, size = [], mesh.shape.get(MODEL, 1)
  for array, axis in zip(params, kind.hidden, strict=True):
    if axis is None or size == 1:
      found.append(P(*lead))
      continue
    if (channels := array.shape[len(lead) + axis]) % size:
      raise UserError(
        f'{channels} hidden channels do not divide over mesh axis {MODEL!r} of {size}'
      )
    found.append(P(*lead, *[None] * axis, MODEL))
  return tuple(found)


def spread(kind: Expert, body: Callable) -> Callable:
  """`body` on a share of the hidden channels, for use within `shard_map`.

  Args:
    kind: of the experts.
    body: (*arrays of all tokens in front, stacks) -> (y, *others), all with the tokens in front; y
      is what this share adds to the result, the others are the same on the whole axis.

  Returns:
    The same function of this device's tokens alone.
  """

  def run(*args):
    *tokens, stacks = args
    me, t = lax.axis_index(MODEL), len(tokens[0])
    # an array without hidden channels counts once
    stacks = tuple(
      tuple(
        jnp.where(me == 0, a, 0) if axis is None else a
        for a, axis in zip(params, kind.hidden, strict=True)
      )
      for params in stacks
    )
    y, *others = body(*(lax.all_gather(a, MODEL, tiled=True) for a in tokens), stacks)
    y = lax.psum_scatter(wide(y), MODEL, tiled=True).astype(y.dtype)
    return y, *(lax.dynamic_slice_in_dim(a, me * t, t) for a in others)

  return run
