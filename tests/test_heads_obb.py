"""S2ANet by itself: oriented filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from sm3det_jax.config import heads as head_configs
from sm3det_jax.heads import head_class, s2anet


def test_filters_turn_clockwise():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype(np.float32)
  turned = np.asarray(s2anet.oriented_kernels(jnp.asarray(kernel))).reshape(3, 3, 4, 2, 8)
  for quarters in range(4):
    np.testing.assert_array_equal(turned[..., 2 * quarters], np.rot90(kernel, -quarters))
  np.testing.assert_array_equal(turned[0, 1, ..., 1], kernel[0, 0])  # 45 degrees: a border tap on
  np.testing.assert_array_equal(turned[1, 1, ..., 1], kernel[1, 1])


def test_what_is_left_of_the_orientations_turns_with_the_image():
  conv, x = s2anet.OrientedConv(2), jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
  params = conv.init(jax.random.key(1), x)
  run = jax.jit(lambda x: s2anet.over_orientations(conv.apply(params, x)))
  turned = run(jnp.rot90(x, axes=(1, 2)))
  np.testing.assert_allclose(turned, jnp.rot90(run(x), axes=(1, 2)), atol=1e-6)


def test_channels_have_to_hold_eight_orientations():
  c = head_configs.s2anet()
  c.channels = 20
  head = head_class('s2anet')(FrozenConfigDict(c), 3)
  with pytest.raises(ValueError, match='channels=20 is no multiple of 8'):
    jax.eval_shape(lambda: head.init(jax.random.key(0), [jnp.zeros((1, 8, 8, 16))], method='touch'))
