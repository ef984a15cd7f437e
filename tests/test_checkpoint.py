"""Checkpoints: bit-equal on any mesh, torn ones stepped over, foreign workdirs refused."""

import json
import pathlib

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import UserError
from sm3det_jax import checkpoint, sharding
from sm3det_jax import config as config_lib
from sm3det_jax.optim import optimizer

# Of a torn checkpoint the reads that fail last find the event loop of the first failure closed.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')

GROUPS = {'sar/cls': 'sar/bbox_head', 'rgb/rpn_cls': 'rgb/rpn_head'}
TX = optimizer.build(config_lib.default(), GROUPS)


def _create(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    'backbone': {'experts_w1': jax.random.normal(keys[0], (8, 2, 4)), 'bias': jnp.zeros(3)},
    'heads_sar': {'bbox_head': {'kernel': jax.random.normal(keys[1], (3, 2))}},
  }
  ema = jax.tree.map(lambda p: p * 0.5, params)
  batch_stats = {'mean': jax.random.normal(keys[2], (3,))}
  training = {'opt': TX.init(params), 'step': jnp.zeros((), jnp.int32)}
  return {
    'model': {'variables': {'params': params, 'batch_stats': batch_stats}, 'ema': ema},
    'training': training,
  }


def _like(mesh):
  like = jax.eval_shape(_create)
  where = sharding.tree_sharding(mesh, like)
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, where)


def _sharded(mesh, seed=0):
  state = _create(seed)
  return jax.device_put(state, sharding.tree_sharding(mesh, state))


def _assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _save_two(workdir):
  mesh = sharding.make_mesh({'data': 2, 'expert': 4})
  with checkpoint.manager(workdir, keep=2) as manager:
    for step in (1, 2, 3):
      checkpoint.save(manager, _sharded(mesh, step), {'step': step, 'seed': 0})
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [2, 3]


@pytest.mark.parametrize('shape', [(2, 4), (1, 8), (4, 1)])
def test_restore_on_any_mesh(tmp_path, shape):
  _save_two(tmp_path)
  mesh = sharding.make_mesh(dict(zip(('data', 'expert'), shape, strict=True)))
  with checkpoint.manager(tmp_path) as manager:
    state, position = checkpoint.restore(manager, _like(mesh))
  assert position == {'step': 3, 'seed': 0}
  _assert_equal(state, _create(3))
  assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, _sharded(mesh))
  experts = state['model']['variables']['params']['backbone']['experts_w1']
  assert experts.addressable_shards[0].data.shape[0] == 8 // shape[1]


def _truncate(step):
  for path in step.rglob('*'):
    if path.is_file() and path.stat().st_size > 64 and 'd' in path.parts[-2:-1]:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(step):
  for path in step.rglob('*'):
    if path.is_file():
      path.write_bytes(b'')


def _delete(step):
  (step / 'position/metadata').unlink()


@pytest.mark.parametrize('damage', [_truncate, _empty, _delete])
def test_torn_checkpoint_falls_back(tmp_path, caplog, damage):
  _save_two(tmp_path)
  damage(tmp_path / 'checkpoints/3')
  mesh = sharding.make_mesh({'data': 8, 'expert': 1})
  with checkpoint.manager(tmp_path, keep=2) as manager:
    state, position = checkpoint.restore(manager, _like(mesh))
    assert position['step'] == 2
    _assert_equal(state, _create(2))
    assert '3 cannot be read' in caplog.text and 'falling back' in caplog.text
    assert (tmp_path / 'damaged_checkpoints/3-0').is_dir()
    checkpoint.save(manager, state, {'step': 3, 'seed': 0})  # the run comes to that step again
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [2, 3]


def test_nothing_readable_is_an_error(tmp_path):
  mesh = sharding.make_mesh({'data': 1, 'expert': 1})
  with checkpoint.manager(tmp_path) as manager:
    assert checkpoint.restore(manager, _like(mesh)) is None
  _save_two(tmp_path)
  for step in (2, 3):
    _empty(tmp_path / f'checkpoints/{step}')
  with checkpoint.manager(tmp_path) as manager:
    with pytest.raises(ValueError, match=r'no checkpoint of .* can be read: steps \[3, 2\]'):
      checkpoint.restore(manager, _like(mesh))
  assert (tmp_path / 'checkpoints/3').is_dir()  # untouched


def test_inference_gets_the_average(tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr(absl.logging, 'warning', lambda text, *args: warnings.append(text))
  with pytest.raises(FileNotFoundError, match='no run was started'):
    checkpoint.restore_for_inference(tmp_path)
  checkpoint.open_workdir(config_lib.default(), tmp_path)
  with pytest.raises(FileNotFoundError, match='has saved nothing yet'):
    checkpoint.restore_for_inference(tmp_path)
  _save_two(tmp_path)
  config, variables = checkpoint.restore_for_inference(tmp_path)
  assert config.to_dict() == config_lib.default().to_dict()
  want = _create(3)['model']
  _assert_equal(variables, {**want['variables'], 'params': want['ema']})
  assert len(jax.tree.leaves(variables)[0].devices()) == 1
  assert not [text for text in warnings if 'read_only' in text]  # of options that exclude others
  _, spread = checkpoint.restore_for_inference(
    tmp_path, sharding.make_mesh({'data': 2, 'expert': 4})
  )
  _assert_equal(spread, variables)


def test_config_survives_the_workdir(tmp_path):
  config = config_lib.default()
  checkpoint.open_workdir(config, tmp_path / 'new/run')
  again = config_lib.check(checkpoint.load_config(tmp_path / 'new/run'))
  assert again.to_dict() == config.to_dict()  # tuples too
  assert list(again.tasks) == ['sar', 'rgb', 'ifr']  # their order is the joint label space's
  assert [p.name for p in pathlib.Path(tmp_path / 'new/run').iterdir()] == ['config.json']


def test_workdir_of_another_config(tmp_path):
  checkpoint.open_workdir(config_lib.default(), tmp_path)
  other = config_lib.default()
  other.optim.lr, other.tasks.rgb.classes = 3e-4, ('plane',)
  other.log_every = 2
  with pytest.raises(ValueError, match=r'optim\.lr is 0\.0001 there, 0\.0003 here') as error:
    checkpoint.open_workdir(other, tmp_path)
  assert 'tasks.rgb.classes' in str(error.value) and 'log_every' not in str(error.value)
  order = config_lib.default()
  order.tasks = config_lib.ConfigDict(sort_keys=False)
  for name in ('rgb', 'sar', 'ifr'):
    order.tasks[name] = config_lib.default().tasks[name]
  with pytest.raises(ValueError, match=r'tasks\.\(order\)'):
    checkpoint.open_workdir(order, tmp_path)


def test_what_a_run_may_change(tmp_path):
  checkpoint.open_workdir(config_lib.default(), tmp_path)
  config = config_lib.default()
  config.update(data_root='/elsewhere', log_every=1, checkpoint_every=7)
  config.keep_checkpoints, config.mesh.expert, config.optim.steps = 9, 2, 40_000
  config.tasks.sar.test.split = 'val'
  checkpoint.open_workdir(config, tmp_path)
  assert json.loads((tmp_path / 'config.json').read_text())['data_root'] == '/elsewhere'


@pytest.mark.parametrize('name', ['run[v2]', 'run*', 'a [b]/c?', '{x}'])
def test_names_of_folders_are_no_patterns(name, tmp_path):
  state = {'model': {'a': jnp.arange(3.0)}, 'training': {'b': jnp.ones(2)}}
  with checkpoint.manager(tmp_path / name) as checkpoints:
    checkpoint.save(checkpoints, state, {'step': 1})
  for part in ('model', 'training'):
    assert (tmp_path / name / f'checkpoints/1/{part}/manifest.ocdbt').stat().st_size
  like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
  with checkpoint.manager(tmp_path / name) as checkpoints:
    found, position = checkpoint.restore(checkpoints, like)
  assert position == {'step': 1} and jax.tree.all(jax.tree.map(jnp.array_equal, found, state))


def test_a_first_checkpoint_without_manifest_ends_the_run(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint._LiteralPath, 'glob', lambda self, pattern: iter(()))
  state = {'model': {'a': jnp.arange(3.0)}, 'training': {'b': jnp.ones(2)}}
  with checkpoint.manager(tmp_path) as checkpoints:
    with pytest.raises(UserError, match='model/manifest.ocdbt was not written'):
      checkpoint.save(checkpoints, state, {'step': 1})
