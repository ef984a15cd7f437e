"""ONNX by jax2onnx, whose package asks for an older orbax-checkpoint than this project."""

import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import copied
from sm3det_jax.interop.export import about, program

OPSET = 23
SERIES = '0.17.'  # of jax2onnx, in which `_mended` reaches
MISSING = (
  f'jax2onnx {SERIES}* is not here; as it asks for an older orbax-checkpoint, it needs an '
  'environment of its own: docs/export.md has the commands'
)


def serialised(
  config: ConfigDict, variables: dict, task: str, batch: int | str = 1, cut: str | None = None
) -> bytes:
  """A task's detection as an ONNX model, its inputs and outputs as of `program.detection`.

  Args:
    config: of the model.
    variables: Flax dict.
    task: one of the config's.
    batch: images at once.
    cut: 'boxes': without the head's last NMS, every candidate of an image, best first.

  Raises:
    UserError: jax2onnx is not installed, or another series of it, or does not convert the model; a
      batch of any size.
  """
  if batch == 'any':
    raise UserError('an ONNX model is for a fixed number of images: --batch=4')
  try:
    import jax2onnx  # no part of this project's environment

    found = importlib.metadata.version('jax2onnx')
  except ImportError:
    found = ''
  if not found.startswith(SERIES):
    raise UserError(MISSING)
  config = copied(config)
  config.moe.implementation = 'dense'  # every expert on every token: no loop with a traced end
  detect = program.detection(config, task, nms=cut is None)
  arguments = program.arguments(config, task, batch)
  plain = _primitives(detect, jax.device_get(variables), arguments)
  names = {'input_names': list(about.INPUTS), 'output_names': list(about.OUTPUTS)}
  try:
    with _mended():
      model = jax2onnx.to_onnx(
        plain, list(arguments), model_name=f'sm3det_{task}', opset=OPSET, **names
      )
  except Exception as error:  # whatever jax2onnx makes of what it does not know
    why = f'{type(error).__name__}: {error}'.splitlines()[0]
    raise UserError(
      f'jax2onnx {found} does not convert task {task!r} ({why:.100}); --format=stablehlo takes it'
    ) from error
  return model.SerializeToString()


@contextlib.contextmanager
def _mended() -> Iterator[None]:
  """jax2onnx without two flaws, and without its remarks, which help no user.

  For every equation it looks for its results among the outputs of all nodes so far, which takes
  minutes for thousands; a value knows its node. And its `jnp.cumsum` remains when it is done.
  """
  from jax2onnx.converter import output_binding

  name = '_value_is_graph_connected'
  search = getattr(output_binding, name)
  connected = lambda context, value: value.producer() is not None or search(context, value)
  with (
    mock.patch.object(output_binding, name, connected),
    mock.patch.object(jnp, 'cumsum', jnp.cumsum),
  ):
    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
      yield
    finally:
      logging.disable(quiet)


def _primitives(detect: Callable, variables: dict, arguments: tuple) -> Callable:
  """The detection as a function that does nothing but call the primitives of its trace.

  jax2onnx replaces functions of `jax.numpy` while it traces, some by ones that take less.
  """

  def run(*args):
    found = detect(variables, *args)
    return tuple(found[name] for name in about.OUTPUTS)

  trace = jax.make_jaxpr(run)(*arguments)
  trace = jax.make_jaxpr(lambda *args: _inlined(trace, *args))(*arguments)
  return jaxpr_as_fun(trace)


def _inlined(closed, *args):
  """What a closed jaxpr computes, without what jax2onnx does not know, or knows in part.

  That are calls, which are computed in place; loops over an axis, every turn of which is; and the
  choice by platform: whatever another platform than those named has.
  """
  jaxpr = closed.jaxpr
  known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
  read = lambda v: v.val if isinstance(v, Literal) else known[v]
  for eqn in jaxpr.eqns:
    known.update(zip(eqn.outvars, _computed(eqn, [read(v) for v in eqn.invars]), strict=True))
  return [read(v) for v in jaxpr.outvars]


def _computed(eqn, values):
  """The results of an equation; now, where its values are known."""
  name, params = eqn.primitive.name, eqn.params
  if name == 'platform_index':
    return [0]  # of the choice, that follows
  if name == 'cond' and params.get('branches_platforms'):
    return _inlined(params['branches'][-1], *values[1:])
  if name == 'scan':
    return _turns(params, values)
  if called := params.get('call_jaxpr', params.get('jaxpr')):
    closed = isinstance(called, ClosedJaxpr)
    return _inlined(called if closed else ClosedJaxpr(called, ()), *values)
  constant = not any(isinstance(v, jax.core.Tracer) for v in values)
  with jax.ensure_compile_time_eval() if constant else contextlib.nullcontext():
    out = eqn.primitive.bind(*values, **params)
  return out if eqn.primitive.multiple_results else [out]


def _turns(params, values):
  """A scan, turn by turn."""
  fixed, ends = params['num_consts'], params['num_consts'] + params['num_carry']
  consts, carry, xs, turns = values[:fixed], values[fixed:ends], values[ends:], []
  order = range(params['length'])
  for i in reversed(order) if params['reverse'] else order:
    x = (jax.lax.index_in_dim(x, i, keepdims=False) for x in xs)
    out = _inlined(params['jaxpr'], *consts, *carry, *x)
    carry, ys = out[: len(carry)], out[len(carry) :]
    turns.append(ys)
  turns = turns[::-1] if params['reverse'] else turns
  return [*carry, *(jnp.stack(ys) for ys in zip(*turns, strict=True))]
