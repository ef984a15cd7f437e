"""Boxes in numpy, windows, and random access to prepared data."""

import json
import math
import pickle

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines import boxes as box_lib
from data_pipelines import images, tiling
from data_pipelines.prepare import prepare
from data_pipelines.source import Source
from sm3det_jax.geometry import obb as jax_obb
from sm3det_jax.metrics import polygon

numbers = st.floats(-300, 300, width=32)
sides = st.floats(3, 200, width=32)
rectangles = st.lists(  # always four: one shape compiles once
  st.tuples(numbers, numbers, sides, sides, st.floats(-7, 7, width=32)), min_size=4, max_size=4
)
quadrilaterals = st.lists(st.tuples(*[numbers] * 8), min_size=1, max_size=5)


# boxes


@given(rectangles)
@settings(max_examples=50, deadline=None)
def test_boxes_equal_those_of_the_model(rows):
  obb = np.array(rows, np.float32)
  np.testing.assert_allclose(box_lib.to_polygon(obb), jax_obb.to_polygon(obb), atol=2e-3)
  np.testing.assert_allclose(box_lib.obb_to_hbb(obb), jax_obb.to_hbb(obb), atol=2e-3)
  ours, theirs = box_lib.le90(obb), np.asarray(jax_obb.normalise(obb))
  np.testing.assert_allclose(ours[:, :4], theirs[:, :4], atol=1e-4)
  turn = np.mod(ours[:, 4] - theirs[:, 4] + 1, math.pi) - 1  # -pi/2 and pi/2 are one angle
  np.testing.assert_allclose(turn, 0, atol=1e-5)


@given(quadrilaterals)
@example([(0, 1e-5, 0, 0, 0, 0, 63, -106)])  # three of four points are one
@settings(max_examples=50, deadline=None)
def test_minimum_rectangle_is_that_of_shapely(rows):
  polygons = np.array(rows, np.float32)
  found = box_lib.polygon_to_obb(polygons)
  assert (found[:, 2] >= found[:, 3]).all()
  assert (found[:, 4] >= -math.pi / 2).all() and (found[:, 4] < math.pi / 2).all()
  for corners, box in zip(polygons.reshape(-1, 4, 2), found, strict=True):
    best = shapely.MultiPoint(corners).minimum_rotated_rectangle.area
    assert abs(box[2] * box[3] - best) <= 1e-3 * max(best, 1) + 0.05
    if box[3] < 1e-3:  # of a sliver OpenCV finds the length alone; `scan` leaves it out
      assert best < 0.01 * box[2]
      continue
    rectangle = shapely.Polygon(box_lib.to_polygon(box).reshape(4, 2))
    assert all(rectangle.distance(shapely.Point(p)) < 0.02 for p in corners)


@given(rectangles)
@settings(max_examples=50, deadline=None)
def test_le90_keeps_the_rectangle(rows):
  obb = np.array(rows, np.float32)
  found = box_lib.le90(obb)
  assert (found[:, 2] >= found[:, 3]).all()
  assert (found[:, 4] >= -math.pi / 2).all() and (found[:, 4] < math.pi / 2).all()
  for a, b in zip(box_lib.to_polygon(obb), box_lib.to_polygon(found), strict=True):
    a, b = a.reshape(4, 2), b.reshape(4, 2)
    nearest = np.linalg.norm(a[:, None] - b[None], axis=-1).min(1)
    np.testing.assert_allclose(nearest, 0, atol=2e-3)


def test_an_angle_that_rounds_to_a_right_one():
  theta = box_lib.le90(np.array([[0, 0, 9, 5, math.pi / 2 - 1e-12]]))[0, 4]  # float64
  assert theta == np.float32(-math.pi / 2)


@given(st.tuples(*[st.integers(-6, 6)] * 8))  # many touch, overlap or coincide
@settings(max_examples=200, deadline=None)
def test_self_crossing_agrees_with_shapely(row):
  points = np.array(row, np.float64).reshape(4, 2)
  edges = [shapely.LineString([points[i], points[(i + 1) % 4]]) for i in range(4)]
  expected = edges[0].crosses(edges[2]) or edges[1].crosses(edges[3])
  assert box_lib.self_crossing(points)[0] == expected


def test_area_of_known_polygons():
  polygons = [[0, 0, 4, 0, 4, 3, 0, 3], [0, 0, 0, 3, 4, 3, 4, 0], [0, 0, 4, 0, 0, 3, 4, 3]]
  np.testing.assert_allclose(polygon.area(np.reshape(polygons, (-1, 4, 2))), [12, -12, 0])


# windows


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1024), st.data())
@settings(max_examples=100, deadline=None)
def test_windows_cover_the_image_and_no_more(height, width, size, data):
  overlap = data.draw(st.integers(0, size * 3 // 4))
  if max(height, width) > 60 * (size - overlap):
    return
  found = tiling.windows(height, width, size, overlap)
  x1, y1, x2, y2 = found.T
  assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= width).all() and (y2 <= height).all()
  assert (x2 - x1 == min(size, width)).all() and (y2 - y1 == min(size, height)).all()
  assert len(np.unique(found, axis=0)) == len(found)
  for low, high, length in ((x1, x2, width), (y1, y2, height)):
    starts, ends = np.unique(low), np.unique(high)
    assert starts[0] == 0 and ends[-1] == length
    assert (ends[:-1] - starts[1:] >= overlap).all()


def test_windows_by_hand():
  found = tiling.windows(800, 1300, 800, 400)
  np.testing.assert_array_equal(found[:, 0], [0, 400, 500])
  assert len(tiling.windows(2304, 1792, 800, 400)) == 5 * 4
  np.testing.assert_array_equal(tiling.windows(10, 20), [[0, 0, 20, 10]])
  with pytest.raises(ValueError, match='tile.overlap=800.*tile.size=800'):
    tiling.windows(10, 20, 800, 800)


@given(rectangles, st.tuples(numbers, numbers, sides, sides))
@settings(max_examples=100, deadline=None)
def test_kept_fraction_of_rectangles_is_that_of_shapely(rows, window):
  polygons = box_lib.to_polygon(np.array(rows, np.float32))
  x, y, w, h = window
  far = [x + 5000, y, x + 5000 + w, y + h]
  found = tiling.kept_fraction(polygons, [[x, y, x + w, y + h], far])
  expected = []
  for p in polygons:
    p = shapely.Polygon(p.reshape(4, 2))
    expected.append(p.intersection(shapely.box(x, y, x + w, y + h)).area / p.area)
  np.testing.assert_allclose(found[0], expected, atol=1e-4)
  np.testing.assert_allclose(found[1], 0, atol=1e-9)


@given(st.tuples(*[numbers] * 8))
@example((0.0, 0.0, 0.11, 0.0, 0.0, 285.0, 0.0, 0.0))  # thin and long
@settings(max_examples=100, deadline=None)
def test_kept_fraction_of_any_simple_quadrilateral(row):
  polygon = shapely.Polygon(np.array(row).reshape(4, 2))
  if not polygon.is_valid or polygon.area < 10:
    return
  window = (-50, -80, 120, 60)
  expected = polygon.intersection(shapely.box(*window)).area / polygon.area
  found = tiling.kept_fraction(np.array([row]), [window])[0, 0]
  assert abs(found - expected) < 1e-9


def test_kept_fraction_of_nothing_is_nothing():
  assert tiling.kept_fraction(np.zeros((2, 8)), [[0, 0, 5, 5]]).tolist() == [[0, 0]]
  assert tiling.kept_fraction(np.zeros((0, 8)), [[0, 0, 5, 5]]).shape == (1, 0)


@pytest.mark.parametrize(
  'name, expected',
  [
    ('P0004__1__0___400', ('P0004', 1.0, 0, 400)),
    ('P0004__0.5__824___0', ('P0004', 0.5, 824, 0)),
    ('P0861__1024__0___1648', ('P0861', 1.0, 0, 1648)),  # the patch's size, not a rate
    ('a__b__1__2___3', ('a__b', 1.0, 2, 3)),
    ('P0004', None),
    ('P0001_0_800_7200_8000', None),
  ],
)
def test_patch_names(name, expected):
  assert tiling.parse_patch(name) == expected


# source


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A set of one small image, one large one with ten objects, and one of four bands."""
  root = tmp_path_factory.mktemp('prepared')
  rng = np.random.default_rng(0)
  folder = root / 'raw'
  (folder / 'labelTxt').mkdir(parents=True)
  (folder / 'images').mkdir()
  small = rng.integers(0, 256, (90, 120, 1), np.uint8)
  large = rng.integers(0, 256, (700, 1300, 3), np.uint8)
  deep = rng.integers(0, 65536, (60, 1100, 4), np.uint16)
  cv2.imwrite(str(folder / 'images/a.png'), small)
  cv2.imwrite(str(folder / 'images/b.png'), large[..., ::-1])
  cv2.imwrite(str(folder / 'images/c.tif'), deep[..., [2, 1, 0, 3]])
  box = np.array([[60 + 120 * i, 300 + 10 * i, 40, 20, 0.3] for i in range(10)])
  lines = [' '.join(f'{v:.3f}' for v in p) + ' ship 0' for p in box_lib.to_polygon(box)]
  (folder / 'labelTxt/b.txt').write_text('\n'.join(lines))
  (folder / 'labelTxt/a.txt').write_text('')
  (folder / 'labelTxt/c.txt').write_text('1000 20 1040 20 1040 40 1000 40 plane 1')
  prepare('dota_txt', folder, root / 'data', name='set', classes=('plane', 'ship'))
  return root / 'data', dict(a=small, b=large, c=deep)


def test_whole_images(prepared):
  root, pixels = prepared
  source = Source(root, 'set', 'train')
  assert (len(source), source.classes, source.box) == (3, ('plane', 'ship'), 'obb')
  assert source.num_objects.tolist() == [0, 10, 1]
  for i, name in enumerate('abc'):
    sample = source[i]
    assert sample['id'] == name and sample['offset'] == (0, 0)
    assert sample['full_size'] == pixels[name].shape[:2]
    assert sample['image'].dtype == pixels[name].dtype
    np.testing.assert_array_equal(sample['image'], pixels[name])
  assert source[0]['objects']['boxes'].shape == (0, 5) and source[0]['objects'][
    'polygons'
  ].shape == (0, 8)
  assert source[2]['objects']['labels'].tolist() == [0] and source[2]['objects'][
    'difficult'
  ].tolist() == [True]
  assert source[-1]['id'] == 'c'
  with pytest.raises(IndexError):
    source[3]
  types = {k: v.dtype for k, v in source[1]['objects'].items()}
  expected = dict(boxes='f4', labels='i4', difficult='?', polygons='f4')
  assert types == {k: np.dtype(v) for k, v in expected.items()}


def test_windows_hold_their_pixels_and_objects(prepared):
  root, pixels = prepared
  whole = {t['id']: t for t in Source(root, 'set', 'train').truth()}
  source = Source(root, 'set', 'train', dict(size=400, overlap=100, keep=0.7))
  assert len(source) == 1 + 2 * 4 + 4
  seen = 0
  for i in range(len(source)):
    sample = source[i]
    (x, y), (h, w) = sample['offset'], sample['image'].shape[:2]
    np.testing.assert_array_equal(sample['image'], pixels[sample['id']][y : y + h, x : x + w])
    assert (
      len(sample['objects']['boxes']) == len(sample['objects']['labels']) == source.num_objects[i]
    )
    truth = whole[sample['id']]
    window = shapely.box(x, y, x + w, y + h)
    kept = [
      k
      for k, p in enumerate(truth['polygons'])
      if shapely.Polygon(p.reshape(4, 2)).intersection(window).area / 800 >= 0.7
    ]
    expected = truth['boxes'][kept] - np.float32([x, y, 0, 0, 0])  # whole boxes, not clipped
    np.testing.assert_allclose(sample['objects']['boxes'], expected, atol=1e-4)
    expected = truth['polygons'][kept] - np.tile(np.float32([x, y]), 4)
    np.testing.assert_allclose(sample['objects']['polygons'], expected, atol=1e-4)
    seen += len(kept)
  assert seen > 11  # objects in the overlap are in two windows


def test_a_window_decodes_only_the_blocks_it_touches(prepared, monkeypatch):
  root, pixels = prepared
  source = Source(root, 'set', 'train', dict(size=256, overlap=0))
  decoded = []
  decode = images.decode
  monkeypatch.setattr(images, 'decode', lambda *a, **k: decoded.append(1) or decode(*a, **k))
  at = {(source[i]['id'], source[i]['offset']): i for i in range(len(source))}
  for offset, blocks in (((0, 0), 1), ((512, 0), 1), ((1044, 256), 1), ((768, 444), 2)):
    decoded.clear()
    source[at['b', offset]]
    assert len(decoded) == blocks, offset


def test_a_source_pickles(prepared):
  source = Source(prepared[0], 'set', 'train', dict(size=400, overlap=100, keep=0.5))
  source[0]
  copy = pickle.loads(pickle.dumps(source))
  assert len(pickle.dumps(source)) < 1000
  assert copy.fingerprint == source.fingerprint and len(copy) == len(source)
  np.testing.assert_array_equal(copy[4]['image'], source[4]['image'])


def test_the_fingerprint_follows_data_and_tiling(prepared, tmp_path):
  root = prepared[0]
  tile = dict(size=400, overlap=100, keep=0.5)
  prints = [Source(root, 'set', 'train', t).fingerprint for t in (None, tile, tile | {'keep': 0.6})]
  assert len(set(prints)) == 3
  assert Source(root, 'set', 'train', dict(size=0, overlap=9)).fingerprint == prints[0]
  options = dict(name='set', classes=('plane', 'ship'))
  prepare('dota_txt', root.parent / 'raw', tmp_path, **options)
  assert Source(tmp_path, 'set', 'train').fingerprint == prints[0]  # the place does not matter
  prepare('dota_txt', root.parent / 'raw', tmp_path, ignore=('plane',), **options)
  assert Source(tmp_path, 'set', 'train').fingerprint != prints[0]


def test_what_is_not_there_is_an_error(prepared, tmp_path):
  with pytest.raises(FileNotFoundError, match="no prepared data set 'sat'.*there: set"):
    Source(prepared[0], 'sat', 'train')
  with pytest.raises(FileNotFoundError, match='there: nothing'):
    Source(tmp_path, 'set', 'train')
  with pytest.raises(ValueError, match="no split 'test'; it has train"):
    Source(prepared[0], 'set', 'test')


def test_tfds_reads_what_was_prepared(prepared):
  import tensorflow_datasets as tfds

  root, pixels = prepared
  builder = tfds.builder_from_directory(root / 'set' / '1.0.0')
  records = builder.as_data_source(split='train')
  assert json.loads(json.dumps(builder.info.metadata['classes'])) == ['plane', 'ship']
  assert [r['id'] for r in records] == [b'a', b'b', b'c']
  assert records[0]['image'] == (root.parent / 'raw/images/a.png').read_bytes()
  assert records[0]['boxes'].shape == (0, 5) and records[0]['first_block'] == -1
  assert records[1]['image'] == b'' and records[1]['first_block'] == 0
  assert records[2]['first_block'] == 2 * 3 and records[2]['bands'] == 4
  blocks = builder.as_data_source(split='train_blocks')
  assert len(blocks) == 2 * 3 + 3
  corner = images.decode(blocks[5]['image'], 3)
  np.testing.assert_array_equal(corner, pixels['b'][512:, 1024:])
