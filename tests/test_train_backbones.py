"""Training steps of a detector with each backbone, and what batch norm keeps between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import batch_of, tiny_config

from sm3det_jax import config as config_lib
from sm3det_jax import detector, sharding
from sm3det_jax.layers import convolution
from sm3det_jax.optim import optimizer, training


def config_with(kind):
  """One horizontal task, the cheapest head to compile, and a tiny backbone with MoE."""
  config = tiny_config(groups=8, ema=0.0)
  del config.tasks.rgb, config.tasks.ifr
  config.tasks.sar.ratio, config.batch_size = 1, 8
  config_lib.use_backbone(config, kind)
  config.backbone.update(depths=(1, 1, 1, 1), channels=(8, 16, 16, 32))
  small = dict(
    heads=(1, 2, 2, 2), mlp_ratios=(2.0,) * 4, layer_scale=1.0, window=4, windows=(4,) * 4
  )
  config.backbone.update({k: v for k, v in small.items() if k in config.backbone})
  config.moe.update(blocks=((), (), (0,), (0,)), num_experts=4)
  return config_lib.check(config)


def parts(config):
  model = detector.build(config)
  return model, optimizer.build(config, model.term_groups)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['convnext', 'lsknet', 'pvt_v2', 'swin', 'swin_v2', 'van'])
def test_a_step_keeps_the_form_of_the_state(kind):
  """Shapes and types alone: nothing is compiled."""
  config = config_with(kind)
  state = jax.eval_shape(lambda: training.create_state(config, *parts(config)))
  batch = jax.tree.map(jnp.asarray, batch_of(config, 0))
  new, metrics = jax.eval_shape(training.train_step(config, *parts(config)), state, batch)
  assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
  assert ('batch_stats' in state['model']['variables']) == (kind in ('lsknet', 'van'))
  names = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(state['training'])]
  assert not any('batch_stats' in n for n in names)  # the optimizer does not see them
  assert {'loss/sar/cls', 'loss/moe/balance'} <= set(metrics['mean'])


@pytest.mark.slow
def test_batch_norm_in_training(monkeypatch):
  """Every average moves in every step."""
  monkeypatch.setattr(convolution, '_shifted', convolution._grouped)  # compiles faster
  monkeypatch.setattr(convolution, '_kernel_gradient_by_tap', convolution._kernel_gradient_grouped)
  config = config_with('van')
  mesh = sharding.make_mesh({'data': 1, 'expert': 1}, jax.devices()[:1])
  state = training.create_sharded_state(config, *parts(config), mesh)
  step, seen = training.sharded_step(config, *parts(config), mesh), []
  with jax.set_mesh(mesh):
    for i in range(2):
      seen.append(jax.device_get(state['model']['variables']['batch_stats']))
      state, metrics = step(state, sharding.put_batch(batch_of(config, i), mesh))
  seen.append(jax.device_get(state['model']['variables']['batch_stats']))
  fresh, first, second = seen
  differ = lambda a, b: jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), a, b))
  assert all(differ(fresh, first)) and all(differ(first, second))
  assert np.isfinite(metrics['mean']['total']) and metrics['last']['skipped'] == 0
