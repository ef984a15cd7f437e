"""Box coders: exact formulas, and decoding what was encoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm3det_jax.geometry import coders, hbb, iou, obb


def random_obbs(seed, n=60):
  r = np.random.default_rng(seed)
  boxes = np.concatenate(
    [r.uniform(0, 400, (n, 2)), r.uniform(5, 120, (n, 2)), r.uniform(-3, 3, (n, 1))], 1
  )
  return jnp.asarray(boxes, jnp.float32)


def same(got, want):
  np.testing.assert_allclose(jax.jit(iou.rotated_iou_aligned)(got, want), 1, atol=3e-4)


@pytest.mark.parametrize(
  'coder', [coders.DeltaXYWHA(), coders.DeltaXYWHA((1.0,) * 5, edge_swap=False, proj_xy=False)]
)
def test_oriented_there_and_back(coder):
  rois, boxes = random_obbs(0), random_obbs(1)
  deltas = jax.jit(coder.encode)(rois, boxes)
  got = jax.jit(coder.decode)(rois, deltas)
  same(got, boxes)
  np.testing.assert_allclose(jax.jit(coder.encode)(rois, rois), 0, atol=1e-5)
  if coder.edge_swap:
    assert (got[:, 2] >= got[:, 3]).all()
    assert jnp.abs(deltas[:, 4]).max() * coder.stds[4] <= np.pi / 4 + 1e-5


def test_oriented_by_hand():
  roi, box = jnp.asarray([10.0, 10, 4, 2, np.pi / 2]), jnp.asarray([10.0, 12, 8, 2, np.pi / 2])
  delta = coders.DeltaXYWHA((1.0,) * 5).encode(roi, box)
  np.testing.assert_allclose(delta, [0.5, 0, np.log(2), 0, 0], atol=1e-6)  # along the roi's width
  delta = coders.DeltaXYWHA((1.0,) * 5, proj_xy=False).encode(roi, box)
  np.testing.assert_allclose(delta[:2], [0, 1], atol=1e-6)
  swapped = coders.DeltaXYWHA((1.0,) * 5).encode(roi, jnp.asarray([10.0, 10, 2, 8, 0.1]))
  np.testing.assert_allclose(swapped, [0, 0, np.log(2), 0, 0.1], atol=1e-6)


def test_oriented_centre_is_clipped():
  rois, deltas = random_obbs(2), jnp.full((60, 5), 3.0)
  got = coders.DeltaXYWHA((1.0,) * 5).decode(rois, deltas, (100, 50))
  assert got[:, 0].min() >= 0 and got[:, 0].max() <= 49 and got[:, 1].max() <= 99


def test_midpoint_offset_there_and_back():
  boxes = random_obbs(3)
  anchors = hbb.from_cxcywh(random_obbs(4)[:, :4])
  coder = coders.MidpointOffset()
  same(jax.jit(lambda a, b: coder.decode(a, coder.encode(a, b)))(anchors, boxes), boxes)


@pytest.mark.parametrize(
  'theta,offsets', [(0, (0.5, 0.5)), (-np.pi / 4, (1 / 6, -1 / 6)), (np.pi / 4, (-1 / 6, 1 / 6))]
)
def test_midpoint_offset_by_hand(theta, offsets):
  """A 4 x 2 box; at 45 degrees its envelope is a square and the vertices sit at thirds."""
  box = jnp.asarray([50, 60, 4, 2, theta], jnp.float32)
  anchor = jnp.asarray(obb.to_hbb(box))
  delta = coders.MidpointOffset((1.0,) * 6).encode(anchor, box)
  np.testing.assert_allclose(delta, [0, 0, 0, 0, *offsets], atol=1e-5)


def test_midpoint_offset_makes_a_rectangle_of_the_longer_diagonal():
  anchor = jnp.asarray([0.0, 0, 8, 6])
  # vertices (4, 0), (8, 6): half diagonals 3 and 5, the first is stretched to 5
  got = coders.MidpointOffset((1.0,) * 6).decode(anchor, jnp.asarray([0, 0, 0, 0, 0, 0.5]))
  corners = np.asarray(obb.to_corners(got))
  want = [[4, -2], [8, 6], [4, 8], [0, 0]]
  for corner in want:
    assert np.linalg.norm(corners - corner, axis=1).min() < 1e-4


def test_horizontal_by_hand_and_back():
  anchor, box = jnp.asarray([0.0, 0, 10, 20]), jnp.asarray([5.0, 0, 25, 10])
  coder = coders.DeltaXYWH((0.1, 0.1, 0.2, 0.2))
  delta = coder.encode(anchor, box)
  np.testing.assert_allclose(delta, [10, -2.5, np.log(2) / 0.2, -np.log(2) / 0.2], rtol=1e-6)
  np.testing.assert_allclose(coder.decode(anchor, delta), box, atol=1e-5)
  assert coder.decode(anchor, delta, (8, 16)).tolist() == [5, 0, 16, 8]


@settings(max_examples=25, deadline=None)
@given(st.floats(-1e4, 1e4, width=32))
def test_no_delta_scales_a_side_beyond_the_limit(delta):
  boxes = coders.DeltaXYWH().decode(jnp.asarray([0.0, 0, 16, 16]), jnp.asarray([0, 0, delta, 0]))
  assert 0.255 <= boxes[2] - boxes[0] <= 1000.1


@pytest.mark.parametrize(
  'coder', [coders.DeltaXYWH(), coders.MidpointOffset(), coders.DeltaXYWHA()]
)
def test_degenerate_boxes_stay_finite(coder):
  box = jnp.zeros((1, 5 if isinstance(coder, coders.DeltaXYWHA) else 4))
  target = jnp.zeros((1, 4 if isinstance(coder, coders.DeltaXYWH) else 5))
  deltas = coder.encode(box, target)
  assert deltas.shape == (1, len(coder.stds)) and jnp.isfinite(deltas).all()
  assert jnp.isfinite(coder.decode(box, deltas)).all()
  assert jnp.isfinite(coder.encode(box, target + 5)).all()


def test_half_precision_deltas_and_constant_anchors():
  got = coders.MidpointOffset().decode(
    np.asarray([[0, 0, 8, 8]], np.float32), jnp.zeros((1, 6), jnp.bfloat16)
  )
  assert got.dtype == jnp.float32


def test_distances():
  points = jnp.asarray([[10.0, 20.0]])
  ltrb = jnp.asarray([[1.0, 2, 3, 4]])
  boxes = jax.jit(coders.distance_to_box)(points, ltrb)
  assert boxes.tolist() == [[9, 18, 13, 24]]
  assert coders.box_to_distance(points, boxes).tolist() == ltrb.tolist()
