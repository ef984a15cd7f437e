"""The verbs on one tiny run: what they write, and one line for what a user did wrong."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from tiny import config_file

import sm3det_jax
from data_pipelines import errors, mixture, prepare
from sm3det_jax import Detector, bench, checkpoint, cli, config, logs, quickstart, train
from sm3det_jax.analysis import coverage
from sm3det_jax.config.small import shortened
from sm3det_jax.detector import build
from sm3det_jax.interop import convert


def run(*arguments):
  return cli.main(list(map(str, arguments)))


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory) -> Path:
  """The workdir of a tiny quickstart of two steps, which several tests read and none changes."""
  c = config.load(
    [
      '--config=quickstart',
      '--config.backbone.depths=(1, 1, 1, 1)',
      '--config.backbone.channels=(8, 16, 16, 32)',
      '--config.neck.channels=32',
    ]
  )
  for task in c.tasks.values():
    task.size, task.head.channels = (128, 128), 32
    task.head.score_threshold = 0.001  # an untrained model finds something too
    if task.kind == 'obb':
      task.head.proposals.update(pre_nms=32, max_proposals=32)
      task.head.roi.update(fc_channels=32, samples=16)
      task.head.max_detections = 20
  workdir = tmp_path_factory.mktemp('tiny') / 'run'
  quickstart.run(shortened(c, 2), workdir, {'train': 8, 'test': 3})
  return workdir


def test_quickstart_leaves_scores_report_and_routing(tiny_run):
  metrics = json.loads((tiny_run / 'metrics.json').read_text())
  assert set(metrics['tasks']) == {'sar', 'rgb', 'ifr'}
  for task in metrics['tasks'].values():
    assert 0 <= task['map'] <= task['map50'] <= 0.3  # untrained
  assert {'map', 'map50', 'map75'} <= set(metrics['overall']) and 'h_map' in metrics
  page = (tiny_run / 'report.html').read_text()
  for picture in ('pictures/sar_0.png', 'figures/losses.png', 'routing/routing.png'):
    assert picture in page and (tiny_run / picture).stat().st_size > 1000
  assert (tiny_run / 'task1/rgb/Task1_plane.txt').exists()
  assert [line['step'] for line in logs.read(tiny_run)] == [2]


def test_a_second_quickstart_has_nothing_left_to_train(tiny_run):
  before = (tiny_run / 'metrics.jsonl').read_text()
  assert run('evaluate', '--workdir', tiny_run, '--out', tiny_run / 'again') == 0
  first, again = (json.loads((tiny_run / p / 'metrics.json').read_text()) for p in ('.', 'again'))
  assert first == again
  assert (tiny_run / 'metrics.jsonl').read_text() == before


def test_a_benchmark_is_found_by_its_file(tmp_path, monkeypatch, capsys):
  (tmp_path / 'first_batch.py').write_text(
    '"""`sm3det bench first_batch`: 100 % of nothing."""\n'
    'def measure(config, steps=3):\n  return {"steps": steps, "batch": config.batch_size}\n'
  )
  monkeypatch.setattr(bench, '__path__', [*bench.__path__, str(tmp_path)])
  assert {'train_step', 'overfit', 'predict', 'pretrain', 'rmoe', 'tta', 'first_batch'} == set(
    bench.names()
  )
  assert bench.names()['train_step'].startswith('how long')
  with pytest.raises(SystemExit):
    run('bench', '--help')
  assert 'first_batch: 100 % of nothing.' in ' '.join(capsys.readouterr().out.split())
  assert run('bench', 'first_batch', '--config=quickstart', '--steps=2', '--json') == 0
  assert json.loads(capsys.readouterr().out) == {'steps': 2, 'batch': 6}


@pytest.mark.slow
def test_views_are_evaluated_and_measured(tiny_run, tmp_path, monkeypatch, capsys):
  views = '--tta=flips', '--tta_merge=nms'
  assert run('evaluate', '--workdir', tiny_run, '--out', tmp_path, *views) == 0
  metrics = json.loads((tmp_path / 'metrics.json').read_text())
  assert metrics['tta'] == {'views': 'flips', 'merge': 'nms'}
  monkeypatch.setattr('sm3det_jax.bench.tta.VIEWS', ('flips',))
  capsys.readouterr()
  assert run('bench', 'tta', '--workdir', tiny_run, '--json') == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  names = [f'{what} {how}' for what in ('map50', 'map50/sar', 'map50/rgb', 'map50/ifr', 'time')
           for how in ('none', 'flips nms', 'flips wbf')]  # fmt: skip
  assert set(result) == set(names) and result['time none'] == 1
  assert result['map50 flips nms'] == pytest.approx(metrics['overall']['map50'])
  plain = json.loads((tiny_run / 'metrics.json').read_text())
  assert result['map50 none'] == pytest.approx(plain['overall']['map50'])


def test_routing_shares_add_up(tiny_run):
  routing = json.loads((tiny_run / 'routing/routing.json').read_text())
  assert [layer['name'] for layer in routing['layers']] == [f'stage{i}_block0' for i in (1, 2, 3)]
  for layer in routing['layers']:
    for task in ('sar', 'rgb', 'ifr'):
      assert np.isclose(sum(layer['top1'][task]), 1)
      assert np.isclose(sum(layer['participation'][task]), routing['top_k'])
  assert run('routing', '--workdir', tiny_run, '--split=train', '--out', tiny_run / 'r') == 0
  other = json.loads((tiny_run / 'r/routing.json').read_text())
  assert other['layers'][0]['top1'] != routing['layers'][0]['top1']


def test_predict_on_files_of_any_kind(tiny_run, tmp_path, caplog):
  rng = np.random.default_rng(0)
  cv2.imwrite(str(tmp_path / 'grey.png'), rng.integers(0, 255, (90, 150), np.uint8))
  cv2.imwrite(str(tmp_path / 'large.tif'), rng.integers(0, 60000, (300, 400, 3), np.uint16))
  (tmp_path / 'broken.png').write_bytes(b'\x89PNG no more')
  out = tmp_path / 'out'
  files = [tmp_path / n for n in ('grey.png', 'large.tif', 'broken.png')]
  common = ('predict', '--workdir', tiny_run, '--task=sar', '--out', out, '--score_threshold=0.001')
  assert run(*common, *files) == 1  # one of them could not be read
  assert 'broken.png' in caplog.text
  for name, height in (('grey', 90), ('large', 300)):
    content = json.loads((out / f'{name}_detections.json').read_text())
    assert content['height'] == height and content['detections']
    assert {d['name'] for d in content['detections']} <= {'ship', 'aircraft', 'tank'}
    assert (out / f'{name}_detections.png').stat().st_size > 1000
  assert not (out / 'broken_detections.json').exists()


def test_training_starts_from_another_run(tiny_run, tmp_path, caplog):
  c, trained = checkpoint.restore_for_inference(tiny_run)
  c.init_from = str(tiny_run)
  c.tasks.sar.classes = ('ship', 'tank', 'aircraft', 'new')
  shapes = jax.eval_shape(build(c).init, jax.random.key(0))
  fresh = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
  caplog.set_level('INFO')
  model = convert.start_from({'variables': fresh, 'ema': fresh['params']}, c)
  assert re.search(r'^shape +params/heads_sar/bbox_head/cls/bias ', caplog.text, re.M)
  for params in (model['variables']['params'], model['ema']):
    jax.tree.map(np.testing.assert_array_equal, params['backbone'], trained['params']['backbone'])
    assert not np.any(params['heads_sar']['bbox_head']['cls']['bias'])
    assert np.any(params['heads_sar']['bbox_head']['reg']['bias'])


def test_a_converted_model_evaluates_as_the_one_it_came_from(tiny_run, tmp_path):
  file = tmp_path / 'weights.safetensors'
  assert run('convert', '--to=official', '--workdir', tiny_run, file) == 0
  path = config_file(tmp_path / 'config.py', checkpoint.load_config(tiny_run))
  out = tmp_path / 'run'
  assert run('convert', '--from=official', f'--config={path}', file, '--out', out) == 0
  assert run('evaluate', '--workdir', out) == 0
  first, again = (json.loads((p / 'metrics.json').read_text()) for p in (tiny_run, out))
  assert first == again


def test_a_run_says_the_share_of_every_task(tiny_run, caplog):
  with caplog.at_level('INFO'):
    shares = coverage.report(mixture.open_tasks(checkpoint.load_config(tiny_run)))
  assert set(shares) == {'sar', 'rgb', 'ifr'} and min(shares.values()) > 0.8
  assert 'sar: 100.0 %' in caplog.text and 'ATSS' in caplog.text and 'RPN' in caplog.text


def test_a_missing_test_split_is_told_when_training_starts(tmp_path, caplog, monkeypatch):
  (tmp_path / 'in/images').mkdir(parents=True)
  (tmp_path / 'in/labelTxt').mkdir()
  cv2.imwrite(str(tmp_path / 'in/images/a.png'), np.zeros((64, 64, 3), np.uint8))
  (tmp_path / 'in/labelTxt/a.txt').write_text('10 10 30 10 30 20 10 20 ship 0')
  prepare.prepare('dota_txt', tmp_path / 'in', tmp_path / 'data', name='ships')
  c = config.default()
  c.tasks = config.ConfigDict(sort_keys=False)
  for name, split in (('rgb', 'train'), ('ifr', 'test')):
    c.tasks[name] = config.task('obb', 'ships', ('ship',), size=(64, 64), test=dict(split=split))
  c.data_root, c.batch_size = str(tmp_path / 'data'), 2
  trained = []
  monkeypatch.setattr(coverage, 'report', lambda tasks: None)
  monkeypatch.setattr(train, 'train', lambda c, workdir, tasks: trained.append(list(tasks)))
  file = config_file(tmp_path / 'c.py', c)
  assert run('train', f'--config={file}', '--workdir', tmp_path / 'run') == 0
  assert trained == [['rgb', 'ifr']]
  (line,) = (r.getMessage() for r in caplog.records if r.levelname == 'WARNING')
  assert line.startswith('training goes on, but `sm3det evaluate` would stop: ifr: ')
  assert "has no split 'test'; it has train" in line and 'rgb' not in line


def test_arrays_of_tasks_that_are_gone_are_one_line(tmp_path, caplog, monkeypatch):
  ours = {'backbone': {'a': np.zeros(2)}, 'heads_sar': {'b': np.zeros(3), 'c': np.zeros(1)}}
  more = {t: {f'k{i}': np.zeros(1) for i in range(9)} for t in ('heads_rgb', 'heads_ifr')}
  there = {'params': ours | more | {'heads_sar': {'b': np.ones(4), 'c': np.ones(1)}}}
  c = config.ConfigDict({'init_from': str(tmp_path), 'backbone': {'type': 'convnext'}})
  monkeypatch.setattr(checkpoint, 'restore_for_inference', lambda workdir: (c, there))
  caplog.set_level('INFO')
  model = convert.start_from({'variables': {'params': ours}}, c)
  assert model['variables']['params']['heads_sar']['c'] == 1
  lines = caplog.records[-1].getMessage().split('\n')
  assert lines[1:] == [
    'unexpected  18 arrays: params/heads_ifr (9), params/heads_rgb (9)',
    'shape       params/heads_sar/b  (4,) there, (3,) here',
  ]


def test_quickstart_says_how_long_it_takes(tmp_path, caplog):
  caplog.set_level('INFO')
  c = config.load(['--config=quickstart'])
  on_log = quickstart._announced(c, tmp_path)
  assert 'compiling the training step: about 2 minutes the first time' in caplog.text
  for done in (10, 20):
    on_log(done, {'images_per_second': 20.0})
  # 1190 steps of 6 images
  assert caplog.text.count('training: about 6 minutes more; then about 2 for evaluation') == 1
  caplog.clear()
  (tmp_path / 'metrics.jsonl').write_text(f'{{"step": {c.optim.steps}}}\n')
  quickstart._announced(c, tmp_path)(c.optim.steps, {'images_per_second': 20.0})
  assert not caplog.text  # all of it is done


def test_the_detector_class(tiny_run):
  detector = Detector.from_checkpoint(tiny_run)
  found = detector.predict(np.zeros((64, 64, 3), np.uint8), 'rgb', score_threshold=0)
  assert detector.tasks == ('sar', 'rgb', 'ifr')
  assert found['boxes'].shape == (len(found['scores']), 5)
  with pytest.raises(ValueError, match='unknown task .uv.'):
    detector.predict(np.zeros((64, 64, 3), np.uint8), 'uv')


@pytest.fixture
def odd(tmp_path, monkeypatch):
  """The current folder, with files that are not what they are taken for."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('x\n')
  (tmp_path / 'bytes').write_bytes(b'\xff\x00')
  (tmp_path / 'subset.json').write_text('{"images": [3]}')
  (tmp_path / 's/images').mkdir(parents=True)
  for name, text in {'torn': '{"a": ', 'empty': '{}', 'list': '[1]'}.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(text)
  for name, text in {
    'missing': 'import nosuch\n',
    'syntax': 'x = 1\ndef f(:\n',
    'raises': 'def get_config():\n  return 1 / 0\n',
    'library': 'import json\n\ndef get_config():\n  json.loads("{")\n',
    'ours': 'from sm3det_jax import config\n\ndef get_config():\n  return config.head("yolo")\n',
    'none': 'x = 1\n',
  }.items():
    (tmp_path / f'{name}.py').write_text(text)
  return tmp_path


COCO = ('prepare', '--dataset=coco', '--source=s', '--data_root=d', '--name=a')
QUICK = ('train', '--workdir=w', '--config=quickstart')


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('evaluate', '--workdir=nowhere'), 'nowhere'),
    (('train', '--workdir=x', '--config=nothing'), 'no config file .nothing.'),
    (('train', '--workdir=x'), 'which config'),
    (('prepare', '--dataset=coco', '--source=none', '--data_dir=x'), 'none is not a folder'),
    (('prepare', '--dataset=coca', '--source=none', '--data_root=x'), 'coca'),
    ((*COCO, '--aliases=ship'), "--aliases=ship: expected spelling=class,..., not 'ship'"),
    ((*COCO, '--splits=train=images:images'), 's/images: Is a directory'),
    ((*COCO, '--subset=s'), 's: Is a directory'),
    ((*COCO, '--subset=bytes'), '--subset=bytes: neither a COCO file nor'),
    ((*COCO, '--subset=subset.json'), '--subset=subset.json: neither a COCO file nor'),
    (('quickstart', '--workdir=file'), 'file: File exists; a file lies where a folder is'),
    (('predict', '--workdir=file', '--task=sar', '--out=o', 's'), 'file/config.json does not'),
    (('predict', '--workdir=torn', '--task=sar', '--out=o', 's'), 'torn/config.json is not a run'),
    (('evaluate', '--workdir=empty'), 'empty/config.json is not a run'),
    (('routing', '--workdir=list'), 'list/config.json is not a run'),
    (('train', '--workdir=w', '--config=missing.py'), 'missing.py, line 1: ModuleNotFoundError'),
    (('train', '--workdir=w', '--config=syntax.py'), 'syntax.py, line 2: SyntaxError'),
    (('train', '--workdir=w', '--config=raises.py'), 'raises.py, line 2: ZeroDivisionError'),
    (('train', '--workdir=w', '--config=library.py'), 'library.py, line 4: JSONDecodeError'),
    (('train', '--workdir=w', '--config=ours.py'), "head 'yolo': expected gfl"),
    (('train', '--workdir=w', '--config=none.py'), r'none.py: expected a function get_config\(\)'),
    (('train', '--workdir=w', '--config=bytes'), 'bytes: .*null bytes'),
    ((*QUICK, '--config.optim.lr', 'fast'), '--config.optim.lr=fast'),
    ((*QUICK, '--config.optim.lrr=1'), 'config.optim.lrr is not a known key; near it: lr'),
    ((*QUICK, '--config.optim.lr.a=1'), 'config.optim.lr is a value'),
    ((*QUICK, '--config.data_dir=d'), 'config.data_dir .*near it: data_root'),
    (('compile', '--config=quickstart', '--topology=v5e:4x4', '--mesh=dat:2'), 'not of dat'),
    (('convert', '--to=official', 'x.npz'), '--workdir missing'),
    (('evaluate', '--workdir=empty', '--tta=flip'), 'some of flips, turns and scales:0.8:1.25'),
    (('evaluate', '--workdir=empty', '--tta=flips', '--tta_merge=x'), 'expected nms or wbf'),
    (('predict', '--workdir=w', '--task=x', '--out=o', '--tta=x', 's'), "--tta=x: .*not 'x'"),
    (('bench', 'tta'), 'tta measures a trained run: name its folder with --workdir'),
    (('bench', 'tta', '--workdir=empty'), 'empty/config.json is not a run'),
    (('bench', 'tta', '--workdir=empty', '--steps=3'), 'tta takes no --steps'),
    (('bench', 'overfit', '--workdir=w'), 'overfit takes no --workdir'),
  ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, odd, capsys):
  assert run(*arguments) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith(f'sm3det {arguments[0]}: ')
  assert re.search(message, error), error


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('train', '--workdir=x', '--confg=quickstart'), 'unknown arguments: --confg=quickstart'),
    (('train', '--work=x', '--config=quickstart'), 'required: --workdir'),  # no abbreviations
    (('predict', '--workdir=x', '--task=sar', '--out=o', '--config.a', 'b', 'c'), '--config.a=b'),
    (('account', '--config=quickstart', '--size=3x0'), "'3x0': expected HxW"),
    (('account', '--config=quickstart', '--size=800'), "'800': expected HxW"),
    (('compile', '--topology=v5e:4x4', '--mesh=data:x'), "'data:x': expected sizes of axes"),
    (('bench', 'overfit', '--steps=0'), "'0': expected a whole number from 1"),
    (('quickstart', '--steps=many'), "'many': expected a whole number from 1"),
    (('bench', 'nosuch'), "'nosuch'"),
    ((), 'required: VERB'),
  ],
)
def test_wrong_arguments_are_one_line_and_status_2(arguments, message, capsys):
  with pytest.raises(SystemExit) as ended:
    run(*arguments)
  (line,) = capsys.readouterr().err.splitlines()
  assert ended.value.code == 2 and message in line


def test_values_may_stand_apart_from_their_keys(monkeypatch):
  from sm3det_jax import train

  seen = []
  monkeypatch.setattr(train, 'train', lambda c, workdir, tasks: seen.append((c.seed, c.optim.lr)))
  monkeypatch.setattr('data_pipelines.mixture.open_tasks', lambda c: {})
  for joint in '= ':
    text = f'--config{joint}quickstart --config.seed{joint}7 --config.optim.lr{joint}3e-4'
    assert run('train', *text.split(), '--workdir', 'w') == 0
  assert seen == [(7, 3e-4)] * 2


def test_the_version(capsys):
  with pytest.raises(SystemExit) as ended:
    run('--version')
  assert not ended.value.code and capsys.readouterr().out == f'sm3det {sm3det_jax.__version__}\n'


@pytest.mark.parametrize(
  'error, line',
  [
    (errors.UserError('this\nthat'), 'this that'),
    (errors.NotFiniteError('10 steps'), '10 steps'),
    (PermissionError(13, 'Permission denied', 'x'), 'x: Permission denied; check the rights'),
    (OSError(30, 'Read-only file system', 'x'), 'x: Read-only file system; name a place that'),
    (OSError(28, 'No space left on device', 'x'), 'x: No space left on device; free some space'),
    (FileExistsError(17, 'File exists', 'x'), 'x: File exists; a file lies where a folder'),
    (OSError(5, 'Input/output error', 'a', None, 'b'), 'a -> b: Input/output error'),
    (FileNotFoundError('no run in x'), 'no run in x'),
    (ValueError('write of x: No space left on device [os_error="ENOSPC"]'), 'No space left on'),
    (KeyboardInterrupt(), 'interrupted'),
  ],
)
def test_what_a_user_can_mend_is_one_line(error, line, monkeypatch, capsys):
  def fails(_):
    raise error

  monkeypatch.setattr('data_pipelines.prepare_command.run', fails)
  assert run(*COCO) == (130 if isinstance(error, KeyboardInterrupt) else 2)
  (shown,) = capsys.readouterr().err.splitlines()
  assert shown.startswith(f'sm3det prepare: {line}')


def test_any_other_error_keeps_its_traceback(monkeypatch):
  def fails(_):
    raise ValueError('shapes (3,) and (4,) do not broadcast')

  monkeypatch.setattr('data_pipelines.prepare_command.run', fails)
  with pytest.raises(ValueError, match='broadcast'):
    run(*COCO)


@pytest.mark.slow
def test_a_configs_folder_of_the_user_is_no_obstacle(tmp_path):
  folder = tmp_path / 'configs'
  folder.mkdir()
  (folder / '__init__.py').write_text('raise ImportError("not the package")\n')
  (folder / 'sm3det.py').write_text('')
  mine = (
    'from configs import quickstart\n\ndef get_config():\n  print(quickstart.get_config().seed)\n'
  )
  (folder / 'mine.py').write_text(mine)
  module, script = (
    [sys.executable, '-m', 'sm3det_jax.cli'],
    [Path(sys.executable).with_name('sm3det')],
  )
  environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[1])}
  for command in (module, script):
    for name, want in (
      ('baselines:nosuch', 'one of separate'),
      ('configs/mine.py', 'get_config()'),
    ):
      done = subprocess.run(
        [*command, 'train', '--workdir=w', f'--config={name}'],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
      )  # fmt: skip
      assert done.returncode == 2 and want in done.stderr, done.stderr
      assert done.stdout == ('0\n' if 'mine' in name else '')


def test_what_the_user_imported_as_configs_stays(monkeypatch):
  for name in [n for n in sys.modules if n.startswith('configs.')]:
    monkeypatch.delitem(sys.modules, name)  # of the tests before
  theirs = types.ModuleType('configs')
  monkeypatch.setitem(sys.modules, 'configs', theirs)
  config.load(['--config=baselines:separate'])
  assert sys.modules['configs'] is theirs and 'configs.sm3det' not in sys.modules
