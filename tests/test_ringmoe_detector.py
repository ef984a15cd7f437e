"""Detectors on RingMoE's backbone: modalities of tasks, weights that arrive, what stays frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import batch_of, tiny_config

from configs import ringmoe_downstream, sm3det
from data_pipelines.errors import UserError
from sm3det_jax import backbones, checkpoint, model, train
from sm3det_jax import config as config_lib
from sm3det_jax.config import modality
from sm3det_jax.interop import convert, matching, pretrained
from sm3det_jax.pruning import models

MODALITIES = {'opt': 3, 'sar_l1': 8, 'sar_l2': 1, 'ms': 4}  # bands
TINY = dict(depths=(1, 1, 1, 1), channels=(8, 16, 16, 32), heads=(1, 2, 2, 2), windows=(4,) * 4)


def shrunk(c, dense=False, blocks=((0,),) * 4, **changes):
  """A tiny backbone, of a detector or a pre-training."""
  c.backbone.update(TINY | dict(mlp_ratio=2.0, specialised=2, collaborative=((3,),) * 4) | changes)
  c.moe.blocks = ((),) * 4 if dense else blocks
  return c


def detector(*tasks, **changes):
  c = tiny_config(groups=2)
  for name in set(c.tasks) - set(tasks):
    del c.tasks[name]
  c.batch_size, c.task_balance = 2 * sum(t.ratio for t in c.tasks.values()), 'none'
  known = {'sar': 'sar_l2', 'rgb': 'opt', 'ifr': 'opt'}
  sm3det.use_ringmoe(c, 'tiny', {name: known[name] for name in c.tasks})
  return config_lib.check(shrunk(c, **changes))


def pretraining(names=tuple(MODALITIES), **changes):
  c = config_lib.default()
  c.model, c.task_balance, c.tasks = 'simmim', 'none', config_lib.ConfigDict(sort_keys=False)
  for name in names:
    n = MODALITIES[name]
    c.tasks[name] = config_lib.task('image', name, bands=n, mean=(0.0,) * n, std=(1.0,) * n)
    c.tasks[name].size = (192, 192)
  config_lib.use_backbone(c, 'ringmoe', 'tiny')
  c.backbone.stems, c.batch_size = 'per_task', len(names)
  return config_lib.check(shrunk(c, **changes))


def random_variables(config, seed=0):
  """Variables of a model with random numbers: nothing is compiled."""
  shapes = jax.eval_shape(model.build(config).init, jax.random.key(0))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)


def saved(folder, names=tuple(MODALITIES), cut=None, **changes):
  """(folder, {path: array}) of a pre-training's weights, or of what `cut` has made of them."""
  config = pretraining(names, **changes)
  variables = random_variables(config, 1)
  if cut:
    config, variables = cut(*models.submodel(config, variables, ('opt', 'sar_l2')))
  checkpoint.save_weights(folder, config, variables)
  return folder, matching.flat(variables)


def ep(config, variables):
  """Two collaborative experts in one block, one in all others."""
  keep = {block: np.arange(3) < 1 + (i == 1) for i, _, block in models.moe_blocks(config)}
  return models.pruned(config, variables, keep)


def test_a_task_says_its_modality_or_its_name_or_bands_do():
  of = lambda name, bands, said='auto': modality.of_task(
    name, config_lib.task('hbb', 'x', bands=bands, modality=said)
  )
  assert [of('a', n) for n in (3, 8, 1, 4)] == ['opt', 'sar_l1', 'sar_l2', 'ms']
  assert (of('a', 3, 'sar_l2'), of('ms', 3), of('ms', 3, 'opt')) == ('sar_l2', 'ms', 'opt')
  with pytest.raises(UserError, match=r'config.tasks.a has bands=5.*say which of opt, sar_l1'):
    of('a', 5)
  assert modality.of_tasks(detector('sar', 'rgb', 'ifr')) == ('opt', 'sar_l2')
  other = tiny_config(groups=2)
  other.tasks.rgb.modality = 'opt'
  with pytest.raises(UserError, match="config.tasks.rgb.modality='opt' has no effect"):
    config_lib.check(other)


@pytest.mark.parametrize('cut', [None, pytest.param(ep, marks=pytest.mark.slow), models.dense])
def test_weights_arrive_by_modality(tmp_path, cut):
  """Continuous biases too, which follow any window."""
  source, theirs = saved(tmp_path / 'weights', cut=cut)
  c = pretrained.with_experts_of(detector('sar', 'rgb', 'ifr', windows=(8, 8, 4, 2)), source)
  fresh = random_variables(c, 2)
  values, report = convert.load_matching(fresh, source, c)
  got, before = matching.flat(values), matching.flat(fresh)
  assert not report.counted('shape')
  for path, array in got.items():
    room, *rest = path[1:]
    if path in theirs and path[-1].startswith('spec.'):
      want = theirs[path] if cut else theirs[path][np.array([0, 2])]  # opt, sar_l2
    elif path in theirs:
      want = theirs[path]
    else:  # heads, neck, and the norms of outputs that nothing reads in pre-training
      assert room != 'backbone' or rest[0] in ('norm0', 'norm1', 'norm2')
      want = before[path]
    np.testing.assert_array_equal(array, want, err_msg='/'.join(path))
  stems = {p[2] for p in got if p[1] == 'backbone' and p[2].startswith('stem')}
  assert stems == {f'stem_{m}{n}' for m in ('opt', 'sar_l2') for n in ('', '_norm')}
  routed = {p[-1].partition('.')[0] for p in got if p[-2] == 'moe'}
  assert routed == (set() if cut is models.dense else {'spec', 'coll', 'shared'})


def test_experts_are_those_of_the_weights(tmp_path):
  source, _ = saved(tmp_path / 'weights', cut=ep)
  c = pretrained.with_experts_of(detector('sar'), source)
  assert c.backbone.collaborative == ((1,), (2,), (1,), (1,))
  assert pretrained.with_experts_of(c, '') is c and pretrained.with_experts_of(c, 'no.pth') is c
  other = tiny_config(groups=2)
  assert pretrained.with_experts_of(other, source) is other


def test_weights_that_do_not_fit_are_one_line(tmp_path):
  source, _ = saved(tmp_path / 'weights', names=('opt', 'ms'))
  wide = detector('rgb', channels=(16, 32, 64, 128))
  with pytest.raises(UserError, match=r'config.backbone.channels is \(16, .*weights of \(8, '):
    pretrained.with_experts_of(wide, source)
  with pytest.raises(UserError, match=r"has weights of opt, ms, config.tasks.sar is of 'sar_l2'"):
    pretrained.with_experts_of(detector('sar'), source)
  checkpoint.open_workdir(tiny_config(groups=2), tmp_path / 'other')
  with pytest.raises(UserError, match="backbone of type 'convnext', not 'ringmoe'"):
    pretrained.with_experts_of(wide, tmp_path / 'other')


def test_a_table_follows_another_window(tmp_path):
  offsets = lambda side: np.stack(
    np.meshgrid(*[np.linspace(-1, 1, 2 * side - 1)] * 2, indexing='ij'), -1
  ).reshape(-1, 2)
  plane = lambda side: offsets(side) @ np.array([[1.0, 0.0], [0.5, -2.0]]) + np.array([[3.0, 0.0]])
  np.testing.assert_array_equal(pretrained.resized_table(plane(6), 121), plane(6))
  got = pretrained.resized_table(np.float32(plane(6)), 17**2).reshape(17, 17, 2)
  inside = slice(3, -3)  # the rim is beyond the last samples' centres
  x = (np.arange(17) + 0.5) * 11 / 17 - 0.5  # places of the new samples among the old
  x = x[inside] / 5 - 1
  want = np.stack([x[:, None] + 0.5 * x[None] + 3, -2 * x[None] + 0 * x[:, None]], -1)
  np.testing.assert_allclose(got[inside, inside], want, atol=1e-5)
  source, theirs = saved(tmp_path / 'weights', attention='table', windows=(3,) * 4, dense=True)
  c = pretrained.with_experts_of(detector('rgb'), source)
  assert (c.backbone.attention, c.backbone.windows) == ('table', (4,) * 4)
  values, report = convert.load_matching(random_variables(c, 2), source, c)
  assert not report.counted('shape')
  path = ('params', 'backbone', 'stage0_block0', 'attention', 'bias_table')
  want = pretrained.resized_table(np.asarray(theirs[path]), 49)
  np.testing.assert_array_equal(matching.flat(values)[path], want)


@pytest.mark.slow
def test_tasks_of_one_modality_see_alike():
  c = detector('sar', 'rgb', 'ifr')
  two = dict(depths=(1, 1), channels=(8, 16), heads=(1, 2), windows=(4, 4))
  c.backbone.update(two | dict(collaborative=((2,), (2,))))
  c.moe.blocks = ((), (0,))
  net = backbones.build(c, c.tasks)
  image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
  images = {'sar': image[..., :1], 'rgb': image, 'ifr': image}
  variables = jax.jit(net.init)(jax.random.key(1), images)
  last = jax.jit(lambda v: {name: x[-1] for name, x in net.apply(v, images).stages.items()})
  found = last(variables)
  np.testing.assert_allclose(found['rgb'], found['ifr'], atol=1e-6)
  assert variables['params']['stage1_block0']['moe']['spec.w1'].shape[0] == 2
  # the first modality's experts are its own
  of_opt = lambda path, a: a.at[0].multiply(-3.0) if 'spec.w1' in str(path[-1]) else a
  changed = last(jax.tree.map_with_path(of_opt, variables))
  assert (np.abs(changed['rgb'] - found['rgb']) > 1e-3).any()
  np.testing.assert_allclose(changed['sar'], found['sar'], atol=1e-6)


@pytest.mark.slow
def test_two_steps_from_weights(tmp_path, monkeypatch):
  """SGD and drop path as the paper has them; what is frozen stays, all else moves."""

  def batches(config, step=0, host=0, hosts=1, tasks=None):
    while True:
      yield {'sar': batch_of(config, step)['sar'] | {'images': images}}
      step += 1

  images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), np.uint8)
  monkeypatch.setattr(train.mixture, 'train_batches', batches)
  monkeypatch.setattr(train.mixture, 'open_tasks', lambda config: {})
  monkeypatch.setattr(train.mixture, 'fingerprint', lambda config, tasks: 'data')
  source, _ = saved(tmp_path / 'weights', cut=ep, blocks=((), (), (), (0,)))
  c = detector('sar')
  c.tasks.sar.ratio, c.batch_size, c.mesh.data, c.init_from = 1, 2, 1, str(source)
  c.optim.update(ringmoe_downstream.get_config('hrsid').optim.to_dict())
  c.optim.update(steps=2, warmup_steps=0, milestones=())
  c.optim.groups = (('backbone/(?!stage3|norm[012]).*', None),)
  c.log_every = c.checkpoint_every = 2
  train.train(c, tmp_path / 'run')
  config, variables = checkpoint.restore_for_inference(tmp_path / 'run')
  assert config.moe.blocks == ((), (), (), (0,)) and config.optim.kind == 'sgd'
  got, begun = matching.flat(variables), pretrained.with_experts_of(c, source)
  start, _ = convert.load_matching(random_variables(begun), source, begun)
  moved = {p: bool((np.asarray(got[p]) != a).any()) for p, a in matching.flat(start).items()}
  frozen = [p for p in moved if p[1] == 'backbone' and not p[2].startswith(('stage3', 'norm'))]
  assert len(frozen) > 50 and not any(moved[p] for p in frozen)
  assert all(moved[p] for p in moved if p[1] == 'heads_sar' or p[-1].startswith('shared.'))
  source.rename(tmp_path / 'gone')  # a run that has begun needs it no more
  train.train(c, tmp_path / 'run')
