"""COCO AP of horizontal boxes: by hand, and against pycocotools used through its own files."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sm3det_jax.metrics import coco

CLASSES = ('ship', 'aircraft', 'tank')


def image(name, boxes, labels, scores=None, difficult=None):
  entry = {'id': name, 'boxes': np.reshape(np.asarray(boxes, np.float32), (-1, 4))}
  entry['labels'] = np.asarray(labels, np.int32)
  if scores is not None:
    entry['scores'] = np.asarray(scores, np.float32)
  if difficult is not None:
    entry['difficult'] = np.asarray(difficult, bool)
  return entry


def random_scene(rng, images=12):
  truths, found = [], []
  for i in range(images):
    n = rng.integers(0, 8)
    xy, wh = rng.uniform(0, 300, (n, 2)), rng.uniform(5, 120, (n, 2))
    boxes, labels = np.concatenate([xy, xy + wh], 1), rng.integers(0, 2, n)  # no tank anywhere
    truths.append(image(f'i{i}', boxes, labels, difficult=rng.random(n) < 0.1))
    keep = rng.integers(0, n, n + 3) if n else np.zeros(0, int)
    noisy = boxes[keep] + rng.normal(0, 4, (len(keep), 4))
    found.append(image(f'i{i}', noisy, rng.integers(0, 3, len(keep)), rng.random(len(keep))))
  return truths, found


def test_by_hand():
  """One of two ships found at IoU 0.8, then a false alarm; the aircraft has no detection."""
  truths = [
    image('a', [[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0]),
    image('b', [[0, 0, 10, 10]], [1]),
  ]
  found = [
    image('a', [[0, 0, 10, 8], [80, 80, 90, 90]], [0, 0], [0.9, 0.8]),
    image('b', np.zeros((0, 4)), [], []),
  ]
  summary, curves = coco.evaluate(found, truths, CLASSES)
  # recall 0.5 at precision 1: 51 of 101 recall points; IoU 0.50 .. 0.80 are 7 of 10 thresholds
  assert summary['classes']['ship']['ap50'] == pytest.approx(51 / 101)
  assert summary['classes']['ship']['ap75'] == pytest.approx(51 / 101)
  assert summary['classes']['ship']['ap'] == pytest.approx(0.7 * 51 / 101)
  assert summary['classes']['aircraft'] == {
    'ap': 0.0, 'ap50': 0.0, 'ap75': 0.0, 'objects': 1, 'detections': 0,
  }  # fmt: skip
  assert summary['classes']['tank']['ap'] is None
  assert summary['map50'] == pytest.approx(51 / 202)  # over two classes, not three
  assert curves.keys() == {'ship', 'aircraft'} and curves['ship'].shape == (101, 2)
  json.dumps(summary, allow_nan=False)


def test_a_crowd_is_neither_found_nor_missed():
  """What lies in it by its own area counts neither way, however small its IoU; the rest does."""
  truths = [image('a', [[0, 0, 10, 10], [100, 0, 200, 100]], [0, 0], difficult=[0, 1])]
  in_crowd, half_out, outside = [110, 10, 120, 20], [196, 0, 206, 10], [300, 0, 310, 10]
  score = lambda *boxes: coco.evaluate(
    [image('a', [*boxes, [0, 0, 10, 10]], [0] * (len(boxes) + 1), [0.9] * len(boxes) + [0.8])],
    truths,
    CLASSES,
  ).summary['classes']['ship']
  assert score() == score(in_crowd) | {'detections': 1}
  assert score()['ap'] == pytest.approx(1) and score()['objects'] == 1
  for alarm in (half_out, outside):
    assert score(alarm)['ap50'] == pytest.approx(0.5)


def test_equals_pycocotools_from_files(tmp_path, capsys):
  truths, found = random_scene(np.random.default_rng(0))
  summary, _ = coco.evaluate(found, truths, CLASSES)
  assert capsys.readouterr().out == ''
  annotations, detections = [], []
  for i, (t, f) in enumerate(zip(truths, found, strict=True)):
    for (x1, y1, x2, y2), label, crowd in zip(
      t['boxes'].astype(float), t['labels'], t['difficult'], strict=True
    ):
      box = [x1, y1, x2 - x1, y2 - y1]
      row = {'id': len(annotations) + 1, 'image_id': i, 'category_id': int(label), 'bbox': box}
      annotations.append(row | {'area': box[2] * box[3], 'iscrowd': int(crowd)})
    for (x1, y1, x2, y2), label, score in zip(
      f['boxes'].astype(float), f['labels'], f['scores'], strict=True
    ):
      row = {'image_id': i, 'category_id': int(label), 'bbox': [x1, y1, x2 - x1, y2 - y1]}
      detections.append(row | {'score': float(score)})
  (tmp_path / 'truth.json').write_text(
    json.dumps(
      {
        'images': [{'id': i} for i in range(len(truths))],
        'annotations': annotations,
        'categories': [{'id': k, 'name': name} for k, name in enumerate(CLASSES)],
      }
    )
  )
  (tmp_path / 'found.json').write_text(json.dumps(detections))
  reference = COCO(str(tmp_path / 'truth.json'))
  run = COCOeval(reference, reference.loadRes(str(tmp_path / 'found.json')), 'bbox')
  run.evaluate()
  run.accumulate()
  run.summarize()
  assert 0.05 < run.stats[0] < 0.9
  for key, value in zip(('map', 'map50', 'map75'), run.stats, strict=False):
    assert summary[key] == pytest.approx(value, abs=1e-12)


def test_order_of_images_and_nothing_found():
  truths, found = random_scene(np.random.default_rng(1))
  summary, _ = coco.evaluate(found, truths, CLASSES)
  assert coco.evaluate(found[::-1], truths, CLASSES)[0] == summary
  nothing = [image(t['id'], [], [], []) for t in truths]
  assert coco.evaluate(nothing, truths, CLASSES)[0]['map'] == 0
  unlabelled = [image(t['id'], [], []) for t in truths]
  assert coco.evaluate(found, unlabelled, CLASSES)[0]['map'] is None


def test_the_cap_of_100_is_reported():
  truths = [image('a', [[0, 0, 10, 10]], [0])]
  boxes = np.tile([[20.0, 20, 30, 30]], (101, 1))
  boxes[100] = [0, 0, 10, 10]  # the right one comes last
  found = [image('a', boxes, [0] * 101, np.linspace(0.9, 0.1, 101))]
  summary, _ = coco.evaluate(found, truths, CLASSES)
  assert (summary['capped'], summary['map']) == (1, 0)
  ships = image('a', boxes[:100] + np.arange(100)[:, None] * 50, [0] * 100)  # all found
  summary, _ = coco.evaluate([ships | {'scores': np.ones(100)}], [ships], CLASSES)
  assert (summary['capped'], summary['map']) == (0, pytest.approx(1))
