"""Losses by their formulas in float64, at their limits, and with finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm3det_jax import losses

EXTREME = jnp.asarray([[-1e4, -80.0, -1.0, 0.0, 1.0, 80.0, 1e4]])


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def entropy(logits, targets):
  p = sigmoid(logits)
  return -targets * np.log(p) - (1 - targets) * np.log(1 - p)


def logits(seed, *shape):
  return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def test_cross_entropies():
  x, t = logits(0, 9, 4), np.random.default_rng(1).uniform(size=(9, 4)).astype(np.float32)
  np.testing.assert_allclose(losses.sigmoid_cross_entropy(x, t), entropy(x, t), rtol=1e-4)
  labels = np.arange(9) % 4
  p = np.exp(x.astype(np.float64))
  want = -np.log(p[np.arange(9), labels] / p.sum(1))
  np.testing.assert_allclose(losses.softmax_cross_entropy(x, labels), want, rtol=1e-4)


def one_hot(labels, k):
  return (labels[:, None] == np.arange(k)).astype(np.float64)


def test_focal():
  x, labels = logits(2, 10, 3), np.arange(10) % 4  # 3 is background
  t, p = one_hot(labels, 3), sigmoid(x)
  weight = np.where(t, 0.25 * (1 - p) ** 2, 0.75 * p**2)
  want = (weight * entropy(x, t)).sum(1)
  np.testing.assert_allclose(losses.sigmoid_focal(x, labels), want, rtol=1e-4)


def test_quality_focal():
  x, labels = logits(3, 10, 3), np.arange(10) % 4
  quality = np.linspace(0, 1, 10, dtype=np.float32)
  t = one_hot(labels, 3) * quality[:, None]
  want = (np.abs(t - sigmoid(x)) ** 2 * entropy(x, t)).sum(1)
  np.testing.assert_allclose(losses.quality_focal(x, labels, quality, 3), want, rtol=1e-4)


def test_distribution_focal_and_integral():
  x = logits(4, 5, 17)
  target = np.asarray([0, 3, 7.25, 15.9, 16], np.float32)
  log_p = x - np.log(np.exp(x.astype(np.float64)).sum(1, keepdims=True))
  low = np.minimum(target.astype(int), 15)
  rows, high = np.arange(5), target - low
  want = -(log_p[rows, low] * (1 - high) + log_p[rows, low + 1] * high)
  np.testing.assert_allclose(losses.distribution_focal(x, target), want, rtol=1e-5)
  sharp = jax.nn.one_hot(jnp.asarray([[2, 0, 16, 9]]), 17).reshape(1, 68) * 1e3
  np.testing.assert_allclose(losses.integral(sharp, 16), [[2, 0, 16, 9]], atol=1e-5)
  np.testing.assert_allclose(losses.integral(jnp.zeros((2, 3, 68)), 16), 8, atol=1e-5)


def test_l1_and_smooth_l1():
  pred, target = jnp.asarray([0.0, 0.1, -1.5]), jnp.zeros(3)
  np.testing.assert_allclose(losses.l1(pred, target), [0, 0.1, 1.5])
  np.testing.assert_allclose(losses.smooth_l1(pred, target, 1.0), [0, 0.005, 1.0], rtol=1e-6)
  np.testing.assert_allclose(losses.smooth_l1(pred, target, 0.1), [0, 0.05, 1.45], rtol=1e-6)
  np.testing.assert_allclose(losses.smooth_l1(pred, target, 0.0), losses.l1(pred, target))
  for beta in (1.0, 0.0):
    assert jax.grad(lambda p, b=beta: losses.smooth_l1(p, 0.0, b))(0.0) == 0


@pytest.mark.parametrize(
  'pred,want',
  [
    ([0, 0, 2, 2], 0),
    ([0, 0, 1, 2], 0.5),
    ([2, 0, 4, 2], 1),  # touching: the envelope is their union
    ([4, 0, 6, 2], 1 + 1 / 3),
    ([1e6, 1e6, 1e6 + 1, 1e6 + 1], 2),
  ],
)
def test_giou_by_hand(pred, want):
  target = jnp.asarray([[0.0, 0, 2, 2]])
  np.testing.assert_allclose(losses.giou(jnp.asarray([pred], jnp.float32), target), want, atol=1e-5)


corners = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4)


@settings(max_examples=50, deadline=None)
@given(corners, corners)
def test_giou_bounds_symmetry_and_gradient(a, b):
  a, b = (np.sort(np.reshape(x, (2, 2)), 0).reshape(4).astype(np.float32) for x in (a, b))
  value, grad = giou_and_grad(a, b)
  assert -1e-5 <= value <= 2 + 1e-5 and np.isfinite(grad).all()
  np.testing.assert_allclose(value, giou_and_grad(b, a)[0], atol=1e-5)


giou_and_grad = jax.jit(jax.value_and_grad(losses.giou))


@pytest.mark.parametrize(
  'loss',
  [
    lambda x: losses.sigmoid_cross_entropy(x, jnp.ones_like(x)),
    lambda x: losses.softmax_cross_entropy(x, jnp.zeros(1, jnp.int32)),
    lambda x: losses.sigmoid_focal(x, jnp.zeros(1, jnp.int32)),
    lambda x: losses.quality_focal(x, jnp.zeros(1, jnp.int32), jnp.ones(1), 7),
    lambda x: losses.distribution_focal(x, jnp.full(1, 2.5)),
    lambda x: losses.integral(x, 6),
  ],
)
def test_extreme_logits_and_half_precision(loss):
  value, grad = jax.value_and_grad(lambda x: loss(x).sum())(EXTREME)
  assert jnp.isfinite(value) and jnp.isfinite(grad).all()
  assert loss(EXTREME.astype(jnp.bfloat16)).dtype == jnp.float32
  with jax.enable_x64(True):
    assert loss(jnp.asarray(np.asarray(EXTREME, np.float64))).dtype == jnp.float64
