"""Test-time augmentation: views against numpy's flips and turns, boxes against their corners,
fusion against a plain loop, and the whole around a detector that measures blobs of light."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import UserError
from sm3det_jax import Detector, inference, predict, sharding
from sm3det_jax import config as config_lib
from sm3det_jax.config import ConfigDict, task
from sm3det_jax.geometry import fusion, obb
from sm3det_jax.heads.common import Detections
from sm3det_jax.prediction import tta

EVERY = tta.parse('flips,turns,scales:0.5:1.5').views
IDS = ['{}{}{}{}'.format('t' * t, 'd' * d, 'a' * a, s) for t, d, a, s in EVERY]
CANVAS = (48, 64)
SHAPES = np.int32([[48, 64], [31, 50], [40, 21]])  # of what is not padding


def shown(image, view):
  """`view` of a picture without padding, by numpy and OpenCV."""
  image = image.swapaxes(0, 1) if view.transposed else image
  image = image[::-1] if view.down else image
  image = image[:, ::-1] if view.across else image
  return np.ascontiguousarray(image)


@pytest.fixture(scope='module')
def pictures():
  rng = np.random.default_rng(0)
  return rng.normal(size=(len(SHAPES), *CANVAS, 3)).astype(np.float32)  # in their padding too


def test_views_are_the_symmetries_of_a_square():
  assert tta.parse() is None
  pixels = np.arange(6).reshape(2, 3)
  of = lambda text: [shown(pixels, v).tolist() for v in tta.parse(text).views]
  flips = [pixels, np.fliplr(pixels), np.flipud(pixels), np.rot90(pixels, 2)]
  turns = [np.rot90(pixels, k) for k in range(4)]
  both = [np.rot90(p, k) for p in (pixels, np.fliplr(pixels)) for k in range(4)]
  for text, want in (('flips', flips), ('turns', turns), ('turns,flips', both)):
    found = of(text)
    assert found[0] == pixels.tolist()
    assert sorted(found) == sorted(p.tolist() for p in want)
  assert [v.scale for v in tta.parse('scales:0.8:1.25').views] == [1, 0.8, 1.25]
  assert len(EVERY) == len(set(EVERY)) == 24


@pytest.mark.parametrize('view', EVERY[:8], ids=IDS[:8])
def test_pixels_of_a_view_are_those_of_numpy(view, pictures):
  """What is not padding is at the top left again, whatever the padding was."""
  images, shapes = tta.to_view(jnp.asarray(pictures), jnp.asarray(SHAPES), view)
  assert images.shape[1:3] == (CANVAS[::-1] if view.transposed else CANVAS)
  for image, shape, picture, (h, w) in zip(images, shapes, pictures, SHAPES, strict=True):
    want = shown(picture[:h, :w], view)
    assert tuple(shape) == want.shape[:2]
    padding = [(0, canvas - side) for canvas, side in zip(image.shape[:2], shape, strict=True)]
    np.testing.assert_array_equal(image, np.pad(want, [*padding, (0, 0)]))


@pytest.mark.parametrize('scale', [0.5, 1.5])
def test_a_resized_view_is_that_of_opencv(scale):
  """On a slope, which smoothing leaves as it is but for the edge."""
  view, (y, x) = tta.View(False, False, True, scale), np.mgrid[: CANVAS[0], : CANVAS[1]]
  slope = np.tile((x + 2.0 * y).astype(np.float32)[None, ..., None], (len(SHAPES), 1, 1, 2))
  images, shapes = map(np.asarray, tta.to_view(jnp.asarray(slope), jnp.asarray(SHAPES), view))
  assert all(side % 32 == 0 for side in images.shape[1:3])
  matrix = np.float64([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])
  inner = slice(None) if scale > 1 else slice(2, -2)
  for image, shape, picture, (h, w) in zip(images, shapes, slope, SHAPES, strict=True):
    assert tuple(shape) == (int(h * scale + 0.5), int(w * scale + 0.5))
    want = cv2.warpAffine(
      shown(picture[:h, :w], view), matrix, tuple(map(int, shape[::-1])),
      borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    seen = image[: shape[0], : shape[1]]
    np.testing.assert_allclose(seen[inner, inner], want[inner, inner], atol=0.1)


def moved(points, shape, view, middle):
  """Points [.., 2] (x, y) of an image as they lie in its view: one step after the other."""
  points, (h, w) = points + middle, shape
  if view.transposed:
    points, (h, w) = points[..., ::-1], (w, h)
  if view.down:
    points = points * (1, -1) + (0, h)
  if view.across:
    points = points * (-1, 1) + (w, 0)
  return points * view.scale - middle


@pytest.mark.parametrize('view', EVERY, ids=IDS)
def test_boxes_come_back_from_every_view(view):
  """Random boxes, some at the ends of le90 and squares, moved by their corners alone."""
  rng = np.random.default_rng(1)
  low = rng.uniform(0, np.float64(SHAPES)[:, None, ::-1] * 0.8, (3, 40, 2))
  high = low + (np.float64(SHAPES)[:, None, ::-1] - low) * rng.uniform(0.1, 1, (3, 40, 2))
  corners = [moved(p, s, view, 0) for p, s in zip(np.stack([low, high], 2), SHAPES, strict=True)]
  there = np.concatenate([np.min(corners, 2), np.max(corners, 2)], -1).astype(np.float32)
  back = tta.from_view(jnp.asarray(there), jnp.asarray(SHAPES), view)
  np.testing.assert_allclose(back, np.concatenate([low, high], -1), atol=2e-5)

  sides = np.sort(rng.uniform(2, 30, (3, 40, 2)))[..., ::-1]
  theta = rng.uniform(-np.pi / 2, np.pi / 2, (3, 40, 1))
  theta[:, :4, 0], sides[:, 4:8, 0] = (-np.pi / 2, 0, 1.5707, -1.5707), sides[:, 4:8, 1] + 0.01
  boxes = np.concatenate([low, sides, theta], -1).astype(np.float32)
  quads = np.asarray(obb.to_corners(boxes), np.float64)
  there = np.float32([moved(q, s, view, 0.5) for q, s in zip(quads, SHAPES, strict=True)])
  there = obb.from_corners(there.reshape(3, 40, 8))
  back = np.asarray(tta.from_view(there, jnp.asarray(SHAPES), view))
  turned = np.mod(back[..., 4:] - boxes[..., 4:] + 1, np.pi) - 1  # of pi
  np.testing.assert_allclose(back[..., :4], boxes[..., :4], atol=1e-4)
  np.testing.assert_allclose(turned, 0, atol=1e-4)
  assert (back[..., 4] >= -np.pi / 2).all() and (back[..., 4] < np.pi / 2).all()


def overlap(a, b):
  """IoU of two boxes, by OpenCV."""
  if len(a) == 4:
    a, b = ([(v[0] + v[2]) / 2, (v[1] + v[3]) / 2, v[2] - v[0], v[3] - v[1], 0] for v in (a, b))
  a, b = (np.float64(v) for v in (a, b))
  kind, points = cv2.rotatedRectangleIntersection(
    *[(v[:2], v[2:4], np.degrees(v[4])) for v in (a, b)]
  )
  shared = 0 if kind == cv2.INTERSECT_NONE else cv2.contourArea(cv2.convexHull(points))
  return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def average(members):
  """The box of a cluster [(score, box)], best first."""
  scores, boxes = np.float64([s for s, _ in members]), np.float64([b for _, b in members])
  if boxes.shape[1] == 5:
    for box in boxes:
      # of the two ways to write a rectangle, that which turns least against the best
      ways = [box, box[[0, 1, 3, 2, 4]] + (0, 0, 0, 0, np.pi / 2)]
      box[:] = max(ways, key=lambda way: np.cos(2 * (way[4] - boxes[0, 4])))
    mean = np.sum(scores * np.exp(2j * boxes[:, 4])) / scores.sum()
    boxes[:, 4] = np.angle(mean) / 2
  return scores @ boxes / scores.sum()


def fused_by_loop(boxes, scores, labels, threshold, views):
  """Weighted box fusion with lists: [(score, label, box)], best first."""
  clusters = []
  for i in np.argsort(-scores, kind='stable'):
    best, most = None, threshold
    for label, members in clusters:
      if label == labels[i] and (shared := overlap(average(members), boxes[i])) > most:
        best, most = members, shared
    if best is None:
      best = []
      clusters.append((labels[i], best))
    best.append((scores[i], boxes[i]))
  of = lambda members: np.mean([s for s, _ in members]) * min(len(members), views) / views
  return sorted(
    ((of(members), label, average(members)) for label, members in clusters), key=lambda x: -x[0]
  )


def seen_by(views, oriented, seed=0, objects=12):
  """Objects as some views find them: long ones and near-squares, any edge first; some missed."""
  rng = np.random.default_rng(seed)
  centre, w = rng.uniform(0, 200, (objects, 2)), rng.uniform(16, 40, objects)
  h, theta = w * rng.choice([0.3, 0.7, 0.99], objects), rng.uniform(-1.57, 1.57, objects)
  truth = np.column_stack([centre, w, h, theta])
  noise = (1, 1, 1, 1, 0.06)
  found = np.concatenate([truth + rng.normal(0, 0.6, truth.shape) * noise for _ in range(views)])
  found = np.asarray(obb.normalise(jnp.asarray(found, jnp.float32)))
  labels = np.tile(rng.integers(0, 3, objects), views)
  if not oriented:
    found = np.asarray(obb.to_hbb(found))
  order = rng.permutation(len(found))
  scores = rng.uniform(0.05, 1, len(found)).astype(np.float32)
  return found[order], scores, labels[order], rng.uniform(size=len(found)) < 0.8


fuse = jax.jit(fusion.weighted_box_fusion, static_argnums=(2, 3, 4))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('oriented', [False, True])
def test_fusion_equals_a_plain_loop(seed, oriented):
  boxes, scores, labels, valid = seen_by(6, oriented, seed)
  want = fused_by_loop(boxes[valid], scores[valid], labels[valid], 0.55, 6)
  got = map(np.asarray, fuse(boxes, scores, 0.55, len(boxes), 6, labels, valid))
  boxes, scores, labels, found = got
  assert 10 <= found.sum() == len(want) < len(boxes) / 2 and not found[len(want) :].any()
  assert labels[found].tolist() == [label for _, label, _ in want]
  np.testing.assert_allclose(scores[found], [score for score, _, _ in want], rtol=1e-5)
  want = np.float64([box for _, _, box in want])
  if oriented:
    want = np.asarray(obb.normalise(jnp.asarray(want, jnp.float32)))
    turned = np.mod(boxes[found, 4] - want[:, 4] + 1, np.pi) - 1
    np.testing.assert_allclose(turned, 0, atol=1e-4)
  np.testing.assert_allclose(boxes[found, :4], want[:, :4], atol=1e-3)
  assert not scores[~found].any()


def test_fusion_of_few():
  """A square by either edge, the jump of le90, labels apart, the cap, what takes no part."""
  both = lambda *boxes: np.float32(boxes)
  one = lambda boxes, scores, labels=(0, 0), valid=(True, True), most=2: fuse(
    boxes, np.float32(scores), 0.5, most, 2, np.int32(labels), np.array(valid)
  )
  square = both((9, 9, 10.2, 10, 0.1), (9, 9, 10.2, 10, 0.1 - np.pi / 2))
  boxes, scores, _, found = one(square, (0.6, 0.6))
  assert found.tolist() == [True, False] and scores[0] == pytest.approx(0.6)
  np.testing.assert_allclose(boxes[0], (9, 9, 10.1, 10.1, 0.1), atol=1e-5)
  edge = both((9, 9, 40, 10, 1.57), (9, 9, 40, 10, -1.55))
  boxes, *_ = one(edge, (0.9, 0.3))
  np.testing.assert_allclose(
    boxes[0], (9, 9, 40, 10, 1.57 + 0.25 * (np.pi - 3.12) - np.pi), atol=1e-4
  )
  boxes, scores, labels, found = one(edge, (0.3, 0.9), (5, 7))
  assert found.all() and labels.tolist() == [7, 5]
  np.testing.assert_allclose(scores, (0.45, 0.15), atol=1e-6)  # one of two views
  assert one(edge, (0.3, 0.9), (5, 7), most=1)[2].tolist() == [7]
  assert one(edge, (0.3, 0.9), valid=(True, False))[1][0] == pytest.approx(0.15)
  for nothing in (dict(scores=(0, np.nan)), dict(scores=(1, 1), valid=(False, False))):
    boxes, scores, labels, found = one(edge, **nothing)
    assert not (found.any() or scores.any() or labels.any() or boxes.any())


class Blobs:
  """Measures one bright blob a band, by its moments: all a detector needs to turn with its image.

  Their values are what they weigh; `variables['seen']` counts from which score on one is found.
  """

  def detect(self, variables, images, task, shapes):
    y, x = (jnp.arange(n, dtype=float) for n in images.shape[1:3])
    mass = images.sum((1, 2))  # [B, bands], padding is 0
    mean_x = (images * x[None, None, :, None]).sum((1, 2)) / mass
    mean_y = (images * y[None, :, None, None]).sum((1, 2)) / mass
    dx = x[None, None, :, None] - mean_x[:, None, None]
    dy = y[None, :, None, None] - mean_y[:, None, None]
    xx, yy, xy = ((images * a * b).sum((1, 2)) / mass for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    spread = jnp.hypot((xx - yy) / 2, xy)
    sides = [4 * jnp.sqrt((xx + yy) / 2 + sign * spread) for sign in (1, -1)]
    boxes = jnp.stack([mean_x, mean_y, *sides, jnp.arctan2(2 * xy, xx - yy) / 2], -1)
    if task == 'sar':  # whose pixels span [j, j + 1)
      boxes = obb.to_hbb(boxes) + 0.5
    scores = jnp.broadcast_to(jnp.asarray([[0.9, 0.7, 0.5]]), mass.shape)
    labels = jnp.broadcast_to(jnp.arange(3)[None], mass.shape)
    return Detections(boxes, scores, labels, scores > variables['least'])


@pytest.fixture(scope='module')
def config():
  config = config_lib.default()
  config.tasks = ConfigDict(sort_keys=False)
  plain = dict(size=CANVAS, mean=(0.0,) * 3, std=(1.0,) * 3)
  config.tasks.sar = task('hbb', 'x', ('a', 'b', 'c'), **plain)
  config.tasks.rgb = task('obb', 'y', ('a', 'b', 'c'), **plain)
  return config


@pytest.fixture(scope='module')
def lights():
  """Three pictures, in padding that is no black, of three blobs, one a band."""
  rng, images = np.random.default_rng(2), np.full((len(SHAPES), *CANVAS, 3), 77, np.uint8)
  for image, (h, w) in zip(images, SHAPES, strict=True):
    y, x = np.mgrid[:h, :w]
    for band in range(3):
      cx, cy, theta = *rng.uniform((9, 12), (w - 9, h - 12)), rng.uniform(-1.5, 1.5)
      along = (x - cx) * np.cos(theta) + (y - cy) * np.sin(theta)
      over = (y - cy) * np.cos(theta) - (x - cx) * np.sin(theta)
      image[:h, :w, band] = 255 * np.exp(-(along**2) / 18 - over**2 / 7)
  return images


@pytest.mark.parametrize(
  'task, text, merge, error',
  [
    ('sar', 'flips,turns', 'nms', 1e-3),
    ('rgb', 'flips,turns', 'wbf', 1e-3),
    ('rgb', 'turns,scales:0.75:1.5', 'nms', 0.6),
  ],
)
def test_all_views_agree(task, text, merge, error, config, lights):
  """So that their fusion is what one look finds, and NMS keeps one of each."""
  variables = {'least': jnp.asarray(0.0)}
  plain = inference.detect_step(Blobs(), config, task)(variables, lights, SHAPES)
  step = tta.detect_step(Blobs(), config, task, tta.parse(text, merge))
  found = step(variables, lights, SHAPES)
  assert found.valid.shape == plain.valid.shape and found.valid.all()
  np.testing.assert_array_equal(found.labels, plain.labels)
  np.testing.assert_allclose(found.scores, plain.scores, atol=1e-6)
  np.testing.assert_allclose(found.boxes[..., :4], plain.boxes[..., :4], atol=error)
  if task == 'rgb':
    turned = np.mod(found.boxes[..., 4] - plain.boxes[..., 4] + 1, np.pi) - 1
    np.testing.assert_allclose(turned, 0, atol=error / 10)


def test_without_an_augmentation_it_is_the_plain_step(config, lights):
  variables = {'least': jnp.asarray(0.6)}
  plain = inference.detect_step(Blobs(), config, 'rgb')(variables, lights, SHAPES)
  none = tta.detect_step(Blobs(), config, 'rgb')(variables, lights, SHAPES)
  jax.tree.map(np.testing.assert_array_equal, none, plain)


def test_a_detector_looks_at_all_views(config, lights, monkeypatch):
  monkeypatch.setattr(predict, 'build', lambda config: Blobs())
  variables = {'least': jnp.asarray(0.6)}
  plain = Detector(config, variables).predict(lights[0], 'rgb')
  found = Detector(config, variables, augmentation=tta.parse('flips')).predict(lights[0], 'rgb')
  assert len(plain) == 2 and found.labels.tolist() == plain.labels.tolist()
  np.testing.assert_allclose(found.boxes[:, :4], plain.boxes[:, :4], atol=1e-3)
  assert (found.boxes != plain.boxes).any()  # by rounding


def test_on_a_mesh_each_device_has_its_images(config, lights):
  """And finds what it finds alone; what no view finds is not there."""
  variables = {'least': jnp.asarray(0.6)}
  images, shapes = np.tile(lights, (3, 1, 1, 1))[:8], np.tile(SHAPES, (3, 1))[:8]
  plain = inference.detect_step(Blobs(), config, 'rgb')(variables, images, shapes)
  mesh = sharding.make_mesh({'data': 4, 'expert': 2})
  step = tta.detect_step(Blobs(), config, 'rgb', tta.parse('flips'))
  with jax.set_mesh(mesh):
    found = step(sharding.put_tree(variables, mesh), *sharding.put_batch((images, shapes), mesh))
  assert found.boxes.sharding.shard_shape(found.boxes.shape)[0] == 1
  assert found.valid.tolist() == [[True, True, False]] * 8
  np.testing.assert_allclose(found.boxes[:, :2, :4], plain.boxes[:, :2, :4], atol=1e-3)


@pytest.mark.parametrize(
  'text, merge, message',
  [
    ('flip', None, "--tta=flip: expected some of flips, turns and scales.* not 'flip'"),
    ('flips,flips', None, "not 'flips'"),
    ('flips,', None, "not ''"),
    ('flips:2', None, "not 'flips:2'"),
    ('scales', None, "not 'scales'"),
    ('scales:big', None, "not 'big'"),
    ('scales:nan', None, 'from 0.25 to 4, not nan'),
    ('scales:9', None, 'from 0.25 to 4, not 9'),
    ('scales:0.8:1', None, 'each scale once, and 1 is always there'),
    ('flips', 'soft', '--tta_merge=soft: expected nms or wbf'),
    ('', 'nms', '--tta_merge=nms needs --tta'),
  ],
)
def test_a_slip_is_one_line_with_the_choices(text, merge, message):
  with pytest.raises(UserError, match=message):
    tta.parse(text, merge)
