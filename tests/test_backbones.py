"""Every backbone: recorded official outputs, gradients, meshes, batch norm, sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType

from sm3det_jax import backbones
from sm3det_jax import config as config_lib
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.interop import backbones as names
from sm3det_jax.interop import official
from sm3det_jax.layers import convolution, norm
from sm3det_jax.moe.layer import balance_loss

OFFICIAL = ('convnext_dense_grn_A', 'lsk_A', 'lsk_dense_A', 'swin_A', 'swin_squad_A', 'van_A',
            'van_dense_A')  # fmt: skip


def tiny(kind, **changes):
  """Two stages of two blocks, MoE in the second stage; each routed layer of a block in its way."""
  c = config_lib.default()
  config_lib.use_backbone(c, kind)
  c.moe.update(blocks=((), (0,)), num_experts=4)
  c.backbone.update(depths=(1, 2), channels=(8, 16))
  small = dict(mlp_ratios=(2.0, 2.0), heads=(1, 2), reductions=(2, 1), fc2_blocks=((), (0, 1)),
               window=3, windows=(3, 3), layer_scale=0.5, drop_rate=0.0)  # fmt: skip
  c.backbone.update({k: v for k, v in small.items() if k in c.backbone})
  c.backbone.update(changes)
  return c


@pytest.fixture
def cheap_depthwise(monkeypatch):
  """One convolution instead of 49 slices: compiles in a fraction of the time."""
  grouped_gradient = convolution._kernel_gradient_grouped
  monkeypatch.setattr(convolution, '_shifted', convolution._grouped)
  monkeypatch.setattr(convolution, '_kernel_gradient_by_tap', grouped_gradient)


def relative(got, want):
  return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


def scattered(variables, seed=0):
  """Norms, scales and averages away from 0 and 1, so that each of them matters."""
  leaves, form = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  move = lambda x, k: x + 0.1 * jnp.abs(jax.random.normal(k, x.shape, x.dtype))
  return jax.tree.unflatten(form, [move(x, k) for x, k in zip(leaves, keys, strict=True)])


@pytest.mark.parametrize(
  'name', [n if 'convnext' in n else pytest.param(n, marks=pytest.mark.slow) for n in OFFICIAL]
)
def test_official_outputs(golden, cheap_depthwise, name):
  z = np.load(golden / f'backbones/{name}.npz')
  arguments = json.loads((golden / f'backbones/{name}.json').read_text())
  state = {k[2:]: z[k] for k in z.files if k.startswith('w.')}
  backbone, variables = official.backbone(arguments, state)
  images = jnp.asarray(z['images'].transpose(0, 2, 3, 1))
  found = jax.jit(backbone.module.apply)(variables, {'sar': images})
  outs = found.stages['sar']
  assert len(outs) == 4
  for i, out in enumerate(outs):
    assert relative(out, z[f'stage{i}'].transpose(0, 2, 3, 1)) < 3e-6
  if 'gate_loss' in z.files:
    np.testing.assert_allclose(balance_loss(found.usage, 0.01), z['gate_loss'], rtol=1e-5)


def test_constructors_refuse_what_they_do_not_know():
  with pytest.raises(ValueError, match="unknown argument 'embed_dim'.*embed_dims"):
    names.config({'type': 'VAN', 'embed_dim': 3})
  with pytest.raises(ValueError, match=r'out_indices=\[3\] is not supported'):
    names.config({'type': 'SwinTransformer_MoE', 'out_indices': [3]})
  with pytest.raises(ValueError, match='norm_cfg=.*GN.* is not supported'):
    names.config({'type': 'LSKNet', 'norm_cfg': {'type': 'GN'}})
  with pytest.raises(ValueError, match='ResNet is not supported here, only ConvNeXt'):
    names.config({'type': 'ResNet'})


@pytest.mark.parametrize(
  'kind, changes, message',
  [
    ('van', {'backbone.layer_scal': 1.0}, "config.backbone.layer_scal .*'van'.*layer_scale"),
    ('swin', {'backbone.layer_scale': 1.0}, 'layer_scale is not a known key'),
    ('swin', {'backbone.type': 'resnet'}, "type='resnet'.*convnext.*van"),
    ('pvt_v2', {'backbone.heads': (1, 2)}, 'config.backbone.heads has 2 stages.*depths has 4'),
    ('pvt_v2', {'backbone.heads': (1, 3, 5, 8)}, '64 channels do not divide into 3 heads'),
    ('lsknet', {'moe.blocks': ((), (), (0, 5), ())}, r'stage 2 has blocks 0 to 4, .*\(0, 5\)'),
    ('van', {'backbone.fc2_blocks': ((0,),)}, 'fc2_blocks has 1 stages'),
    ('convnext', {'backbone.grn': True}, 'experts have no GRN'),
    ('swin', {'backbone.squad': ('ffn', 'conv3x3', 'conv5x5')}, 'num_experts=8 .*multiple.* 3'),
    ('swin_v2', {'backbone.windows': (8, 8)}, 'config.backbone.windows has 2 stages'),
    ('swin_v2', {'backbone.gelu': 'tanh'}, "gelu='tanh': experts have 'erf'"),
    ('swin_v2', {'backbone.output_norms': 'none'}, "output_norms='none': expected 'all' or 'last'"),
    ('swin_v2', {'backbone.epsilons': (1e-5, 1e-5)}, 'epsilons=.*expected 4 numbers'),
    ('swin', {'backbone.squad': ('ffn', 'conv7x7')}, 'conv7x7.*expected'),
  ],
)
def test_configs_that_do_not_hold_are_named(kind, changes, message):
  c = config_lib.default()
  config_lib.use_backbone(c, kind, 'T')
  config_lib.check(c)
  for key, value in changes.items():
    section, name = key.split('.')
    c[section][name] = value
  with pytest.raises(ValueError, match=message):
    config_lib.check(c)


def test_official_positions_beyond_the_depth_are_dropped():
  backbone, moe = names.config(
    {'type': 'LSKNet_moe_MultiInput', 'MoE_Block_inds_fc1': [[], [0, 2], [0, 8], [-1]]}
  )
  assert moe.blocks == ((), (0, 2), (0,), (1,)) and backbone.fc2_blocks == ((), (), (), ())
  assert (moe.num_experts, moe.top_k, moe.gate) == (2, 2, 'cosine')


def training_loss(config):
  """Function of (params, rest of the variables, images) -> (loss, updates), all noise on."""
  module = backbones.build(config, config.tasks)

  def loss(params, rest, images):
    found, updates = module.apply(
      {**rest, 'params': params}, {'sar': images}, jax.random.key(5), mutable=['batch_stats']
    )
    weigh = lambda x: (x * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)).mean()
    return sum(map(weigh, found.stages['sar'])) + balance_loss(found.usage, 0.1), updates

  return loss


def start(config, images):
  variables = jax.jit(backbones.build(config, config.tasks).init)(
    jax.random.key(0), {'sar': images}
  )
  variables = scattered(variables)
  return variables['params'], {k: v for k, v in variables.items() if k != 'params'}


@pytest.mark.slow
@pytest.mark.drawn(5)
@pytest.mark.parametrize('kind', BACKBONES)
def test_gradients_are_the_slopes(cheap_depthwise, kind):
  """Along a random direction of all parameters, in float64; gate noise and drop path included."""
  with jax.enable_x64(True):
    config = tiny(kind, drop_path_rate=0.3)
    images = jax.random.normal(jax.random.key(1), (4, 16, 24, 2), jnp.float64)
    params, rest = start(config, images)
    double = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)
    params, rest = double(params), double(rest)
    run = jax.jit(jax.value_and_grad(training_loss(config), has_aux=True))
    _, grads = run(params, rest, images)
    direction = jax.tree.map(
      lambda p, k: jax.random.normal(k, p.shape, p.dtype), params, spread(params)
    )
    step = lambda e: run(jax.tree.map(lambda p, d: p + e * d, params, direction), rest, images)[0][
      0
    ]
    slope = (step(1e-6) - step(-1e-6)) / 2e-6
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
    down = params  # two steps of training
    losses = []
    for _ in range(3):
      (value, updates), g = run(down, rest, images)
      rest, losses = rest | updates, [*losses, float(value)]
      down = jax.tree.map(lambda p, g: p - 1e-3 * g, down, g)
  np.testing.assert_allclose(along, slope, rtol=1e-5)
  assert losses[2] < losses[1] < losses[0]
  untouched = [jax.tree_util.keystr(p) for p, g in jax.tree.leaves_with_path(grads) if not g.any()]
  assert not untouched


def spread(tree):
  leaves, form = jax.tree.flatten(tree)
  return jax.tree.unflatten(form, list(jax.random.split(jax.random.key(7), len(leaves))))


@pytest.mark.slow
def test_a_mesh_gives_what_one_device_gives(cheap_depthwise):
  """Loss, gradients and running averages: batch norm sees the whole batch wherever it lies."""
  config = tiny('van')
  images = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
  images = images * jnp.arange(1, 9, dtype=jnp.float32)[:, None, None, None]  # no two devices alike
  run = jax.jit(jax.value_and_grad(training_loss(config), has_aux=True))
  args = start(config, images[:1])
  want = run(*args, images)
  mesh = jax.make_mesh((2, 4), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    where = jax.NamedSharding(mesh, jax.P(('data', 'expert')))
    got = run(*args, jax.device_put(images, where))
  assert want[0][1]['batch_stats']
  for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
    assert np.abs(a - b).max() < 1e-4 * max(np.abs(b).max(), 1e-4), jax.tree_util.keystr(path)


def test_batch_norm_trains_and_evaluates():
  x = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 6, 3)).astype(np.float32)
  module = norm.BatchNorm()
  variables = module.init(jax.random.key(0), jnp.asarray(x))
  fresh = variables['batch_stats']
  assert (fresh['mean'] == 0).all() and (fresh['var'] == 1).all()
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  y, updates = module.apply(variables, jnp.asarray(x), mutable=['batch_stats'])
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
  averages = jax.tree.map(np.asarray, updates['batch_stats'])
  np.testing.assert_allclose(averages['mean'], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(averages['var'], 0.9 + 0.1 * var * 120 / 119, rtol=1e-5)
  y = module.apply(variables | updates, jnp.asarray(x))
  want = (x - averages['mean']) / np.sqrt(averages['var'] + 1e-5)
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_group_norm_and_its_gradients():
  """Against Flax's; groups of several channels whose means and variances differ."""
  x, g = (
    jax.random.normal(jax.random.key(0), (2, 2, 5, 7, 12))
    * np.arange(1, 13, dtype=np.float32)[None, None, None, None]
  )
  x = x + np.arange(12, dtype=np.float32)[None, None, None]
  ours, flax = norm.GroupNorm(groups=4), nn.GroupNorm(num_groups=4, epsilon=1e-5)
  variables = scattered(ours.init(jax.random.key(1), x))

  def run(module):
    y, back = jax.vjp(module.apply, variables, x)
    return y, *jax.tree.leaves(back(g))

  for got, want in zip(run(ours), run(flax), strict=True):
    assert relative(got, want) < 1e-5


def test_a_dilated_depthwise_convolution_and_its_gradients():
  x, k, g = (jax.random.normal(jax.random.key(i), s) for i, s in
             enumerate([(2, 11, 9, 4), (5, 5, 4), (2, 11, 9, 4)]))  # fmt: skip

  def run(f):
    y, back = jax.vjp(lambda x, k: f(x, k, 3), x, k)
    return y, *back(g)

  for got, want in zip(run(convolution.depthwise), run(convolution._grouped), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_windows_are_padded_and_shifted_apart():
  from sm3det_jax.backbones import swin

  mask = swin.shift_mask(8, 8, 4, 2)
  assert mask.shape == (4, 16, 16) and (mask[0] == 0).all()  # of the upper left window all is near
  apart = (mask[1] != 0).reshape(4, 4, 4, 4)  # rows and columns of query and key
  assert (apart == (np.arange(4)[:, None] // 2 != np.arange(4) // 2)[None, :, None]).all()
  index = swin.relative_positions(3)
  assert (np.diag(index) == 12).all() and index.max() == 24 and index.min() == 0
  assert index[0, 1] + index[1, 0] == 24


PUBLISHED = {  # M parameters with ImageNet's classifier, and to how many: papers, repositories
  ('van', 'T'): (4.1, 0.05),
  ('van', 'S'): (13.9, 0.05),
  ('van', 'B'): (26.6, 0.05),
  ('lsknet', 'T'): (4.3, 0.06),  # 4.247 counted
  ('lsknet', 'S'): (14.4, 0.05),
  ('pvt_v2', 'T'): (3.67, 0.005),  # b0
  ('pvt_v2', 'S'): (14.01, 0.005),  # b1
  ('pvt_v2', 'B'): (25.36, 0.005),  # b2
  ('swin', 'T'): (28.29, 0.01),
  ('swin', 'S'): (49.61, 0.01),
  ('swin', 'B'): (87.77, 0.01),
  ('swin_v2', 'T'): (28.35, 0.01),
  ('swin_v2', 'S'): (49.73, 0.01),
  ('swin_v2', 'B'): (87.92, 0.01),
  ('convnext', 'T'): (28.59, 0.01),
  ('convnext', 'L'): (197.77, 0.01),
}


SIZES = [pytest.param(k, s, marks=[pytest.mark.slow] * (s in 'SB')) for k, s in PUBLISHED]


@pytest.mark.parametrize('kind, size', SIZES)
def test_dense_sizes(kind, size):
  c = config_lib.default()
  config_lib.use_backbone(c, kind, size)
  c.moe.blocks = ((),) * 4
  images = {'sar': jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)}
  shapes = jax.eval_shape(backbones.build(c, c.tasks).init, jax.random.key(0), images)['params']
  count = sum(x.size for x in jax.tree.leaves(shapes)) + 1000 * (c.backbone.channels[-1] + 1)
  published, tolerance = PUBLISHED[kind, size]
  assert abs(count / 1e6 - published) < tolerance
