"""Balancing tasks: each method on two tasks by hand from its paper, then on drawn scenes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import baselines
from data_pipelines import prepare, scenes
from sm3det_jax import config as config_lib
from sm3det_jax import train, weighting
from sm3det_jax.backbones import convnext
from sm3det_jax.detector import build
from sm3det_jax.optim import balance, optimizer

TASKS = ('a', 'b')
SIZE = 64  # px


def weights_of(transform, losses, norms=None, steps=1):
  """Weights after each step of a transform, from 1, 1."""
  params = {'balance': {'weights': jnp.ones(2)}}
  state, seen = transform.init(params), []
  for i in range(steps):
    squares = jnp.zeros(2) if norms is None else jnp.asarray(norms[i]) ** 2
    grads = {'balance': {'weights': squares}}
    with jax.numpy_dtype_promotion('standard'):  # as `optimizer.build`
      updates, state = transform.update(grads, state, params, losses=losses[i])
    params = optax.apply_updates(params, updates)
    seen.append(np.asarray(params['balance']['weights']))
  np.testing.assert_array_equal(seen[-1], [state.multipliers[t] for t in TASKS])
  return seen


def test_uncertainty_by_hand():
  """L / (2 s²) + ln(1 + s²): 4 / 2 + ln 2 at s = 1; its slope in s is -L / s³ + 2 s / (1 + s²)."""
  module = weighting.make('uncertainty', TASKS, ('a/cls', 'b/rpn_cls', 'b/cls'))
  assert module.names == ('a/cls', 'b/cls')  # region proposals have no sigma
  terms = {'a/cls': 4.0, 'b/rpn_cls': 0.5, 'b/cls': 1.0, 'moe/balance': 0.25}
  loss = lambda s: module.apply({'params': {'sigmas': s}}, terms)
  value, slope = jax.value_and_grad(loss)(jnp.array([1.0, 2.0]))
  by_hand = (4 / 2 + np.log(2)) + (1 / 8 + np.log(5)) + 0.5 + 0.25
  assert float(value) == pytest.approx(by_hand, rel=1e-6)
  np.testing.assert_allclose(slope, [-4 + 1, -1 / 8 + 4 / 5], rtol=1e-6)


def test_dwa_by_hand():
  """Losses 4, 2 then 2, 2: w = 1/2, 1, weights 2 softmax(w / 2); ones until then."""
  losses = [{'a/cls': 3.0, 'a/box': 1.0, 'b/cls': 2.0}, {'a/cls': 2.0, 'b/cls': 2.0}]
  first, second = weights_of(balance.dwa(TASKS, temperature=2.0), losses, steps=2)
  np.testing.assert_array_equal(first, [1, 1])
  e = np.exp([0.25, 0.5])
  np.testing.assert_allclose(second, 2 * e / e.sum(), rtol=1e-6)


def test_dwa_averages_over_a_period():
  losses = [{'a/x': a, 'b/x': 1.0} for a in (1.0, 3.0, 2.0, 4.0)]  # means 2 and 3
  *early, last = weights_of(balance.dwa(TASKS, 2.0, period=2), losses, steps=4)
  assert all((w == 1).all() for w in early)
  e = np.exp([3 / 2 / 2, 1 / 2])
  np.testing.assert_allclose(last, 2 * e / e.sum(), rtol=1e-6)


def test_gradnorm_gradient_by_hand():
  """G = 3, 1, mean 2; losses at 1/2 and 1 of the first: r = 2/3, 4/3; targets 4/3, 8/3 (alpha 1).

  |3 - 4/3| falls with G_a and |1 - 8/3| rises as G_b falls: slopes G / w with signs +, -.
  """
  slope = balance.gradnorm_gradient(
    jnp.array([3.0, 1.0]), jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0]), jnp.array([1.5, 0.5]), 1.0
  )
  np.testing.assert_allclose(slope, [3 / 1.5, -1 / 0.5], rtol=1e-6)


def test_gradnorm_moves_the_weights_to_the_slower_task_and_keeps_their_sum():
  losses = [{'a/x': 2.0, 'b/x': 2.0}, {'a/x': 1.0, 'b/x': 2.0}]
  norms = [[1.0, 1.0], [3.0, 1.0]]
  first, second = weights_of(balance.gradnorm(TASKS, 1.0, 0.1), losses, norms, steps=2)
  np.testing.assert_array_equal(first, [1, 1])  # at one pace, nothing to do
  # Adam's second step, the first having had no gradient: 0.1 m / sqrt(v), m = g/1.9, v = g²/1.999
  step = 0.1 * np.array([-1, 1]) * (0.1 / 0.19) / np.sqrt(0.001 / 0.001999)
  np.testing.assert_allclose(second, 2 * (1 + step) / (2 + step.sum()), rtol=1e-5)


@pytest.mark.parametrize('bad', [{'a/x': 1.0}, {'a/x': 1.0, 'b/x': float('nan')}])
def test_a_step_without_a_task_changes_nothing(bad):
  good = {'a/x': 2.0, 'b/x': 2.0}
  for transform in (balance.dwa(TASKS), balance.gradnorm(TASKS)):
    with_bad = weights_of(transform, [good, bad, {'a/x': 1.0, 'b/x': 2.0}], [[1.0, 2.0]] * 3, 3)
    without = weights_of(transform, [good, {'a/x': 1.0, 'b/x': 2.0}], [[1.0, 2.0]] * 2, 2)
    np.testing.assert_allclose(with_bad[1], with_bad[0])
    if isinstance(transform.init({'balance': {'weights': jnp.ones(2)}}), balance.DwaState):
      np.testing.assert_allclose(with_bad[2], without[1])


def test_the_probe_measures_the_gradient_of_each_task_alone():
  """Loss w_a (2 x)² + w_b (3 x)² in the shared x: norms of the parts, the sum's own gradient."""
  module = weighting.GradNorm(TASKS)
  variables = {'params': {'weights': jnp.array([0.5, 2.0])}}

  def loss(x, variables):
    bound = module.bind(variables)
    part = lambda name, k: ((k * bound.probed(x, name)) ** 2).sum()
    return bound({'a/x': part('a', 2.0), 'b/x': part('b', 3.0), 'moe/balance': 7.0})

  x = jnp.array([1.0, -1.0])
  assert float(loss(x, variables)) == pytest.approx(0.5 * 8 + 2 * 18 + 7)
  dx, dv = jax.grad(loss, (0, 1))(x, variables)
  np.testing.assert_allclose(dx, (0.5 * 8 + 2 * 18) * x, rtol=1e-6)
  norms = np.sqrt(dv['params']['weights'])
  np.testing.assert_allclose(norms, np.array([0.5 * 8, 2 * 18]) * np.sqrt(2), rtol=1e-6)


def test_the_optimizer_sets_task_weights_and_clips_without_them():
  groups = {'a/x': 'a/head', 'b/x': 'b/head'}
  c = config_lib.default()
  c.tasks = config_lib.ConfigDict({n: config_lib.task('hbb', n, ('x',)) for n in TASKS})
  c.optim.update(warmup_steps=0, lr=0.1, weight_decay=0.0, clip_norm=1.0, milestones=())
  c.task_balance = 'dwa'
  c.dwa.period = 1
  params = {'neck': jnp.ones(1), 'balance': {'weights': jnp.ones(2)}}
  tx = optimizer.build(c, groups)
  state = tx.init(params)
  grads = {'neck': jnp.full(1, 0.5), 'balance': {'weights': jnp.full(2, 1e6)}}
  assert float(optimizer.gradient_norm(grads)) == 0.5
  for a in (4.0, 2.0):
    updates, state = tx.update(grads, state, params, losses={'a/x': a, 'b/x': 2.0})
    np.testing.assert_allclose(updates['neck'], -0.1, rtol=1e-3)  # clipped to 5e-7, it were -0.098
    params = optax.apply_updates(params, updates)
  want = 2 * jax.nn.softmax(jnp.array([0.25, 0.5]))
  np.testing.assert_allclose(params['balance']['weights'], want, rtol=1e-6)
  np.testing.assert_allclose([optimizer.multipliers(state)[t] for t in TASKS], want, rtol=1e-6)
  c.task_balance = 'none'
  tx = optimizer.build(c, groups)
  assert optimizer.multipliers(tx.init(params)) == {}


def test_adapters_by_hand_and_a_task_its_own():
  """x sigmoid(W2 relu(W1 mean(x) + b1) + b2), by the task's W and b alone (Wang et al. 2019)."""
  x = jnp.asarray([[[[1.0, -2.0], [3.0, 4.0]]]])  # means 2, 1
  layer = lambda kernel, bias: {'kernel': jnp.asarray(kernel), 'bias': jnp.asarray(bias)}
  tasks = {
    'a': {'fc1': layer([[1.0], [0.5]], [0.5]), 'fc2': layer([[1.0, -1.0]], [0.0, 2.0])},
    'b': {'fc1': layer([[-1.0], [0.0]], [1.0]), 'fc2': layer([[1.0, 1.0]], [0.0, -1.0])},
  }
  by_hand = {'a': (3, -1), 'b': (0, -1)}  # before the sigmoid; relu(3) and relu(-1)
  for task, logits in by_hand.items():
    y = x * convnext.Adapter().apply({'params': tasks[task]}, x)
    np.testing.assert_allclose(y, x * jax.nn.sigmoid(jnp.asarray(logits, float))[None, None, None])


def test_partitioned_heads_and_own_adapters():
  c = two_tasks('data')
  c.backbone.adapters = True
  params = jax.eval_shape(build(config_lib.check(c)).init, jax.random.key(0))['params']
  for name, task in c.tasks.items():  # UniDet: a head scores its own data set's classes
    head = params[f'heads_{name}']['bbox_head']
    widths = {x.shape[-1] for p, x in jax.tree.leaves_with_path(head) if 'cls' in str(p[-2])}
    assert 9 * len(task.classes) in widths
  for stage in range(4):
    block = params['backbone'][f'stage{stage}_block0']
    assert {k for k in block if k.startswith('adapter')} == {'adapter_sar', 'adapter_optical'}


@pytest.fixture(scope='module')
def scenes_folder(tmp_path_factory):
  """Drawn SAR and optical scenes, both with horizontal boxes."""
  root = tmp_path_factory.mktemp('scenes')
  scenes.write(root, 0, {'train': 12, 'test': 1}, SIZE)
  for name, kind in (('sar', 'coco'), ('optical', 'dota_txt')):
    prepare.prepare(
      kind, root / name, root / 'data', name=name, box='hbb', classes=scenes.CLASSES[name]
    )
  return root / 'data'


def two_tasks(data_root):
  c = config_lib.default()
  c.tasks = config_lib.ConfigDict(sort_keys=False)
  for name in ('sar', 'optical'):
    t = c.tasks[name] = config_lib.task('hbb', name, scenes.CLASSES[name])
    t.size, t.max_objects, t.train.flip = (SIZE, SIZE), 16, (0.0, 0.0, 0.0)
    t.head = config_lib.head('retinanet')
    t.head.update(channels=32, convs=1)
  c.backbone.update(depths=(1, 1, 1, 1), channels=(16, 16, 32, 32), layer_scale=1.0)
  c.backbone.drop_path_rate = 0.0
  c.moe.blocks, c.neck.channels, c.task_balance = ((),) * 4, 32, 'none'
  c.label_space, c.data_root, c.workers, c.mesh.data = 'per_task', str(data_root), 0, 1
  c.optim.update(steps=50, warmup_steps=5, milestones=(), lr=2e-3)
  c.batch_size, c.log_every, c.checkpoint_every = 4, 10, 50
  c.dwa.period = 5
  return c


BASELINES = {
  'unidet': {},
  'uncertainty': {'task_balance': 'uncertainty'},
  'dwa': {'task_balance': 'dwa'},
  'gradnorm': {'task_balance': 'gradnorm'},
  'domain_attention': {'backbone.adapters': True, 'label_space': 'joint'},
  'simple_joint': {'sampling': 'random', 'label_space': 'joint'},
  'separate': {'tasks': ('sar',)},
}


@pytest.mark.slow
@pytest.mark.drawn(4)
@pytest.mark.parametrize('name', BASELINES)
def test_every_baseline_learns_in_fifty_steps(name, scenes_folder, tmp_path):
  c, found = two_tasks(scenes_folder), []
  for key, value in BASELINES[name].items():
    if key == 'tasks':
      del c.tasks.optical
    else:
      c.update_from_flattened_dict({key: value})
  train.train(c, tmp_path, on_log=lambda step, metrics: found.append(metrics))
  for task in c.tasks:
    of_task = lambda m, task=task: sum(v for k, v in m.items() if k.startswith(f'loss/{task}/'))
    first, *_, last = map(of_task, found)
    assert last < 0.9 * first, (task, first, last)
  assert set(BASELINES) <= set(baselines.BASELINES)
