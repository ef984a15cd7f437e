"""The horizontal heads on two objects of an image: which RoIs, boxes and proposals count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from sm3det_jax.geometry import coders
from sm3det_jax.heads import rpn, two_stage
from sm3det_jax.heads.common import level_anchors
from sm3det_jax.necks.fpn import FPN

SIZE, CLASSES = 64, 3
TARGETS = {
  'boxes': jnp.asarray([[[2, 4, 34, 36], [30, 20, 60, 62.0], [0, 0, 1, 1]]]),
  'labels': jnp.asarray([[2, 0, 1]]),
  'valid': jnp.asarray([[True, True, False]]),
  'shapes': jnp.asarray([[SIZE, SIZE]]),
}


def rois_of(sampling, key, samples=8, boxes=TARGETS['boxes'][0], ignored=None):
  """Samples of one image: proposals on, near and far from an object, and one that is padding."""
  c = FrozenConfigDict(dict(samples=samples, positive_fraction=0.5))
  stage = two_stage.Stage(None, coders.DeltaXYWH(), 0.5, 0)
  near = jnp.asarray([[2.0, 4, 34, 36.0], [4, 4, 36, 36], [40, 40, 60, 60], [2, 4, 34, 36]])
  valid = jnp.asarray([True, True, True, False])
  run = lambda *x: two_stage.sample(c, stage, CLASSES, sampling, *x)
  return jax.jit(run)(near, valid, boxes, TARGETS['labels'][0], TARGETS['valid'][0], key, ignored)


def test_rois_that_count():
  """Objects first, then positives, then negatives; neither padded objects nor padded proposals."""
  s = rois_of('all', None)
  assert s.valid.tolist() == [True] * 5 + [False] * 2
  assert (
    s.labels.tolist()[:5] == [2, 0, 2, 2, 3] and s.objects.tolist()[:5] == [True] * 2 + [False] * 3
  )
  np.testing.assert_allclose(s.deltas[:3], 0, atol=1e-6)
  assert s.deltas[3, 0] < 0
  some = rois_of('random', jax.random.key(0), samples=3)  # one positive at most
  assert some.valid.tolist() == [True, True, False] and some.labels[1] == CLASSES


def test_no_roi_in_a_region_to_ignore_is_background():
  ignored = jnp.asarray([False, False, True])
  for found, want in zip(rois_of('all', None, ignored=ignored), rois_of('all', None), strict=True):
    np.testing.assert_array_equal(found, want)  # the row of the padding is but one pixel large
  boxes = TARGETS['boxes'][0].at[2].set(jnp.asarray([35.0, 35, 64, 55]))
  s = rois_of('all', None, boxes=boxes, ignored=ignored)
  assert s.valid.tolist() == [True] * 4 + [False] * 3  # three quarters of the fifth lie inside
  assert s.labels.tolist()[:4] == [2, 0, 2, 2]


@pytest.mark.parametrize('part', [(0, 0, 32, 64), (40.5, 32, 64, 64)])
def test_no_anchor_in_a_region_to_ignore_is_background(part):
  """Of the RPN: regions are as their envelopes; what touches an object stays positive."""
  c = FrozenConfigDict(
    dict(
      pos_iou=0.7, neg_iou=0.3, min_pos_iou=0.3, samples=256, positive_fraction=0.5,
      allowed_border=0,
    )
  )  # fmt: skip
  (anchors,) = level_anchors([(8, 8)], (8,), (2.0,), (1.0,))
  anchors += 4
  boxes = jnp.asarray([[16, 16, 16, 16, 0.0], [0] * 5])
  x1, y1, x2, y2 = part
  middle = [(x1 + x2) / 2, (y1 + y2) / 2, y2 - y1, x2 - x1, np.pi / 2]  # a quarter turn
  boxes = boxes.at[1].set(jnp.asarray(middle))
  rows, shape = jnp.asarray([True, False]), jnp.asarray([SIZE, SIZE])
  run = jax.jit(
    lambda ignored: rpn.rpn_targets(
      c, coders.MidpointOffset(), anchors, 'all', boxes, rows, shape, None, ignored
    )[:2]
  )
  positive, negative = run(jnp.asarray([False, False]))
  assert positive.any() and negative.any()
  a = np.asarray(anchors)
  wide, high = (np.minimum(a[:, i + 2], part[i + 2]) - np.maximum(a[:, i], part[i]) for i in (0, 1))
  inside = np.maximum(wide, 0) * np.maximum(high, 0) >= 128  # half of 16 x 16
  found = run(jnp.asarray([False, True]))
  np.testing.assert_array_equal(found[0], positive)
  np.testing.assert_array_equal(found[1], negative & ~inside)
  assert (inside & negative).any() and found[1].any()


def test_objects_leave_between_the_stages():
  s = rois_of('all', None)
  stage = two_stage.Stage(None, coders.DeltaXYWH(), 0.5, 0)
  shift = jnp.tile(jnp.asarray([[0.5, 0, 0, 0]]), (len(s.boxes), 1))
  boxes, valid = two_stage.refined(stage, s, shift, jnp.asarray([SIZE, SIZE]))
  assert valid.tolist() == [False] * 2 + [True] * 3 + [False] * 2
  np.testing.assert_allclose(boxes[2], [18, 4, 50, 36], atol=1e-4)
  np.testing.assert_allclose(boxes[4], [50, 40, SIZE, 60], atol=1e-4)  # clipped


def test_the_box_of_the_own_class_counts():
  s = jax.tree.map(lambda x: x[None], rois_of('all', None))
  cls = jnp.zeros((1, 7, CLASSES + 1))
  reg = jnp.zeros((1, 7, CLASSES, 4)).at[..., 1, :].set(9.0)  # no object is of class 1
  specific = two_stage.stage_loss(0.0, CLASSES, s, cls, reg.reshape(1, 7, -1))
  agnostic = two_stage.stage_loss(0.0, CLASSES, s, cls, jnp.zeros((1, 7, 4)))
  np.testing.assert_allclose(specific['bbox'], agnostic['bbox'], rtol=1e-6)
  np.testing.assert_allclose(specific['cls'], np.log(CLASSES + 1), rtol=1e-6)
  np.testing.assert_allclose(agnostic['bbox'], abs(s.deltas[0, 3]).sum() / 5, rtol=1e-6)


def test_proposals_without_area_are_dropped_where_mmdet_drops_them():
  c = FrozenConfigDict(dict(pre_nms=4, nms_iou=0.7, max_proposals=4))
  anchors = [jnp.asarray([[0, 0, 8, 8.0], [-9, 0, -1, 8]])]  # the second is clipped to nothing
  maps = [jnp.zeros((1, 2))], [jnp.zeros((1, 2, 4))]
  for drop in (True, False):
    head = rpn.RPNHead({}, coders.DeltaXYWH(), drop)
    _, valid = jax.jit(lambda *x, h=head: h._proposals(c, anchors, *x))(*maps, TARGETS['shapes'])
    assert valid.tolist() == [[True, not drop]]


def test_levels_beyond_the_backbone_by_thinning():
  """Without extra convolutions the last level is every second cell, and has no parameters."""
  stages = [jnp.ones((1, 2 * n, 2 * n, 8)) * n for n in (8, 4, 2, 1)]
  neck = FPN(4, extra_convs=False)
  variables = jax.jit(lambda key: neck.init(key, stages, method='touch'))(jax.random.key(0))
  assert not any('extra' in name for name in variables['params'])
  levels, deeper = jax.jit(lambda v: [neck.apply(v, stages, start) for start in (0, 1)])(variables)
  np.testing.assert_array_equal(levels[4], levels[3][:, ::2, ::2])
  assert [x.shape[1] for x in deeper] == [8, 4, 2, 1, 1]
