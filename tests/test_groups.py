"""Rates, decays and freezing by parameter path; the cosine; Adam without its correction; SGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optimizer import GROUPS, LOSSES, _params
from test_train import ToyDetector, toy_batch, toy_config

from sm3det_jax import config as config_lib
from sm3det_jax import sharding
from sm3det_jax.optim import optimizer, training

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-9)


def configured(groups=(), **optim):
  c = config_lib.default()
  c.task_balance = 'none'
  c.optim.update(warmup_steps=0, milestones=(), lr=0.1, weight_decay=0.05, clip_norm=1.0)
  c.optim.update(groups=groups, **optim)
  return config_lib.check(c)


def gradients(i):
  return jax.tree.map(lambda p: jax.random.normal(jax.random.key(i), p.shape), _params())


def steps(config, count=3):
  """(parameters, state) after steps of random gradients."""
  tx, params = optimizer.build(config, GROUPS), _params()
  state, update = tx.init(params), jax.jit(tx.update)
  for i in range(count):
    updates, state = update(gradients(i), state, params, losses=LOSSES)
    params = optax.apply_updates(params, updates)
  return params, state


def by_hand(config, select, factors):
  """The same by optax: `select` the tree that is clipped as one, `factors` of (rate, decay)."""
  c, params = config.optim, _params()
  adam = optax.scale_by_adam(*c.betas)
  part = lambda tree: {k: v for k, v in tree.items() if select(k)}
  state = adam.init(part(params))
  with jax.numpy_dtype_promotion('standard'):
    for i in range(3):
      grads, _ = optax.clip_by_global_norm(c.clip_norm).update(part(gradients(i)), None)
      updates, state = adam.update(grads, state)
      for name, update in updates.items():
        rate, decay = factors(name)
        one = lambda u, p, r=rate, d=decay: p - c.lr * r * (u + c.weight_decay * d * p)
        params[name] = jax.tree.map(one, update, params[name])
  return params


def test_without_groups_it_is_optax_bit_for_bit():
  config = configured()
  c = config.optim
  want = optax.chain(
    optax.clip_by_global_norm(c.clip_norm),
    optax.scale_by_adam(*c.betas),
    optax.add_decayed_weights(c.weight_decay),
    optax.scale_by_learning_rate(optimizer.schedule(c)),
  )
  params = _params()
  state, update = want.init(params), jax.jit(want.update)
  with jax.numpy_dtype_promotion('standard'):
    for i in range(3):
      updates, state = update(gradients(i), state, params)
      params = optax.apply_updates(params, updates)
  got = steps(config)
  assert jax.tree.structure(got[1]) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, got, (params, state))


def test_factors_of_rate_and_decay_by_hand():
  groups = (('neck/.*', 0.1, 1.0), ('heads_sar/.*', 0.5, 0.0), ('(neck|backbone)/.*', 2.0, 3.0))
  factors = {'neck': (0.1, 1.0), 'heads_sar': (0.5, 0.0), 'backbone': (2.0, 3.0)}
  config = configured(groups)
  want = by_hand(config, lambda name: True, lambda name: factors.get(name, (1.0, 1.0)))
  jax.tree.map(close, steps(config)[0], want)


def test_a_frozen_group_has_no_state_no_decay_and_no_part_in_the_norm():
  config = configured((('backbone/.*', None),))
  got, state = steps(config)
  want = by_hand(config, lambda name: name != 'backbone', lambda name: (1.0, 1.0))
  jax.tree.map(close, got, want)
  np.testing.assert_array_equal(got['backbone']['stage']['experts_w1'], 0.5)
  assert not jax.tree.leaves(state[1].mu['backbone'])


@pytest.mark.parametrize(
  'groups, message',
  [
    ((('neck/bias', 0.1, 1.0),), "rule 'neck/bias' matches nothing"),
    ((('.*', 1.0, 1.0), ('neck/.*', 0.1, 1.0)), "'neck/.*' decides nothing: rules before it"),
  ],
)
def test_a_group_of_no_parameter_is_an_error(groups, message):
  with pytest.raises(ValueError, match=message):
    optimizer.build(configured(groups), GROUPS).init(_params())


@pytest.mark.parametrize(
  'groups, message',
  [
    (('neck/.*', 0.1), r"optim.groups\[0\]='neck/.\*': expected .regex"),
    ((('(neck', 1.0, 1.0),), r"'\(neck' is no regular expression"),
    ((('neck/.*', -1.0, 1.0),), 'factors are numbers of at least 0, or None'),
    ((('neck/.*', 1.0, None),), 'factors are numbers of at least 0, or None'),
  ],
)
def test_a_malformed_group_is_an_error(groups, message):
  with pytest.raises(ValueError, match=message):
    configured(groups)


def test_groups_survive_json_and_the_command_line(tmp_path):
  from sm3det_jax import checkpoint

  arguments = ['--config=quickstart', "--config.optim.groups=(('backbone/.*',None,1.0),)"]
  arguments += ["--config.phases=((9,None,('neck/.*',)),(None,('sar/.*',),()))"]
  config = config_lib.load(arguments)
  assert config.optim.groups == (('backbone/.*', None, 1.0),)
  checkpoint.open_workdir(config, tmp_path)
  again = checkpoint.load_config(tmp_path)
  assert again.optim.groups == config.optim.groups and again.phases == config.phases
  checkpoint.open_workdir(config, tmp_path)  # the same run
  config.optim.steps += 1
  checkpoint.open_workdir(config, tmp_path)
  config.optim.schedule = 'cosine'  # which ends at the last step
  checkpoint.open_workdir(config, tmp_path / 'other')
  config.optim.steps += 1
  with pytest.raises(ValueError, match='optim.steps is'):
    checkpoint.open_workdir(config, tmp_path / 'other')


def test_the_cosine_by_hand():
  c = configured(schedule='cosine', steps=100, warmup_steps=10, warmup_ratio=0.5, min_lr=0.02).optim
  lr = optimizer.schedule(c)
  assert float(lr(0)) == pytest.approx(0.05) and float(lr(5)) == pytest.approx(0.075)
  want = 0.02 + 0.08 * (1 + np.cos(np.pi * 25 / 100)) / 2  # of all steps, warm-up included
  assert float(lr(25)) == pytest.approx(want, rel=1e-5)
  assert float(lr(100)) == float(lr(130)) == pytest.approx(0.02)


def test_adam_without_its_correction():
  """Its first step: 0.1 g / (sqrt(0.001) |g|), where the corrected one is g / |g|."""
  config = configured(bias_correction=False, weight_decay=0.0, clip_norm=1e9)
  one = lambda p, g: p - 0.1 * (0.1 * g) / (np.sqrt(0.001) * jnp.abs(g) + 1e-8)
  want = jax.tree.map(one, _params(), gradients(0))
  jax.tree.map(close, steps(config, 1)[0], want)


def test_sgd_is_that_of_optax():
  config = configured(kind='sgd', momentum=0.8)
  c = config.optim
  want = optax.chain(
    optax.clip_by_global_norm(c.clip_norm),
    optax.add_decayed_weights(c.weight_decay),  # before the momentum, as PyTorch has it
    optax.sgd(c.lr, c.momentum),
  )
  params = _params()
  state, update = want.init(params), jax.jit(want.update)
  for i in range(3):
    updates, state = update(gradients(i), state, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(close, steps(config)[0], params)


def test_momentum_of_what_rests_begins_anew():
  config = configured(kind='sgd', weight_decay=0.5, clip_norm=1e9)
  config.phases = ((1,), (2, None, ('neck/.*',)), (None,))
  config_lib.check(config)
  tx, params, lr = optimizer.build(config, GROUPS), _params(), config.optim.lr
  state, kept, want = tx.init(params), params['neck']['kernel'], params['neck']['kernel']
  for phase in range(3):
    grads = gradients(phase)
    updates, state = tx.update(grads, state, params, losses=LOSSES, phase=phase)
    params = optax.apply_updates(params, updates)
    if phase != 1:  # of one step each, so that no momentum is left
      want = want - lr * (grads['neck']['kernel'] + 0.5 * want)
    close(params['neck']['kernel'], want)
  assert (kept != want).all()


@pytest.mark.parametrize('balance', ['dwa', 'gradnorm'])
def test_task_weights_are_set_whatever_the_groups(balance):
  config = configured((('(neck|balance)/.*', None), ('backbone/.*', 0.5)))
  config.task_balance = balance
  del config.tasks['ifr']
  config.dwa.period = 1
  params = _params() | {'balance': {'weights': jnp.ones(2)}}
  tx = optimizer.build(config, GROUPS)
  state = tx.init(params)
  for sar in (4.0, 2.0, 1.0):
    grads = jax.tree.map(jnp.ones_like, params)
    losses = {'sar/cls': sar, 'rgb/cls': 2.0}
    updates, state = tx.update(grads, state, params, losses=losses)
    params = optax.apply_updates(params, updates)
  assert not np.allclose(params['balance']['weights'], 1)
  np.testing.assert_array_equal(params['neck']['kernel'], 1)
  assert (params['backbone']['stage']['experts_w1'] != 0.5).all()


@pytest.mark.parametrize('accumulate, zero1', [(1, False), (2, True)])
def test_a_frozen_backbone_stays_bit_for_bit(accumulate, zero1):
  config = toy_config(groups=(('backbone/.*', None),), accumulate=accumulate, zero1=zero1)
  config.batch_size *= accumulate
  model, mesh = ToyDetector(), sharding.make_mesh({'data': 4, 'expert': 2})
  tx = optimizer.build(config, model.term_groups)
  state = training.create_sharded_state(config, model, tx, mesh)
  before = jax.device_get(state['model'])
  with jax.set_mesh(mesh):
    step = training.sharded_step(config, model, tx, mesh)
    for i in range(2):
      parts = [toy_batch(config, i + j) for j in range(accumulate)]
      batch = jax.tree.map(lambda *x: np.stack(x), *parts) if accumulate > 1 else parts[0]
      state, metrics = step(state, sharding.put_batch(batch, mesh, accumulate))
  after = jax.device_get(state['model'])
  of = lambda model: (model['variables']['params']['backbone'], model['ema']['backbone'])
  jax.tree.map(np.testing.assert_array_equal, of(after), of(before))
  heads = lambda model: jax.tree.leaves(model['variables']['params']['heads_sar'])
  assert all((a != b).all() for a, b in zip(heads(after), heads(before), strict=True))
  # statistics of batch norm are no parameters: they follow the data
  assert after['variables']['batch_stats']['mean'] != before['variables']['batch_stats']['mean']
  grads = state['training']['opt'][1].mu
  assert not jax.tree.leaves(grads['backbone']) and metrics['last']['multiplier/shared'] > 0
