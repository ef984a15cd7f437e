"""The whole detector against the recorded official one, by the general mapping of its weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax.detector import build
from sm3det_jax.heads import two_stage
from sm3det_jax.interop import official
from sm3det_jax.moe import layer, router

ROWS = {'sar': [0, 1], 'rgb': [2], 'ifr': [3]}


def relative(got, want):
  return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


class Case:
  def __init__(self, root):
    self.root = root
    self.config = official.config_from_official(
      json.loads((root / 'config.json').read_text())['model']
    )
    self.state_dict = dict(np.load(root / 'weights.npz'))
    self.variables = official.from_state_dict(self.state_dict, self.config)
    self.detector = build(self.config)
    self.inputs = np.load(root / 'inputs.npz')
    self.images = jnp.asarray(self.inputs['images'].transpose(0, 2, 3, 1))

  def load(self, name):
    return np.load(self.root / f'{name}.npz')

  def batch(self):
    return {task: self._targets(task, np.asarray(rows)) for task, rows in ROWS.items()}

  def _targets(self, task, rows):
    m, width = 16, 4 if task == 'sar' else 5
    boxes, labels = np.ones((len(rows), m, width), np.float32), np.zeros((len(rows), m), np.int32)
    valid = np.zeros((len(rows), m), bool)
    for i in range(len(rows)):
      own = self.inputs[f'gt_bboxes.{task}{i}']
      boxes[i, : len(own)], valid[i, : len(own)] = own, True
      labels[i, : len(own)] = self.inputs[f'gt_labels.{task}{i}']
    targets = {'images': self.images[rows], 'boxes': boxes, 'labels': labels, 'valid': valid}
    return jax.tree.map(jnp.asarray, targets)


@pytest.fixture(scope='module')
def case(golden):
  return Case(golden / 'case_A')


def test_features_and_router(case):
  network, params = case.detector.network, case.variables

  def run(network, images):
    return network.backbone({'sar': images})

  found = jax.jit(lambda v, x: network.apply(v, x, method=run))(params, case.images)
  recorded = case.load('eval_backbone')
  for i, stage in enumerate(found.stages['sar']):
    assert relative(stage, recorded[f'backbone.stage{i}'].transpose(0, 2, 3, 1)) < 1e-5
  balance = layer.balance_loss(found.usage, case.config.moe.balance_weight)
  np.testing.assert_allclose(balance, recorded['backbone.gate_loss_eval'], rtol=1e-5)
  recorded, gates = case.load('eval_router'), found.of_layers('sar', 'gates')
  for name, experts in found.of_layers('sar', 'experts').items():
    stage, index = name.removeprefix('stage').split('_block')
    prefix = f'backbone.stages.{stage}.{index}.ffn'
    want = recorded[f'{prefix}.gates']
    chosen = jax.nn.one_hot(experts.reshape(len(want), -1), want.shape[1])
    got = (chosen * gates[name].reshape(len(want), -1, 1)).sum(1)
    assert relative(got, want) < 1e-5
    np.testing.assert_array_equal(chosen.sum((0, 1)), recorded[f'{prefix}.load'])
  assert len(gates) == 4


@pytest.mark.parametrize('task', ROWS)
def test_pyramid_and_head_outputs(case, task):
  def raw(network, images):
    levels = network.features(images, task)
    return levels, network.heads[task].raw(levels)

  apply = jax.jit(lambda v, x: case.detector.network.apply(v, x, method=raw))
  levels, maps = apply(case.variables, case.images[np.asarray(ROWS[task])])
  recorded = case.load('eval_fpn')
  assert len(levels) == 5
  for i, level in enumerate(levels):
    assert relative(level, recorded[f'{task}.p{i}'].transpose(0, 2, 3, 1)) < 1e-5

  names = ('gfl_cls', 'gfl_reg') if task == 'sar' else ('rpn_cls', 'rpn_reg')
  recorded = case.load('eval_heads')
  for name, got in zip(names, maps, strict=True):
    for i, m in enumerate(got):
      assert relative(m, recorded[f'{task}.{name}.{i}'].transpose(0, 2, 3, 1)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('task', ['rgb', 'ifr'])
def test_roi_head_on_given_boxes(case, task):
  recorded = case.load('eval_roi')
  rois = jnp.asarray(recorded[f'{task}.given_rois'][:, 1:])[None]

  def run(network, images, rois):
    head = network.heads[task]
    features = two_stage.roi_features(
      head.config, head.stages()[0], network.features(images, task), rois
    )
    return features, *head.roi_head(features)

  apply = jax.jit(lambda *args: case.detector.network.apply(*args, method=run))
  features, cls, reg = apply(case.variables, case.images[np.asarray(ROWS[task])], rois)
  want = recorded[f'{task}.given_roi_feats_every4'].transpose(0, 2, 3, 1)
  assert relative(features[0, ::4], want) < 1e-5
  assert relative(cls[0], recorded[f'{task}.given_cls_score']) < 1e-5
  assert relative(reg[0], recorded[f'{task}.given_bbox_pred']) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('task', ROWS)
def test_detections(case, task):
  images = case.images[np.asarray(ROWS[task])]
  found = jax.jit(lambda v, x: case.detector.detect(v, x, task))(case.variables, images)
  recorded = case.load('eval_dets')
  for i in range(len(images)):
    key = f'{task}.{i}' if task == 'sar' else task
    boxes, scores, labels = (recorded[f'{key}.{part}'] for part in ('boxes', 'scores', 'labels'))
    valid = np.asarray(found.valid[i])
    assert abs(valid.sum() - len(boxes)) <= 2
    ours = [np.asarray(part[i])[valid] for part in found[:3]]
    matched = 0
    for box, score, label in zip(boxes, scores, labels, strict=True):
      near = (ours[2] == label) & (np.abs(ours[1] - score) < 1e-4)
      near &= (np.abs(ours[0] - box) < 1e-2).all(1)
      matched += bool(near.any())
    assert matched >= len(boxes) - 2


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['all', 'firstk'])
def test_losses_and_gradients(case, mode):
  batch = case.batch()
  loss = lambda params: case.detector.loss({'params': params}, batch, sampling=mode)
  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (total, (terms, updates)), grads = run(case.variables['params'])
  recorded = case.load(f'train_{mode}_losses')
  assert updates == {} and len(terms) == 12
  np.testing.assert_allclose(total, recorded['total_loss'], rtol=1e-4)
  for key in recorded.files:
    if key.startswith('log.') and key != 'log.loss' and 'acc' not in key:
      name = key[4:].replace('loss_', '').replace('_', '/', 1)
      name = 'moe/balance' if key == 'log.gate_loss' else name
      np.testing.assert_allclose(terms[name], recorded[key], rtol=1e-4, err_msg=name)
  recorded = case.load(f'train_{mode}_grads')
  ours = official.to_state_dict({'params': grads}, case.config)
  norms = {}
  for name, want in zip(recorded['grad_norm_names'], recorded['grad_norms'], strict=True):
    norms[str(name)] = abs(np.linalg.norm(ours[str(name)].astype(np.float64)) - want) / (
      want + 1e-6
    )
  assert len(norms) > 200 and np.mean(np.asarray(list(norms.values())) < 1e-3) >= 0.95
  # the contributions to a router's temperature, one number, nearly cancel
  assert max(v for k, v in norms.items() if 'temperature' not in k) < 2e-2
  # single ReLUs switch in float32: in two of the 64 channels of the first convolution of a tower,
  # say, while ours in float32 and in float64 agree
  arrays = {k[5:]: relative(ours[k[5:]].reshape(recorded[k].shape), recorded[k])
            for k in recorded.files if k.startswith('grad.')}  # fmt: skip
  assert len(arrays) >= 30 and max(arrays.values()) < 2e-2, max(arrays, key=arrays.get)
  assert np.mean(np.asarray(list(arrays.values())) < 3e-3) >= 0.9


@pytest.mark.slow
def test_noisy_backbone(case, monkeypatch):
  recorded = case.load('train_noisy_backbone')
  blocks = [(s, b) for s, blocks in enumerate(case.config.moe.blocks) for b in blocks]
  names = [f'backbone.stages.{s}.{b}.ffn' for s, b in blocks]

  def objective(params):
    noise = iter(names)
    draw = lambda *_: jnp.asarray(recorded[f'{next(noise)}.noise'])
    monkeypatch.setattr(router, 'draw_noise', draw)
    run = lambda network, x: network.backbone({'sar': x}, jax.random.key(0))
    images = case.images[np.asarray([0, 2])]
    found = case.detector.network.apply({'params': params}, images, method=run)
    stages, usage = found.stages['sar'], found.usage
    balance = layer.balance_loss(usage, case.config.moe.balance_weight)
    weights = [recorded[f'obj_weight{i}'] for i in range(4)]
    value = sum((s * w[None, None, None]).mean() for s, w in zip(stages, weights, strict=True))
    return value + 10 * balance, (stages, usage, balance)

  run = jax.jit(jax.value_and_grad(objective, has_aux=True))
  (value, (stages, usage, balance)), grads = run(case.variables['params'])
  for i, stage in enumerate(stages):
    assert relative(stage, recorded[f'stage{i}'].transpose(0, 2, 3, 1)) < 1e-5
  np.testing.assert_allclose(balance, recorded['gate_loss'], rtol=1e-4)
  np.testing.assert_allclose(value, recorded['objective'], rtol=1e-4)
  for name, layer_usage in zip(names, usage, strict=True):
    np.testing.assert_allclose(layer_usage.load[0], recorded[f'{name}.load'], rtol=1e-4)
  ours = official.to_state_dict({'params': grads}, case.config)
  keys = [k for k in recorded.files if k.startswith('grad.')]
  assert any('w_noise' in k for k in keys)
  for key in keys:
    assert relative(ours[key[5:]], recorded[key]) < 2e-2, key


def test_weights_go_out_as_they_came_in(case):
  back = official.to_state_dict(case.variables, case.config)
  for name, array in back.items():
    np.testing.assert_array_equal(array, case.state_dict[name])
  assert all(name.endswith(official.IGNORED) for name in set(case.state_dict) - set(back))


def test_a_state_dict_that_does_not_fit_is_named(case):
  lacking = {k: v for k, v in case.state_dict.items() if k != 'backbone.norm0.weight'}
  with pytest.raises(ValueError, match='missing.*backbone.norm0.weight'):
    official.from_state_dict(lacking, case.config)
  with pytest.raises(ValueError, match='unexpected.*stranger'):
    official.from_state_dict(case.state_dict | {'stranger': np.zeros(1)}, case.config)
