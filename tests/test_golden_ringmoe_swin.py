"""Swin-v2 against recorded float64 values of RingMoE's backbone, dense FFNs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax import backbones
from sm3det_jax.backbones import swin, swin_v2
from sm3det_jax.interop import ringmoe


@pytest.fixture(scope='module')
def load(golden):
  if not (folder := golden / 'ringmoe/case1_swinv2').is_dir():
    pytest.skip('../shared/golden/ringmoe (recorded values of RingMoE) is not here')
  return lambda name: dict(np.load(folder / f'{name}.npz'))


def weights(z, start='w.'):
  return {k.removeprefix(start): v for k, v in z.items() if k.startswith(start)}


def close(got, want, tolerance, floor=0.0):
  assert got.shape == want.shape
  assert np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max() + floor


def all_close(got, want, tolerance, floor):
  assert set(got) == set(want)
  for name, array in want.items():
    close(got[name], array, tolerance, floor)


def channels_last(x):
  return jnp.asarray(np.moveaxis(x, 1, -1))


def test_position_biases_and_shift_masks(load):
  """Hidden units that pass a coordinate on show coordinates and index of a window."""
  z, pick = load('tables'), jnp.asarray([[1, -1, 0, 0], [0, 0, 1, -1]], jnp.float32)
  for size in (2, 4, 6, 12):
    coordinates = z[f'cpb_coords_w{size}'].reshape(-1, 2)[z[f'rel_index_w{size}']]
    want = 16 / (1 + np.exp(-coordinates.transpose(2, 0, 1)))
    close(swin_v2.position_bias(size, pick, jnp.zeros(4), pick.T), want, 1e-6)
  for name in (k for k in z if k.startswith('shift_mask_')):
    hw, size, shift = name.removeprefix('shift_mask_').split('_')
    mask = swin.shift_mask(*map(int, hw.split('x')), int(size[1:]), int(shift[1:]))
    np.testing.assert_array_equal(mask, z[name])


def test_attention_in_windows_and_its_gradients(load):
  z = load('window_attention')
  meta, want = json.loads(str(z['meta_json'])), weights(z, 'd_clamp_max.')

  def attention(p, x):
    linear = lambda name, x: x @ p[f'{name}.w'].T + p[f'{name}.b'][None, None]
    q, k, v = (linear(n, x).reshape(*x.shape[:2], meta['heads'], -1) for n in 'qkv')
    bias = swin_v2.position_bias(meta['window'], p['cpb.w1'].T, p['cpb.b1'], p['cpb.w2'].T)
    y = swin_v2.cosine_attention(q, k, v, p['logit_scale'], bias)
    return linear('proj', y.reshape(x.shape))

  params = {name: jnp.asarray(z[name]) for name in want}

  def run(p, x, cotangent):
    y, pull = jax.vjp(lambda p: attention(p, x), p)
    return y, pull(cotangent)[0]

  y, grads = jax.jit(run)(params, jnp.asarray(z['x']), jnp.asarray(z['cotangent']))
  close(y, z['y_clamp_max'], 3e-5)
  all_close(grads, want, 2e-4, 1e-6)


@pytest.mark.slow
def test_the_network_and_its_gradients(load):
  z, want = load('swinv2'), weights(load('swinv2_grads'), 'd_')
  meta, arrays = json.loads(str(z['meta_json'])), weights(z)
  config, stages = ringmoe.config(meta), len(meta['depths'])
  module, params = backbones.build(config, config.tasks), ringmoe.from_state_dict(arrays, config)
  back = ringmoe.to_state_dict(params, config)
  assert back.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array)
  cotangents = [jnp.asarray(z[f'cotangent{i}']) for i in range(stages + 1)]

  def objective(params, image):
    found = module.apply({'params': params}, {'opt': image})
    outs = [found.taps['opt'][f'stage{i}'] for i in range(stages)] + found.stages['opt'][-1:]
    outs = [x.reshape(1, -1, x.shape[-1]) for x in outs]
    return sum((x * c).sum() for x, c in zip(outs, cotangents, strict=True)) / 100, outs

  (_, outs), (grads, slope) = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(
    params['params']['backbone'], channels_last(z['image'])
  )
  for i in range(stages):
    close(outs[i], z[f'stage{i}'], 1e-4)
  close(outs[-1], z['final'], 1e-4)
  grads = ringmoe.to_state_dict({'params': {'backbone': grads}}, config)
  all_close(grads | {'image': np.moveaxis(np.asarray(slope), -1, 1)}, want, 2e-3, 1e-6)
