"""Anchors, assigners and samplers against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sm3det_jax.geometry import anchors, assign, hbb, iou, obb


def test_grid_anchors_by_hand():
  got = anchors.grid_anchors((2, 3), 8, [2], [4.0, 1.0])
  assert got.shape == (12, 4) and got.dtype == np.float32
  assert got[0].tolist() == [-4, -16, 4, 16]  # ratio h / w = 4, area (2 * 8)^2
  assert got[1].tolist() == [-8, -8, 8, 8]
  assert got[3].tolist() == [0, -8, 16, 8]  # x before y
  np.testing.assert_array_equal(hbb.centers(got[6]), [0, 8])
  two = anchors.grid_anchors((1, 1), 4, [1, 2], [1.0, 4.0])
  np.testing.assert_allclose(two[:, 2] - two[:, 0], [4, 8, 2, 4])  # ratio-major


def scene(seed, m=6, valid=4, n=300):
  r = np.random.default_rng(seed)
  make = lambda k: np.sort(r.integers(0, 24, (k, 2, 2)), 1).reshape(k, 4).astype(np.float32)
  gts = make(m)
  gts[:, 2:] += 4
  return make(n), gts, np.arange(m) < valid


def max_iou_loop(overlap, valid, pos, neg, min_pos, low_quality, box_valid):
  n, m = overlap.shape
  gt_inds = np.full(n, -1)
  for i in range(n):
    best = max((overlap[i, j] for j in range(m) if valid[j]), default=0)
    if best >= pos:
      gt_inds[i] = 1 + next(j for j in range(m) if valid[j] and overlap[i, j] == best)
    elif best < neg:
      gt_inds[i] = 0
  for j in range(m):
    best = max((overlap[i, j] for i in range(n) if box_valid[i]), default=0)
    if low_quality and valid[j] and best >= min_pos and best > 0:
      gt_inds[overlap[:, j] == best] = j + 1
  return np.where(box_valid, gt_inds, -1)


@pytest.mark.parametrize('low_quality', [True, False])
@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(('m', 'some'), [(8, 6), (90, 70), (100, 20)])
def test_max_iou(seed, low_quality, m, some):
  """Boxes on an integer grid, so that many overlaps tie; several steps, gaps in `valid`."""
  boxes, gts, valid = scene(seed, m, some)
  valid &= np.arange(m) % 5 != 2
  box_valid = np.random.default_rng(seed).uniform(size=len(boxes)) < 0.8
  args = (0.5, 0.3, 0.1 * seed, low_quality, box_valid)
  got = jax.jit(lambda *x: assign.max_iou(iou.hbb_iou, *x, *args))(boxes, gts, valid)
  want = max_iou_loop(np.asarray(iou.hbb_iou(boxes, gts)), valid, *args)
  assert got.dtype == jnp.int32 and (want > 0).sum() > 5 and (want == -1).any()
  np.testing.assert_array_equal(got, want)


def test_max_iou_without_objects():
  boxes, none = jnp.tile(jnp.asarray([[0.0, 0, 9, 9]]), (4, 1)), jnp.zeros(3, bool)
  run = functools.partial(assign.max_iou, iou.hbb_iou)
  assert run(boxes, boxes[:3], none, 0.5, 0.4).tolist() == [0] * 4
  assert run(boxes[:2], boxes[:0], none[:0], 0.5, 0.4).tolist() == [0, 0]
  valid = jnp.asarray([True, False])
  got = run(boxes[:2], boxes[:0], none[:0], 0.5, 0.4, box_valid=valid)
  assert got.tolist() == [0, -1]


def test_an_object_that_nothing_overlaps_claims_nothing():
  boxes, gt = jnp.tile(jnp.asarray([[0.0, 0, 9, 9]]), (3, 1)), jnp.asarray([[20.0, 0, 29, 9]])
  got = assign.max_iou(iou.hbb_iou, boxes, gt, jnp.ones(1, bool), 0.5, 0.4, 0.0)
  assert got.tolist() == [0, 0, 0]


ignore = jax.jit(assign.ignore_regions)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 33, 90]), st.floats(0, 1))
def test_no_background_lies_in_an_ignored_region(seed, m, share):
  """Boxes on an integer grid, so that many shares are one half exactly; several steps, gaps."""
  r = np.random.default_rng(seed)
  boxes, regions, _ = scene(seed, m)
  boxes[0] = 0  # without area
  ignored = r.uniform(size=m) < share
  gt_inds = r.integers(-1, 3, len(boxes)).astype(np.int32)
  got = ignore(gt_inds, boxes, regions, ignored)
  want = gt_inds.copy()
  for i, (x1, y1, x2, y2) in enumerate(boxes):
    for a1, b1, a2, b2 in regions[ignored]:
      inter = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
      if gt_inds[i] == 0 and 2 * inter >= (x2 - x1) * (y2 - y1) > 0:
        want[i] = -1
  assert got.dtype == jnp.int32
  np.testing.assert_array_equal(got, want)


def test_oriented_boxes_in_oriented_regions():
  r = np.random.default_rng(0)
  make = lambda n, low, high: np.concatenate(
    [r.uniform(0, 60, (n, 2)), r.uniform(low, high, (n, 2)), r.uniform(-4, 4, (n, 1))], 1
  ).astype(np.float32)
  boxes, regions, ignored = make(300, 2, 20), make(40, 10, 30), np.arange(40) % 4 == 1
  corners = lambda x: [shapely.Polygon(p.reshape(4, 2)) for p in np.asarray(obb.to_polygon(x))]
  there = [q for q, yes in zip(corners(regions), ignored, strict=True) if yes]
  shares = [max(p.intersection(q).area for q in there) / p.area for p in corners(boxes)]
  clear = np.abs(np.asarray(shares) - assign.IGNORED_IOF) > 1e-4  # of rounding
  got = ignore(np.zeros(300, np.int32), boxes, regions, ignored)
  want = np.where(np.asarray(shares) >= assign.IGNORED_IOF, -1, 0)
  assert clear.mean() > 0.99 and 50 < (want < 0).sum() < 250
  np.testing.assert_array_equal(got[clear], want[clear])


def test_without_regions_nothing_is_ignored():
  gt_inds, boxes = jnp.asarray([0, 1]), jnp.asarray([[0.0, 0, 9, 9]] * 2)
  assert assign.ignore_regions(gt_inds, boxes, boxes, None) is gt_inds
  assert assign.ignore_regions(gt_inds, boxes, boxes[:0], boxes[:0, 0] > 0) is gt_inds


def atss_loop(boxes, sizes, gts, valid, topk):
  overlap = np.asarray(iou.hbb_iou(boxes, gts))
  centers, targets = np.asarray(hbb.centers(boxes)), np.asarray(hbb.centers(gts))
  best = np.full(len(boxes), -np.inf)
  gt_inds = np.zeros(len(boxes), int)
  for j in np.flatnonzero(valid):
    candidates, start = [], 0
    for size in sizes:
      distance = np.linalg.norm(centers[start : start + size] - targets[j], axis=1)
      candidates += [start + i for i in np.argsort(distance, kind='stable')[:topk]]
      start += size
    values = overlap[candidates, j]
    threshold = values.mean() + values.std(ddof=1)
    for i in candidates:
      x, y = centers[i]
      inside = min(x - gts[j, 0], y - gts[j, 1], gts[j, 2] - x, gts[j, 3] - y) > 0.01
      if overlap[i, j] >= threshold and inside and overlap[i, j] > best[i]:
        best[i], gt_inds[i] = overlap[i, j], j + 1
  return gt_inds


@pytest.mark.parametrize('seed', range(3))
def test_atss(seed):
  levels = [anchors.grid_anchors((8, 8), 8, [4], [1]), anchors.grid_anchors((2, 2), 32, [4], [1])]
  boxes, sizes = np.concatenate(levels), (64, 4)
  r = np.random.default_rng(seed)
  gts = hbb.from_cxcywh(jnp.asarray(r.uniform(8, 50, (6, 4)), jnp.float32))
  valid = np.arange(6) < 5
  got = jax.jit(assign.atss, static_argnums=1)(boxes, sizes, gts, valid)
  want = atss_loop(boxes, sizes, np.asarray(gts), valid, 9)
  assert (want > 0).sum() >= 4
  np.testing.assert_array_equal(got, want)
  assert not assign.atss(boxes, sizes, gts, np.zeros(6, bool)).any()
  assert not assign.atss(boxes, sizes, gts[:0], valid[:0]).any()


def test_atss_needs_the_centre_inside():
  """The best candidate of a box between four cells overlaps it, but its centre lies outside."""
  boxes = anchors.grid_anchors((4, 4), 8, [2], [1])
  gt = jnp.asarray([[9.0, 9, 15, 15]])
  assert not assign.atss(boxes, (16,), gt, jnp.ones(1, bool), topk=4).any()
  moved = assign.atss(boxes, (16,), gt - jnp.asarray([[2.0, 2, 2, 2]]), jnp.ones(1, bool), topk=4)
  assert np.flatnonzero(moved).tolist() == [5]


def draw(gt_inds, num, fraction, mode, seed=0):
  masks = assign.sample(gt_inds, num, fraction, mode, jax.random.key(seed))
  return [np.asarray(m) for m in masks]


@pytest.mark.parametrize('positives', [0, 5, 40])
@pytest.mark.parametrize('mode', ['random', 'firstk'])
def test_sample_counts(mode, positives):
  gt_inds = np.zeros(100, np.int32)
  order = np.random.default_rng(0).permutation(100)
  gt_inds[order[:positives]], gt_inds[order[-10:]] = 3, -1
  positive, negative = draw(jnp.asarray(gt_inds), 32, 0.25, mode)
  assert (gt_inds[positive] > 0).all() and (gt_inds[negative] == 0).all()
  assert positive.sum() == min(positives, 8)
  assert negative.sum() == 32 - positive.sum()
  if mode == 'firstk':
    np.testing.assert_array_equal(np.flatnonzero(positive), np.flatnonzero(gt_inds > 0)[:8])
    count = negative.sum()
    np.testing.assert_array_equal(np.flatnonzero(negative), np.flatnonzero(gt_inds == 0)[:count])


def test_sample_all_and_too_few():
  gt_inds = jnp.asarray([0, 1, -1, 0, 2], jnp.int32)
  assert draw(gt_inds, 2, 0.5, 'all')[0].tolist() == [False, True, False, False, True]
  positive, negative = draw(gt_inds, 256, 0.5, 'random')
  assert positive.sum() == 2 and negative.sum() == 2


def test_random_sampling_is_uniform_and_batched():
  gt_inds = jnp.tile(jnp.asarray([1, 0, 0, 0], jnp.int32), 10)
  pick = functools.partial(assign.sample, num=8, positive_fraction=0.5, mode='random')
  keys = jax.random.split(jax.random.key(1), 400)
  positive, negative = jax.jit(jax.vmap(lambda k: pick(gt_inds, rng=k)))(keys)
  share = np.asarray(positive).mean(0)[::4]
  np.testing.assert_allclose(share, 4 / 10, atol=0.1)
  np.testing.assert_allclose(np.asarray(negative).mean(0)[1::4], 4 / 30, atol=0.08)


def test_sample_errors():
  with pytest.raises(ValueError, match='rng'):
    assign.sample(jnp.zeros(3, jnp.int32), 2, 0.5, 'random')
  with pytest.raises(ValueError, match='lastk'):
    assign.sample(jnp.zeros(3, jnp.int32), 2, 0.5, 'lastk')
