"""Box operations and losses against recorded values of the official implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax import losses
from sm3det_jax.geometry import anchors, assign, coders, hbb, iou, nms, obb, roi_align


@pytest.fixture(scope='module')
def load(golden):
  return lambda name: dict(np.load(golden / 'ops_A' / f'{name}.npz'))


def relative(got, want):
  return np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want))


def same_boxes(got, want, atol=2e-3):
  """As rectangles: corners, whichever of them comes first."""
  a, b = np.asarray(obb.to_corners(got)), np.asarray(obb.to_corners(jnp.asarray(want)))
  distance = [np.abs(np.roll(a, k, 1) - b).max((1, 2)) for k in range(4)]
  scale = 1 + np.asarray(want)[:, 2:4].max(1) * 1e-3
  np.testing.assert_array_less(np.min(distance, 0) / scale, atol)


def test_rotated_iou(load):
  z = load('box_iou_rotated')
  got = jax.jit(iou.rotated_iou)(z['rand.b1'], z['rand.b2'])
  np.testing.assert_allclose(got, z['rand.exact_iou'], atol=2e-6)
  np.testing.assert_allclose(got, z['rand.iou'], atol=2e-6)
  aligned = jax.jit(iou.rotated_iou_aligned)(z['rand.b1'], z['rand.b2'])
  np.testing.assert_allclose(aligned, z['rand.exact_aligned_iou'], atol=2e-6)


def test_rotated_iou_of_degenerate_pairs(load):
  """The official float32 operator errs by up to 0.66 in 6 of these pairs; we in none."""
  z = load('box_iou_rotated')
  got = jax.jit(iou.rotated_iou_aligned)(z['deg.b1'], z['deg.b2'])
  np.testing.assert_allclose(got, z['deg.exact_iou'], atol=1e-5)
  agrees = np.abs(z['deg.iou'] - z['deg.exact_iou']) < 1e-4
  assert agrees.sum() == 144


def kept(boxes, scores, threshold, labels=None, max_outputs=None):
  run = jax.jit(nms.nms, static_argnums=3)
  indices, valid = run(boxes, scores, threshold, max_outputs or len(boxes), labels)
  return list(np.asarray(indices)[np.asarray(valid)])


@pytest.mark.parametrize('threshold', ['0.1', '0.3', '0.5'])
def test_rotated_nms(load, threshold):
  z = load('nms')
  assert kept(z['rot.boxes'], z['rot.scores'], float(threshold)) == list(z[f'rot.keep_{threshold}'])


@pytest.mark.parametrize('threshold', ['0.3', '0.6', '0.8'])
def test_horizontal_nms(load, threshold):
  z = load('nms')
  assert kept(z['h.boxes'], z['h.scores'], float(threshold)) == list(z[f'h.keep_{threshold}'])


def test_nms_by_class(load):
  z = load('nms')
  got = kept(z['rot.boxes'], z['rot.scores'], 0.1, z['rot.ids'])
  assert got == list(z['rot.batched_keep_0.1'])
  for threshold in ('0.6', '0.8'):
    got = kept(z['h.boxes'], z['h.scores'], float(threshold), z['h.ids'])
    assert got == list(z[f'h.batched_keep_{threshold}'])


@pytest.mark.parametrize('case,max_outputs', [('mc', 2000), ('mc50', 50)])
def test_multiclass_rotated_nms(load, case, max_outputs):
  """Every (box, class) above 0.05 is a candidate; the reference's indices count only those."""
  z = load('nms')
  scores = z['mc.scores'][:, :-1]
  label = np.broadcast_to(np.arange(scores.shape[1], dtype=np.int32), scores.shape).ravel()
  boxes, scores = np.repeat(z['mc.boxes'], scores.shape[1], 0), scores.ravel()
  valid = scores > 0.05
  indices, found = nms.nms(boxes, scores, 0.1, max_outputs, label, jnp.asarray(valid))
  indices = np.asarray(indices)[np.asarray(found)]
  assert list((np.cumsum(valid) - 1)[indices]) == list(z[f'{case}.keep'])
  np.testing.assert_array_equal(label[indices], z[f'{case}.labels'])
  dets = np.concatenate([boxes, scores[:, None]], 1)[indices]
  np.testing.assert_array_equal(dets, z[f'{case}.dets'])


@pytest.mark.parametrize('stride', [4, 8, 16, 32])
def test_rotated_roi_align_and_its_gradient(load, stride):
  z = load('roi_align_rotated')
  features, cotangent = (z[k].transpose(0, 2, 3, 1) for k in ('feat', 'cotangent'))
  run = lambda f: roi_align.rotated_roi_align(f, jnp.asarray(z['rois']), 7, 1 / stride, 2)
  out, grad = jax.jit(lambda f, y: (run(f), jax.vjp(run, f)[1](y)[0]))(features, cotangent)
  assert relative(out, z[f'out_stride{stride}'].transpose(0, 2, 3, 1)) < 2e-6
  assert relative(grad, z[f'grad_feat_stride{stride}'].transpose(0, 2, 3, 1)) < 5e-6


def test_multilevel_rotated_roi_align(load):
  z = load('roi_align_rotated')
  features = [jnp.asarray(z[f'ml.feat{i}'].transpose(0, 2, 3, 1)) for i in range(4)]
  rois = jnp.asarray(z['ml.rois'])
  np.testing.assert_array_equal(roi_align.roi_levels(rois[:, 1:], 4), z['ml.levels'])
  both = jnp.broadcast_to(rois[None, :, 1:], (2, len(rois), 5))
  run = jax.jit(lambda f, r: roi_align.multilevel_rotated_roi_align(f, r, (4, 8, 16, 32)))
  out = run(features, both)
  image = z['ml.rois'][:, 0].astype(int)
  out = np.asarray(out)[image, np.arange(len(rois))]
  assert relative(out, z['ml.out'].transpose(0, 2, 3, 1)) < 1e-5


def close(got, want, tolerance=2e-5):
  """Deltas of collapsed boxes reach hundreds: relative to 1 + |want|."""
  np.testing.assert_array_less(np.abs(np.asarray(got) - want) / (1 + np.abs(want)), tolerance)


def test_midpoint_offset(load):
  z = load('coders')
  coder, anchor = coders.MidpointOffset(), jnp.asarray(z['mid.anchors'])
  decode = jax.jit(coder.decode)
  close(jax.jit(coder.encode)(anchor, z['mid.gt']), z['mid.encoded'])
  same_boxes(decode(anchor, z['mid.deltas']), z['mid.decoded'], 5e-3)
  same_boxes(decode(anchor, z['mid.encoded']), z['mid.decode_of_encoded'], 5e-3)


def test_delta_xywha(load):
  z = load('coders')
  coder, rois = coders.DeltaXYWHA(), jnp.asarray(z['obb.proposals'])
  close(coder.encode(rois, z['obb.gt']), z['obb.encoded'])
  same_boxes(coder.decode(rois, z['obb.deltas']), z['obb.decoded'])
  same_boxes(coder.decode(rois, z['obb.encoded']), z['obb.decode_of_encoded'])


def test_box_transforms(load):
  z = load('box_transforms')
  boxes = jnp.asarray(z['obb'])
  np.testing.assert_allclose(obb.to_polygon(boxes), z['obb2poly'], atol=2e-4)
  np.testing.assert_allclose(obb.to_hbb(boxes), z['obb2xyxy'], atol=2e-4)
  np.testing.assert_allclose(obb.wrap_angle(z['angles']), z['norm_angle_le90'], atol=2e-6)
  same_boxes(obb.from_corners(jnp.asarray(z['obb2poly'])), z['poly2obb_of_obb2poly'])
  ok = z['poly2obb_np_valid']
  same_boxes(jnp.asarray(obb.from_polygon(z['poly_noisy'][ok])), z['poly2obb_np'][ok], 1e-2)


def levels(z, prefix, strides, scales, ratios):
  return np.concatenate(
    [
      anchors.grid_anchors(shape, stride, scales, ratios)
      for shape, stride in zip(z[f'{prefix}.featmap_sizes'], strides, strict=True)
    ]
  )


def test_grid_anchors(load):
  z = load('anchors_assigners')
  got = levels(z, 'gfl', (8, 16, 32, 64, 128), [8], [1])
  np.testing.assert_array_equal(got, z['gfl.anchors'])
  for stride, base in zip((4, 8, 16, 32, 64), z['rpn.base_anchors'], strict=True):
    got = anchors.grid_anchors((1, 1), stride, [8], [0.5, 1, 2])
    np.testing.assert_allclose(got, base, rtol=1e-6)
  got = levels(z, 'rpn', (4, 8, 16, 32, 64), [8], [0.5, 1, 2])
  want = z['rpn.anchors_first50_last50']
  np.testing.assert_allclose(np.concatenate([got[:50], got[-50:]]), want, rtol=1e-6)


def padded(boxes, to=24):
  """Ground truths as a batch has them: zero padding and a mask."""
  out = np.zeros((to, boxes.shape[1]), np.float32)
  out[: len(boxes)] = boxes
  return jnp.asarray(out), jnp.arange(to) < len(boxes)


@pytest.mark.parametrize('case', range(3))
def test_atss(load, case):
  z = load('anchors_assigners')
  gts, valid = padded(z[f'atss{case}.gt'])
  sizes = tuple(z['gfl.num_level'].tolist())
  got = jax.jit(assign.atss, static_argnums=1)(jnp.asarray(z['gfl.anchors']), sizes, gts, valid)
  np.testing.assert_array_equal(got, z[f'atss{case}.gt_inds'])


@pytest.mark.parametrize('case', range(3))
def test_max_iou_of_the_rpn(load, case):
  z = load('anchors_assigners')
  boxes = levels(z, 'rpn', (4, 8, 16, 32, 64), [8], [0.5, 1, 2])
  inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] < 256).all(1)
  np.testing.assert_array_equal(inside, z['rpn.inside_flags'])
  gts, valid = padded(z[f'rpn{case}.gt_obb'])

  @jax.jit
  def run(gts, valid):
    envelopes = obb.to_hbb(gts)
    return assign.max_iou(
      iou.hbb_iou, jnp.asarray(boxes), envelopes, valid, 0.7, 0.3, 0.3, True, jnp.asarray(inside)
    )

  got = np.asarray(run(gts, valid))
  np.testing.assert_array_equal(got[inside], z[f'rpn{case}.gt_inds_inside'])
  assert (got[~inside] == -1).all()


@pytest.mark.parametrize('case', range(3))
def test_max_iou_of_the_roi_head(load, case):
  z = load('anchors_assigners')
  gts, valid = padded(z[f'rpn{case}.gt_obb'])
  run = lambda *x: assign.max_iou(iou.rotated_iou, *x, 0.5, 0.5, 0.5, False)
  got = jax.jit(run)(jnp.asarray(z[f'rcnn{case}.proposals']), gts, valid)
  np.testing.assert_array_equal(got, z[f'rcnn{case}.gt_inds'])


def rows(loss):
  """A loss summed over a row's coordinates or classes, if it is elementwise."""
  return lambda pred, z, name: loss(pred, z[f'{name}.target']) * z[f'{name}.weight']


LOSSES = {
  'qfl': lambda p, z, n: (
    losses.quality_focal(p, z[f'{n}.labels'], z[f'{n}.score'], 26) * z[f'{n}.weight']
  ),
  'dfl': rows(losses.distribution_focal),
  'giou': rows(losses.giou),
  'sl1_rpn': rows(lambda p, t: losses.smooth_l1(p, t, 1 / 9)),
  'sl1_roi': rows(lambda p, t: losses.smooth_l1(p, t, 1.0)),
  'ce_rpn': lambda p, z, n: (
    losses.sigmoid_cross_entropy(p[:, 0], z[f'{n}.labels_0fg_1bg'] == 0) * z[f'{n}.weight']
  ),
  'ce_roi': lambda p, z, n: losses.softmax_cross_entropy(p, z[f'{n}.labels']) * z[f'{n}.weight'],
}


@pytest.mark.parametrize('name', LOSSES)
def test_losses_and_their_gradients(load, name):
  z = {k: jnp.asarray(v) for k, v in load('losses').items()}
  weight = {'dfl': 0.25, 'giou': 2.0}.get(name, 1.0) / z[f'{name}.avg_factor']
  total = lambda pred: LOSSES[name](pred, z, name).sum() * weight
  loss, grad = jax.jit(jax.value_and_grad(total))(z[f'{name}.pred'])
  np.testing.assert_allclose(loss, z[f'{name}.loss'], rtol=2e-6)
  assert relative(grad, np.asarray(z[f'{name}.grad'])) < 2e-6


def test_integral(load):
  z = load('losses')
  np.testing.assert_allclose(losses.integral(z['integral.in'], 16), z['integral.out'], rtol=1e-5)


def test_clip_matches_the_bounds_of_the_coder(load):
  z = load('coders')
  h, w = (np.ceil(z['obb.decoded_maxshape'][:, i].max()) + 1 for i in (1, 0))
  boxes = coders.DeltaXYWHA().decode(z['obb.proposals'], z['obb.deltas'], (h, w))
  same_boxes(boxes, z['obb.decoded_maxshape'])
  assert hbb.clip(jnp.asarray([[-3.0, -2.0, w + 5, h + 5]]), (h, w)).tolist() == [[0, 0, w, h]]
