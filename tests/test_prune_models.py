"""Whole models cut down: what stays computes as before, and `sm3det prune` makes workdirs of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_simmim import batch_of, made

from data_pipelines.errors import UserError
from sm3det_jax import checkpoint, cli, pruning
from sm3det_jax import config as config_lib
from sm3det_jax import model as models
from sm3det_jax.pruning import counting

BLOCKS = ('stage0_block0', 'stage1_block0')


@pytest.fixture(scope='module')
def whole():
  """A model of three modalities with four collaborative experts, no array of which is zero."""
  config, model = made(modalities=['opt', 'sar_l2', 'ms'], NC=4)
  leaves, form = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  draw = lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape), jnp.float32)
  return config, jax.tree.unflatten(form, [draw(a) for a in leaves])


@pytest.fixture
def workdir(whole, tmp_path):
  checkpoint.save_weights(tmp_path / 'run', *whole)
  return tmp_path / 'run'


def features(config, variables, image, modality):
  run = lambda v, x: models.build(config).features(v, x, modality)[1]
  return jax.jit(run)(variables, image)


def test_a_sub_model_computes_as_the_whole_one(whole):
  config, variables = whole
  image = batch_of(config, 1)['ms']['images']
  small, cut = pruning.submodel(config, variables, ('ms', 'opt'))
  assert list(small.tasks) == ['opt', 'ms'] and small.batch_size * 3 == config.batch_size * 2
  assert set(variables['params']['backbone']) - set(cut['params']['backbone']) == {
    'mask_token', 'stem_sar_l2', 'stem_sar_l2_norm'
  }  # fmt: skip
  assert set(cut['params']) == {'backbone'}
  got, want = features(small, cut, image, 'ms'), features(config, variables, image, 'ms')
  np.testing.assert_allclose(got, want, atol=1e-5)
  config_lib.check(small)


def test_pruned_layers_have_their_own_number_of_experts(whole):
  config, variables = whole
  one, cut = pruning.submodel(config, variables, ('opt',))
  keep = dict(zip(BLOCKS, np.array([[1, 0, 0, 1], [0, 1, 0, 0]], bool), strict=True))
  small, cut = pruning.pruned(one, cut, keep)
  assert small.backbone.collaborative == ((2,), (1,)) != one.backbone.collaborative
  for block, rows in keep.items():
    got, old = (v['params']['backbone'][block]['moe'] for v in (cut, variables))
    np.testing.assert_array_equal(got['coll.w1'], old['coll.w1'][rows])
    np.testing.assert_array_equal(got['spec.w1'], old['spec.w1'][:1])
  shapes = jax.eval_shape(models.build(small).init, jax.random.key(0))['params']['backbone']
  shapes.pop('mask_token')
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, cut['params']['backbone'])
  image = batch_of(one, 1)['opt']['images']
  assert np.isfinite(features(config_lib.check(small), cut, image, 'opt')).all()


def test_merged_layers_are_dense_ones(whole):
  config, variables = whole
  small, cut = pruning.dense(*pruning.submodel(config, variables, ('opt', 'ms')), 'ka')
  old, new = (v['params']['backbone']['stage1_block0'] for v in (variables, cut))
  layer = {k: np.asarray(v) for k, v in old['moe'].items()}
  want = pruning.merge(layer, (0, 2), 'ka')
  np.testing.assert_array_equal(new['ffn']['fc1']['kernel'], want['w1'])
  np.testing.assert_array_equal(new['ffn']['fc2']['bias'], want['b2'])
  assert 'moe' not in new and not any(small.moe.blocks)
  assert features(small, cut, batch_of(config, 1)['ms']['images'], 'ms').shape == (1, 4, 4, 16)


def test_what_cannot_be_pruned_is_told(whole):
  config, variables = whole
  with pytest.raises(UserError, match="modality 'sar_l1' is none of the model, .* opt, sar_l2, ms"):
    pruning.submodel(config, variables, ('opt', 'sar_l1'))
  with pytest.raises(UserError, match='no modality to keep'):
    pruning.submodel(config, variables, ())
  dense = pruning.dense(config, variables, 'ks')
  for again in (pruning.dense, lambda c, v: pruning.pruned(c, v, {})):
    with pytest.raises(UserError, match='dense already'):
      again(*dense)
  with pytest.raises(UserError, match="type='convnext' has no hierarchical experts"):
    pruning.dense(config_lib.default(), variables)
  none, _ = made(NC=0)
  with pytest.raises(UserError, match='stage0_block0 has no collaborative experts'):
    counting.chosen(none, variables, 25)


def drawn_batches(config, task, split, batch_size):
  """Two batches, the second one half full."""
  c = config.tasks[task]
  assert split == c.train.split
  for n, real in ((0, batch_size), (1, batch_size // 2)):
    x = np.random.default_rng([n, c.bands]).normal(size=(batch_size, *c.size, c.bands))
    ids = [f'{n}_{i}' for i in range(real)]
    shapes = np.tile(np.array([c.size]), (batch_size, 1))
    yield {'images': x.astype(np.float32) * 50 + 120, 'shapes': shapes, 'ids': ids}


def said(*arguments, capsys):
  status = cli.main(['prune', *map(str, arguments)])
  out, err = capsys.readouterr()
  return out if not status else err


def test_prune_makes_workdirs(workdir, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(counting.mixture, 'eval_batches', drawn_batches)
  config, variables = checkpoint.restore_for_inference(workdir)
  run = lambda name, *options: said(
    f'--workdir={workdir}', f'--out={tmp_path / name}', *options, capsys=capsys
  )
  out = run('ep', '--keep=ms+opt', '--ep=25')
  small, cut = checkpoint.restore_for_inference(tmp_path / 'ep')
  assert 'stage1_block0: keeps' in out and '-> ' in out
  for stage, block in enumerate(BLOCKS):
    rows = []
    for task in small.tasks:
      images = np.concatenate(
        [b['images'][: len(b['ids'])] for b in drawn_batches(config, task, 'train', 8)]
      )
      raw = {task: {'images': jnp.asarray(images)}}
      x = models.build(config).prepare(raw)[task]['images']
      chosen = jax.jit(lambda v, x, t=task: models.build(config).routing(v, x, t))(variables, x)
      counts = np.bincount(np.asarray(chosen[f'{block}/coll']).ravel(), minlength=4)
      rows.append(counts / counts.sum() > np.percentile(counts / counts.sum(), 75))
    keep = np.any(rows, 0)
    assert small.backbone.collaborative[stage] == (keep.sum(),)
    np.testing.assert_array_equal(
      cut['params']['backbone'][block]['moe']['coll.w2'],
      variables['params']['backbone'][block]['moe']['coll.w2'][keep],
    )
  run('kc', '--keep=sar_l2', '--kc', '--rank=columns')
  kc, cut = checkpoint.restore_for_inference(tmp_path / 'kc')
  layer = {k: np.asarray(v) for k, v in variables['params']['backbone'][BLOCKS[0]]['moe'].items()}
  want = pruning.merge(layer, (1,), 'kc', rank='columns')
  np.testing.assert_array_equal(
    cut['params']['backbone'][BLOCKS[0]]['ffn']['fc1']['kernel'], want['w1']
  )
  assert cli.main(['account', f'--config={tmp_path / "kc" / "config.json"}', '--json']) == 0
  counts = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert counts['params_encoder'] == sum(a.size for a in jax.tree.leaves(cut['params']))
  assert counts['params_active'] == counts['params_encoder'] < counts['params']


def test_prune_says_what_is_wrong_before_its_work(workdir, tmp_path, capsys):
  run = lambda *options: said(f'--workdir={workdir}', *options, capsys=capsys)
  out = f'--out={tmp_path / "new"}'
  assert 'holds a run already' in run(f'--out={workdir}', '--keep=opt')
  assert '--rank is of --kc alone' in run(out, '--keep=opt', '--ks', '--rank=columns')
  assert '--split is of --ep alone' in run(out, '--keep=opt', '--split=test')
  assert "modality 'sar_l1' is none of the model" in run(out, '--keep=sar_l1')
  with pytest.raises(SystemExit):
    run(out, '--keep=opt', '--ep=0')
  assert 'expected a percentage above 0' in capsys.readouterr().err
  assert not (tmp_path / 'new').exists()
