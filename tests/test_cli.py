"""The verbs on one tiny run: what they write, and one line for what a user did wrong."""

import json

import cv2
import numpy as np
import pytest

from sm3det_jax import Detector, bench, cli, logs


def run(*arguments):
  return cli.main(list(map(str, arguments)))


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
  assert set(bench.names()) == {'train_step', 'overfit', 'first_batch'}
  assert bench.names()['train_step'].startswith('how long')
  with pytest.raises(SystemExit):
    run('bench', '--help')
  assert 'first_batch: 100 % of nothing.' in ' '.join(capsys.readouterr().out.split())
  assert run('bench', 'first_batch', '--config=quickstart', '--steps=2', '--json') == 0
  assert json.loads(capsys.readouterr().out) == {'steps': 2, 'batch': 6}


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


def test_the_detector_class(tiny_run):
  detector = Detector.from_checkpoint(tiny_run)
  found = detector.predict(np.zeros((64, 64, 3), np.uint8), 'rgb', score_threshold=0)
  assert detector.tasks == ('sar', 'rgb', 'ifr')
  assert found['boxes'].shape == (len(found['scores']), 5)
  with pytest.raises(ValueError, match='unknown task .uv.'):
    detector.predict(np.zeros((64, 64, 3), np.uint8), 'uv')


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('evaluate', '--workdir=nowhere'), 'nowhere'),
    (('train', '--workdir=x', '--config=nothing'), 'no config file .nothing.'),
    (('train', '--workdir=x'), 'which config'),
    (('prepare', '--dataset=coco', '--source=none', '--data_dir=x'), 'none is not a folder'),
    (('prepare', '--dataset=coca', '--source=none', '--data_dir=x'), 'coca'),
  ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, capsys):
  assert run(*arguments) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith(f'sm3det {arguments[0]}: ')
  import re

  assert re.search(message, error), error


def test_an_unknown_argument_is_refused(capsys):
  with pytest.raises(SystemExit):
    run('train', '--workdir=x', '--confg=quickstart')
  assert '--confg=quickstart' in capsys.readouterr().err
