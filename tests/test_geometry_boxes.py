"""Horizontal and oriented boxes: forms, corners, envelopes. OpenCV and shapely are the oracles."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sm3det_jax.geometry import hbb, obb


def random_boxes(seed, n=50, center=800.0, side=200.0):
  r = np.random.default_rng(seed)
  sizes = np.exp(r.uniform(0, np.log(side), (n, 2)))
  return np.concatenate([r.uniform(0, center, (n, 2)), sizes, r.uniform(-7, 7, (n, 1))], 1).astype(
    np.float32
  )


def same_rectangles(a, b, atol=2e-3):
  """Equal corners, whichever comes first."""
  a, b = np.asarray(obb.to_corners(a)), np.asarray(obb.to_corners(jnp.asarray(b)))
  distance = np.min([np.abs(np.roll(a, k, 1) - b).max((1, 2)) for k in range(4)], 0)
  np.testing.assert_array_less(distance, atol)


def test_corners_are_those_of_opencv():
  boxes = random_boxes(0)
  got = np.asarray(obb.to_corners(jnp.asarray(boxes)))
  for corners, (cx, cy, w, h, theta) in zip(got, boxes, strict=True):
    want = cv2.boxPoints(((cx, cy), (w, h), np.degrees(theta)))
    distance = np.linalg.norm(corners[:, None] - want[None], axis=-1)
    assert distance.min(0).max() < 2e-3 and distance.min(1).max() < 2e-3


def test_corner_order_and_direction():
  box = jnp.asarray([10.0, 20.0, 4.0, 2.0, 0.0])
  assert obb.to_polygon(box).tolist() == [8, 19, 12, 19, 12, 21, 8, 21]
  turned = obb.to_corners(box.at[4].set(np.pi / 2))  # clockwise: the top left goes to the top right
  np.testing.assert_allclose(turned[0], [11, 18], atol=1e-5)


def test_envelope():
  boxes = jnp.asarray(random_boxes(1))
  corners = obb.to_corners(boxes)
  want = jnp.concatenate([corners.min(1), corners.max(1)], 1)
  np.testing.assert_allclose(obb.to_hbb(boxes), want, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
  st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
  st.tuples(st.floats(0, 500), st.floats(0, 500)),
  st.one_of(st.floats(-20, 20), st.integers(-8, 8).map(lambda k: k * np.pi / 2)),
)
def test_normalise(center, sizes, theta):
  boxes = np.asarray([[*center, *sizes, theta]], np.float32)
  got = jax.jit(obb.normalise)(boxes)
  assert got[0, 2] >= got[0, 3]
  assert np.float32(-np.pi / 2) <= got[0, 4] < np.float32(np.pi / 2)
  same_rectangles(got, boxes, 3e-3)
  np.testing.assert_array_equal(obb.normalise(got), got)


def test_wrap_angle_at_the_borders():
  quarter = np.float32(np.pi / 2)
  angles = jnp.asarray([quarter, -quarter, np.nextafter(-quarter, np.float32(-9)), 0.0, -1e-9])
  got = np.asarray(obb.wrap_angle(angles))
  assert (got >= -quarter).all() and (got < quarter).all()
  np.testing.assert_allclose(np.sin(got - np.asarray(angles)), 0, atol=1e-6)
  below = np.nextafter(-quarter / 2, np.float32(-9))  # plus pi rounds to the upper border
  assert obb.wrap_angle(below, -np.pi / 4) < 3 * quarter / 2
  shifted = np.asarray(obb.wrap_angle(jnp.asarray([-0.8, 2.3, 2.4]), -np.pi / 4))
  np.testing.assert_allclose(shifted, [np.pi - 0.8, 2.3, 2.4 - np.pi], atol=1e-6)


@pytest.mark.parametrize('convert', [obb.from_corners, lambda p: obb.from_polygon(np.asarray(p))])
def test_polygons_there_and_back(convert):
  boxes = obb.normalise(jnp.asarray(random_boxes(2)))
  got = convert(obb.to_polygon(boxes))
  assert got.dtype == np.float32
  same_rectangles(jnp.asarray(got), boxes, 2e-2)
  assert (got[:, 2] >= got[:, 3]).all() and (np.abs(got[:, 4]) <= np.float32(np.pi / 2)).all()


def test_from_corners_of_a_square_keeps_the_first_side():
  square = obb.to_polygon(jnp.asarray([[5.0, 5.0, 2.0, 2.0, 0.25]]))
  np.testing.assert_allclose(obb.from_corners(square)[0], [5, 5, 2, 2, 0.25], atol=1e-5)


def test_from_polygon_is_the_smallest_rectangle():
  polygons = np.random.default_rng(3).uniform(0, 100, (30, 8)).astype(np.float32)
  got = obb.from_polygon(polygons)
  for box, polygon in zip(got, polygons, strict=True):
    points = shapely.MultiPoint(polygon.reshape(4, 2))
    smallest = shapely.minimum_rotated_rectangle(points)
    assert abs(box[2] * box[3] - smallest.area) <= 1e-3 * smallest.area + 1e-2
    rectangle = shapely.Polygon(np.asarray(obb.to_corners(jnp.asarray(box))))
    assert rectangle.buffer(0.05).contains(points)
  assert obb.from_polygon(np.zeros((0, 8))).shape == (0, 5)
  assert obb.from_polygon(np.full((1, 8), 7.0))[0, :4].tolist() == [7, 7, 0, 0]


def test_hbb_forms_areas_and_clipping():
  boxes = jnp.asarray([[1.0, 2.0, 4.0, 8.0], [-5.0, 3.0, 30.0, 2.0]])
  assert hbb.area(boxes).tolist() == [18, 0]
  assert hbb.to_cxcywh(boxes)[0].tolist() == [2.5, 5, 3, 6]
  assert hbb.centers(boxes)[0].tolist() == [2.5, 5]
  np.testing.assert_array_equal(hbb.from_cxcywh(hbb.to_cxcywh(boxes)), boxes)
  clipped = jax.jit(hbb.clip)(boxes, jnp.asarray([5, 20]))
  assert clipped.tolist() == [[1, 2, 4, 5], [0, 3, 20, 2]]
  np.testing.assert_array_equal(hbb.clip(boxes, (5, 20)), clipped)
