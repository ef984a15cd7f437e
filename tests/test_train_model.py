"""The real model, tiny, trained on simulated devices: every mesh gives the losses of one device."""

import functools

import jax
import numpy as np
import optax
import pytest
from tiny import batch_of, tiny_config

from sm3det_jax import config as config_lib
from sm3det_jax import detector, sharding
from sm3det_jax.optim import optimizer, training

MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]


def build(config):
  model = detector.build(config)
  return model, optimizer.build(config, model.term_groups)


@functools.cache
def initial(x64):
  """The state before the first step, on the host: compiled once for all meshes."""
  mesh, config = sharding.make_mesh({'data': 1, 'expert': 1}), tiny_config()
  state = jax.device_get(training.create_sharded_state(config, *build(config), mesh))
  if x64:
    wide = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x  # noqa: E731
    state = jax.tree.map(wide, state)
  return state


@functools.cache
def first_step(data, expert):
  """(loss terms, gradients by path) at the initial parameters."""
  config = tiny_config()
  mesh = sharding.make_mesh({'data': data, 'expert': expert})
  variables = sharding.put_tree(initial(False)['model'], mesh)['variables']
  with jax.set_mesh(mesh):
    batch = sharding.put_batch(batch_of(config, 0), mesh)
    loss = training.loss_function(config, build(config)[0])
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    out = gradient(variables['params'], variables, batch, 0)
    (total, (terms, _)), grads = jax.device_get(out)
  return terms | {'total': total}, jax.tree.leaves_with_path(grads)


@pytest.mark.slow
@pytest.mark.drawn(7)
@pytest.mark.parametrize('data, expert', MESHES)
def test_first_step_on_every_mesh(data, expert):
  """Gate noise, drop path and sampling included: they belong to the image, not to its device."""
  terms, grads = first_step(data, expert)
  want_terms, want_grads = first_step(1, 1)
  for name, want in want_terms.items():
    assert abs(terms[name] - want) <= 1e-5 * abs(want), name
  for (path, got), (_, want) in zip(grads, want_grads, strict=True):
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-12)
    assert error < 1e-3, (jax.tree_util.keystr(path), error)


@functools.cache
def twenty_steps(data, expert, zero1=False):
  """Metrics of each step and, after the last, Adam's average of every gradient, in float64."""
  config, metrics = tiny_config(), []
  config.optim.zero1 = zero1
  mesh = sharding.make_mesh({'data': data, 'expert': expert})
  model, tx = build(config)
  like = training.abstract_state(config, model, tx, mesh)
  state = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), initial(True), like)
  with jax.set_mesh(mesh):
    step = training.sharded_step(config, model, tx, mesh)
    types = jax.tree.map(jax.typeof, state)
    for i in range(20):
      state, m = step(state, sharding.put_batch(batch_of(config, i), mesh))
      metrics.append({k: v for kind in jax.device_get(m).values() for k, v in kind.items()})
    assert jax.tree.map(jax.typeof, state) == types
  return metrics, jax.tree.leaves_with_path(jax.device_get(optax.tree.get(state, 'mu')))


@pytest.mark.slow
@pytest.mark.drawn(6)
@pytest.mark.filterwarnings('ignore:scatter inputs have incompatible types')  # int64 positions
@pytest.mark.parametrize('data, expert, zero1', [(8, 1, False), (2, 4, False), (2, 4, True)])
def test_twenty_steps_in_float64(data, expert, zero1):
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):  # int64 beside int32
    (got, got_mean), (want, want_mean) = twenty_steps(data, expert, zero1), twenty_steps(1, 1)
  for i, (a, b) in enumerate(zip(got, want, strict=True)):
    assert a['total'].dtype == np.float64 and np.isfinite(a['total'])
    for name in b:  # losses, gradient norm, multipliers
      assert abs(a[name] - b[name]) <= 1e-8 * max(abs(b[name]), 1e-12), (i, name)
  for (path, a), (_, b) in zip(got_mean, want_mean, strict=True):
    error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)
    assert error <= 1e-8, (jax.tree_util.keystr(path), error)


@pytest.mark.slow
@pytest.mark.drawn(2)
def test_phases_freeze_parts_and_leave_out_terms():
  """SAR alone on a frozen backbone, then all: what rests stays bit-equal, what thaws moves."""
  config = tiny_config(groups=1)
  rest = ('backbone/.*', 'heads_(rgb|ifr)/.*')
  config.phases = ((1, ('sar/.*', 'moe/balance'), rest), (None, None, ()))
  config_lib.check(config)
  mesh = sharding.make_mesh({'data': 1, 'expert': 1})
  model, tx = build(config)
  state = training.create_sharded_state(config, model, tx, mesh)
  moved = []
  with jax.set_mesh(mesh):
    for i in range(2):
      old = jax.device_get(state['model']['variables']['params'])
      step = training.sharded_step(config, model, tx, mesh, i)
      state, metrics = step(state, sharding.put_batch(batch_of(config, i), mesh))
      new = jax.device_get(state['model']['variables']['params'])
      changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), old, new)
      moved.append({part: any(jax.tree.leaves(tree)) for part, tree in changed.items()})
      terms = {name.split('/')[1] for name in metrics['mean'] if name.startswith('loss/')}
      assert terms == ({'sar', 'moe'} if i == 0 else {'sar', 'rgb', 'ifr', 'moe'})
  parts = {'backbone', 'neck', 'heads_sar', 'heads_rgb', 'heads_ifr'}
  assert moved == [{p: p in ('neck', 'heads_sar') for p in parts}, dict.fromkeys(parts, True)]
