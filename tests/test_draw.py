"""Pictures: any type, bands and size; names that cover no object; figures and the report page."""

import re

import cv2
import numpy as np
import pytest

from data_pipelines import boxes as box_lib
from sm3det_jax.metrics import coco, dota, table
from sm3det_jax.viz import draw, figures, report

NAMES = ('ship', 'storage-tank', 'plane')


@pytest.mark.parametrize('bands', [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_any_image_becomes_rgb(bands, dtype):
  rng = np.random.default_rng(0)
  shape = (40, 30, bands) if bands else (40, 30)
  image = (rng.random(shape) * (200 if dtype == np.uint8 else 3000)).astype(dtype)
  before = image.copy()
  rgb = draw.to_rgb(image)
  assert rgb.shape == (40, 30, 3) and rgb.dtype == np.uint8
  if dtype != np.uint8:
    assert rgb.min() == 0 and rgb.max() == 255
  elif bands == 3:
    np.testing.assert_array_equal(rgb, image)
  if bands < 2:
    assert (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all()
  draw.draw(image, [[5, 5, 20, 20]], [0], NAMES)
  np.testing.assert_array_equal(image, before)


def test_flat_and_broken_values():
  assert (draw.to_rgb(np.full((8, 8), 7.0)) == 0).all()
  assert draw.to_rgb(np.array([[np.nan, 1.0], [np.inf, 3.0]])).dtype == np.uint8


@pytest.mark.parametrize('size', [(64, 64), (700, 500), (2400, 3600), (30, 900)])
def test_boxes_are_seen_and_names_cover_none(size):
  height, width = size
  rng = np.random.default_rng(1)
  boxes = np.stack(
    [
      rng.uniform(0.1, 0.9, 6) * width,
      rng.uniform(0.1, 0.9, 6) * height,
      *rng.uniform(0.02, 0.08, (2, 6)) * min(size),
      rng.uniform(-1.5, 1.5, 6),
    ],
    1,
  )
  labels, scores = np.arange(6) % 3, np.linspace(0.9, 0.2, 6)
  picture = draw.draw(np.zeros((height, width), np.uint8), boxes, labels, NAMES, scores)
  zoom = picture.shape[1] // width
  assert max(picture.shape) >= draw.SMALLEST and picture.shape[1] == zoom * width
  inside = np.zeros(picture.shape[:2], np.uint8)
  rims = inside.copy()
  quads = np.rint(box_lib.to_polygon(boxes).reshape(-1, 4, 2) * zoom).astype(np.int32)
  for quad, label in zip(quads, labels, strict=True):
    cv2.fillPoly(inside, [quad], 255)
    cv2.polylines(rims, [quad], True, 255, draw._line_width(picture) + 6)
    x, y = quad[0]
    patch = picture[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5].reshape(-1, 3).astype(int)
    assert np.abs(patch - draw.color(label)).sum(1).min() < 60  # its colour is at its corner
  assert (
    picture[: zoom * height][(inside > 0)[: zoom * height] & (rims == 0)[: zoom * height]] == 0
  ).all()


def test_names_are_drawn_where_there_is_room(monkeypatch):
  written = []
  put = cv2.putText
  monkeypatch.setattr(
    draw.cv2, 'putText', lambda image, text, *a: (written.append(text), put(image, text, *a))[1]
  )
  image = np.zeros((800, 800, 3), np.uint8)
  draw.draw(
    image, [[100, 100, 140, 130], [500, 500, 560, 520]], [0, 1], NAMES, [0.912, 0.3], 'a.png'
  )
  assert written == ['ship 0.91', 'storage-tank 0.30', 'a.png (2)', 'ship 1', 'storage-tank 1']
  written.clear()
  rows = [[x, y, x + 19, y + 19] for x in range(0, 800, 20) for y in range(0, 800, 20)]
  draw.draw(image, rows, [2] * len(rows), NAMES)
  assert written == [' (1600)', 'plane 1600']  # a dense car park: the legend alone
  written.clear()
  draw.draw(image, np.zeros((0, 5)), [], NAMES, [], 'nothing')
  assert written == ['nothing (0)']


def test_colors_differ():
  colors = np.array([draw.color(k) for k in range(30)], int)
  gap = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(30, dtype=int)
  assert gap.min() > 15 and (colors.max(1) > 130).all()


def test_compare_and_save(tmp_path):
  image = np.zeros((100, 150, 3), np.uint8)
  truth = {'boxes': np.array([[50.0, 50, 20, 10, 0.3]]), 'labels': np.array([1])}
  found = truth | {'scores': np.array([0.8])}
  picture = draw.compare(image, truth, found, NAMES, 'P0')
  assert picture.shape[1] > 2 * 5 * 150
  draw.save(tmp_path / 'new' / 'p.png', picture)
  np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'new/p.png'))[..., ::-1], picture)
  nothing = {'boxes': np.zeros((0, 5)), 'labels': np.zeros(0), 'scores': np.zeros(0)}
  assert draw.compare(image, truth, nothing, NAMES).shape == picture.shape


def test_regions_to_ignore_are_grey_and_dashed(monkeypatch):
  written, put = [], cv2.putText
  monkeypatch.setattr(
    draw.cv2, 'putText', lambda image, text, *a: (written.append(text), put(image, text, *a))[1]
  )
  boxes, ignored = np.array([[10.0, 10, 60, 60], [100, 10, 200, 60]]), np.array([False, True])
  image = np.zeros((100, 250, 3), np.uint8)
  picture = draw.draw(image, boxes, [0, 1], NAMES, title='truth', ignored=ignored)
  assert written == ['ship', 'truth (1)', 'ship 1', 'dashed: to ignore 1']
  zoom = picture.shape[1] // 250
  edge = picture[10 * zoom, 100 * zoom : 200 * zoom].astype(int)  # the region's upper one
  grey = np.abs(edge - draw.GREY).sum(1) < 60
  assert (np.ptp(edge, 1) < 30).all()  # no class's colour
  assert 0.3 < grey.mean() < 0.7 and np.abs(np.diff(grey.astype(int))).sum() > 10
  edge = picture[10 * zoom, 12 * zoom : 58 * zoom].astype(int)
  assert (np.abs(edge - draw.color(0)).sum(1) < 60).all()  # of the object, unbroken
  truth = {'boxes': boxes, 'labels': np.array([0, 1]), 'ignored': ignored}
  found = {'boxes': boxes[:0], 'labels': np.zeros(0, int), 'scores': np.zeros(0)}
  left = draw.compare(image, truth, found, NAMES)[: len(picture), : picture.shape[1]]
  np.testing.assert_array_equal(left[: 100 * zoom], picture[: 100 * zoom])


def scored():
  """metrics.json and curves of a small SAR and an optical task."""
  hbb = {'id': 'a', 'boxes': [[0, 0, 9, 9], [20, 20, 40, 40]], 'labels': np.array([0, 1])}
  obb = {'id': 'b', 'boxes': np.array([[9.0, 9, 8, 4, 0.5]]), 'labels': np.array([2])}
  obb['polygons'] = box_lib.to_polygon(obb['boxes'])
  sar = coco.evaluate([hbb | {'scores': [0.9, 0.8]}], [hbb], NAMES)
  rgb = dota.evaluate([obb | {'scores': [0.7]}], [obb], NAMES, 'paper_patches')
  missed = {'id': 'b', 'boxes': np.zeros((0, 5)), 'labels': np.zeros(0), 'scores': np.zeros(0)}
  none = dota.evaluate([missed], [obb], NAMES, 'paper_patches')
  results = {'sar': sar, 'rgb': rgb, 'ifr': none}
  metrics = table.combine({k: r.summary for k, r in results.items()})
  return metrics, {k: r.curves for k, r in results.items()}


def log_lines():
  rng = np.random.default_rng(0)
  return [
    {
      'step': step, 'total': 3.0, 'lr': 1e-4, 'loss/sar/cls': 2 / step, 'loss/sar/bbox': 1 / step,
      'loss/rgb/rpn_cls': 1 + rng.random(), 'loss/ifr/cls': None if step == 30 else 0.5,
      'loss/moe/balance': 0.01, 'multiplier/sar/bbox_head': 1 + 0.1 * rng.random(),
      'multiplier/shared': 0.9,
    }
    for step in range(10, 1000, 10)
  ]  # fmt: skip


def routing_statistics():
  share = np.full(8, 1 / 8).tolist()
  kinds = {kind: {t: share for t in ('sar', 'rgb', 'ifr')} for kind in ('participation', 'top1')}
  return {'layers': [{'name': f'stage {k}, block 0'} | kinds for k in range(5)]}


def test_report(tmp_path):
  metrics, curves = scored()
  table.write(metrics, tmp_path / 'metrics.json')
  figures.pr_curves(curves, tmp_path / 'pr_curves.png')
  figures.routing(routing_statistics(), tmp_path / 'routing/routing.png')
  image = np.zeros((64, 64), np.uint8)
  for name in ('sar_0', 'rgb_0', 'rgb_1'):
    draw.save(tmp_path / f'pictures/{name}.png', draw.to_rgb(image))
  page = report.write(tmp_path, log_lines(), 'A run of <mine>')
  text = page.read_text()
  assert '<h1>A run of &lt;mine&gt;</h1>' in text and '100.00' in text
  assert 'rise for a while before they fall' in text
  sources = re.findall('src="([^"]+)"', text)
  assert len(sources) == 3 + 1 + 2 + 1
  assert 'http' not in text and all((tmp_path / s).is_file() for s in sources)
  for source in sources[3:]:
    picture = cv2.imread(str(tmp_path / source))
    assert picture.shape[0] > 300 and picture.std() > 5


def test_report_of_little(tmp_path):
  assert 'img' not in report.write(tmp_path).read_text().replace('img {', '')
  line = {'step': 1, 'lr': 1.0, 'loss/sar/cls': 1.0, 'loss/sar/bbox': 1.0}
  assert 'rise for a while' not in report.write(tmp_path, [line]).read_text()  # no proposals


def test_places_are_free_exactly_where_no_envelope_reaches():
  rng = np.random.default_rng(0)
  low = rng.uniform(-20, 100, (30, 2))
  high = low + rng.uniform(0.1, 30, (30, 2))
  covered = draw._covered((80, 100), low, high)
  for x1, y1 in rng.integers(0, 60, (300, 2)):
    x2, y2 = x1 + rng.integers(1, 40), y1 + rng.integers(1, 20)
    apart = (low >= [x2, y2]).any(1) | (high <= [x1, y1]).any(1)
    assert covered[y1:y2, x1:x2].any() == (~apart).any()
