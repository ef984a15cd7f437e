"""What is done to a model before jax2onnx sees it, and what is said where that is not here.

What ONNX Runtime makes of the result: oracle_onnxruntime.py.
"""

import contextlib
import importlib.metadata
import sys
import types

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import UserError
from sm3det_jax.interop.export import about, onnx, program


def loop(x, reverse):
  """A scan with constants, a carry and slices, in a jitted function, by the platform."""
  step = lambda c, v: (c * 2 + v * x[0], jnp.cumsum(v + c))
  scan = jax.jit(lambda c, v: jax.lax.scan(step, c, v, reverse=reverse))
  here = lambda v: jax.lax.platform_dependent(v, tpu=jnp.zeros_like, default=jnp.sin)
  end, rows = scan(here(x[1]), x)
  return end, rows, jnp.arange(3) * 2


@pytest.mark.parametrize('reverse', [False, True])
def test_a_trace_without_loops_and_calls_computes_the_same(reverse):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
  trace = jax.make_jaxpr(lambda x: loop(x, reverse))(x)
  plain = jax.make_jaxpr(lambda *args: onnx._inlined(trace, *args))(x)
  names = {eqn.primitive.name for eqn in plain.eqns}
  assert not names & {'scan', 'jit', 'cond', 'platform_index', 'iota'} and 'cumsum' in names
  found = jax.core.eval_jaxpr(plain.jaxpr, plain.consts, x)
  for a, b in zip(found, loop(x, reverse), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.fixture(scope='module')
def model():
  return exported.model(('retinanet',))


def convert(monkeypatch, to_onnx, version='0.17.9'):
  """With a jax2onnx that does `to_onnx`."""
  monkeypatch.setitem(sys.modules, 'jax2onnx', types.SimpleNamespace(to_onnx=to_onnx))
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
  monkeypatch.setattr(onnx, '_mended', contextlib.nullcontext)


def test_what_jax2onnx_cannot_is_one_line(model, monkeypatch):
  def fails(*_, **__):
    raise KeyError('no plugin\nfor it')

  convert(monkeypatch, fails)
  with pytest.raises(UserError, match='0.17.9 does not convert.*KeyError.*stablehlo') as error:
    onnx.serialised(*model, 'retinanet')
  assert '\n' not in str(error.value)
  convert(monkeypatch, fails, '0.18.0')
  with pytest.raises(UserError, match='0.17.. is not here'):
    onnx.serialised(*model, 'retinanet')


@pytest.mark.slow
def test_cut_boxes_are_all_candidates_best_first(model, monkeypatch):
  config, variables = model
  traced = {}

  def keep(run, arguments, **names):
    traced.update(names, run=run, arguments=arguments)
    return types.SimpleNamespace(SerializeToString=lambda: b'onnx')

  convert(monkeypatch, keep)
  assert onnx.serialised(config, variables, 'retinanet', cut='boxes') == b'onnx'
  assert traced['output_names'] == list(about.OUTPUTS)
  pixels, shapes = exported.images(1)
  found = dict(zip(about.OUTPUTS, jax.jit(traced['run'])(pixels, shapes), strict=True))
  wanted = program.detection(config, 'retinanet')(variables, pixels, shapes)
  boxes, scores, valid = (np.asarray(found[k][0]) for k in ('boxes', 'scores', 'valid'))
  assert len(boxes) > config.tasks.retinanet.head.max_detections
  assert (np.diff(scores[valid]) <= 0).all() and valid.sum() > wanted['valid'].sum()
  for box in np.asarray(wanted['boxes'][0])[np.asarray(wanted['valid'][0])]:
    assert np.abs(boxes[valid] - box).max(1).min() < 1e-3  # px
