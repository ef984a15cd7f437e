"""The schedule against the official traces, one AdamW step by hand, groups, stable state."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sm3det_jax import config as config_lib
from sm3det_jax.optim import optimizer

GROUPS = {'sar/cls': 'sar/bbox_head', 'rgb/rpn_cls': 'rgb/rpn_head', 'rgb/cls': 'rgb/roi_head'}
LOSSES = {'sar/cls': 1.0, 'rgb/rpn_cls': 0.5, 'rgb/cls': 2.0, 'moe/balance': 0.01}


def _params():
  return {
    'backbone': {'stage': {'experts_w1': jnp.full((8, 2, 3), 0.5, jnp.float32)}},
    'neck': {'kernel': jnp.ones((3, 2))},
    'heads_sar': {'bbox_head': {'kernel': jnp.ones((2,))}},
    'heads_rgb': {'rpn_head': {'bias': jnp.ones(1)}, 'roi_head': {'bias': jnp.ones(4)}},
  }


def test_schedule_is_the_official_one(golden):
  z = np.load(golden / 'dla_A/dla_trace.npz')
  optim = ConfigDict(
    dict(lr=1e-4, warmup_steps=500, warmup_ratio=1 / 3, milestones=(600, 700), gamma=0.1)
  )
  got = jax.vmap(optimizer.schedule(optim))(jnp.arange(800))
  multipliers = z['main.lr_multiplier'][:, 0]
  warmed_up = z['main_intended_warmup.lr_multiplier'][:, 0] / multipliers
  decayed = z['main_stepdecay.lr'][:, 0] / multipliers
  np.testing.assert_allclose(got, warmed_up * decayed, rtol=1e-6)
  no_warmup = optimizer.schedule(ConfigDict(optim.to_dict() | dict(warmup_steps=0)))
  np.testing.assert_allclose(jax.vmap(no_warmup)(jnp.arange(800)), decayed, rtol=1e-6)


def test_one_step_by_hand():
  """Clipping over all parameters at once, Adam, decay of every parameter, DLA over both."""
  config = config_lib.default()
  config.optim.update(warmup_steps=0, milestones=(), lr=0.1, weight_decay=0.05, clip_norm=1.0)
  config.dla.warmup_steps = 0
  tx, params = optimizer.build(config, GROUPS), _params()
  grads = jax.tree.map(lambda p: 3.0 * jnp.ones_like(p), params)
  updates, state = tx.update(grads, tx.init(params), params, losses=LOSSES)
  # Adam's first step is the gradient's sign, but for its epsilon beside the clipped gradient
  size = sum(p.size for p in jax.tree.leaves(params))
  clipped = 3 / np.sqrt(9 * size)
  adam = clipped / (clipped + 1e-8)
  shared = 2 / (1 + np.exp(-(1 - 0.4) * 3))  # all histories equal their losses
  np.testing.assert_allclose(updates['neck']['kernel'], -0.1 * (adam + 0.05) * shared, rtol=1e-5)
  experts = updates['backbone']['stage']['experts_w1']
  np.testing.assert_allclose(experts, -0.1 * (adam + 0.05 * 0.5) * shared, rtol=1e-5)
  np.testing.assert_allclose(
    updates['heads_sar']['bbox_head']['kernel'], -0.1 * (adam + 0.05), rtol=1e-5
  )
  assert float(optimizer.multipliers(state)['shared']) == pytest.approx(shared, rel=1e-6)


def test_state_keeps_its_types():
  tx, params = optimizer.build(config_lib.default(), GROUPS), _params()
  state = tx.init(params)
  step = jax.jit(lambda g, s, p: tx.update(g, s, p, losses=LOSSES)[1])
  assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, step(params, state, params))


def test_every_parameter_has_one_group():
  groups = optimizer.parameter_groups(_params(), GROUPS)
  assert groups['heads_rgb'] == {
    'rpn_head': {'bias': 'rgb/rpn_head'},
    'roi_head': {'bias': 'rgb/roi_head'},
  }
  assert groups['backbone']['stage']['experts_w1'] == groups['neck']['kernel'] == 'shared'
  stray = _params() | {'heads_ifr': {'rpn_head': {'bias': jnp.ones(1)}}}
  with pytest.raises(ValueError, match='no rule of .* matches heads_ifr/rpn_head/bias'):
    optimizer.build(config_lib.default(), GROUPS).init(stray)


def test_what_has_no_loss_term_of_its_own_in_a_head_is_shared():
  params = _params()
  params['heads_sar']['align_conv'] = {'kernel': jnp.ones(1)}
  groups = optimizer.parameter_groups(params, GROUPS)
  assert groups['heads_sar']['align_conv']['kernel'] == 'shared'
  with pytest.raises(ValueError, match="rule 'heads_sar/dfl_head/.*' matches nothing"):
    optimizer.parameter_groups(params, GROUPS | {'sar/dfl': 'sar/dfl_head'})


def test_overview(caplog):
  with caplog.at_level(logging.INFO):
    optimizer.log_parameters(_params(), GROUPS)
  lines = [line.split() for line in caplog.messages]
  assert ['shared', '54', 'parameters'] in lines and ['all', '61', 'parameters'] in lines
  assert ['rgb/roi_head', '4', 'parameters'] in lines
