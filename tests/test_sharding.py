"""The mesh and its errors, the rules, and a training state that stays where it was put."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from sm3det_jax import config as config_lib
from sm3det_jax import sharding
from sm3det_jax.heads.common import map_images
from sm3det_jax.optim import optimizer

GROUPS = {'sar/cls': 'sar/bbox_head'}


def _mesh(data, expert, model=1):
  return sharding.make_mesh({'data': data, 'expert': expert, 'model': model})


@pytest.mark.parametrize(
  'data, expert, shape', [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, 4, (2, 4)), (1, 8, (1, 8))]
)
def test_mesh(data, expert, shape):
  mesh = _mesh(data, expert)
  assert mesh.axis_names == ('data', 'expert') and mesh.devices.shape == shape
  assert mesh.axis_types == (AxisType.Auto,) * 2


def test_mesh_of_fewer_devices(caplog):
  assert _mesh(1, 2).size == 2
  assert '6 of 8 devices idle' in caplog.text
  assert sharding.make_mesh({'data': -1, 'expert': 1}, jax.devices()[:3]).size == 3


@pytest.mark.parametrize(
  'data, expert, message',
  [
    (-1, 3, 'expert=3 does not divide the 8 devices'),
    (4, 4, 'data 4 x expert 4 = 16 devices, there are 8'),
    (0, 1, 'data=0, expert=1; sizes are at least 1'),
  ],
)
def test_mesh_errors(data, expert, message):
  with pytest.raises(ValueError, match=message):
    _mesh(data, expert)


def test_a_third_axis():
  mesh = _mesh(-1, 2, 2)
  assert mesh.axis_names == ('data', 'expert', 'model') and mesh.devices.shape == (2, 2, 2)
  assert mesh.axis_types == (AxisType.Auto,) * 3
  assert sharding.make_mesh({'data': 8, 'expert': 1}).axis_names == ('data', 'expert')
  x = sharding.put_batch(np.zeros((16, 3), np.float32), mesh)
  assert x.addressable_shards[0].data.shape == (2, 3)
  for sizes, message in (
    ((-1, 3, 2), 'expert=3 x model=2 does not divide the 8 devices'),
    ((4, 2, 2), 'data 4 x expert 2 x model 2 = 16 devices, there are 8'),
    ((1, 1, 0), 'data=1, expert=1, model=0; sizes are at least 1'),
  ):
    with pytest.raises(ValueError, match=message):
      _mesh(*sizes)
  config = config_lib.default()
  config.batch_size = 16
  with pytest.raises(ValueError, match=r'8 devices \(data 2 x expert 2 x model 2\) cannot share'):
    sharding.check_mesh(config, mesh)


def test_evaluation_takes_all_devices_where_the_run_had_others():
  of = lambda **sizes: dict(sharding.evaluation_mesh(sizes).shape)
  assert of(data=2, expert=2, model=2) == {'data': 2, 'expert': 2, 'model': 2}
  assert of(data=64, expert=4) == {'data': 2, 'expert': 4}
  assert of(data=64, expert=2, model=2) == {'data': 2, 'expert': 2, 'model': 2}
  assert of(data=-1, expert=3) == {'data': 8, 'expert': 1}


def test_hidden_channels_lie_over_the_third_axis():
  shapes = {
    'moe/experts_w1': (4, 3, 8), 'moe/experts_b1': (4, 8), 'moe/experts_w2': (4, 8, 3),
    'moe/experts_b2': (4, 3), 'fc1/experts_w': (4, 3, 8), 'fc1/experts_b': (4, 8),
    'a/spec.w1': (4, 2, 3, 8), 'a/spec.b2': (4, 2, 3), 'one/spec.w2': (1, 2, 8, 3),
    'a/coll.b1': (4, 8), 'a/shared.w1': (3, 8), 'a/shared.w2': (8, 3), 'a/coll.router': (4, 3),
    'odd/shared.b1': (7,),
  }  # fmt: skip
  tree = {k: jax.ShapeDtypeStruct(shape, np.float32) for k, shape in shapes.items()}
  specs = {k: tuple(s.spec) for k, s in sharding.tree_sharding(_mesh(2, 2, 2), tree).items()}
  assert specs == {
    'moe/experts_w1': ('expert', None, 'model'), 'moe/experts_b1': ('expert', 'model'),
    'moe/experts_w2': ('expert', 'model'), 'moe/experts_b2': ('expert',),
    'fc1/experts_w': ('expert',), 'fc1/experts_b': ('expert',),
    'a/spec.w1': ('expert', None, None, 'model'), 'a/spec.b2': ('expert',),
    'one/spec.w2': (None, 'expert', 'model'),
    'a/coll.b1': ('expert', 'model'), 'a/shared.w1': (None, 'model'), 'a/shared.w2': ('model',),
    'a/coll.router': (), 'odd/shared.b1': (),
  }  # fmt: skip


def test_batch_and_experts_must_divide():
  config = config_lib.default()  # 2:1:1, 8 experts
  sharding.check_mesh(config, _mesh(8, 1))
  config.batch_size = 16
  with pytest.raises(ValueError, match=r'4 group\(s\) of 2 \+ 1 \+ 1 = 4 images.*8 x 4 = 32'):
    sharding.check_mesh(config, _mesh(2, 4))
  config.batch_size, config.moe.num_experts = 32, 6
  with pytest.raises(ValueError, match='expert=4 does not divide .*=6; sizes that do: 1, 2, 3, 6'):
    sharding.check_mesh(config, _mesh(2, 4))
  config.moe.blocks = ((), (), (), ())
  sharding.check_mesh(config, _mesh(2, 4))


def _params():
  return {
    'backbone': {'block': {'experts_w1': jnp.ones((8, 2, 4)), 'kernel': jnp.ones((2, 2))}},
    'heads_sar': {'bbox_head': {'bias': jnp.zeros(3)}},
  }


def test_rules_cover_parameters_and_optimizer_state():
  mesh, config = _mesh(2, 4), config_lib.default()
  tx = optimizer.build(config, GROUPS)
  state = {'params': _params(), 'opt': tx.init(_params())}
  shardings = sharding.tree_sharding(mesh, state)
  expert, whole = PartitionSpec('expert'), PartitionSpec()
  assert shardings['params']['backbone']['block']['experts_w1'].spec == expert
  assert shardings['opt'][1].mu['backbone']['block']['experts_w1'].spec == expert
  assert shardings['opt'][1].nu['backbone']['block']['kernel'].spec == whole
  assert shardings['opt'][-1].dla.history['sar/cls'].spec == whole


def test_the_first_rule_that_matches_counts():
  tree = {'a': {'b': 1, 'c': 2}, 'd': [3]}
  assert sharding.match(tree, [('a/b', 'x'), ('a/.*', 'y'), ('.*', 'z')]) == {
    'a': {'b': 'x', 'c': 'y'},
    'd': ['z'],
  }
  with pytest.raises(ValueError, match=r"no rule of \['a/.', 'd'\] matches d/0"):
    sharding.match(tree, [('a/.', 'x'), ('d', 'y')])


def test_a_rule_that_decides_nothing_is_an_error():
  tree = {'a': {'b': 1, 'c': 2}, 'd': [3]}
  with pytest.raises(ValueError, match="rule 'e/.*' matches nothing; rules in order: .'a/.*', 'e/"):
    sharding.match(tree, [('a/.*', 'x'), ('e/.*', 'y'), ('.*', 'z')])
  with pytest.raises(ValueError, match="rule 'a/b' decides nothing: rules before it take all"):
    sharding.match(tree, [('a/.*', 'x'), ('a/b', 'y'), ('.*', 'z')])
  assert sharding.match({'d': 1}, [('e', 'x'), ('.*', 'y')], all_used=False) == {'d': 'y'}
  mesh = _mesh(2, 4)
  dense = {'kernel': jnp.ones(2)}
  assert sharding.tree_sharding(mesh, dense)['kernel'].spec == PartitionSpec()
  with pytest.raises(ValueError, match='matches nothing'):
    sharding.tree_sharding(mesh, dense, sharding.RULES)


def test_a_step_leaves_every_array_where_it_was():
  mesh, config = _mesh(2, 4), config_lib.default()
  tx = optimizer.build(config, GROUPS)

  def create():
    return {'params': _params(), 'opt': tx.init(_params())}

  where = sharding.tree_sharding(mesh, jax.eval_shape(create))

  def loss(params, x):
    block = params['backbone']['block']
    y = jnp.einsum('bi,ij,ejk->bek', x, block['kernel'], block['experts_w1'])
    return jnp.mean(y**2) + jnp.sum(params['heads_sar']['bbox_head']['bias'] ** 2)

  def step(state, x):
    value, grads = jax.value_and_grad(loss)(state['params'], x)
    updates, opt = tx.update(grads, state['opt'], state['params'], losses={'sar/cls': value})
    params = jax.tree.map(lambda p, u: p + u, state['params'], updates)
    return {'params': params, 'opt': opt}

  with jax.set_mesh(mesh):
    state = jax.jit(create, out_shardings=where)()
    x = jax.device_put(np.ones((16, 2), np.float32), sharding.batch_sharding(mesh))
    before = jax.tree.map(lambda a: (jax.typeof(a), a.sharding), state)
    step = jax.jit(step, donate_argnums=0, out_shardings=where)
    after = jax.tree.map(lambda a: (jax.typeof(a), a.sharding), step(state, x))
  assert before == after
  assert x.addressable_shards[0].data.shape == (2, 2)


def test_every_device_does_its_own_images():
  mesh = _mesh(4, 2)
  scale = np.float32(3)

  def sort_images(x):
    offset = jnp.sum(x) * 0  # closed over, as anchors are
    return map_images(lambda x: {'sorted': jnp.sort(x) * scale + offset}, x)['sorted']

  x = jax.random.normal(jax.random.key(0), (16, 5))
  assert jnp.array_equal(sort_images(x), jnp.sort(x) * scale)
  with jax.set_mesh(mesh):
    x = jax.device_put(x, sharding.batch_sharding(mesh))
    compiled = jax.jit(sort_images).lower(x).compile()
    np.testing.assert_allclose(compiled(x), np.sort(x) * scale)
  assert 'all-gather' not in compiled.as_text()
