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


def _mesh(data, expert):
  return sharding.make_mesh({'data': data, 'expert': expert})


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
