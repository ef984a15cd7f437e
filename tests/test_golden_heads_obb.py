"""S2ANet and RoI Transformer, their parts and the heads as a whole, against the official ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_heads import (
  SIZE,
  Recorded,
  assert_gradients,
  assert_losses,
  nhwc,
  relative,
)

from sm3det_jax import losses
from sm3det_jax.config import heads as head_configs
from sm3det_jax.geometry import align_conv, assign, coders, iou, obb
from sm3det_jax.heads import s2anet, two_stage
from sm3det_jax.interop import layouts, official

# the tasks whose features are recorded completely; the heads of a kind have the same shapes
S2ANET = [('s2anet_frcnn_A', 'rgb'), ('s2anet_frcnn_A', 'ifr')]
ROI_TRANSFORMER = [('roitrans_cascade_A', 'rgb'), ('roitrans_retina_A', 'rgb')]


def hwio(x):
  return jnp.asarray(x.transpose(2, 3, 1, 0))


def close(got, want, tolerance=1e-5):
  """Deltas of collapsed boxes reach hundreds: relative to 1 + |want|."""
  np.testing.assert_array_less(np.abs(np.asarray(got) - want) / (1 + np.abs(want)), tolerance)


@pytest.fixture(scope='module')
def ops(golden):
  return lambda name: dict(np.load(golden / 'heads/ops_A' / f'{name}.npz'))


def taps(x):
  """Offsets (B, 18, H, W), channels (tap, (y, x)) -> [B, H, W, 9, 2]."""
  b, _, h, w = x.shape
  return jnp.asarray(x.reshape(b, 9, 2, h, w).transpose(0, 3, 4, 1, 2))


@pytest.mark.parametrize('name, stride', [('ac8', 8), ('ac32', 32)])
def test_alignment_convolution(ops, name, stride):
  z = {k.removeprefix(f'{name}.'): v for k, v in ops('align_conv').items()}
  x, kernel, cotangent = nhwc(z['x']), hwio(z['weight']), nhwc(z['cotangent'])
  boxes = jnp.asarray(z['anchors'].reshape(*x.shape[:3], 5))

  @jax.jit
  def run(x, kernel):
    at = align_conv.align_offsets(boxes, stride)
    out, back = jax.vjp(lambda *a: jax.nn.relu(align_conv.deform_conv(a[0], at, a[1])), x, kernel)
    return at, out, *back(cotangent)

  at, out, grad_x, grad_kernel = run(x, kernel)
  np.testing.assert_allclose(at, taps(z['offset']), atol=1e-5)
  assert relative(out, nhwc(z['out'])) < 1e-5
  assert relative(grad_x, nhwc(z['grad_x'])) < 1e-5
  assert relative(grad_kernel, hwio(z['grad_weight'])) < 1e-5


def test_deformable_convolution(ops):
  z = {k[4:]: v for k, v in ops('align_conv').items() if k.startswith('dcn.')}
  args = nhwc(z['x']), taps(z['offset']), hwio(z['weight'])
  out, back = jax.vjp(jax.jit(align_conv.deform_conv), *args)
  got = (out, *back(nhwc(z['cotangent'])))
  want = nhwc(z['out']), nhwc(z['grad_x']), taps(z['grad_offset']), hwio(z['grad_weight'])
  assert all(relative(a, b) < 1e-5 for a, b in zip(got, want, strict=True))


def test_oriented_convolution(ops):
  z = ops('orconv')
  conv, x = s2anet.OrientedConv(len(z['weight'])), nhwc(z['x'])
  params = {'kernel': hwio(z['weight'][:, :, 0]), 'bias': jnp.asarray(z['bias'])}
  kernels = s2anet.oriented_kernels(params['kernel'])
  np.testing.assert_array_equal(kernels, hwio(z['rotated_weight']))

  def run(params, x):
    out = conv.apply({'params': params}, x)
    return out, s2anet.over_orientations(out)

  outs, back = jax.vjp(jax.jit(run), params, x)
  grads, grad_x = back((nhwc(z['cotangent_out']), nhwc(z['cotangent_pooled'])))
  got = (*outs, grad_x, grads['kernel'], grads['bias'])
  want = (
    *(nhwc(z[k]) for k in ('out', 'pooled', 'grad_x')),
    hwio(z['grad_weight'][:, :, 0]), z['grad_bias'],
  )  # fmt: skip
  assert all(relative(a, b) < 1e-5 for a, b in zip(got, want, strict=True))


def test_coder_of_oriented_against_horizontal_boxes(ops):
  z = {k[3:]: v for k, v in ops('coders_rotated').items() if k.startswith('ah.')}
  coder = coders.DeltaXYWHToXYWHA()
  close(coder.encode(z['proposals_hbb'], z['gt']), z['encoded'])
  close(coder.decode(z['proposals_hbb'], z['deltas']), z['decoded'])
  close(coder.decode(z['proposals_hbb'], z['deltas'], (SIZE, SIZE)), z['decoded_maxshape'])
  close(coder.decode(z['proposals_hbb'], z['encoded']), z['decode_of_encoded'])


@pytest.mark.parametrize(
  'name, coder',
  [('ob', coders.DeltaXYWHA((0.05, 0.05, 0.1, 0.1, 0.5))), ('s2', s2anet.CODER)],
)
def test_coders_of_oriented_boxes(ops, name, coder):
  z = {k[3:]: v for k, v in ops('coders_rotated').items() if k.startswith(f'{name}.')}
  rois = jnp.asarray(z['proposals' if name == 'ob' else 'anchors'])
  got, want = np.array(coder.encode(rois, z['gt'])), z['encoded']
  period = (np.pi / 0.5) if name == 'ob' else 1.0
  turns = np.round((got[:, 4] - want[:, 4]) / period)  # targets near the ends of the range
  got[:, 4] -= turns * period
  close(got, want)
  close(coder.decode(rois, z['deltas']), z['decoded'])
  close(coder.decode(rois, z['deltas'], (SIZE, SIZE)), z['decoded_maxshape'])
  if name == 'ob':
    each = z['cls_deltas'].reshape(50, -1, 5)
    got = coder.decode(rois[:50, None], each, (SIZE, SIZE))
    close(got.reshape(50, -1), z['cls_decoded_maxshape'])


def test_angle_ranges(ops):
  z = ops('coders_rotated')
  for name, start in (('le90', -np.pi / 2), ('le135', -np.pi / 4)):
    got = obb.wrap_angle(z['norm_angle.in'], start)
    np.testing.assert_allclose(got, z[f'norm_angle.{name}'], atol=1e-6)


def test_square_anchors(ops):
  z, c = ops('anchors'), head_configs.s2anet()
  levels = s2anet.square_anchors(c, [tuple(s) for s in z['s2anet.featmap_sizes'].tolist()])
  np.testing.assert_array_equal([len(a) for a in levels], z['s2anet.num_level'])
  for i in (2, 3, 4):
    np.testing.assert_array_equal(levels[i], z[f's2anet.grid.{i}'])
  ends = np.concatenate(levels)[np.r_[:40, -40:0]]
  np.testing.assert_array_equal(ends, z['s2anet.first40_last40'])


@pytest.mark.parametrize('name', ['s2anet_fam', 's2anet_odm'])
def test_assignment(ops, name):
  """But for which of several boxes a thin object overlaps most, by rounding errors."""
  z = {k.removeprefix(f'{name}.'): jnp.asarray(v) for k, v in ops('assigners').items()}
  pos, neg, least, low_quality = z['cfg'].tolist()
  gt = jnp.pad(z['gt'], ((0, 2), (0, 0)), constant_values=50)
  valid = jnp.arange(len(gt)) < len(z['gt'])

  @jax.jit
  def run(boxes, gt):
    assigned = assign.max_iou(iou.rotated_iou, boxes, gt, valid, pos, neg, least)
    return assigned, iou.rotated_iou(boxes, gt)

  got, overlaps = map(np.asarray, run(z['boxes'], gt))
  np.testing.assert_allclose(np.where(valid, overlaps, 0).max(1), z['max_overlaps'], atol=1e-5)
  differs = got != z['gt_inds']
  assert low_quality and (got > 0).sum() > len(z['gt']) and differs.sum() < 10
  for row in np.flatnonzero(differs):
    one = max(got[row], int(z['gt_inds'][row])) - 1
    assert overlaps[row, one] < pos and overlaps[:, one].max() - overlaps[row, one] < 1e-6


LOSSES = {
  'focal': losses.sigmoid_focal,
  'sl1_011': lambda p, t: losses.smooth_l1(p, t, 0.11),
  'sl1_1': lambda p, t: losses.smooth_l1(p, t, 1.0),
  'ce_softmax': losses.softmax_cross_entropy,
}


@pytest.mark.parametrize('name', LOSSES)
def test_losses(ops, name):
  z = {k.removeprefix(f'{name}.'): jnp.asarray(v) for k, v in ops('losses').items()}
  total = lambda p: (LOSSES[name](p, z['target']) * z['weight']).sum() / z['avg_factor']
  loss, grad = jax.jit(jax.value_and_grad(total))(z['pred'])
  np.testing.assert_allclose(loss, z['loss'], rtol=1e-5)
  assert relative(grad, z['grad']) < 1e-5


def turned(targets):
  """The same objects: any angle will do, and any side may be the first."""
  boxes = np.array(targets['boxes'])
  boxes[:, 1::2] = boxes[:, 1::2][..., [0, 1, 3, 2, 4]]
  boxes[:, 1::2, 4] += np.float32(7.5 * np.pi)
  return targets | {'boxes': jnp.asarray(boxes)}


@pytest.fixture(scope='module')
def recorded(golden):
  heads = {}

  def get(case, task):
    if (case, task) not in heads:
      heads[case, task] = Recorded(golden / 'heads' / case, task)
    return heads[case, task]

  return get


@pytest.fixture(scope='module')
def run():
  """Runs a function of (head, params, *arrays), compiled once for all the heads of a kind."""
  programs = {}

  def run(recorded, f, *args):
    key = type(recorded.head), f
    if key not in programs:
      programs[key] = jax.jit(lambda params, *args: f(recorded.head, params, *args))
    return programs[key](recorded.params, *args)

  return run


def calling(method):
  return lambda head, params, *args: head.apply({'params': params}, *args, method=method)


# one object each, so that each is compiled once
STEPS, RAW, DETECT = calling('_run'), calling('raw'), calling('detect')


def corners(boxes):
  return np.asarray(obb.to_corners(jnp.asarray(boxes))).reshape(len(boxes), 8)


def distances(a, b):
  """Largest distances [...] of corners [..., 8], whichever corner comes first."""
  return np.min([np.abs(np.roll(a, 2 * k, -1) - b).max(-1) for k in range(4)], 0)


def assert_maps(got, want):
  for name, maps in got.items():
    for i, m in enumerate(maps):
      assert relative(m, nhwc(want[f'{name}.{i}'])) < 5e-5, (name, i)


@pytest.mark.slow
@pytest.mark.parametrize('case, task', S2ANET)
def test_s2anet_step_by_step(recorded, run, case, task):
  r = recorded(case, task)
  fam, boxes, odm = run(r, STEPS, r.features)
  want = r.load('eval_heads')
  names = ('fam_cls', 'fam_reg', 'odm_cls', 'odm_reg')
  assert_maps(dict(zip(names, (*fam, *odm), strict=True)), want)
  for i, got in enumerate(boxes):
    np.testing.assert_allclose(got[0], want[f'fam_rois.{i}'], atol=1e-3)


def given_rois(head, params, features, boxes, turned):
  """Both stages of RoI Transformer on boxes that are given."""

  def stages(head):
    out = []
    for stage, rois in zip(head.stages(), (boxes, turned), strict=True):
      pooled = two_stage.roi_features(head.config, stage, features, rois)
      cls, reg = stage.head(pooled)
      decoded = two_stage.decoded(stage, rois[0], reg[0], jnp.asarray([SIZE, SIZE]))
      out.append((pooled[0, ::10], cls[0], reg[0], decoded.reshape(reg[0].shape)))
    return out

  return head.apply({'params': params}, method=stages)


@pytest.mark.slow
@pytest.mark.parametrize('case, task', ROI_TRANSFORMER)
def test_roi_transformer_step_by_step(recorded, run, case, task):
  r = recorded(case, task)
  cls, reg = run(r, RAW, r.features)
  assert_maps({'rpn_cls': cls, 'rpn_reg': reg}, r.load('eval_heads'))
  want = {k.removeprefix('given.'): v for k, v in r.load('eval_roi').items() if 'given' in k}
  rois = (want[f's{k}.rois'][None, :, 1:] for k in (0, 1))
  for k, (pooled, cls, reg, boxes) in enumerate(run(r, given_rois, r.features, *rois)):
    assert relative(pooled, nhwc(want[f's{k}.feats_every10'])) < 5e-5
    assert relative(cls, want[f's{k}.cls_score']) < 5e-5
    assert relative(reg, want[f's{k}.bbox_pred']) < 5e-5
    got, decoded = (x.reshape(-1, 5) for x in (boxes, want[f's{k}.decoded']))
    assert (distances(corners(got), corners(decoded)) < 2e-2).all()


@pytest.mark.slow
@pytest.mark.parametrize('case, task', S2ANET + ROI_TRANSFORMER)
def test_detections(recorded, run, case, task):
  r = recorded(case, task)
  found = jax.tree.map(np.asarray, run(r, DETECT, r.features, r.shapes))
  boxes, scores, labels = (x[0][found.valid[0]] for x in found[:3])
  assert (boxes[:, 2] >= boxes[:, 3]).all() and (np.abs(boxes[:, 4]) <= np.pi / 2).all()
  want, missing = r.load('eval_dets'), 0
  for box, score, label in zip(corners(want['boxes']), want['scores'], want['labels'], strict=True):
    near = (distances(corners(boxes), box[None]) < 2e-2) & (labels == label)
    missing += not (near & (np.abs(scores - score) < 1e-4)).any()
  assert missing <= 2 and abs(len(boxes) - len(want['boxes'])) <= 2


def loss_and_gradients(head, params, features, targets):
  def total(params):
    terms = head.apply({'params': params}, features, targets, None, 'all', method='loss')
    return sum(terms.values()), terms

  return jax.value_and_grad(total, has_aux=True)(params)


@pytest.mark.slow
@pytest.mark.parametrize('case, task', S2ANET + ROI_TRANSFORMER)
def test_losses_and_gradients(recorded, run, case, task):
  r = recorded(case, task)
  (_, terms), grads = run(r, loss_and_gradients, r.features, turned(r.targets))
  assert set(terms) == set(r.head.groups(r.head.config))
  assert_losses(terms, np.load(r.root / 'train_all_losses.npz'), f'log.{task}_')
  theirs = {}
  for entry in r.entries:
    theirs |= layouts.theirs(entry, np.asarray(layouts.get({f'heads_{task}': grads}, entry.path)))
  assert len(theirs) > 20
  assert_gradients(r.root, theirs)


def given_proposals(head, params, features, proposals, targets):
  keys, valid = jnp.zeros((1, 2)), jnp.ones(proposals.shape[:2], bool)
  args = features, proposals, valid, targets, keys, 'all'
  return head.apply({'params': params}, *args, method='roi_loss')


@pytest.mark.parametrize('case, task', ROI_TRANSFORMER)
def test_training_of_roi_transformer_on_given_proposals(recorded, run, case, task):
  r = recorded(case, task)
  want = r.load('train_given_roi')
  proposals = want['proposals'][None, :, :4]
  terms = run(r, given_proposals, r.features, proposals, turned(r.targets))
  assert_losses(terms, want, 'raw.')


@pytest.mark.parametrize(
  'case, part, change, words',
  [
    ('s2anet_frcnn_A', 'fam_head', dict(angle_range='le90'), 'angle_range=le90.*only le135'),
    ('s2anet_frcnn_A', 'odm_head', dict(norm_factor=2), 'norm_factor=2.*only 1'),
    ('roitrans_retina_A', 'roi_head', dict(edge_swap=False), 'edge_swap=False'),
    ('roitrans_retina_A', 'roi_head', dict(target_stds=[1.0] * 5), 'target_stds=.* only .0.1'),
  ],
)
def test_settings_of_others_are_refused(golden, case, part, change, words):
  model = json.loads((golden / 'heads' / case / 'config.json').read_text())['model']
  head = model[f'rgb_{part}']
  head = head['bbox_head'][0] if part == 'roi_head' else head
  head['bbox_coder'].update(change)
  with pytest.raises(ValueError, match=words):
    official.config_from_official(model)
