"""Official weights into workdirs and back: whole detectors, those of one task, ImageNet's."""

import copy
import json
import re
import shutil

import jax
import numpy as np
import pth
import pytest
from tiny import config_file, tiny_config

from sm3det_jax import Detector, checkpoint, cli
from sm3det_jax import config as config_lib
from sm3det_jax.detector import build
from sm3det_jax.interop import (
  constants,
  convert,
  convnext,
  layouts,
  matching,
  official,
  pyramid,
  recognition,
  sources,
  swin,
)
from sm3det_jax.interop.files import state_files
from sm3det_jax.interop.report import Row

STATUSES = ('loaded', 'copied', 'fresh', 'dropped', 'missing', 'unexpected', 'shape')


def run(*arguments):
  return cli.main(list(map(str, arguments)))


def shapes_of(config):
  return jax.eval_shape(build(config).init, jax.random.key(0))


def random_state(config, shapes):
  """A state dict of the whole official detector."""
  rng, state = np.random.default_rng(0), {}
  for entry in official.entries(config):
    shape = layouts.get(shapes, (entry.collection, *entry.path)).shape
    state |= layouts.theirs(entry, rng.normal(size=shape).astype(np.float32))
  return state


def counted(report):
  return {s: n for s in STATUSES if (n := sum(r.status == s for r in report.rows))}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
  """What a refused file resembles is tested in test_known_weights."""
  nothing = recognition.Recognised([], None)
  monkeypatch.setattr(recognition, 'recognise', lambda state: nothing)


@pytest.fixture(scope='module')
def config():
  return tiny_config(groups=1)


@pytest.fixture(scope='module')
def shapes(config):
  return shapes_of(config)


@pytest.fixture(scope='module')
def state(config, shapes):
  return random_state(config, shapes)


def test_a_checkpoint_of_mmcv_comes_in_and_goes_out(config, state, tmp_path, capsys):
  tensors = {name: pth.tensor(array) for name, array in state.items()}
  for name in ('ema_backbone_norm0_weight', 'backbone.stages.2.0.ffn.mean'):
    tensors[name] = pth.tensor(np.zeros(1, np.float32))
  file = pth.save(tmp_path / 'a.pth', {'meta': {'epoch': 12}, 'state_dict': tensors})
  source = config_file(tmp_path / 'config.py', config)
  out = tmp_path / 'run'
  assert run('convert', '--from', 'official', '--config', source, file, '--out', out) == 0
  assert f'{len(state)} loaded' in capsys.readouterr().out
  table = (out / 'conversion.txt').read_text()
  assert re.search(r'dropped +ema_backbone_norm0_weight', table)
  assert all(re.search(rf'^loaded +{re.escape(n)}$', table, re.M) for n in state)

  found_config, variables = checkpoint.restore_for_inference(out)
  assert found_config.to_dict() == config.to_dict()
  want = official.from_state_dict(state, config)
  jax.tree.map(np.testing.assert_array_equal, variables, want)

  assert run('convert', '--to', 'official', '--workdir', out, tmp_path / 'b.pth') == 0
  back = state_files.read(tmp_path / 'b.pth')
  assert {n: a.shape for n, a in back.items() if n in state} == {
    n: a.shape for n, a in state.items()
  }
  for name, array in state.items():
    np.testing.assert_array_equal(back[name], array)
  constants = set(back) - set(state)
  assert 'sar_bbox_head.integral.project' in constants
  np.testing.assert_array_equal(back['sar_bbox_head.integral.project'], np.arange(17))
  assert all(n.endswith(official.IGNORED) for n in constants)

  assert run('convert', '--from', 'official', '--config', source, file, '--out', out) == 2
  assert f'{out} holds a run already' in capsys.readouterr().err
  (tmp_path / 'begun').mkdir()  # a training that has saved nothing yet
  shutil.copy(out / 'config.json', tmp_path / 'begun')
  again = '--config', out / 'config.json', file, '--out', tmp_path / 'begun'
  assert run('convert', '--from', 'official', *again) == 2
  assert 'begun holds a run already' in capsys.readouterr().err
  assert len(list((tmp_path / 'begun').iterdir())) == 1
  with checkpoint.manager(out) as checkpoints, pytest.raises(ValueError, match='weights alone'):
    checkpoint.restore(checkpoints, {})


def test_a_half_loaded_model_is_refused(config, state, tmp_path, caplog):
  names = sorted(n for n in state if n.endswith('.weight') and state[n].ndim == 4)
  gone, other = names[0], names[1]
  changed = {n: a for n, a in state.items() if n != gone}
  changed |= {other: state[other][:-1], 'neck.what': np.zeros(3, np.float32)}
  np.savez(tmp_path / 'a.npz', **changed)
  with pytest.raises(ValueError, match='a half-loaded model is refused') as error:
    convert.to_workdir(config, tmp_path / 'a.npz', tmp_path / 'run')
  assert '1 missing' in str(error.value) and '\n' not in str(error.value)
  for status, name in (('missing', gone), ('shape', other), ('unexpected', 'neck.what')):
    assert re.search(rf'^{status} +{re.escape(name)} .*\d', caplog.text, re.M)
  assert not (tmp_path / 'run').exists()


def facebook(config, rng):
  """ConvNeXt's arrays by the names of its own repository."""
  c, array = config.backbone.channels, lambda *shape: rng.normal(size=shape).astype(np.float32)
  state = {'downsample_layers.0.0.weight': array(c[0], 3, 4, 4)}
  state |= {'downsample_layers.0.0.bias': array(c[0])}
  for i, (width, depth) in enumerate(zip(c, config.backbone.depths, strict=True)):
    before = c[i - 1] if i else width
    norm = 'downsample_layers.0.1' if not i else f'downsample_layers.{i}.0'
    state |= {f'{norm}.weight': array(before), f'{norm}.bias': array(before)}
    if i:
      state[f'downsample_layers.{i}.1.weight'] = array(width, before, 2, 2)
      state[f'downsample_layers.{i}.1.bias'] = array(width)
    for j in range(depth):
      block = f'stages.{i}.{j}'
      state |= {f'{block}.gamma': array(width), f'{block}.dwconv.weight': array(width, 1, 7, 7)}
      state |= {f'{block}.norm.weight': array(width), f'{block}.norm.bias': array(width)}
      state |= {f'{block}.dwconv.bias': array(width)}
      state |= {f'{block}.pwconv1.weight': array(4 * width, width)}
      state |= {f'{block}.pwconv1.bias': array(4 * width), f'{block}.pwconv2.bias': array(width)}
      state |= {f'{block}.pwconv2.weight': array(width, 4 * width)}
  state |= {'norm.weight': array(c[-1]), 'norm.bias': array(c[-1])}
  return state | {'head.weight': array(10, c[-1]), 'head.bias': array(10)}


def mmpretrain(state):
  """The same by mmpretrain's names."""
  rules = (('dwconv', 'depthwise_conv'), ('pwconv', 'pointwise_conv'), ('^norm', 'norm3'))
  renamed = {}
  for name, array in state.items():
    for old, new in rules:
      name = re.sub(old, new, name)
    head = name.startswith('head')
    renamed[name.replace('head', 'head.fc') if head else f'backbone.{name}'] = array
  return renamed


@pytest.mark.slow
def test_imagenet_weights_fill_the_backbone_and_every_expert(config, shapes, tmp_path):
  theirs = facebook(config, np.random.default_rng(1))
  np.savez(tmp_path / 'a.npz', **theirs)
  report = convert.to_workdir(config, tmp_path / 'a.npz', tmp_path / 'run')
  assert {r.name for r in report.rows if r.status == 'dropped'} == {'head.weight', 'head.bias'}
  fresh = {r.name for r in report.rows if r.status == 'fresh'}
  router = r'backbone.*\.(w_gate\..*|w_noise)'
  assert all(re.match(rf'neck|\w+_head|backbone.norm[012]|{router}', n) for n in fresh)
  assert {'neck.lateral_convs.0.conv.weight', 'backbone.norm0.weight'} <= fresh
  params = checkpoint.restore_for_inference(tmp_path / 'run')[1]['params']
  assert np.any(params['neck']['lateral_0']['kernel'])  # as a training begins, not zero
  for path, array in matching.of_state(config, shapes, mmpretrain(theirs), 'mm')[0].items():
    np.testing.assert_array_equal(layouts.get(params, path[1:]), array)
  backbone = params['backbone']
  np.testing.assert_array_equal(
    backbone['stem']['kernel'], theirs['downsample_layers.0.0.weight'].transpose(2, 3, 1, 0)
  )
  np.testing.assert_array_equal(
    backbone['stem_norm']['scale'], theirs['downsample_layers.0.1.weight']
  )
  np.testing.assert_array_equal(backbone['norm3']['bias'], theirs['norm.bias'])
  np.testing.assert_array_equal(
    backbone['stage0_block0']['ffn']['fc1']['kernel'], theirs['stages.0.0.pwconv1.weight'].T
  )
  experts = backbone['stage3_block0']['moe']
  assert len(experts['experts_w2']) == 8
  for weight, bias in zip(experts['experts_w2'], experts['experts_b1'], strict=True):
    np.testing.assert_array_equal(weight, theirs['stages.3.0.pwconv2.weight'].T)
    np.testing.assert_array_equal(bias, theirs['stages.3.0.pwconv1.bias'])

  del theirs['stages.1.0.gamma']
  _, report = matching.of_state(config, shapes, theirs, 'less')
  assert report.problems == [Row('missing', 'backbone.stages.1.0.gamma', '(16,)')]


def with_backbone(config, kind, **changes):
  """The same model with another backbone of the same width, routed in its last two stages."""
  c = copy.deepcopy(config)
  config_lib.use_backbone(c, kind)
  c.backbone.update(depths=(1, 1, 1, 1), channels=(8, 16, 32, 64), **changes)
  c.moe.blocks = ((), (), (0,), (0,))
  return config_lib.check(c)


def dense(config, shapes):
  """A random state dict of the backbone without experts, by the official names less `backbone.`."""
  c = copy.deepcopy(config)
  c.moe.blocks = ((), (), (), ())
  state = random_state(c, shapes_of(c))
  return {n.removeprefix('backbone.'): a for n, a in state.items() if n.startswith('backbone.')}


def swapped(state, rules):
  """`state` with its names changed by (pattern, replacement) pairs."""
  renamed = {}
  for name, array in state.items():
    for pattern, replacement in rules:
      name = re.sub(pattern, replacement, name)
    renamed[name] = array
  return renamed


def test_tasks_with_stems_and_adapters_of_their_own(config):
  new = copy.deepcopy(config)
  new.backbone.update(stems='per_task', adapters=True)
  new.tasks.sar.update(bands=1, mean=(0.0,), std=(1.0,))
  theirs = facebook(config, np.random.default_rng(1))
  values, report = matching.of_state(config_lib.check(new), shapes_of(new), theirs, 'file')
  assert not report.problems
  stem = theirs['downsample_layers.0.0.weight'].transpose(2, 3, 1, 0)
  for task in ('rgb', 'ifr'):
    np.testing.assert_array_equal(values['params', 'backbone', f'stem_{task}', 'kernel'], stem)
  fresh = {r.name for r in report.rows if r.status == 'fresh'}
  assert 'backbone.dataset_stems.sar.weight' in fresh
  assert any(re.match('params/backbone/stage0_block0/adapter_sar/', n) for n in fresh)


OWN_NAMES = {  # official name -> that of the backbone's own repository, where they differ
  'van': ((r'^patch_embed1', 'patch_embed1.norm'), ('dataset_stems.single', 'patch_embed1.proj')),
  'pvt_v2': (),
  'swin': (
    ('^stages', 'layers'), ('projection', 'proj'), (r'w_msa\.', ''),
    (r'ffn\.layers\.0\.0', 'mlp.fc1'), (r'ffn\.layers\.1', 'mlp.fc2'), ('^norm3', 'norm'),
  ),
}  # fmt: skip
OWN_NAMES['lsknet'] = OWN_NAMES['van']


@pytest.mark.parametrize('kind', OWN_NAMES)
def test_other_backbones_of_imagenet(kind, config):
  changes = {'swin': dict(heads=(1, 2, 4, 8)), 'pvt_v2': dict(heads=(1, 2, 4, 8))}
  new = with_backbone(config, kind, **changes.get(kind, {}))
  ours = dense(new, None)
  theirs = swapped(ours, OWN_NAMES[kind])
  if kind == 'swin':
    theirs = {n: a for n, a in theirs.items() if not re.match(r'norm\d', n)}  # outputs'
  theirs |= {'head.weight': np.zeros((9, 4)), 'head.bias': np.zeros(9)}
  values, report = matching.of_state(new, shapes_of(new), theirs, 'file')
  assert not report.problems
  fresh = {r.name for r in report.rows if r.status == 'fresh' and r.name.startswith('backbone.')}
  assert all(re.search(r'w_gate|w_noise|backbone\.norm[012]', n) for n in fresh)
  assert {r.name for r in report.rows if r.status == 'dropped'} == {'head.weight', 'head.bias'}
  entries = {n: e for e in official.entries(new) for n in e.names}
  copies = 0
  for name, entry in entries.items():
    path = (entry.collection, *entry.path)
    if name.startswith('backbone.') and path in values and 'downsample' not in name:
      got = layouts.theirs(entry, values[path])[name]
      source = re.sub(r'\.experts\.\d+\.', '.', name.removeprefix('backbone.'))
      np.testing.assert_array_equal(got, ours[source])
      copies += '.experts.' in name
  assert copies == 2 * 2 * 2 * new.moe.num_experts  # layers, weight and bias, two linear layers


def test_a_dense_backbone_goes_out_by_its_own_names(golden):
  want = {f'backbone.{n[2:]}' for n in np.load(golden / 'backbones/lsk_dense_A.npz') if 'w.' in n}
  rename = lambda n: re.sub('^patch_embed1', 'patch_embed1.norm', n)
  official_names = {
    'backbone.' + rename(n[9:]).replace('patch_embed1.norm.proj', 'dataset_stems.single')
    for n in want
  }
  state = dict.fromkeys(n.replace('patch_embed1.norm.norm', 'patch_embed1') for n in official_names)
  assert set(sources.to_one_task(state, 'rgb', (4, 8, 16, 32, 64), pyramid.PLAIN)) == want


def test_microsofts_patch_merging_in_mmdetections_order():
  rng = np.random.default_rng(0)
  x, weight = rng.normal(size=(4, 6, 5)), rng.normal(size=(7, 20))
  corners = [x[i::2, j::2] for j in (0, 1) for i in (0, 1)]  # as Swin's own code concatenates them
  want = np.concatenate(corners, -1) @ weight.T
  unfolded = x.reshape(2, 2, 3, 2, 5).transpose(0, 2, 4, 1, 3).reshape(2, 3, 20)
  np.testing.assert_allclose(unfolded @ swin._merged(weight).T, want)


def alone(config, task):
  """The same model without experts and with one task."""
  c = copy.deepcopy(config)
  for other in set(c.tasks) - {task}:
    del c.tasks[other]
  c.batch_size, c.moe.blocks = c.tasks[task].ratio, ((), (), (), ())
  return config_lib.check(c)


def of_one_task(state, task, start):
  """The whole official detector's arrays as a file of one data set has them."""
  renamed = {}
  for name, array in state.items():
    level = re.match(r'neck\.(lateral|fpn)_convs\.(\d+)\.(.*)', name)
    if level and int(level[2]) >= start:
      renamed[f'neck.{level[1]}_convs.{int(level[2]) - start}.{level[3]}'] = array
    elif not level:
      name = name.removeprefix(f'{task}_').replace('.ffn.pointwise', '.pointwise')
      stem = {'downsample_layers.0.0': 'downsample_layers.0.1'}
      stem |= {'dataset_stems.single': 'downsample_layers.0.0'}
      for old, new in stem.items():
        if old in name:
          name = name.replace(old, new)
          break
      renamed[name] = array
  return renamed


def test_a_checkpoint_of_one_task(config, shapes, tmp_path):
  sar = alone(config, 'sar')
  sar_shapes = shapes_of(sar)
  state = random_state(sar, sar_shapes)
  theirs = of_one_task(state, 'sar', start=1)
  assert {'bbox_head.gfl_cls.weight', 'neck.fpn_convs.4.conv.bias'} <= set(theirs)
  values, report = matching.of_state(sar, sar_shapes, theirs, 'file')
  unread = {f'neck.{k}_convs.0.conv.{p}' for k in ('lateral', 'fpn') for p in ('weight', 'bias')}
  assert {r.name for r in report.rows if r.status != 'loaded'} == unread and not report.problems
  want = official.from_state_dict(state, sar)
  assert len(values) == len(jax.tree.leaves(want)) - len(unread)
  for path, array in values.items():
    np.testing.assert_array_equal(array, layouts.get(want, path))
  back = sources.to_one_task(state, 'sar', sar.tasks.sar.head.strides, convnext.PLAIN)
  assert set(back) == set(theirs)
  for name, array in back.items():
    np.testing.assert_array_equal(array, theirs[name])

  with pytest.raises(ValueError, match='config has sar, rgb, ifr. Give one with that task alone'):
    matching.of_state(config, shapes, theirs, 'file')
  sar.tasks.sar.classes = ('ship', 'car')
  np.savez(tmp_path / 'sar.npz', **theirs)
  with pytest.raises(ValueError, match=r'gfl_cls.*\(shape\).*heads score: sar 2'):
    convert.to_workdir(sar, tmp_path / 'sar.npz', tmp_path / 'x')


def test_the_pooled_level_of_one_task_becomes_a_convolution(config, tmp_path):
  rgb = alone(config, 'rgb')
  shapes = shapes_of(rgb)
  theirs = of_one_task(random_state(rgb, shapes), 'rgb', start=0)
  theirs = {n: a for n, a in theirs.items() if not re.match(r'neck\.fpn_convs\.[45]', n)}
  assert {'rpn_head.rpn_cls.weight', 'roi_head.bbox_head.fc_cls.weight'} <= set(theirs)
  values, report = matching.of_state(rgb, shapes, theirs, 'file')
  assert not report.problems
  kernel = values['params', 'neck', 'extra_0', 'kernel']
  x = np.random.default_rng(0).normal(size=(1, 7, 6, len(kernel[1, 1]))).astype(np.float32)
  y = jax.lax.conv_general_dilated(
    x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_array_equal(y, x[:, ::2, ::2])
  with pytest.raises(ValueError, match='reads 4 stages of the backbone, task sar reads 3'):
    matching.of_state(alone(config, 'sar'), shapes, theirs, 'file')


@pytest.mark.parametrize(
  'case',
  ['case_A', 'heads/s2anet_frcnn_A', 'heads/roitrans_cascade_A', 'heads/roitrans_retina_A'],
)
def test_official_detectors_go_out_with_every_array(case, golden):
  want = dict(np.load(golden / case / 'weights.npz'))
  config = official.config_from_official(
    json.loads((golden / case / 'config.json').read_text())['model']
  )
  got = official.to_state_dict(official.from_state_dict(want, config), config)
  got |= constants.of(got)
  assert set(got) == set(want)
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize('name', ['swin_A', 'swin_squad_A', 'van_A', 'lsk_A'])
def test_constants_of_backbones(name, golden):
  want = {n[2:]: a for n, a in np.load(golden / f'backbones/{name}.npz').items() if n[:2] == 'w.'}
  is_constant = lambda n: n.endswith(official.IGNORED)
  got = constants.of({n: a for n, a in want.items() if not is_constant(n)})
  assert set(got) == set(filter(is_constant, want))
  for name in got:
    if not name.endswith('num_batches_tracked'):
      np.testing.assert_array_equal(got[name], want[name])


def test_a_model_with_other_classes_takes_what_fits(config, shapes, state):
  new = tiny_config(groups=1)
  new.tasks.sar.classes = ('oil', 'wake')
  new.label_space = 'per_task'
  zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes_of(new))
  variables, report = convert.load_matching(zeros, state, new)
  assert {r.name.split('.')[0] for r in report.rows if r.status == 'shape'} == {
    'sar_bbox_head', 'rgb_roi_head', 'ifr_roi_head',
  }  # fmt: skip
  params = variables['params']
  assert not np.any(params['heads_sar']['bbox_head']['cls']['kernel'])
  want = official.from_state_dict(state, config)['params']
  jax.tree.map(np.testing.assert_array_equal, params['backbone'], want['backbone'])
  np.testing.assert_array_equal(
    params['heads_rgb']['rpn_head']['conv']['kernel'],
    want['heads_rgb']['rpn_head']['conv']['kernel'],
  )
  with pytest.raises(ValueError, match='nothing of it fits'):
    convert.load_matching(zeros, {'neck.x': np.zeros(3)}, new)


@pytest.mark.slow
@pytest.mark.parametrize('task, row', [('sar', 0), ('rgb', 2)])
def test_the_official_model_detects_the_same_once_converted(task, row, golden, tmp_path):
  model = json.loads((golden / 'case_A/config.json').read_text())['model']
  config = official.config_from_official(model)
  for c in config.tasks.values():
    c.update(size=(256, 256), mean=(0.0,) * 3, std=(1.0,) * 3)  # the recorded images are normalised
  source, out = config_file(tmp_path / 'config.py', config), tmp_path / 'run'
  weights = golden / 'case_A/weights.npz'
  assert run('convert', '--from=official', f'--config={source}', weights, '--out', out) == 0
  image = np.load(golden / 'case_A/inputs.npz')['images'][row].transpose(1, 2, 0)
  found = Detector.from_checkpoint(out).predict(image, task, score_threshold=0)
  want = np.load(golden / 'case_A/eval_dets.npz')
  prefix = f'{task}.{row}' if task == 'sar' else task
  order = np.argsort(-want[f'{prefix}.scores'], kind='stable')[: len(found['scores'])]
  assert len(order) >= 100
  np.testing.assert_allclose(found['scores'], want[f'{prefix}.scores'][order], rtol=1e-4)
  same = found['labels'] == want[f'{prefix}.labels'][order]
  assert same.mean() > 0.95  # equal scores may change places
  boxes = want[f'{prefix}.boxes'][order]
  np.testing.assert_allclose(found['boxes'][same], boxes[same], atol=0.05)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('--from=official', 'a.pth'), '--out missing'),
    (('--from=official', 'gone.pth', '--out=x'), 'gone.pth'),
    (('--to=official', 'a.pth'), '--workdir missing'),
    (('--from=official', '--config=quickstart', 'none.pth', '--out=x'), 'none.pth'),
  ],
)
def test_what_is_missing_is_said(arguments, message, capsys):
  assert run('convert', *arguments) == 2
  assert message in capsys.readouterr().err
