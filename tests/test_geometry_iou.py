"""IoU of horizontal and oriented boxes against float64 polygon clipping (shapely)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sm3det_jax.geometry import iou

aligned = jax.jit(iou.rotated_iou_aligned)


def random_boxes(r, n, center=300.0, side=200.0):
  return np.concatenate(
    [r.uniform(0, center, (n, 2)), r.uniform(2, side, (n, 2)), r.uniform(-4, 4, (n, 1))], 1
  ).astype(np.float32)


def polygon(box):
  cx, cy, w, h, theta = np.asarray(box, np.float64)
  rotation = np.array([[np.cos(theta), np.sin(theta)], [-np.sin(theta), np.cos(theta)]])
  return shapely.Polygon(
    np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2 @ rotation + np.array([cx, cy])
  )


def exact(a, b):
  a = np.asarray(a, np.float64) - [*b[:2], 0, 0, 0]  # so that float64 clipping stays exact far out
  p, q = polygon(a), polygon([0, 0, *b[2:]])
  union = p.area + q.area - p.intersection(q).area
  return p.intersection(q).area / union if union else 0.0


def test_random_pairs():
  r = np.random.default_rng(0)
  a, b = random_boxes(r, 40), random_boxes(r, 30)
  want = [[exact(x, y) for y in b] for x in a]
  assert np.count_nonzero(want) > 400
  np.testing.assert_allclose(jax.jit(iou.rotated_iou)(a, b), want, atol=2e-6)
  pairs = aligned(a[:30], b)
  np.testing.assert_allclose(pairs, np.diagonal(np.asarray(want)[:30]), atol=2e-6)


@pytest.mark.parametrize('noise', [0, 1e-7, 1e-5, 1e-3, 1e-2])
def test_near_duplicates_far_from_the_origin(noise):
  """The case that breaks the usual clipping by candidate points: IoU 0.33 instead of 1."""
  r = np.random.default_rng(1)
  a = random_boxes(r, 200, 20000, 800)
  a[0] = 0, 0, 180.6422271729, 136.3633728027, 0.9559648633
  b = (a + r.normal(size=a.shape) * noise * np.array([1, 1, 1, 1, 0.01])).astype(np.float32)
  want = [exact(x, y) for x, y in zip(a, b, strict=True)]
  np.testing.assert_allclose(aligned(a, b), want, atol=2e-6)


def test_the_same_rectangle_written_differently():
  a = random_boxes(np.random.default_rng(2), 100)
  swapped = a[:, [0, 1, 3, 2, 4]] + np.float32([0, 0, 0, 0, np.pi / 2])
  for b in (a, a + np.float32([0, 0, 0, 0, np.pi]), swapped):
    np.testing.assert_allclose(aligned(a, b), 1, atol=3e-6)


SPECIAL = {
  'touching sides': ([0, 0, 2, 2, 0], [2, 0, 2, 2, 0], 0),
  'touching corners': ([0, 0, 2, 2, 0], [2, 2, 2, 2, 0], 0),
  'one inside of the other': ([0, 0, 8, 4, 0.3], [0, 0, 4, 2, 0.3], 0.25),
  'cross': ([0, 0, 8, 2, 0], [0, 0, 8, 2, np.pi / 2], 4 / 28),
  'equal': ([9, 9, 8, 2, 1], [9, 9, 8, 2, 1], 1),
  'equal 1000:1': ([0, 0, 4000, 4, 0.7], [0, 0, 4000, 4, 0.7], 1),
  'no width': ([0, 0, 0, 5, 0], [0, 0, 4, 4, 0], 0),
  'padding': ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], 0),
  'apart': ([5, 5, 3, 3, np.pi / 4], [500, 5, 3, 3, 0], 0),
}


def test_special_pairs_and_their_gradients():
  a, b, want = (np.asarray(x, np.float32) for x in zip(*SPECIAL.values(), strict=True))
  np.testing.assert_allclose(aligned(a, b), want, atol=1e-6)
  np.testing.assert_allclose(aligned(b, a), want, atol=1e-6)
  equal = random_boxes(np.random.default_rng(4), 40, 20000)
  for grad in gradients(np.concatenate([a, equal]), np.concatenate([b, equal])):
    assert np.isfinite(grad).all() and np.abs(grad).max() < 1


@jax.jit
def gradients(a, b):
  return jax.grad(lambda a, b: iou.rotated_iou_aligned(a, b).sum(), (0, 1))(a, b)


box = st.tuples(*[st.floats(-50, 50)] * 2, *[st.floats(0.125, 100)] * 2, st.floats(-10, 10)).map(
  lambda x: np.asarray(x, np.float32)
)


@settings(max_examples=80, deadline=None)
@given(box, box, st.floats(-3, 3))
def test_properties(a, b, turn):
  value = aligned(a, b)
  assert 0 <= value <= 1
  np.testing.assert_allclose(value, exact(a, b), atol=5e-6)
  np.testing.assert_allclose(value, aligned(b, a), atol=5e-6)
  cos, sin = np.cos(turn), np.sin(turn)
  rotation = np.array([[cos, sin], [-sin, cos]])
  turned = [np.float32([*(x[:2] @ rotation), x[2], x[3], x[4] + turn]) for x in (a, b)]
  np.testing.assert_allclose(value, aligned(*turned), atol=5e-5)


def test_gradient_is_that_of_finite_differences():
  """Compiled, where a tie may be decided twice; with pairs apart and boxes inside of others."""
  r = np.random.default_rng(3)
  with jax.enable_x64(True):
    a = random_boxes(r, 500, 60, 60).astype(np.float64)
    b = random_boxes(r, 500, 60, 60).astype(np.float64)
    value = jax.jit(iou.rotated_iou_aligned)
    exact64 = [exact(x, y) for x, y in zip(a, b, strict=True)]
    assert np.count_nonzero(exact64) < 490
    np.testing.assert_allclose(value(a, b), exact64, atol=1e-12)
    grads = gradients(a, b)
    assert grads[0].dtype == np.float64
    for i in range(5):
      step = np.eye(5)[i] * 1e-6
      up, down = value(a + step, b), value(a - step, b)
      np.testing.assert_allclose(grads[0][:, i], (up - down) / 2e-6, atol=1e-6)
      up, down = value(a, b + step), value(a, b - step)
      np.testing.assert_allclose(grads[1][:, i], (up - down) / 2e-6, atol=1e-6)


def test_horizontal_iou():
  r = np.random.default_rng(5)
  a, b = (np.sort(r.uniform(0, 50, (20, 2, 2)), 1).reshape(20, 4).astype(np.float32) for _ in 'ab')
  want = []
  for x in a:
    p = shapely.box(*x.astype(np.float64))
    polygons = [shapely.box(*y.astype(np.float64)) for y in b]
    want.append([p.intersection(q).area / p.union(q).area for q in polygons])
  np.testing.assert_allclose(jax.jit(iou.hbb_iou)(a, b), want, atol=1e-6)
  np.testing.assert_allclose(jax.jit(iou.hbb_iou_aligned)(a, b), np.diagonal(want), atol=1e-6)
  value_and_grad = jax.jit(jax.value_and_grad(lambda a: iou.hbb_iou_aligned(a, a).sum()))
  value, grad = value_and_grad(np.zeros((20, 4), np.float32))
  assert value == 0 and jnp.isfinite(grad).all()


def test_half_precision_is_widened():
  a = jnp.asarray([[0, 0, 2, 2, 0]], jnp.bfloat16)
  assert jax.eval_shape(iou.rotated_iou, a, a).dtype == jnp.float32
  assert jax.eval_shape(iou.hbb_iou, a[:, :4], jnp.ones((3, 4))).dtype == jnp.float32
