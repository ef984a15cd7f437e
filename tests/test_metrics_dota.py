"""Oriented AP: polygon IoU against shapely, AP against hand-worked cases and a plain loop."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import boxes as box_lib
from sm3det_jax.metrics import dota, polygon, table

CLASSES = ('plane', 'ship')


def exact_iou(a, b):
  a, b = (shapely.polygons(np.reshape(p, (-1, 4, 2))) for p in (a, b))
  inter = shapely.area(shapely.intersection(a, b))
  return inter / (shapely.area(a) + shapely.area(b) - inter)


def random_boxes(rng, n, span=60.0, offset=0.0):
  xy = rng.uniform(0, span, (n, 2)) + offset
  return np.concatenate([xy, rng.uniform(2, 50, (n, 2)), rng.uniform(-3, 3, (n, 1))], 1)


def box_at(x, size=10.0, theta=0.0):
  return [x, 50.0, size, size, theta]


def image(name, boxes, labels=None, scores=None, difficult=None):
  boxes = np.reshape(np.asarray(boxes, np.float64), (-1, 5))
  n = len(boxes)
  entry = {'id': name, 'boxes': boxes, 'polygons': box_lib.to_polygon(boxes)}
  entry['labels'] = np.asarray(labels if labels is not None else [0] * n, int)
  if scores is not None:
    entry['scores'] = np.asarray(scores, np.float64)
  entry['difficult'] = np.asarray(difficult if difficult is not None else [0] * n, bool)
  return entry


@pytest.mark.parametrize('offset', [0.0, 20_000.0])
def test_polygon_iou_is_exact(offset):
  rng = np.random.default_rng(0)
  a = box_lib.to_polygon(random_boxes(rng, 3000, offset=offset))
  b = box_lib.to_polygon(random_boxes(rng, 3000, offset=offset))
  exact = exact_iou(a, b)
  assert (exact > 0).mean() > 0.3
  np.testing.assert_allclose(polygon.iou_pairs(a, b), exact, atol=1e-10)
  matrix = polygon.iou_matrix(a[:40], b[:30])
  np.testing.assert_allclose(
    matrix, exact_iou(a[:40].repeat(30, 0), np.tile(b[:30], (40, 1))).reshape(40, 30), atol=1e-10
  )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 1e-1]))
def test_polygon_iou_of_near_duplicates(seed, noise):
  """The case on which vertex-collecting algorithms fail; either sense and any start corner."""
  rng = np.random.default_rng(seed)
  a = box_lib.to_polygon(random_boxes(rng, 4, offset=rng.uniform(0, 20_000)))
  b = a + rng.normal(0, 1, a.shape) * noise
  b = np.roll(b.reshape(4, 4, 2)[:, :: rng.choice([-1, 1])], rng.integers(4), 1).reshape(4, 8)
  np.testing.assert_allclose(polygon.iou_pairs(a, b), exact_iou(a, b), atol=1e-8)


def test_polygon_iou_of_odd_shapes():
  square = [0, 0, 10, 0, 10, 10, 0, 10]
  concave = [0, 0, 10, 0, 3, 3, 0, 10]
  cases = [
    (square, square, 1.0),
    (square, [0, 0, 5, 0, 5, 5, 0, 5], 0.25),  # inside, sharing a corner
    (square, [10, 0, 20, 0, 20, 10, 10, 10], 0.0),  # touching
    (square, [2, 5, 8, 5, 8, 5, 2, 5], 0.0),  # no area
    ([3, 3] * 4, [3, 3] * 4, 0.0),
    (square, concave, exact_iou(square, concave)[0]),
    (concave, [1, 1, 9, 2, 8, 8, 2, 6], exact_iou(concave, [1, 1, 9, 2, 8, 8, 2, 6])[0]),
  ]
  a, b, expected = zip(*cases, strict=True)
  np.testing.assert_allclose(polygon.iou_pairs(a, b), expected, atol=1e-12)
  assert polygon.iou_matrix(np.zeros((0, 8)), np.zeros((3, 8))).shape == (0, 3)


def test_corners_turn_clockwise_on_screen():
  np.testing.assert_allclose(
    box_lib.to_polygon([[10, 20, 4, 2, np.pi / 2]]), [[11, 18, 11, 22, 9, 22, 9, 18]], atol=1e-12
  )


def test_average_precision_by_hand():
  # outcomes T F T of 4 objects: recall .25 .25 .5, precision 1 .5 .667
  recall, precision = dota.curve(np.array([1, 0, 1]), np.array([0, 1, 0]), 4)
  np.testing.assert_allclose(recall, [0.25, 0.25, 0.5])
  np.testing.assert_allclose(precision, [1, 0.5, 2 / 3])
  assert dota.average_precision(recall, precision, 'area') == pytest.approx(0.25 + 0.25 * 2 / 3)
  # recalls 0, .1, .2 at precision 1; .3, .4, .5 at 2/3; nothing beyond
  voc07 = dota.average_precision(recall, precision, 'voc07')
  assert voc07 == pytest.approx((3 + 3 * 2 / 3) / 11)
  empty = np.zeros(0)
  assert dota.average_precision(empty, empty, 'area') == 0
  assert dota.average_precision(empty, empty, 'voc07') == 0
  with pytest.raises(ValueError, match="method='11'"):
    dota.average_precision(recall, precision, '11')


def test_duplicates_are_false_alarms():
  truths = [image('a', [box_at(10), box_at(40)])]
  # both best on the first object; the second object stays unmatched
  found = [image('a', [box_at(10), box_at(11), box_at(80)], scores=[0.9, 0.8, 0.7])]
  result = dota.evaluate(found, truths, CLASSES, 'paper_patches').summary
  assert result['classes']['plane']['ap50'] == pytest.approx(0.5)
  np.testing.assert_allclose(result['map50'], 0.5)
  assert result['classes']['ship'] == {
    'ap': None, 'ap50': None, 'ap75': None, 'objects': 0, 'detections': 0,
  }  # fmt: skip


def test_threshold_itself_matches_in_paper_patches_only():
  truths = [image('a', [[10, 10, 8, 8, 0]])]
  found = [image('a', [[10, 12, 8, 4, 0]], scores=[0.9])]  # half of it: IoU exactly 0.5
  assert dota.evaluate(found, truths, CLASSES, 'paper_patches').summary['map50'] == 1
  assert dota.evaluate(found, truths, CLASSES, 'devkit').summary['map50'] == 0


def test_difficult_objects():
  truths = [image('a', [box_at(10), box_at(40)], difficult=[0, 1])]
  found = [image('a', [box_at(40), box_at(10)], scores=[0.9, 0.8])]
  devkit = dota.evaluate(found, truths, CLASSES, 'devkit').summary['classes']['plane']
  assert devkit['objects'] == 1 and devkit['ap50'] == pytest.approx(1)  # not even a false alarm
  paper = dota.evaluate(found[:], truths, CLASSES, 'paper_patches').summary['classes']['plane']
  assert paper['objects'] == 2 and paper['ap50'] == pytest.approx(1)


@pytest.mark.parametrize('protocol', dota.PROTOCOLS)
def test_regions_to_ignore_are_no_objects(protocol):
  """What lies in one by its own area is no false alarm, however small its IoU; the rest is."""
  truths = [image('a', [box_at(10), [140, 50, 80, 60, 0.3]], difficult=[0, 1])]
  truths[0]['ignored'] = np.asarray([False, True])
  score = lambda *boxes: dota.evaluate(
    [image('a', [*boxes, box_at(10)], scores=[0.9] * len(boxes) + [0.8])],
    truths, CLASSES, protocol,
  ).summary['classes']['plane']  # fmt: skip
  assert score()['ap'] == pytest.approx(1) and score()['objects'] == 1
  assert score([140, 50, 9, 4, 1])['ap'] == pytest.approx(1)
  assert score([0, 90, 9, 4, 1])['ap50'] == pytest.approx(0.5)
  assert score([140, 80, 9, 4, 1])['ap50'] == pytest.approx(1)  # two thirds inside
  assert score([140, 80, 9, 4, 1])['ap'] < 0.9


def test_shares_are_those_of_shapely():
  r = np.random.default_rng(0)
  a, b = (
    np.concatenate(
      [r.uniform(0, 99, (30, 2)), r.uniform(3, 80, (30, 2)), r.uniform(-2, 2, (30, 1))], 1
    )
    for _ in range(2)
  )
  a, b = box_lib.to_polygon(a), box_lib.to_polygon(b)
  shapes = [[shapely.Polygon(x.reshape(4, 2)) for x in y] for y in (a, b)]
  want = [[p.intersection(q).area / p.area for q in shapes[1]] for p in shapes[0]]
  np.testing.assert_allclose(polygon.iof_matrix(a, b), want, atol=1e-9)
  assert not polygon.iof_matrix(np.zeros((2, 8)), b).any()


def test_images_without_objects_are_left_out_of_paper_patches_only():
  truths = [image('a', [box_at(10)]), image('b', [])]
  found = [image('b', [box_at(10)], scores=[0.9]), image('a', [box_at(10)], scores=[0.8])]
  paper = dota.evaluate(found, truths, CLASSES, 'paper_patches').summary
  assert (paper['images'], paper['map50']) == (1, 1)
  devkit = dota.evaluate(found, truths, CLASSES, 'devkit').summary
  assert (devkit['images'], devkit['map50']) == (2, pytest.approx(0.5))


def test_images_must_be_the_same():
  truths = [image('a', [box_at(10)])]
  with pytest.raises(ValueError, match="'b'"):
    dota.evaluate([image('b', [], scores=[])], truths, CLASSES, 'devkit')
  with pytest.raises(ValueError, match='2 images but only 1'):
    dota.evaluate([image('a', [], scores=[])] * 2, truths, CLASSES, 'devkit')
  with pytest.raises(ValueError, match="protocol='dota'"):
    dota.evaluate([], [], CLASSES, 'dota')


def random_scene(rng, images=6):
  """Noisy detections, misses, false alarms, duplicates and difficult objects of two classes."""
  truths, found = [], []
  for i in range(images):
    boxes = random_boxes(rng, rng.integers(0, 12), span=250)
    labels = rng.integers(0, 2, len(boxes))
    truths.append(image(f'P{i}', boxes, labels, difficult=rng.random(len(boxes)) < 0.2))
    keep = rng.integers(0, len(boxes), int(1.3 * len(boxes))) if len(boxes) else np.zeros(0, int)
    noisy = boxes[keep] + rng.normal(0, [2, 2, 2, 2, 0.05], (len(keep), 5))
    noisy = np.concatenate([noisy, random_boxes(rng, 3, span=250)])
    noisy_labels = np.concatenate([labels[keep], rng.integers(0, 2, 3)])
    found.append(image(f'P{i}', noisy, noisy_labels, scores=rng.random(len(noisy)).round(3)))
  return truths, found


def plain_ap(found, truths, label, threshold, protocol):
  """The evaluators' loop, detection by detection, with shapely."""
  strict = protocol == 'devkit'
  pairs = [(f, t) for f, t in zip(found, truths, strict=True) if strict or len(t['labels'])]
  objects, rows = 0, []
  for k, (f, t) in enumerate(pairs):
    theirs = t['labels'] == label
    difficult = t['difficult'][theirs] & strict
    objects += (~difficult).sum()
    rows += [
      (s, k, p, t['polygons'][theirs], difficult)
      for s, p in zip(
        f['scores'][f['labels'] == label], f['polygons'][f['labels'] == label], strict=True
      )
    ]
  taken, outcomes = set(), []
  for _, k, p, quads, difficult in sorted(rows, key=lambda row: -row[0]):
    ious = [exact_iou(p, q)[0] for q in quads]
    j = int(np.argmax(ious)) if ious else -1
    if not ious or not (ious[j] > threshold if strict else ious[j] >= threshold):
      outcomes.append(0)
    elif not difficult[j]:
      outcomes.append(int((k, j) not in taken))
      taken.add((k, j))
  tp = np.cumsum(outcomes)
  recall, precision = tp / objects, tp / np.arange(1, len(tp) + 1)
  if strict:
    best = [precision[recall >= t].max(initial=0) for t in np.arange(0, 1.1, 0.1)]
    return np.mean(best)
  steps = np.diff(recall, prepend=0)
  return sum(s * precision[i:].max() for i, s in enumerate(steps))


@pytest.mark.parametrize('protocol', ['paper_patches', 'devkit'])
def test_ap_equals_a_plain_loop(protocol):
  truths, found = random_scene(np.random.default_rng(1))
  result = dota.evaluate(found, truths, CLASSES, protocol)
  values = []
  for label, name in enumerate(CLASSES):
    aps = [plain_ap(found, truths, label, t, protocol) for t in 0.5 + 0.05 * np.arange(10)]
    scores = result.summary['classes'][name]
    assert scores['ap'] == pytest.approx(np.mean(aps), abs=1e-9)
    assert scores['ap50'] == pytest.approx(aps[0], abs=1e-9)
    assert scores['ap75'] == pytest.approx(aps[5], abs=1e-9)
    assert 0.1 < scores['ap50'] < 0.95  # the scene tells evaluators apart
    values.append(scores['ap'])
    assert (np.diff(result.curves[name][:, 0]) >= 0).all()
  assert result.summary['map'] == pytest.approx(np.mean(values))


def test_task1_files_hold_everything(tmp_path):
  truths, found = random_scene(np.random.default_rng(2))
  dota.write_task1(tmp_path, found, CLASSES)
  lines = (tmp_path / 'Task1_plane.txt').read_text().splitlines()
  assert len(lines) == sum((f['labels'] == 0).sum() for f in found)
  assert all(len(line.split()) == 10 for line in lines)
  back = dota.read_task1(tmp_path, CLASSES)
  one = dota.evaluate(found, truths, CLASSES, 'devkit').summary
  two = dota.evaluate(back, truths, CLASSES, 'devkit').summary
  assert json.dumps(one) != '' and two['classes']['ship']['ap'] == pytest.approx(
    one['classes']['ship']['ap'], abs=1e-6
  )
  (tmp_path / 'Task1_ship.txt').write_text('P0 0.5 1 2 3\n')
  with pytest.raises(ValueError, match='Task1_ship.txt:1: expected'):
    dota.read_task1(tmp_path, CLASSES)


# The paper's mAP of each task, overall and harmonic: separate models, DSO only, SM3Det T, S, B.
PUBLISHED = [
  ((57.31, 45.31, 46.09), 48.23, 49.01),
  ((58.54, 46.18, 48.09), 49.40, 50.39),
  ((60.64, 46.47, 48.87), 50.20, 51.31),
  ((62.98, 45.33, 49.89), 50.28, None),
  ((65.20, 45.86, 51.09), 51.33, None),
]


@pytest.mark.parametrize(('maps', 'overall', 'h_map'), PUBLISHED)
def test_published_relations(maps, overall, h_map):
  values = dict(zip(('sar', 'rgb', 'ifr'), maps, strict=True))
  counts = {'sar': 6, 'rgb': 15, 'ifr': 5}
  assert table.overall(values, counts) == pytest.approx(overall, abs=0.0051)
  if h_map:
    assert table.harmonic(values) == pytest.approx(h_map, abs=0.0051)
  # and through the summaries of the tasks
  tasks = {
    name: {
      'protocol': 'coco', 'map': value, 'map50': value, 'map75': value, 'images': 1,
      'classes': {
        str(k): {'ap': value, 'ap50': value, 'ap75': value, 'objects': 1, 'detections': 1}
        for k in range(counts[name])
      },
    }
    for name, value in values.items()
  }  # fmt: skip
  combined = table.combine(tasks)
  assert combined['overall']['map50'] == pytest.approx(overall, abs=0.0051)
  assert combined['h_map'] == pytest.approx(table.harmonic(values))


def test_overall_at_50():
  values = {'sar': 89.94, 'rgb': 77.88, 'ifr': 77.99}
  assert table.overall(values, {'sar': 6, 'rgb': 15, 'ifr': 5}) == pytest.approx(80.68, abs=0.0051)


def test_tasks_without_objects_take_no_part(tmp_path):
  truths, found = random_scene(np.random.default_rng(3))
  full = dota.evaluate(found, truths, CLASSES, 'devkit').summary
  empty = dota.evaluate([], [], CLASSES, 'devkit').summary
  combined = table.combine({'rgb': full, 'ifr': empty})
  assert combined['overall']['map'] == pytest.approx(full['map'])
  assert combined['h_map'] == pytest.approx(full['map'])
  nothing = table.combine({'ifr': empty})
  assert nothing['h_map'] is None and nothing['overall']['map'] is None
  assert table.combine({'rgb': full, 'sar': full | {'map': 0.0}})['h_map'] == 0
  table.write(combined, tmp_path / 'new' / 'metrics.json')
  assert json.loads((tmp_path / 'new' / 'metrics.json').read_text()) == combined
  assert table.render(combined).row_count == 2 * 3 + 2
