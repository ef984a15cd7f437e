"""StableHLO by `jax.export`: one file that runs on several platforms, its parameters inside."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import export
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.interop.export import program

PLATFORMS = ('cpu', 'cuda', 'tpu')
KNOWN = (*PLATFORMS, 'rocm')
ANY = 'any'
LARGEST = 2**31 - 2**20  # bytes of parameters; the file's format ends at 2 GiB


def serialised(
  config: ConfigDict,
  variables: dict,
  task: str,
  batch: int | str = 1,
  platforms: Sequence[str] = PLATFORMS,
) -> bytes:
  """A task's detection as `jax.export` serialises it, NMS included.

  Args:
    config: of the model.
    variables: Flax dict.
    task: one of the config's.
    batch: images at once, or 'any'; then the program takes the images one after the other.
    platforms: of `KNOWN`.

  Raises:
    UserError: another platform; more parameters than such a file can hold.
  """
  if strangers := [p for p in platforms if p not in KNOWN]:
    raise UserError(f'platform {strangers[0]!r}: expected some of {", ".join(KNOWN)}')
  detect = program.detection(config, task)
  variables = _read_ones(detect, variables, program.arguments(config, task, 1))

  def fixed(images, shapes):
    # as if they were arguments: constants would be folded, for minutes, by whoever compiles it
    return detect(jax.lax.optimization_barrier(variables), images, shapes)

  def one(image):
    return jax.tree.map(lambda a: a[0], fixed(*(a[None] for a in image)))

  if batch == ANY:  # much of a model asks for its number of images when it is traced
    (batch,) = export.symbolic_shape('batch')
    run = lambda images, shapes: jax.lax.map(one, (images, shapes))
  else:
    run = fixed
  made = export.export(jax.jit(run), platforms=platforms)
  return bytes(made(*program.arguments(config, task, batch)).serialize())


def _read_ones(detect, variables, arguments):
  """The variables with zeros, which need no room, for those that the program does not read."""
  like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
  read = set(export.export(detect)(like, *arguments).module_kept_var_idx)
  leaves, form = jax.tree.flatten(jax.device_get(variables))
  if sum(leaves[i].nbytes for i in read if i < len(leaves)) > LARGEST:
    raise UserError('a StableHLO file holds at most 2 GiB of parameters; export safetensors')
  zeros = lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape)
  return form.unflatten([a if i in read else zeros(a) for i, a in enumerate(leaves)])
