"""Two phases: a hand-written loop, a run across the border, Adam anew, terms that count."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train import ToyDetector, toy, toy_batch, toy_config  # noqa: F401

from sm3det_jax import checkpoint, logs, sharding, train
from sm3det_jax.config import batch_scaling, check
from sm3det_jax.config import phases as plan
from sm3det_jax.optim import optimizer, training

close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-8)


class Phased(ToyDetector):
  """The toy, which leaves out the terms that do not count."""

  def __init__(self, config):
    self.config = config

  def loss(self, variables, batch, rng=None, phase=None):
    _, (terms, updates) = super().loss(variables, batch, rng)
    active = plan.phases(self.config)[-1 if phase is None else phase]
    terms = {name: value for name, value in terms.items() if plan.counts(active, name)}
    return sum(terms.values()), (terms, updates)


# experts rest and thaw, the head of rgb is trained and then frozen, and of its terms there are none
PHASES = ((3, None, ('.*/experts_\\w+',)), (None, ('sar/.*', 'moe/balance'), ('heads_rgb/.*',)))


def phased(**optim):
  config = toy_config(**optim)
  config.phases = PHASES
  return check(config)


def rests(path, phase):
  return 'experts_w1' in path if phase == 0 else path.startswith('heads_rgb')


def flat(tree):
  leaves = jax.tree.leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator='/'): x for p, x in leaves}


def by_hand(config, steps):
  """Plain optax: an Adam of each parameter, made anew when it thaws; no DLA."""
  model, c = Phased(config), config.optim
  variables = model.init(jax.random.fold_in(jax.random.key(config.seed), 0))
  params, stats = variables['params'], {'batch_stats': variables['batch_stats']}
  form, adam, states = jax.tree.structure(params), optax.scale_by_adam(*c.betas), {}
  rate = optimizer.schedule(c)

  @functools.partial(jax.jit, static_argnums=3)
  def gradient(params, batch, i, phase):
    rng = jax.random.fold_in(jax.random.key(config.seed), i + 1)
    batch = model.prepare(batch)
    loss = lambda p: model.loss({**stats, 'params': p}, batch, rng, phase=phase)[0]
    return jax.grad(loss)(params)

  with jax.numpy_dtype_promotion('standard'):
    for i in range(steps):
      phase = int(i >= 3)
      grads = flat(gradient(params, toy_batch(config, i), i, phase))
      grads = {k: g for k, g in grads.items() if not rests(k, phase)}
      grads, _ = optax.clip_by_global_norm(c.clip_norm).update(grads, None)
      now = flat(params)
      states = {k: states.get(k, adam.init(now[k])) for k in grads}
      for k, g in grads.items():
        update, states[k] = adam.update(g, states[k])
        now[k] = now[k] - rate(i) * (update + c.weight_decay * now[k])
      params = jax.tree.unflatten(form, list(now.values()))
  return params


def run(config, steps, count=1, mesh=(1, 1)):
  """(state, metrics of the last step) of steps without logs and checkpoints."""
  model = Phased(config)
  mesh = sharding.make_mesh(dict(zip(('data', 'expert'), mesh, strict=True)))
  tx = optimizer.build(config, model.term_groups)
  state = training.create_sharded_state(config, model, tx, mesh)
  step = functools.cache(lambda phase: training.sharded_step(config, model, tx, mesh, phase))
  with jax.set_mesh(mesh):
    for i in range(steps):
      parts = [toy_batch(config, count * i + j) for j in range(count)]
      batch = jax.tree.map(lambda *x: np.stack(x), *parts) if count > 1 else parts[0]
      before = jax.device_get(state)
      state, metrics = step(plan.phase_at(config, i))(state, sharding.put_batch(batch, mesh, count))
      assert jax.tree.structure(before) == jax.tree.structure(state)
      old, new = (flat(s['model']['variables']['params']) for s in (before, jax.device_get(state)))
      for k in new:
        assert (new[k] == old[k]).all() == rests(k, plan.phase_at(config, i)), k
  return state, metrics


def test_two_phases_are_the_loop_by_hand():
  config = phased(clip_norm=0.5, warmup_steps=2, ema=0.0)
  config.task_balance = 'none'
  state, metrics = run(config, 6)
  jax.tree.map(close, state['model']['variables']['params'], by_hand(config, 6))
  count = {k: int(n) for k, n in state['training']['opt'][1].count.items()}
  assert count == {'0': 3, '1': 0, 'none': 6}  # those that thawed, that froze, and the rest
  terms = {k for k in metrics['mean'] if k.startswith('loss/')}
  assert terms == {'loss/sar/cls', 'loss/moe/balance'}
  got = metrics['mean']
  assert float(got['total']) == pytest.approx(sum(float(got[k]) for k in terms), rel=1e-6)


@pytest.mark.slow
def test_with_accumulation_dla_groups_and_zero1():
  groups = (('backbone/gamma', 0.1, 0.0),)
  settings = dict(groups=groups, accumulate=2)
  config = phased(**settings, zero1=True)
  config.batch_size = 48
  got, metrics = run(config, 4, 2, (4, 2))
  plain = phased(**settings)
  plain.batch_size = 48
  want, want_metrics = run(plain, 4, 2)
  loose = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
  jax.tree.map(loose, jax.device_get((got, metrics)), jax.device_get((want, want_metrics)))
  kernel = got['training']['opt'][1].mu['backbone']['kernel']
  assert kernel.addressable_shards[0].data.size * 4 == kernel.size
  assert float(metrics['last']['multiplier/rgb/rpn_head']) == 1  # no term of it is left
  assert float(metrics['last']['multiplier/shared']) > 1


@pytest.fixture
def phased_toy(toy, monkeypatch):  # noqa: F811
  monkeypatch.setattr(train, 'build', Phased)


def test_a_run_stopped_before_the_border_goes_on_bit_for_bit(phased_toy, tmp_path, caplog):
  config = phased(steps=5)
  config.checkpoint_every = 2
  with caplog.at_level(logging.INFO):
    train.train(config, tmp_path / 'whole')
  said = [m for m in caplog.messages if m.startswith('phase ')]
  assert 'phase 0 from step 0: thaws nothing, freezes .*/experts_\\w+; trains 20 of 84' in said[0]
  assert 'phase 1 from step 3: thaws .*/experts_\\w+, freezes heads_rgb/.*' in said[1]
  assert said[1].endswith('terms that count: sar/.*, moe/balance')

  def crash(done, _):
    if done == 3:
      raise RuntimeError('crash')

  with pytest.raises(RuntimeError, match='crash'):
    train.train(config, tmp_path / 'stopped', on_log=crash)
  again = []
  train.train(config, tmp_path / 'stopped', on_log=lambda done, _: again.append(done))
  assert again == [3, 4, 5]
  drop = ('images_per_second', 'data_wait')
  lines = [
    [{k: v for k, v in line.items() if k not in drop} for line in logs.read(tmp_path / name)]
    for name in ('whole', 'stopped')
  ]
  assert lines[0] == lines[1] and 'loss/rgb/rpn_cls' not in lines[0][-1]
  states = []
  for name in ('whole', 'stopped'):
    tx, mesh = optimizer.build(config, Phased.term_groups), sharding.make_mesh(config.mesh)
    with checkpoint.manager(tmp_path / name) as manager:
      like = training.abstract_state(config, Phased(config), tx, mesh)
      states.append(checkpoint.restore(manager, like))
  jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(
  'phases, message',
  [
    (((5, None, ()),), r'phases\[0\]=.* the last has None'),
    (((None, None, ()), (None, None, ())), r'phases\[0\]=.*all phases but the last end at a step'),
    (((5,), (3,), (None,)), r'end at steps \[5, 3\], each must end after the one before'),
    (((5, 'sar/.*'), (None,)), 'terms and paths are tuples of regexes'),
    (((5, None, ('(neck',)), (None,)), r"'\(neck' is no regular expression"),
    ((5, None), r'phases\[0\]=5: expected \(until step, loss terms or None, frozen'),
  ],
)
def test_phases_that_do_not_hold_together(phases, message):
  config = toy_config()
  config.phases = phases
  with pytest.raises(ValueError, match=message):
    check(config)


def test_what_a_phase_names_has_to_be_there():
  config = toy_config()
  config.phases = ((3, ('sar/box',)), (None,))
  with pytest.raises(
    ValueError, match=r"phases\[0\]: 'sar/box' matches no loss term; terms: moe/b"
  ):
    optimizer.build(config, ToyDetector.term_groups)
  config.phases = ((3, None, ('neck/.*',)), (None,))
  with pytest.raises(ValueError, match="rule 'neck/.*' matches nothing"):
    optimizer.build(config, ToyDetector.term_groups).init(
      ToyDetector().init(jax.random.key(0))['params']
    )


def test_ends_of_phases_follow_the_batch():
  config = phased(lr_scaling='sqrt', min_lr=1e-3, reference_batch=12)
  assert batch_scaling.scaled(config).phases[0][0] == 2  # twice the batch, half of 3 steps
  assert batch_scaling.scaled(config).optim.min_lr == pytest.approx(1e-3 * 2**0.5)
  assert jnp.isfinite(optimizer.schedule(config.optim)(0))
