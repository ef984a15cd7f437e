"""S2ANet and RoI Transformer by themselves: oriented filters, and heads that learn two objects."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import FrozenConfigDict

from sm3det_jax.config import heads as head_configs
from sm3det_jax.geometry import iou
from sm3det_jax.heads import head_class, s2anet

SHAPES = jnp.asarray([[64, 64]])
TARGETS = {
  'boxes': jnp.asarray(
    [[[20, 22, 30, 14, 0.5], [44, 42, 14, 30, 9.0], [30, 30, 20, 20, 0]]], jnp.float32
  ),
  'labels': jnp.asarray([[0, 2, 1]]),
  'valid': jnp.asarray([[True, True, False]]),
  'shapes': SHAPES,
}


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


def tiny(kind):
  c = head_configs.HEADS[kind].defaults()
  c.channels, c.score_threshold, c.max_detections = 16, 0.2, 8
  if kind == 's2anet':
    c.strides, c.convs = (8, 16), 1
  else:
    c.strides, c.anchor_scales = (4, 8), (6.0,)
    c.proposals.update(pre_nms=32, max_proposals=32)
    c.rpn.samples = c.roi.samples = 32
    c.roi.fc_channels = 32
  return c


@pytest.mark.parametrize(
  'kind', ['s2anet', pytest.param('roi_transformer', marks=pytest.mark.slow)]
)
def test_a_tiny_head_learns_two_objects(kind):
  c = tiny(kind)
  head, keys = head_class(kind)(FrozenConfigDict(c), 3), jax.random.split(jax.random.key(0), 2)
  features = [jax.random.normal(keys[0], (1, 64 // s, 64 // s, 16)) for s in c.strides]
  tx = optax.adam(3e-3)

  def loss(params, key):
    terms = head.apply({'params': params}, features, TARGETS, key, method='loss')
    return sum(terms.values()), terms

  @jax.jit
  def train(params):
    def step(state, key):
      params, moments = state
      (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(params, key)
      updates, moments = tx.update(grads, moments)
      return (optax.apply_updates(params, updates), moments), terms

    with jax.numpy_dtype_promotion('standard'):
      (params, _), terms = jax.lax.scan(
        step, (params, tx.init(params)), jax.random.split(keys[1], 150)
      )
    return params, terms

  params = jax.jit(lambda k: head.init(k, features, method='touch'))(keys[0])['params']
  params, terms = train(params)
  assert set(terms) == set(head.groups(c))
  assert set(params) == {*head.groups(c).values(), *head.SHARED}
  for name, values in terms.items():
    assert np.isfinite(values).all() and values[-20:].mean() < 0.5 * values[:5].mean(), name
  detect = jax.jit(lambda p: head.apply({'params': p}, features, SHAPES, method='detect'))
  found = jax.tree.map(lambda x: x[0], detect(params))
  assert (found.boxes[:, 2] >= found.boxes[:, 3])[found.valid].all()
  assert (jnp.abs(found.boxes[:, 4]) <= np.pi / 2 + 1e-6)[found.valid].all()
  overlaps = iou.rotated_iou(found.boxes, TARGETS['boxes'][0])
  for i in (0, 1):
    hit = found.valid & (found.labels == TARGETS['labels'][0, i]) & (overlaps[:, i] > 0.6)
    assert hit.any(), (i, found)


def test_channels_have_to_hold_eight_orientations():
  c = tiny('s2anet')
  c.channels = 20
  head = head_class('s2anet')(FrozenConfigDict(c), 3)
  with pytest.raises(ValueError, match='channels=20 is no multiple of 8'):
    jax.eval_shape(lambda: head.init(jax.random.key(0), [jnp.zeros((1, 8, 8, 16))], method='touch'))
