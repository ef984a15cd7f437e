"""Swin-v2 where no recorded values reach: small maps, padding, version 1's attention, its FFN."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax import backbones
from sm3det_jax import config as config_lib
from sm3det_jax.backbones import stages, swin_v2
from sm3det_jax.interop import ringmoe
from sm3det_jax.layers.norm import Norm
from sm3det_jax.layers.windows import WindowAttention

ARGUMENTS = dict(image=32, embed=8, depths=[1, 2], heads=[1, 2], window=4, ratio=2)


def attention(kind='cosine', size=3, shift=1, key_bias=True):
  return swin_v2.Attention(heads=2, size=size, shift=shift, kind=kind, key_bias=key_bias)


def drawn(module, x, seed=0):
  """Variables of which each array matters."""
  leaves, form = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), x))
  rng = np.random.default_rng(seed)
  draw = lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape), jnp.float32)
  return jax.tree.unflatten(form, [draw(a) for a in leaves])


@pytest.fixture(scope='module')
def x():
  return jax.random.normal(jax.random.key(0), (2, 5, 7, 4))


def test_attention_by_table_is_that_of_version_1(x):
  """Shifted and padded; keys have a bias there."""
  variables = drawn(attention('table'), x)
  run = lambda module, params: jax.jit(module.apply)({'params': params}, x)
  p = dict(variables['params'])
  joined = {n: jnp.concatenate([p[m][n] for m in 'qkv'], -1) for n in ('kernel', 'bias')}
  other = {'qkv': joined, 'proj': p['proj'], 'bias_table': p['bias_table']}
  want = run(WindowAttention(heads=2, size=3, shift=1, qkv_bias=True), other)
  np.testing.assert_allclose(run(attention('table'), p), want, atol=1e-5)
  assert np.abs(run(attention('table', shift=0), p) - want).max() > 0.1
  assert 'bias' not in drawn(attention('table', key_bias=False), x)['params']['k']


@pytest.mark.parametrize('kind, size', [('cosine', 5), ('cosine', 7), ('table', 7)])
def test_a_map_no_larger_than_a_window_is_one(x, kind, size):
  """By its smaller side; then nothing is shifted, and a table gives its middle."""
  variables = drawn(attention(kind, size, 2), x)
  got = jax.jit(attention(kind, size, 2).apply)(variables, x)
  if kind == 'table':
    table = variables['params']['bias_table'].reshape(13, 13, -1)[2:-2, 2:-2]
    variables['params']['bias_table'] = table.reshape(81, -1)
  want = jax.jit(attention(kind, 5, 0).apply)(variables, x)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_padding_is_keys_of_zeros(x):
  """As transformers has it: a map of 5x7 is as the same map with zeros around, 8x8."""
  module, whole = attention('cosine', 4, 2), jnp.pad(x, ((0, 0), (0, 3), (0, 1), (0, 0)))
  variables = drawn(module, x)
  run = jax.jit(module.apply)
  got, want = run(variables, x), run(variables, whole)[:, :5, :7]
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('key_bias', [True, False])
def test_zeros_have_a_slope_that_is_a_number(key_bias):
  """A blank image and biases of zero, as they start: queries and keys have no direction."""
  x, module = jnp.zeros((1, 5, 5, 4)), attention(key_bias=key_bias)
  slopes = jax.grad(lambda v: (module.apply(v, x) - 1).sum())
  found = jax.jit(lambda key: slopes(module.init(key, x)))(jax.random.key(0))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(found))


def test_the_largest_scale_is_100():
  q, k, v = (jax.random.normal(jax.random.key(i), (1, 4, 1, 3)) for i in range(3))
  run = jax.jit(lambda s: swin_v2.cosine_attention(q, k, v, s, jnp.zeros((1, 4, 4))))
  limit, beyond = (jnp.full(1, np.log(scale), jnp.float32) for scale in (100, 300))
  np.testing.assert_array_equal(run(beyond), run(limit))
  assert jax.grad(lambda s: run(s).sum())(beyond) == 0
  unit = lambda x: np.asarray(x / jnp.linalg.norm(x, axis=-1, keepdims=True))[0, :, 0]
  logits = 7 * unit(q) @ unit(k).T
  weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  got = run(jnp.full(1, np.log(7), jnp.float32))[0, :, 0]
  np.testing.assert_allclose(got, weights @ v[0, :, 0], atol=1e-5)


def test_masked_pairs_do_not_meet():
  q, k, v = (jax.random.normal(jax.random.key(i), (2, 4, 1, 3)) for i in range(3))
  apart = np.where(np.arange(4)[:, None] // 2 == np.arange(4) // 2, 0.0, -100.0)
  mask = jnp.asarray(np.stack([apart, 0 * apart]), jnp.float32)
  run = lambda v: swin_v2.cosine_attention(q, k, v, jnp.zeros(1), jnp.zeros((1, 4, 4)), mask)
  run = jax.jit(run)
  changed = np.abs(run(v.at[:, 3].add(5)) - run(v)).max((2, 3))
  assert (changed[0, :2] < 1e-6).all() and (changed[0, 2:] > 0.1).all() and (changed[1] > 0.1).all()


def test_a_window_of_one_location_has_a_bias():
  w1, b1, w2 = jnp.ones((2, 3)), jnp.ones(3), jnp.ones((3, 2))
  np.testing.assert_allclose(swin_v2.position_bias(1, w1, b1, w2), 16 / (1 + np.exp(-3.0)), 1e-6)


class Scaled(swin_v2.Block):
  """Another layer in the FFN's place, which goes by the images' tasks."""

  def feed_forward(self, x, key, tasks):
    scale = self.param('scale', jax.nn.initializers.ones, (3,))
    return x * scale[tasks][:, None, None, None], {}


class OfTasks(swin_v2.SwinV2, kw_only=True):
  block_type = Scaled


def test_another_layer_may_stand_in_the_ffns_place():
  module = OfTasks(tasks=('a', 'b'), depths=(2, 1), channels=(4, 8), moe_blocks=((), ()), moe={},
                   heads=(1, 2), windows=(2, 2), output_norms='last')  # fmt: skip
  image = jax.random.normal(jax.random.key(0), (1, 10, 13, 3))
  variables = drawn(module, {'a': image, 'b': image})
  assert set(variables['params']['stage0_block1']) == {'attention', 'norm1', 'norm2', 'scale'}
  assert {n for n in variables['params'] if n.startswith('norm')} == {'norm1'}
  variables['params']['stage0_block1']['scale'] = jnp.asarray([1.0, -2.0, 0.0])
  found = jax.jit(module.apply)(variables, {'a': image, 'b': image})
  assert isinstance(found, stages.Output) and found.stages['a'][1].shape == (1, 2, 2, 8)
  assert np.abs(found.stages['a'][0] - found.stages['b'][0]).max() > 0.1
  for task in 'ab':  # without norm, before merging
    np.testing.assert_array_equal(found.stages[task][0], found.taps[task]['stage0'])
    last = Norm(1e-5).apply({'params': variables['params']['norm1']}, found.taps[task]['stage1'])
    np.testing.assert_allclose(found.stages[task][1], last, atol=1e-5)


def made(**changes):
  config = ringmoe.config(ARGUMENTS | changes)
  return config, backbones.build(config, config.tasks)


def test_profiles_of_ringmoe():
  paper, code = (made(profile=name)[0].backbone for name in ('paper', 'code'))
  assert (paper.attention, paper.key_bias, paper.gelu) == ('cosine', False, 'erf')
  assert (code.attention, code.key_bias, code.gelu) == ('table', True, 'tanh')
  assert paper.epsilons == (1e-5,) * 4 and code.epsilons == (1e-6, 1e-6, 1e-4, 1e-6)
  assert paper.output_norms == code.output_norms == 'last' and paper.windows == (4, 4)
  options = dict(attn='v1', eps=1e-3, kbias=False)
  changed = made(options=options, depths=[1, 1, 1], heads=[1, 1, 1])[0].backbone
  assert (changed.attention, changed.key_bias, changed.windows) == ('table', False, (4, 4, 2))
  assert changed.epsilons == (1e-5, 1e-3, 1e-5, 1e-5)


def test_each_norm_and_ffn_has_its_own_options(monkeypatch):
  seen, gelus = {}, set()

  def record(self, x):
    seen[self.name] = self.epsilon
    return x

  def record_gelu(self, x):
    gelus.add((self.hidden, self.gelu))
    return x

  monkeypatch.setattr(swin_v2.Norm, '__call__', record)
  monkeypatch.setattr(swin_v2.FeedForward, '__call__', record_gelu)
  changes = dict(gelu='tanh', eps_patch=0.1, eps=0.2, eps_merge=0.3, eps_final=0.4)
  config, module = made(**changes)
  jax.eval_shape(module.init, jax.random.key(0), {'opt': jnp.zeros((1, 32, 32, 3))})
  # the last norm has the name of a block's first
  assert seen == {'stem_opt_norm': 0.1, 'norm2': 0.2, 'downsample1_norm': 0.3, 'norm1': 0.4}
  assert gelus == {(16, 'tanh'), (32, 'tanh')}


@pytest.mark.parametrize('profile', ['paper', 'code'])
def test_names_of_ringmoe_and_back(profile):
  config, module = made(profile=profile)
  variables = drawn(module, {'opt': jnp.zeros((1, 32, 32, 3))})
  arrays = ringmoe.to_state_dict({'params': {'backbone': variables['params']}}, config)
  assert arrays['s1.b1.ffn.w1'].shape == (16, 32) and arrays['s0.merge.w'].shape == (16, 32)
  own = {'rel_table', 'k.b'} if profile == 'code' else {'logit_scale', 'cpb.w1', 'cpb.b1', 'cpb.w2'}
  own |= {f'{n}.{a}' for n in ('q', 'k', 'v', 'proj') for a in 'wb'} - {'k.b'}
  start = 's1.b0.attn.'
  assert {n.removeprefix(start) for n in arrays if n.startswith(start)} == own
  back = ringmoe.from_state_dict(arrays, config)['params']['backbone']
  jax.tree.map(np.testing.assert_array_equal, back, variables['params'])
  lost = arrays.pop('norm.g')
  with pytest.raises(ValueError, match=r"missing \['norm.g'\], unexpected \['norm.gamma'\]"):
    ringmoe.from_state_dict(arrays | {'norm.gamma': lost}, config)


def test_arguments_of_ringmoe_that_do_not_hold():
  for change, message in (
    (dict(profile='codes'), "profile='codes': expected paper, code"),
    (dict(attn='v3'), "attn='v3': expected v1, v2"),
    (dict(patch=8), 'patch=8 is not supported here, only 4'),
  ):
    with pytest.raises(ValueError, match=message):
      ringmoe.config(ARGUMENTS | change)


def test_a_config_of_ringmoe_is_text_and_back():
  config = ringmoe.config(json.loads(json.dumps(ARGUMENTS)))
  assert config_lib.copied(config).backbone.depths == (1, 2)
  assert [(name, task.kind, task.bands) for name, task in config.tasks.items()] == [
    ('opt', 'image', 3)
  ]
