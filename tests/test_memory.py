"""What saves memory gives the plain run's numbers: accumulation, ZeRO-1, rematerialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_train import ToyDetector, toy_batch, toy_config
from tiny import batch_of, tiny_config

from sm3det_jax import detector, sharding, train
from sm3det_jax.optim import accumulate, optimizer, training

close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)


def test_accumulation_is_the_mean_of_gradients_computed_one_by_one():
  config, model, count, step = toy_config(), ToyDetector(), 3, 5
  gradient = jax.jit(jax.value_and_grad(training.loss_function(config, model), has_aux=True))
  variables = model.init(jax.random.key(0))
  params, batches = variables['params'], [toy_batch(config, i) for i in range(count)]
  rest, parts = {'batch_stats': variables['batch_stats']}, []
  for i, batch in enumerate(batches):
    (total, (terms, changed)), grads = gradient(params, rest, batch, step * count + i)
    parts.append((total, terms, grads))
    rest |= changed
  want = jax.tree.map(lambda *x: np.mean(np.stack(x), 0), *parts)
  run = jax.jit(accumulate.mean_gradient(gradient, count))
  stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
  (total, (terms, changed)), grads = run(params, variables, stacked, jnp.int32(step))
  jax.tree.map(close, (total, terms, grads), want)
  jax.tree.map(close, changed, rest)
  assert not np.allclose(parts[0][0], parts[1][0])


def test_micro_batches_are_the_batches_of_a_smaller_run(monkeypatch):
  def batches(config, step, host, hosts, tasks):
    yield from ({'x': np.array([config.batch_size, i, host, hosts])} for i in range(step, 99))

  monkeypatch.setattr(train.mixture, 'train_batches', batches)
  config = toy_config(accumulate=3)
  got = next(train.micro_batches(config, 4, 1, 2))['x']
  np.testing.assert_array_equal(got, [[8, i, 1, 2] for i in (12, 13, 14)])
  config = toy_config()
  assert next(train.micro_batches(config, 4, 0, 1))['x'].tolist() == [24, 4, 0, 1]


def test_each_micro_batch_divides_over_the_devices():
  config = toy_config(accumulate=2)
  config.batch_size = 24
  mesh = sharding.make_mesh({'data': 8, 'expert': 1})
  message = r'each of 2 micro-batches has 4 group\(s\).*2 x 8 x 3 = 48, such as 48'
  with pytest.raises(ValueError, match=message):
    sharding.check_mesh(config, mesh)
  config.batch_size = 48
  sharding.check_mesh(config, mesh)


def test_spread_cuts_the_longest_free_axis_that_divides():
  mesh = sharding.make_mesh({'data': 4, 'expert': 2})
  tree = {
    'kernel': jnp.zeros((8, 12)), 'odd': jnp.zeros((3, 5)), 'count': jnp.zeros(()),
    'experts_w1': jnp.zeros((8, 4, 6)),
  }  # fmt: skip
  where = sharding.spread(mesh, sharding.tree_sharding(mesh, tree), tree)
  specs = {k: s.spec for k, s in where.items()}
  assert specs == {
    'kernel': P(None, 'data'), 'odd': P(), 'count': P(), 'experts_w1': P('expert', 'data', None)
  }  # fmt: skip


def toy_steps(zero1, count=1):
  config = toy_config(zero1=zero1, accumulate=count)
  model, mesh = ToyDetector(), sharding.make_mesh({'data': 4, 'expert': 2})
  tx = optimizer.build(config, model.term_groups)
  state = training.create_sharded_state(config, model, tx, mesh)
  with jax.set_mesh(mesh):
    step = training.sharded_step(config, model, tx, mesh)
    for i in range(3):
      parts = [toy_batch(config, count * i + j) for j in range(count)]
      batch = jax.tree.map(lambda *x: np.stack(x), *parts) if count > 1 else parts[0]
      state, metrics = step(state, sharding.put_batch(batch, mesh, count))
  return state, metrics


@pytest.mark.slow
def test_zero1_equals_the_plain_run_with_a_share_of_the_moments():
  (state, metrics), (want, want_metrics) = toy_steps(True), toy_steps(False)
  jax.tree.map(close, (state, metrics), (want, want_metrics))
  moment = lambda s: s['training']['opt'][1].mu['backbone']['kernel'].addressable_shards[0].data
  assert moment(state).size * 4 == moment(want).size
  kernel = state['model']['variables']['params']['backbone']['kernel']
  assert kernel.sharding.is_fully_replicated


def test_accumulated_step_runs_on_a_mesh():
  _, metrics = toy_steps(True, 2)
  assert np.isfinite(metrics['mean']['total'])


@functools.cache
def tiny_gradient(*remat):
  config = tiny_config(groups=1)
  config.remat = remat
  config.moe.blocks = ((), (), (), (0,))
  del config.tasks['ifr']
  config.batch_size = 3
  model = detector.build(config)
  # kernels made one by one: what is fused otherwise differs by a rounding
  options = {'xla_backend_optimization_level': 0}
  loss = jax.value_and_grad(training.loss_function(config, model), has_aux=True)
  variables = jax.jit(model.init, compiler_options=options)(jax.random.key(0))
  run = jax.jit(loss, compiler_options=options).lower(
    variables['params'], variables, batch_of(config, 0), 0
  )
  return run.as_text(), run.compile()(variables['params'], variables, batch_of(config, 0), 0)


@pytest.mark.slow
@pytest.mark.parametrize('part', ['backbone', 'heads'])
def test_rematerialisation_equals_the_plain_run(part):
  text, (value, grads) = tiny_gradient(part)
  plain, (want, want_grads) = tiny_gradient()
  assert text.count('optimization_barrier') > plain.count('optimization_barrier')
  jax.tree.map(close, value, want)
  for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
    assert np.abs(got - expected).max() <= 1e-6 * max(np.abs(expected).max(), 1e-3)
