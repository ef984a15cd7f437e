"""ONNX by jax2onnx, whose package asks for an older orbax-checkpoint than this project."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import copied
from sm3det_jax.geometry import nms
from sm3det_jax.interop.export import about, program

CANDIDATES = 1000  # best pairs of box and class of an image that `cut` leaves
TURNS = 64  # of a loop over an axis, at most, that are computed one by one
OPSET = 23
MISSING = (
  'jax2onnx is not here; as it asks for an older orbax-checkpoint, it needs an environment of its '
  'own: docs/export.md has the commands'
)


def serialised(
  config: ConfigDict, variables: dict, task: str, batch: int | str = 1, cut: str | None = None
) -> bytes:
  """A task's detection as an ONNX model.

  Args:
    config: of the model.
    variables: Flax dict.
    task: one of the config's.
    batch: images at once.
    cut: 'boxes': the best `CANDIDATES` pairs of box and class of an image, without the last NMS.

  Raises:
    UserError: jax2onnx is not installed; a batch of any size.
  """
  if batch == 'any':
    raise UserError('an ONNX model is for a fixed number of images: --batch=4')
  try:
    import jax2onnx  # lazily: no part of this project's environment
  except ImportError as error:
    raise UserError(MISSING) from error
  config = copied(config)
  config.moe.implementation = 'dense'  # every expert on every token: no loop with a traced end
  if cut:
    config.tasks[task].head.max_detections = CANDIDATES
  arguments = program.arguments(config, task, batch)
  without = _without_nms(config.tasks[task].head) if cut else contextlib.nullcontext()
  with without:
    traced = _traced(program.detection(config, task), jax.device_get(variables), arguments)
  model = jax2onnx.to_onnx(
    traced,
    list(arguments),
    model_name=f'sm3det_{task}',
    opset=OPSET,
    input_names=list(about.INPUTS),
    output_names=list(about.OUTPUTS),
  )
  return model.SerializeToString()


def _traced(detect, variables, arguments):
  """The detection as a function that does nothing but call the primitives of its trace.

  jax2onnx replaces functions of `jax.numpy` while it traces, some by ones that take less.
  """
  run = lambda *args: tuple(detect(variables, *args)[name] for name in about.OUTPUTS)
  trace = jax.make_jaxpr(run)(*arguments)
  trace = jax.make_jaxpr(lambda *args: _inlined(trace.jaxpr, trace.consts, *args))(*arguments)
  call = jaxpr_as_fun(trace)
  return lambda images, shapes: tuple(call(images, shapes))


def _inlined(jaxpr, consts, *args):
  """What a jaxpr computes, without what jax2onnx does not know, or knows in part.

  That are calls, which are computed in place; loops over an axis, every turn of which is; and the
  choice by platform: whatever another platform than those named has.
  """
  known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
  for eqn in jaxpr.eqns:
    values = [v.val if isinstance(v, Literal) else known[v] for v in eqn.invars]
    known.update(zip(eqn.outvars, _computed(eqn, values), strict=True))
  return [v.val if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]


def _computed(eqn, values):
  """The results of an equation."""
  name, params = eqn.primitive.name, eqn.params
  if name == 'platform_index':
    return [0]  # of the choice, that follows
  if name == 'cond' and params.get('branches_platforms'):
    called = params['branches'][-1]
    return _inlined(called.jaxpr, called.consts, *values[1:])
  if name == 'scan' and params['length'] <= TURNS:
    return _turns(params, values)
  if (called := params.get('call_jaxpr', params.get('jaxpr'))) and name != 'scan':
    return _inlined(getattr(called, 'jaxpr', called), getattr(called, 'consts', ()), *values)
  out = eqn.primitive.bind(*values, **params)
  return out if eqn.primitive.multiple_results else [out]


def _turns(params, values):
  """A scan, turn by turn."""
  body, fixed = params['jaxpr'], params['num_consts']
  consts, carry = values[:fixed], values[fixed : fixed + params['num_carry']]
  xs, made = values[fixed + params['num_carry'] :], []
  for i in range(params['length']):
    turn = (jax.lax.index_in_dim(x, i, keepdims=False) for x in xs)
    out = _inlined(body.jaxpr, body.consts, *consts, *carry, *turn)
    carry, ys = out[: len(carry)], out[len(carry) :]
    made.append(ys)
  turns = made[::-1] if params['reverse'] else made
  return [*carry, *(jnp.stack(ys) for ys in zip(*turns, strict=True))]


@contextlib.contextmanager
def _without_nms(head: ConfigDict) -> Iterator[None]:
  """In it the last NMS of a head keeps the best boxes, whatever overlaps; proposals keep theirs."""
  pairs = nms.multiclass_nms

  def best_pairs(*args):
    with mock.patch.object(nms, 'nms', _best):
      return pairs(*args)

  two_stage = 'roi' in head
  name, best = ('multiclass_nms', best_pairs) if two_stage else ('nms', _best)
  with mock.patch.object(nms, name, best):
    yield


def _best(boxes, scores, iou_threshold, max_outputs, labels=None, valid=None):
  """As `nms.nms`, where no box suppresses another."""
  del iou_threshold, labels
  usable = scores > 0 if valid is None else (scores > 0) & valid
  best, index = jax.lax.top_k(jnp.where(usable, scores, 0), min(max_outputs, len(boxes)))
  return index, best > 0
