"""Evaluation and prediction around a detector that knows the answer: every image once, boxes put
back where they belong, windows merged, files written."""

import io
import json

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from data_pipelines import boxes as box_lib
from data_pipelines import prepare
from sm3det_jax import evaluate, predict
from sm3det_jax.config import ConfigDict, copied, default, label_space, task
from sm3det_jax.heads.common import Detections
from sm3det_jax.metrics import dota, merge, polygon, table
from sm3det_jax.viz import report

SAR, RGB = ('ship', 'tank'), ('plane', 'ship')
SLOTS = 6  # detections of an image
SAR_SCALE = 1.5  # 64 x 48 px -> 96 x 72
# image -> [(class, box)]; the second plane lies in the overlap of two windows
SAR_OBJECTS = [[(0, (5, 5, 25, 20)), (1, (30, 20, 50, 44))], [(0, (10, 10, 30, 30))], []]
RGB_OBJECTS = [
  [(0, (20, 30, 20, 10, 0.3)), (0, (56, 50, 12, 8, -0.5)), (1, (120, 80, 30, 12, 1.2))],
  [(1, (40, 70, 24, 10, -1.0))],
]


def write_sar(folder):
  (folder / 'images').mkdir(parents=True)
  boxes = [
    {'image_id': i, 'category_id': k, 'bbox': [x1, y1, x2 - x1, y2 - y1]}
    for i, objects in enumerate(SAR_OBJECTS)
    for k, (x1, y1, x2, y2) in objects
  ]
  for i in range(len(SAR_OBJECTS)):
    cv2.imwrite(str(folder / f'images/s{i}.png'), np.full((48, 64, 3), i, np.uint8))
  content = {
    'images': [{'id': i, 'file_name': f's{i}.png'} for i in range(len(SAR_OBJECTS))],
    'annotations': [{'id': i, **b} for i, b in enumerate(boxes)],
    'categories': [{'id': k, 'name': n} for k, n in enumerate(SAR)],
  }
  (folder / 'test.json').write_text(json.dumps(content))


def located(index, height=100, width=150):
  """An image whose pixels say which image it is, and where they are in it (RGB)."""
  y, x = np.mgrid[:height, :width]
  return np.stack([np.full_like(x, index), x, y], -1).astype(np.uint8)


def write_rgb(folder):
  (folder / 'images').mkdir(parents=True)
  (folder / 'labelTxt').mkdir()
  for i, objects in enumerate(RGB_OBJECTS):
    quads = box_lib.to_polygon([box for _, box in objects])
    lines = [
      ' '.join(f'{v:.4f}' for v in q) + f' {RGB[k]} 0'
      for q, (k, _) in zip(quads, objects, strict=True)
    ]
    (folder / f'labelTxt/P{i}.txt').write_text('\n'.join(lines) + '\n')
    cv2.imwrite(str(folder / f'images/P{i}.png'), located(i)[..., ::-1])


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  root = tmp_path_factory.mktemp('evaluate')
  write_sar(root / 'sar')
  write_rgb(root / 'rgb')
  prepare.prepare('coco', root / 'sar', root / 'data', name='radar', classes=SAR,
                  splits={'test': 'test.json:images'})  # fmt: skip
  prepare.prepare('dota_txt', root / 'rgb', root / 'data', name='colour', classes=RGB,
                  splits={'test': 'labelTxt:images'})  # fmt: skip
  config = default()
  config.data_root = str(root / 'data')
  config.tasks = ConfigDict(sort_keys=False)
  plain = dict(mean=(0.0,) * 3, std=(1.0,) * 3)
  config.tasks.sar = task('hbb', 'radar', SAR, size=(96, 96), **plain)
  tile = dict(size=64, overlap=24, keep=0.7)
  config.tasks.rgb = task('obb', 'colour', RGB, size=(64, 64), test=dict(tile=tile), **plain)
  config.batch_size, config.workers = 2, '0'
  return config


class Oracle:
  """Finds what `variables` say is in an image, which it recognises by its pixels."""

  def detect(self, variables, images, task, shapes):
    known = variables[task]  # [images, SLOTS, ...] in whole images
    first = images[:, 0, 0].astype(int)  # [B, 3]
    boxes = known['boxes'][first[:, 0]]
    if task == 'sar':
      boxes, inside = boxes * SAR_SCALE, True
    else:
      boxes = boxes.at[..., :2].add(-first[:, None, 1:].astype(float))
      inside = ((boxes[..., :2] > 0) & (boxes[..., :2] < shapes[:, None].astype(float))).all(-1)
    valid = known['valid'][first[:, 0]] & inside
    return Detections(boxes, known['scores'][first[:, 0]], known['labels'][first[:, 0]], valid)


def knowledge(config, shift=0.0):
  """The truth as detections, with objects moved along x, and another task's class beside them."""
  variables = {}
  for name, objects in (('sar', SAR_OBJECTS), ('rgb', RGB_OBJECTS)):
    space, own = label_space(config, name), config.tasks[name].classes
    other = next(n for n in space if n not in own)
    boxes = np.ones((len(objects), SLOTS, 4 if name == 'sar' else 5), np.float32)
    scores, labels = np.zeros((2, len(objects), SLOTS), np.float32)
    valid = np.zeros((len(objects), SLOTS), bool)
    for i, found in enumerate(objects):
      for k, (label, box) in enumerate([*found, (None, (8, 8, 20, 20, 0)[: boxes.shape[-1]])]):
        boxes[i, k], valid[i, k], scores[i, k] = box, True, 0.9 - 0.1 * k
        labels[i, k] = space.index(other if label is None else own[label])
    boxes[..., 0] += shift
    if name == 'sar':
      boxes[..., 2] += shift
    entry = {'boxes': boxes, 'scores': scores, 'labels': labels.astype(int), 'valid': valid}
    variables[name] = {k: jnp.asarray(v) for k, v in entry.items()}
  return variables


def test_a_perfect_detector_scores_one(config, tmp_path):
  metrics = evaluate.evaluate(
    config, knowledge(config), detector=Oracle(), out_dir=tmp_path, batch_size=2
  )
  assert metrics['overall'] == pytest.approx({'map': 1.0, 'map50': 1.0, 'map75': 1.0})
  assert metrics['h_map'] == pytest.approx(1.0)
  sar, rgb = metrics['tasks']['sar'], metrics['tasks']['rgb']
  assert (sar['protocol'], sar['images'], sar['windows']) == ('coco', 3, 3)
  assert (rgb['protocol'], rgb['windows']) == ('paper_patches', 2 * 4 * 2)
  devkit = rgb['protocols']['devkit']
  assert (devkit['images'], devkit['map']) == (2, pytest.approx(1.0))
  # one plane is seen by two windows and found once after merging
  assert devkit['classes']['plane']['objects'] == devkit['classes']['plane']['detections'] == 2
  assert rgb['classes']['plane']['objects'] > 2
  assert sum(c['detections'] for c in sar['classes'].values()) == 3  # no class of other tasks
  assert json.loads((tmp_path / 'metrics.json').read_text()) == metrics
  back = dota.read_task1(tmp_path / 'task1/rgb', RGB)
  assert sorted((p['id'], len(p['labels'])) for p in back) == [('P0', 3), ('P1', 1)]
  quads = {tuple(q.round(2)) for p in back for q in p['polygons']}
  assert quads == {
    tuple(q.round(2)) for o in RGB_OBJECTS for q in box_lib.to_polygon([box for _, box in o])
  }
  pictures = sorted(p.name for p in (tmp_path / 'pictures').iterdir())
  assert {'sar_0.png', 'sar_1.png', 'rgb_0.png'} <= set(pictures)
  assert (tmp_path / 'pr_curves.png').stat().st_size > 1000


def test_pictures_show_regions_to_ignore_apart(config, monkeypatch):
  boxes = evaluate.Boxes(Oracle(), config, 'sar', ('paper_patches',))
  quads = box_lib.to_polygon(np.array([[5.0, 5, 25, 20], [30, 20, 50, 44]]))
  truth = {'id': 'a', 'polygons': quads, 'labels': np.array([0, 1])}
  none = {'boxes': np.zeros((0, 4)), 'labels': np.zeros(0, int), 'scores': np.zeros(0)}
  batch = {'scales': [2.0], 'shapes': [(96, 128)], 'images': np.zeros((1, 96, 128, 3), np.uint8)}
  shown = []
  monkeypatch.setattr(
    evaluate.draw, 'compare', lambda image, truth, *rest: shown.append(truth) or 1
  )
  picture = lambda ignored: boxes.picture(
    None, 0, batch, none | {'id': 'a', 'offset': (0, 0), 'truth': truth | ignored}
  )
  assert picture({'ignored': np.array([False, True])}) and picture({})
  assert shown[0]['ignored'].tolist() == [False, True] and 'ignored' not in shown[1]
  np.testing.assert_array_equal(shown[0]['polygons'], 2 * quads)
  assert picture({'ignored': np.array([True, True])}) is None


def test_shifted_boxes_lose_the_high_thresholds(config):
  metrics = evaluate.evaluate(config, knowledge(config, shift=3.0), detector=Oracle())
  for summary in metrics['tasks'].values():
    assert summary['map50'] >= 0.5 > summary['map75']
  # ships of 20, 20 px and a tank of 20 px, all moved by 3: IoU 17 / 23 = 0.739
  assert metrics['tasks']['sar']['map'] == pytest.approx(0.5)


def test_protocols(config):
  run = {'config': config, 'variables': knowledge(config), 'detector': Oracle()}
  metrics = evaluate.evaluate(**run, protocols=('devkit',))
  assert metrics['tasks']['rgb']['protocol'] == 'devkit'
  assert metrics['tasks']['rgb']['protocols'] == {}
  with pytest.raises(ValueError, match='paper_patches'):
    evaluate.evaluate(**run, protocols=('dota',))


@pytest.fixture
def detector(config, monkeypatch):
  monkeypatch.setattr(predict, 'build', lambda config: Oracle())
  return predict.Detector(config, knowledge(config))


def test_predict_in_windows(detector, tmp_path):
  found = detector.predict(located(0), 'rgb')
  assert found['names'] == ['plane', 'plane', 'ship']  # in score order
  np.testing.assert_allclose(found['boxes'], [box for _, box in RGB_OBJECTS[0]], atol=1e-4)
  np.testing.assert_allclose(found['scores'], [0.9, 0.8, 0.7], atol=1e-6)
  assert len(detector.predict(located(0), 'rgb', score_threshold=0.75)['names']) == 2
  picture = detector.plot(located(0), found, 'rgb', tmp_path / 'p.png')
  assert picture.shape == cv2.imread(str(tmp_path / 'p.png')).shape


def test_predict_takes_other_images(detector):
  sar = [box for _, box in SAR_OBJECTS[0]]
  for image in (
    np.zeros((48, 64), np.uint8),  # grey
    np.zeros((48, 64, 1), np.uint16),
    np.concatenate([np.zeros((1, 64, 3), np.uint16), np.full((47, 64, 3), 9000, np.uint16)]),
  ):
    np.testing.assert_allclose(detector.predict(image, 'sar')['boxes'], sar, atol=1e-4)
  bright = np.full((48, 64, 3), 9000, np.uint16)
  np.testing.assert_array_equal(detector.prepare(bright, 'sar'), bright)  # as training has it
  large = detector.predict(np.zeros((300, 200, 3), np.uint8), 'sar')  # beyond twice the canvas
  assert len(large['names']) > 2 and large['boxes'][:, 3].max() > 200
  with pytest.raises(ValueError, match='bands'):
    detector.predict(np.zeros((48, 64, 4), np.uint8), 'sar')
  with pytest.raises(ValueError, match='shape'):
    detector.predict(np.zeros((0, 64, 3), np.uint8), 'sar')
  with pytest.raises(ValueError, match="'ir'.*sar, rgb"):
    detector.predict(np.zeros((48, 64), np.uint8), 'ir')


def test_predict_files(config, detector, tmp_path, monkeypatch):
  monkeypatch.setattr(
    predict.checkpoint, 'restore_for_inference', lambda workdir: (config, knowledge(config))
  )
  images, out = tmp_path / 'images', tmp_path / 'out'
  (images / 'more').mkdir(parents=True)
  for path in (images / 'a.png', images / 'more/a.png', images / 'b.bmp'):
    cv2.imwrite(str(path), located(1)[..., ::-1])
  data = (images / 'a.png').read_bytes()
  (images / 'cut.png').write_bytes(data[: len(data) // 2])
  errors = predict.predict('run', 'rgb', [images, images / 'more/a.png', images / 'no.png'], out)
  assert len(errors) == 2 and 'cut.png' in errors[0] and 'no.png' in errors[1]
  names = sorted(p.relative_to(out).as_posix() for p in out.rglob('*.json'))
  assert names == ['a_detections.json', 'b_detections.json', 'more/a_detections.json']
  content = json.loads((out / 'b_detections.json').read_text())
  assert (content['task'], content['height'], content['width']) == ('rgb', 100, 150)
  (ship,) = content['detections']
  assert ship['name'] == 'ship' and ship['score'] == pytest.approx(0.9)
  np.testing.assert_allclose(ship['box'], RGB_OBJECTS[1][0][1], atol=1e-3)
  assert len(ship['polygon']) == 8
  assert cv2.imread(str(out / 'b_detections.png')) is not None
  with pytest.raises(ValueError, match='no image'):
    predict.predict('run', 'rgb', [], out)


class Restorer:
  """Gives every image back with all its values `variables` higher."""

  def reconstruct(self, variables, batch):
    return {name: b['images'] + variables['shift'] for name, b in batch.items()}


@pytest.fixture
def images(config):
  config = copied(config)
  config.tasks = ConfigDict(sort_keys=False)
  config.tasks.radar = task('image', 'radar', size=(96, 96), mean=(9.0,) * 3, std=(2.0,) * 3)
  config.tasks.colour = task('image', 'colour', size=(150, 150), std=(2.0,) * 3)
  return config


def test_images_are_scored_by_their_likeness(images, tmp_path):
  variables = {'shift': jnp.asarray(1.5)}  # of what is normalised: 3 of 255
  metrics = evaluate.evaluate(images, variables, detector=Restorer(), out_dir=tmp_path)
  radar, colour = metrics['tasks']['radar'], metrics['tasks']['colour']
  assert radar['psnr'] == pytest.approx(20 * np.log10(255 / 3), abs=1e-3)  # 3 images of 0, 1, 2
  assert colour['psnr'] == pytest.approx(20 * np.log10(255 / 3), abs=0.1) and colour['windows'] == 2
  c1 = 2.55**2  # flat images of 0, 1, 2 against 3, 4, 5: their means alone count
  flat = [(2 * i * (i + 3) + c1) / (i**2 + (i + 3) ** 2 + c1) for i in range(3)]
  assert radar['ssim'] == pytest.approx(np.mean(flat), abs=1e-5) and 0.7 < colour['ssim'] < 1
  assert metrics['overall']['map'] is None and metrics['h_map'] is None
  assert json.loads((tmp_path / 'metrics.json').read_text()) == metrics
  assert cv2.imread(str(tmp_path / 'pictures/colour_0.png')).shape[1] > 300
  text = io.StringIO()
  rich.console.Console(file=text, width=100).print(table.render(metrics))
  assert f'radar: PSNR {radar["psnr"]:.2f} dB, SSIM' in text.getvalue()
  assert 'PSNR' in report.write(tmp_path).read_text()
  equal = evaluate.evaluate(images, {'shift': jnp.asarray(0.0)}, detector=Restorer())
  assert equal['tasks']['radar']['psnr'] is None or equal['tasks']['radar']['psnr'] > 100
  assert equal['tasks']['colour']['ssim'] == pytest.approx(1)


def test_an_evaluator_of_a_new_kind_is_one_row(config, monkeypatch):
  class Counter(evaluate.Boxes):
    def score(self, windows, data):
      return {'psnr': float(len(windows)), 'ssim': 0.0}

    def write(self, out):
      return {}

  monkeypatch.setitem(evaluate.EVALUATORS, 'hbb', Counter)
  metrics = evaluate.evaluate(config, knowledge(config), detector=Oracle(), batch_size=2)
  assert metrics['tasks']['sar']['psnr'] == 3 and metrics['tasks']['rgb']['map'] == pytest.approx(1)


def test_a_model_that_gives_other_bands_is_an_error(images):
  class Grey:
    def reconstruct(self, variables, batch):
      return {name: b['images'][..., :1] for name, b in batch.items()}

  with pytest.raises(ValueError, match=r'task radar.*\(8, 96, 96, 3\).*\(8, 96, 96, 1\)'):
    evaluate.evaluate(images, {}, detector=Grey())


def test_nms_equals_a_plain_loop():
  rng = np.random.default_rng(0)
  n = 700  # more than a chunk
  boxes = np.concatenate(
    [rng.uniform(0, 250, (n, 2)), rng.uniform(5, 60, (n, 2)), rng.uniform(-2, 2, (n, 1))], 1
  )
  scores, labels = rng.random(n).round(2), rng.integers(0, 2, n)
  iou, kept = polygon.iou_matrix(box_lib.to_polygon(boxes), box_lib.to_polygon(boxes)), []
  for i in np.argsort(-scores, kind='stable'):
    if all(labels[i] != labels[j] or iou[i, j] <= 0.3 for j in kept):
      kept.append(i)
  assert 100 < len(kept) < n
  np.testing.assert_array_equal(merge.nms(boxes, scores, labels, 0.3), kept)
  assert len(merge.nms(np.zeros((0, 5)), np.zeros(0), np.zeros(0), 0.3)) == 0


def test_cut_patches_go_back_into_their_image():
  """Two patches of one image at rate 0.5, an object in both; a third of another image."""
  obb = np.array([[60.0, 50, 20, 10, 0.2]])  # in the image at that rate, patches at x 0 and 40

  def patch(name, x):
    shift = np.array([[x, 0, 0, 0, 0]])
    quads = box_lib.to_polygon(obb - shift)
    entry = {'id': name, 'boxes': obb - shift, 'labels': np.zeros(1, int)}
    return entry | {'scores': np.ones(1)}, entry | {'polygons': quads, 'difficult': np.zeros(1)}

  names = (('P1__0.5__0___0', 0), ('P1__0.5__40___0', 40), ('P2__1__0___0', 0))
  windows, truths = zip(*(patch(*name) for name in names), strict=True)
  found, whole = merge.uncut(list(windows), list(truths))
  assert [len(t['labels']) for t in whole] == [1, 1]
  np.testing.assert_allclose(whole[0]['boxes'], [[120, 100, 40, 20, 0.2]])
  np.testing.assert_allclose(whole[0]['polygons'], box_lib.to_polygon(whole[0]['boxes']))
  merged = merge.merge(found, merge.IOU['obb'])
  np.testing.assert_allclose(merged[0]['boxes'], whole[0]['boxes'])
  assert dota.evaluate(merged, whole, RGB, 'devkit').summary['map'] == pytest.approx(1)
  seen = [
    w | {'offset': (0, 0), 'truth': t, 'full': False} for w, t in zip(windows, truths, strict=True)
  ]
  result, found = evaluate.score(seen, list(truths), 'obb', RGB, evaluate.PROTOCOLS)
  assert [p['id'] for p in found] == ['P1', 'P2']
  assert (result.summary['images'], result.summary['protocols']['devkit']['images']) == (3, 2)
  plain = [windows[0] | {'id': 'P1'}]
  assert merge.uncut(plain, []) == (plain, [])


def test_a_window_counted_twice_is_an_error(config, monkeypatch):
  batches = evaluate.mixture.eval_batches

  def twice(*arguments):
    first = next(batches(*arguments))
    yield from (first, first)

  monkeypatch.setattr(evaluate.mixture, 'eval_batches', twice)
  with pytest.raises(RuntimeError, match='different'):
    evaluate.evaluate(config, knowledge(config), detector=Oracle(), batch_size=2)
