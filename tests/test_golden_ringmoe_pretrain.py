"""A whole pre-training step of a tiny RingMoE against recorded float64 values, both profiles."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax import model as models
from sm3det_jax import pruning
from sm3det_jax.interop import ringmoe

TOLERANCES = {'code': (1e-5, 5e-5), 'paper': (1e-4, 2e-3)}  # of pictures, of gradients


def close(name, got, want, tolerance, floor=1e-7):
  assert got.shape == want.shape, name
  error = np.abs(np.asarray(got, np.float64) - want).max()
  assert error <= tolerance * np.abs(want).max() + floor, name


@pytest.mark.slow
@pytest.mark.drawn(3)
@pytest.mark.parametrize('profile', TOLERANCES)
def test_losses_pictures_gradients_and_sub_models(profile, golden):
  if not (folder := golden / 'ringmoe/case5_pretrain').is_dir():
    pytest.skip('../shared/golden/ringmoe (recorded values of RingMoE) is not here')
  z, slopes = (dict(np.load(folder / f'pretrain_{profile}{end}.npz')) for end in ('', '_grads'))
  config = ringmoe.config(json.loads(str(z['meta_json'])))
  arrays = {k.removeprefix('w.'): v for k, v in z.items() if k.startswith('w.')}
  model, variables = models.build(config), ringmoe.from_state_dict(arrays, config)
  back = ringmoe.to_state_dict(variables, config)
  assert back.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array)
  last = lambda name: jnp.asarray(np.moveaxis(z[name], 1, -1))
  batch = {
    name: {'images': last(f'{name}.image'), 'masks': jnp.asarray(z[f'{name}.mask'])}
    for name in config.tasks
  }
  small, cut = pruning.submodel(config, variables, ('sar_l2',))

  def run(params):
    loss = jax.value_and_grad(lambda p: model.loss({'params': p}, batch), has_aux=True)
    x = batch['sar_l2']['images']
    pair = model.features(variables, x, 'sar_l2'), models.build(small).features(cut, x, 'sar_l2')
    return loss(params), model.reconstruct({'params': params}, batch), pair

  ((total, (terms, _)), grads), pictures, (whole, alone) = jax.jit(run)(variables['params'])
  close('total', total, z['total_loss'], 5e-6)
  close('balance', terms['moe/balance'], z['aux_loss'], 1e-5)
  picture, slope = TOLERANCES[profile]
  for name in config.tasks:
    close(name, terms[f'{name}/reconstruction'], z[f'{name}.loss'], 5e-6)
    close(name, jnp.moveaxis(pictures[name], -1, 1), z[f'{name}.recon'], picture)
  found = ringmoe.to_state_dict({'params': grads}, config)
  assert {f'd_{name}' for name in found} == slopes.keys()
  for name, array in found.items():
    close(name, array, slopes[f'd_{name}'], slope, 1e-6)
  close('sub-model', alone[1], np.asarray(whole[1]), 1e-5)
  assert sum(a.size for a in jax.tree.leaves(cut)) == z['sub.sar_l2.n_params']
