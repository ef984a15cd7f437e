"""RetinaNet, Faster and Cascade R-CNN, their parts and whole heads, against the official ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_heads import SIZE, Recorded, assert_gradients, assert_losses, nhwc, padded, relative

from sm3det_jax import losses
from sm3det_jax.config import heads as head_configs
from sm3det_jax.detector import build
from sm3det_jax.geometry import assign, coders, iou, nms, roi_align
from sm3det_jax.heads import retinanet, rpn, two_stage
from sm3det_jax.heads.common import level_anchors
from sm3det_jax.interop import official

FASTER, CASCADE, RETINA = 's2anet_frcnn_A', 'roitrans_cascade_A', 'roitrans_retina_A'
LONG = pytest.param(CASCADE, marks=pytest.mark.slow)


@pytest.fixture(scope='module')
def ops(golden):
  def load(name, part=''):
    arrays = np.load(golden / 'heads/ops_A' / f'{name}.npz')
    return {k.removeprefix(part): arrays[k] for k in arrays if k.startswith(part)}

  return load


def test_coders(ops):
  z = ops('coders_hbb')

  def run(coder, anchors, gt, deltas):
    decoded = [coder.decode(anchors, deltas, shape) for shape in (None, (SIZE, SIZE))]
    return coder.encode(anchors, gt), *decoded

  run = jax.jit(run, static_argnums=0)
  anchors, gt, deltas = (jnp.asarray(z[k]) for k in ('anchors', 'gt', 'deltas'))
  for part in ('rpn', 's0', 's1', 's2'):
    coder = coders.DeltaXYWH(tuple(z[f'{part}.stds'].tolist()))
    for name, got in zip(
      ('encoded', 'decoded', 'decoded_maxshape'), run(coder, anchors, gt, deltas), strict=True
    ):
      assert relative(got, z[f'{part}.{name}']) < 1e-5
  stage = two_stage.Stage(None, coders.DeltaXYWH((0.1, 0.1, 0.2, 0.2)), 0.5, 0)
  each = jnp.asarray(z['cls.deltas'])
  boxes = two_stage.decoded(stage, anchors[: len(each)], each, jnp.asarray([SIZE, SIZE]))
  assert relative(boxes.reshape(each.shape), z['cls.decoded_maxshape']) < 1e-5


@pytest.mark.parametrize('part', ['rpn', 'retina'])
def test_anchors(ops, part):
  z = ops('anchors', f'{part}.')
  shapes = [tuple(s) for s in z['featmap_sizes'].tolist()]
  if part == 'rpn':
    c = head_configs.faster_rcnn()
    levels = level_anchors(shapes, c.strides, c.anchor_scales, c.anchor_ratios)
  else:
    levels = retinanet.octave_anchors(head_configs.retinanet(), shapes)
  np.testing.assert_array_equal([len(a) for a in levels], z['num_level'])
  for i in (2, 3, 4):
    np.testing.assert_allclose(levels[i], z[f'grid.{i}'], atol=2e-5)
  every = np.concatenate(levels)
  np.testing.assert_allclose(every[np.r_[:40, -40:0]], z['first40_last40'], atol=2e-5)
  inside = rpn.inside(jnp.asarray(every), (SIZE, SIZE), 0)
  np.testing.assert_array_equal(np.packbits(inside), z['inside_border0_bits'])
  assert rpn.inside(jnp.asarray(every), (SIZE, SIZE), -1).all()


def by_image(rois, *arrays):
  """RoIs (R, 5) -> [B, R', 4] and the other arrays alike, and where the rows of an image are."""
  rows = [np.flatnonzero(rois[:, 0] == b) for b in range(int(rois[:, 0].max()) + 1)]
  most = max(map(len, rows))
  group = lambda x: padded([x[r] for r in rows], 0, most)
  return [group(rois[:, 1:]), *map(group, arrays)], rows


@pytest.mark.parametrize('stride, ratio', [(4, 0), (8, 0), (8, 2), (16, 0), (32, 0)])
def test_roi_align_of_one_level(ops, stride, ratio):
  z = ops('roi_align_hbb')
  want = z[f'out_stride{stride}_sr{ratio}'].transpose(0, 2, 3, 1)
  (rois, cotangent), rows = by_image(z['rois'], z['cotangent'].transpose(0, 2, 3, 1))

  @jax.jit
  def run(x):
    align = lambda x: roi_align.multilevel_roi_align([x], rois, (stride,), 7, ratio)
    out, back = jax.vjp(align, x)
    return out, back(cotangent)[0]

  out, grad = run(nhwc(z['feat']))
  for image, row in zip(out, rows, strict=True):
    assert relative(image[: len(row)], want[row]) < 1e-5
  key = f'grad_feat_stride{stride}_sr{ratio}'
  assert key not in z or relative(grad, nhwc(z[key])) < 1e-5


def test_roi_align_of_the_level_that_suits(ops):
  z = ops('roi_align_hbb', 'ml.')
  (rois, levels), rows = by_image(z['rois'], z['levels'])
  features = [nhwc(z[f'feat{i}']) for i in range(4)]
  out = jax.jit(lambda f: roi_align.multilevel_roi_align(f, rois, (4, 8, 16, 32)))(features)
  want = z['out'].transpose(0, 2, 3, 1)
  assert set(z['levels']) == {0, 1, 2, 3}
  for image, row in zip(out, rows, strict=True):
    assert relative(image[: len(row)], want[row]) < 1e-5


LOSSES = {
  'sl1_1_9': lambda p, t: losses.smooth_l1(p, t, 1 / 9),
  'l1': lambda p, t: losses.smooth_l1(p, t, 0.0),
  'ce_sigmoid': lambda p, t: losses.sigmoid_cross_entropy(p[:, 0], t == 0),  # 0 is the class
}


@pytest.mark.parametrize('name', LOSSES)
def test_losses(ops, name):
  z = {k: jnp.asarray(v) for k, v in ops('losses', f'{name}.').items()}
  total = lambda p: (LOSSES[name](p, z['target']) * z['weight']).sum() / z['avg_factor']
  loss, grad = jax.jit(jax.value_and_grad(total))(z['pred'])
  np.testing.assert_allclose(loss, z['loss'], rtol=1e-5)
  assert relative(grad, z['grad']) < 1e-5


@pytest.mark.parametrize('name', ['retina', 'cascade_s0', 'cascade_s1', 'cascade_s2'])
def test_assignment(ops, name):
  z = ops('assigners', f'{name}.')
  pos, neg, least, low_quality = z['cfg'].tolist()
  gt = np.pad(z['gt'], ((0, 3), (0, 0)), constant_values=50)
  valid = jnp.arange(len(gt)) < len(z['gt'])
  run = lambda *x: assign.max_iou(iou.hbb_iou, *x, valid, pos, neg, least, bool(low_quality))
  got = jax.jit(run)(z['boxes'], gt)
  np.testing.assert_array_equal(got, z['gt_inds'])


@pytest.mark.parametrize('part', ['agn', 'cls'])
def test_nms_by_class(ops, part):
  z = ops('multiclass_nms_hbb', f'{part}.')
  boxes, scores = z['boxes'].reshape(len(z['scores']), -1, 4), z['scores'][:, :-1]
  best = jax.jit(lambda *x: nms.multiclass_nms(*x, 0.05, 0.5, 100))(boxes, scores)
  boxes, scores, labels, valid = map(np.asarray, best)
  assert valid.all()
  np.testing.assert_array_equal(boxes, z['dets'][:, :4])
  np.testing.assert_array_equal(scores, z['dets'][:, 4])
  np.testing.assert_array_equal(labels, z['labels'])


@pytest.fixture(scope='module')
def recorded(golden):
  heads = {}

  def get(case):
    if case not in heads:
      heads[case] = Recorded(golden / 'heads' / case, 'sar')
    return heads[case]

  return get


@pytest.mark.slow
@pytest.mark.parametrize('case', [FASTER, LONG, RETINA])
def test_maps_and_detections(recorded, case):
  r = recorded(case)

  def run(head, features):
    return head.raw(features), head.detect(features, r.shapes)

  maps, found = r.run(run, r.features)
  want, names = r.load('eval_heads'), ('rpn_cls', 'rpn_reg')
  if case == RETINA:
    names = 'retina_cls', 'retina_reg'
    part = maps[0][0][:1, ..., ::4]
    assert relative(part, nhwc(want['retina_cls.0_img0_every4ch'])) < 5e-5
  for name, levels in zip(names, maps, strict=True):
    for i, level in enumerate(levels):
      if f'{name}.{i}' in want:
        assert relative(level, nhwc(want[f'{name}.{i}'])) < 5e-5

  found, want = jax.tree.map(np.asarray, found), r.load('eval_dets')
  for i in range(2):
    rows = [want[f'{i}.{part}'] for part in ('boxes', 'scores', 'labels')]
    assert found.valid[i].sum() == len(rows[0])
    missing = 0
    for box, score, label in zip(*rows, strict=True):
      near = (np.abs(found.boxes[i] - box) < 1e-3).all(1) & (found.labels[i] == label)
      missing += not (near & (np.abs(found.scores[i] - score) < 1e-4)).any()
    assert missing <= 2


@pytest.mark.slow
@pytest.mark.parametrize('case', [FASTER, LONG])
def test_proposals_and_stages(recorded, case):
  r, want = recorded(case), recorded(case).load('eval_roi')
  given = {k.removeprefix('given.'): v for k, v in want.items() if k.startswith('given.')}
  (rois,), rows = by_image(given['s0.rois'])

  def run(head, features, rois):
    out, stages = [], head.stages()
    for stage in stages:
      pooled = two_stage.roi_features(head.config, stage, features, rois)
      cls, reg = stage.head(pooled)
      boxes = jax.vmap(lambda *x, stage=stage: two_stage.decoded(stage, *x))(rois, reg, r.shapes)
      out.append({'feats': pooled, 'cls_score': cls, 'bbox_pred': reg, 'decoded': boxes})
      rois = boxes[:, :, 0]
    return out, head.rpn_head.propose(features, r.shapes, head.config.proposals)

  stages, (boxes, valid) = r.run(run, r.features, rois)
  for i in range(2):
    theirs = want[f'{i}.proposals'][:, :4]
    assert valid[i].sum() == len(theirs)
    apart = np.abs(np.asarray(boxes[i])[:, None] - theirs).max(-1)
    assert apart.min(0).max() < 1e-3  # equal scores come in any order
  for k, got in enumerate(stages):
    together = {  # the images' RoIs one after the other again
      name: np.concatenate([x[: len(row)] for x, row in zip(part, rows, strict=True)])
      for name, part in got.items()
    }
    assert relative(together['feats'][::10], nhwc(given[f's{k}.feats_every10'])) < 5e-5
    assert relative(together['cls_score'], given[f's{k}.cls_score']) < 5e-5
    assert relative(together['bbox_pred'], given[f's{k}.bbox_pred']) < 5e-5
    decoded = given[f's{k}.decoded']
    np.testing.assert_allclose(together['decoded'].reshape(decoded.shape), decoded, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('case', [FASTER, LONG, RETINA])
def test_losses_and_gradients(recorded, case):
  r = recorded(case)
  terms, grads = r.losses()
  assert set(terms) == set(r.head.groups(r.head.config))
  assert_losses(terms, np.load(r.root / 'train_all_losses.npz'), 'log.sar_')
  assert_gradients(r.root, grads)


@pytest.mark.slow
def test_training_of_the_cascade_on_given_proposals(recorded):
  r, want = recorded(CASCADE), recorded(CASCADE).load('train_given_roi')
  proposals = [want[f'{i}.proposals'][:, :4] for i in range(2)]
  most = max(map(len, proposals))
  valid = padded([np.ones(len(p), bool) for p in proposals], False, most)
  args = r.features, padded(proposals, 0, most), valid, r.targets, jnp.zeros((2, 3))
  terms = r.run(lambda head, *args: head.roi_loss(*args, 'all'), *args)
  assert_losses(terms, want, 'raw.')


def test_settings_of_others_are_refused(golden):
  read = lambda: json.loads((golden / 'heads' / CASCADE / 'config.json').read_text())['model']
  for change, words in (
    (dict(loss_bbox=dict(type='L1Loss', loss_weight=2.0)), 'loss_weight of loss_bbox=2.0'),
    (dict(reg_class_agnostic=False), 'reg_class_agnostic=False'),
    (dict(bbox_coder=dict(target_stds=[1, 1, 1, 1])), 'target_stds=.* only .0.05'),
  ):
    model = read()
    model['sar_roi_head']['bbox_head'][1].update(change)
    with pytest.raises(ValueError, match=words):
      official.config_from_official(model)


@pytest.mark.slow
@pytest.mark.parametrize('case', [FASTER, CASCADE, RETINA])
def test_pyramid(golden, case):
  root = golden / 'heads' / case
  config = official.config_from_official(json.loads((root / 'config.json').read_text())['model'])
  variables = official.from_state_dict(dict(np.load(root / 'weights.npz')), config)
  images = nhwc(np.load(root / 'inputs.npz')['images'][:2])
  detector, want = build(config), np.load(root / 'eval_fpn.npz')
  levels = jax.jit(lambda v, x: detector.features(v, x, 'sar'))(variables, images)
  assert len(levels) == 5
  for i, level in enumerate(levels):
    assert relative(level, nhwc(want[f'sar.p{i}'])) < 2e-5
