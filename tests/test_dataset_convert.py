"""Writing the formats: what is written reads back the same, and what cannot be said is counted."""

import dataclasses
import io
import json
import math

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon

from data_pipelines import angles, raw
from data_pipelines import boxes as box_lib
from data_pipelines import images as image_lib
from data_pipelines.builders.formats import FORMATS
from data_pipelines.dataset import convert, tile
from data_pipelines.errors import UserError
from data_pipelines.raw import Collected
from data_pipelines.readers import Annotation, Skipped
from data_pipelines.readers.xml import CORNERS
from data_pipelines.writers.formats import TARGETS
from sm3det_jax import cli

HEIGHT, WIDTH = 40, 60
CLASSES = ('storage-tank', 'ship')
READ_BACK = sorted(set(TARGETS) & set(FORMATS))
OBB = [n for n in READ_BACK if 5 in TARGETS[n].boxes]
HBB = [n for n in READ_BACK if TARGETS[n].boxes == (4,)]


def collected(folder, splits, box, classes=CLASSES):
  """A data set of {split: {id: (names, boxes, polygons, difficult)}}."""
  annotations = {}
  for split, images in splits.items():
    annotations[split] = []
    for id, (names, boxes, polygons, difficult) in images.items():
      path = folder / split / f'{id}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(path), np.full((HEIGHT, WIDTH), len(annotations[split]), np.uint8))
      boxes = np.float32(boxes).reshape(-1, box_lib.COLUMNS[box])
      polygons = box_lib.to_polygon(boxes) if polygons is None else polygons
      polygons = np.float32(polygons).reshape(-1, 8)
      found = Annotation(id, path, tuple(names), boxes, polygons, np.int8(difficult))
      annotations[split].append(found)
  label = lambda name, file: classes.index(name) if name in classes else None
  return Collected('a_set', box, classes, label, annotations, Skipped())


def two_splits(folder, box):
  boxes = {
    'hbb': [[1.5, 2.25, 20.1, 30], [-3, 5, 7, 61]],
    'obb': [[20, 15, 18.2, 6.1, 0.3], [40.3, 20, 12, 4, -1.4]],
  }[box]
  one = ('ship', 'storage-tank'), boxes, None, [0, 1]
  return collected(folder, {'train': {'a': one, 'b': ((), [], None, [])}, 'val': {'c.5': one}}, box)


def one_image(boxes, polygons=None):
  return {'train': {'a': (['ship'] * len(boxes), boxes, polygons, [0] * len(boxes))}}


def there_and_back(tmp_path_factory, to, box, boxes, polygons=None):
  folder = tmp_path_factory.mktemp('round')
  convert.convert(collected(folder, one_image(boxes, polygons), box), to, folder / 'out')
  [a] = raw.collect(to, folder / 'out').annotations['train']
  return a


def same(found, expected, atol=2e-3):
  """Rectangles or quadrilaterals, whichever corner is the first; px."""
  found, expected = (np.float64(p).reshape(-1, 4, 1, 2) for p in (found, expected))
  assert found.shape == expected.shape
  distance = np.linalg.norm(found - np.swapaxes(expected, 1, 2), axis=-1)
  assert max(distance.min(2).max(initial=0), distance.min(1).max(initial=0)) < atol


@pytest.mark.parametrize('to', READ_BACK)
def test_what_is_written_reads_back(tmp_path, to):
  box = FORMATS[to].box
  c = two_splits(tmp_path / 'in', box)
  report = convert.convert(c, to, tmp_path / 'out')
  again = raw.collect(to, tmp_path / 'out')
  assert (again.box, set(again.classes)) == (box, set(CLASSES))
  assert list(again.annotations) == ['train', 'val'] and not again.skipped.counts
  for split, listed in c.annotations.items():
    assert [a.id for a in again.annotations[split]] == [a.id for a in listed]
    for a, b in zip(listed, again.annotations[split], strict=True):
      assert b.names == a.names and b.image.read_bytes() == a.image.read_bytes()
      same(box_lib.to_polygon(b.boxes), box_lib.to_polygon(a.boxes))
      same(b.polygons, a.polygons)
      kept = TARGETS[to].difficult != 'lost'
      assert b.difficult.tolist() == (a.difficult if kept else 0 * a.difficult).tolist()
  assert report.images == {'train': 2, 'val': 1}
  assert report.objects['train'] == {'ship': 1, 'storage-tank': 1}


# for a format whose reader keeps the numbers of the file, the box comes back to the last digit
sides = st.floats(2, 2000, width=32)
# not all within 1 px, which would be taken for shares
centre = st.floats(3, 20000, width=32) | st.floats(-50, -3, width=32)
theta = st.floats(-1.5707962512969971, 1.5707962512969971, width=32)


@pytest.mark.parametrize('to', [n for n in OBB if TARGETS[n].angle])
@settings(max_examples=8, deadline=None)
@given(rows=st.lists(st.tuples(centre, centre, sides, sides, theta), min_size=1, max_size=4))
def test_angles_come_back_to_the_last_digit(tmp_path_factory, to, rows):
  boxes = box_lib.le90(np.array(rows, np.float64))
  a = there_and_back(tmp_path_factory, to, 'obb', boxes)
  np.testing.assert_allclose(a.boxes, boxes, rtol=2e-7, atol=1e-30)


@pytest.mark.parametrize('to', [n for n in HBB if n != 'yolo'])
@settings(max_examples=8, deadline=None)
@given(rows=st.lists(st.tuples(centre, centre, sides, sides), max_size=4))
def test_horizontal_boxes_come_back_to_the_last_digit(tmp_path_factory, to, rows):
  x, y, w, h = np.array(rows, np.float64).reshape(-1, 4).T
  boxes = np.stack([x, y, x + w, y + h], -1).astype(np.float32)
  a = there_and_back(tmp_path_factory, to, 'hbb', boxes)
  np.testing.assert_allclose(a.boxes, boxes, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize('to', [n for n in OBB if TARGETS[n].quadrilateral and n != 'yolo_obb'])
@settings(max_examples=8, deadline=None)
@given(rows=st.lists(st.tuples(*[centre] * 8), max_size=3))
def test_quadrilaterals_come_back_to_the_last_digit(tmp_path_factory, to, rows):
  polygons = np.array(rows, np.float32).reshape(-1, 8)
  boxes = box_lib.polygon_to_obb(polygons)
  a = there_and_back(tmp_path_factory, to, 'obb', boxes, polygons)
  np.testing.assert_allclose(a.polygons, polygons, rtol=2e-7, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(rows=st.lists(st.tuples(*[st.floats(-9, 70, width=32)] * 8), max_size=3))
def test_shares_come_back_to_a_few_last_digits(tmp_path_factory, rows):
  """A share is a float32 of its own when it is read: three roundings in all."""
  polygons = np.array(rows, np.float32).reshape(-1, 8)
  boxes = box_lib.polygon_to_obb(polygons)
  a = there_and_back(tmp_path_factory, 'yolo_obb', 'obb', boxes, polygons)
  np.testing.assert_allclose(a.polygons, polygons, rtol=3e-7, atol=1e-9)
  boxes = box_lib.polygon_to_hbb(polygons)
  a = there_and_back(tmp_path_factory, 'yolo', 'hbb', boxes)
  np.testing.assert_allclose(a.boxes, boxes, rtol=3e-7, atol=1e-5)


EDGES = [k * math.pi / 4 + d for k in range(-8, 9) for d in (-1e-7, 0, 1e-7)]


@given(
  st.sampled_from(sorted(angles.CONVENTIONS)),
  st.sampled_from(sorted(angles.CONVENTIONS)),
  st.lists(
    st.tuples(centre, centre, sides, sides, st.floats(-50, 50) | st.sampled_from(EDGES)),
    min_size=1,
    max_size=5,
  ),
)
@settings(max_examples=40, deadline=None)
def test_conventions_are_the_same_rectangles(first, second, rows):
  boxes = np.array(rows, np.float64)
  out = angles.CONVENTIONS[second](angles.CONVENTIONS[first](boxes))
  assert out.dtype == np.float32 and out.shape == boxes.shape
  for a, b in zip(box_lib.to_polygon(boxes), box_lib.to_polygon(out), strict=True):
    a, b = Polygon(a.reshape(4, 2)), Polygon(b.reshape(4, 2))
    assert a.intersection(b).area > 0.99 * a.union(b).area
  low, high = (np.float32(v) for v in angles.ENDS[second])
  if second == 'oc':
    assert (out[:, 4] > low).all() and (out[:, 4] <= high).all()
  else:
    assert (out[:, 2] >= out[:, 3]).all()
    assert (out[:, 4] >= low).all() and (out[:, 4] < high).all()


def test_le90_leaves_le90_alone():
  boxes = np.float32([[0, 0, 3, 2, -math.pi / 2], [0, 0, 3, 2, 1.5707962], [0, 0, 2, 2, 0.1]])
  np.testing.assert_array_equal(box_lib.le90(boxes), boxes)


@pytest.mark.parametrize('convention', angles.CONVENTIONS)
def test_the_ends_of_a_convention_are_spelt_exactly(convention):
  boxes = np.array([[0, 0, 3, 2, t] for t in EDGES])
  theta = angles.spelled(boxes, convention)[:, 4]
  low, high = angles.ENDS[convention]
  assert theta.dtype == np.float64 and low <= theta.min() and theta.max() <= high
  assert {'oc': high, 'le90': low, 'le135': low}[convention] in theta


@pytest.mark.parametrize(
  'name, expected',
  [
    ('le90', [[5, 6, 8, 2, math.radians(-60)], [5, 6, 8, 2, -math.pi / 2]]),
    ('le135', [[5, 6, 8, 2, math.radians(120)], [5, 6, 8, 2, math.pi / 2]]),
    ('oc', [[5, 6, 2, 8, math.radians(30)], [5, 6, 8, 2, math.pi / 2]]),
  ],
)
def test_a_rectangle_in_each_convention(name, expected):
  """2 px by 8 px turned by 30 degrees, and one that stands upright."""
  found = angles.CONVENTIONS[name](np.array([[5, 6, 2, 8, math.radians(30)], [5, 6, 2, 8, 0]]))
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('to', [n for n in OBB if TARGETS[n].angle])
@pytest.mark.parametrize('angle', angles.CONVENTIONS)
def test_each_convention_reads_back(tmp_path, to, angle):
  c = two_splits(tmp_path / 'in', 'obb')
  convert.convert(c, to, tmp_path / 'out', convention=angle)
  for split, listed in raw.collect(to, tmp_path / 'out').annotations.items():
    for a, b in zip(c.annotations[split], listed, strict=True):
      np.testing.assert_allclose(b.boxes, a.boxes, atol=1e-5)


def test_an_angle_is_written_in_its_convention(tmp_path):
  c = two_splits(tmp_path / 'in', 'obb')
  convert.convert(c, 'coco_degree', tmp_path / 'o', convention='oc')
  content = json.loads((tmp_path / 'o/annotations/train.json').read_text())
  found = [a['bbox'] for a in content['annotations']]
  cx, w, h, theta = 40.3, 4, 12, math.degrees(math.pi / 2 - 1.4)
  np.testing.assert_allclose(found[1], [cx, 20, w, h, theta], rtol=1e-6)
  assert content['info']['description'].endswith('in degrees, positive clockwise on the screen, oc')


def test_yolo(tmp_path):
  """By a parser of its own: class number, then centre and sides as shares."""
  c = two_splits(tmp_path / 'in', 'hbb')
  report = convert.convert(c, 'yolo', tmp_path / 'out')
  names = yaml.safe_load((tmp_path / 'out/data.yaml').read_text())
  expected = {'names': {0: 'storage-tank', 1: 'ship'}, 'train': 'images/train', 'val': 'images/val'}
  assert names == expected
  text = (tmp_path / 'out/labels/train/a.txt').read_text()
  numbers = np.array([[float(v) for v in line.split()] for line in text.splitlines()])
  assert numbers[:, 0].tolist() == [1, 0]
  cx, cy, w, h = (numbers[:, 1:] * (WIDTH, HEIGHT, WIDTH, HEIGHT)).T
  found = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)
  np.testing.assert_allclose(found, c.annotations['train'][0].boxes, rtol=1e-6)
  assert (tmp_path / 'out/labels/train/b.txt').read_text() == ''
  assert report.skipped == {
    'box beyond the image (Ultralytics refuses its file)': 2,
    'flag difficult, which the format lacks': 2,
  }


@pytest.mark.parametrize('box, kind', [('hbb', 'rectangle'), ('obb', 'polygon')])
def test_labelme(tmp_path, box, kind):
  c = two_splits(tmp_path / 'in', box)
  convert.convert(c, 'labelme', tmp_path / 'out')
  for split, id in (('train', 'a'), ('val', 'c.5')):
    content = json.loads((tmp_path / f'out/{split}/{id}.json').read_text())
    assert content['imagePath'] == f'{id}.png' and (tmp_path / f'out/{split}/{id}.png').is_file()
    assert (content['imageHeight'], content['imageWidth']) == (HEIGHT, WIDTH)
    assert [s['label'] for s in content['shapes']] == ['ship', 'storage-tank']
    assert {s['shape_type'] for s in content['shapes']} == {kind}
    assert [s['flags'] for s in content['shapes']] == [{}, {'difficult': True}]
    points = np.array([s['points'] for s in content['shapes']]).reshape(2, -1)
    expected = c.annotations['train'][0]
    expected = expected.boxes if box == 'hbb' else expected.polygons
    np.testing.assert_array_equal(points.astype(np.float32), expected)


def test_what_a_format_cannot_say_is_counted(tmp_path):
  polygons = [[2, 2, 20, 4, 22, 18, 3, 12], [5, 5, 15, 5, 15, 9, 5, 9]]
  names, boxes = ('ship', 'rock'), box_lib.polygon_to_obb(np.array(polygons))
  boxes[1, 0] = np.nan
  images = {'a': (names * 2, np.tile(boxes, (2, 1)), polygons * 2, [2, 0, 0, 0])}
  c = collected(tmp_path, {'train': images}, 'obb', ('ship', 'rock'))
  assert convert.convert(c, 'rolabelimg', tmp_path / 'o').skipped == {
    'box not finite': 2,
    'quadrilateral, written as its minimum-area rectangle': 2,
  }
  c = collected(tmp_path, {'train': images}, 'obb', ('ship',))._replace(box='hbb')
  assert convert.convert(c, 'coco', tmp_path / 'p').skipped == {
    "object of the ignored class 'rock'": 2,
    'oriented box, written as its enclosing box': 2,
    "flag difficult, written as a key 'difficult' that other tools do not look at": 1,
  }
  [a] = raw.collect('coco', tmp_path / 'p').annotations['train']
  assert a.boxes.tolist() == [[2, 2, 22, 18]] * 2


def test_of_box_and_rounded_corners_the_box_is_written(tmp_path):
  """SSDD's files say both, the corners in whole pixels."""
  boxes = np.float32([[20.3, 15.4, 9, 3.3, 0.4], [40, 20, 12, 4, 0]])
  corners = np.rint(box_lib.to_polygon(boxes))
  images = {'a': (('ship', 'ship'), boxes, corners, [0, 0])}
  for to in [n for n in OBB if TARGETS[n].quadrilateral]:
    c = collected(tmp_path, {'train': images}, 'obb')
    report = convert.convert(c, to, tmp_path / to)
    [a] = raw.collect(to, tmp_path / to).annotations['train']
    same(box_lib.to_polygon(a.boxes), box_lib.to_polygon(boxes))
    assert report.skipped == {
      "corners that are rounded or others than the box's, written as the box's": 1
    }


@pytest.mark.parametrize('to', ['coco', 'voc', 'yolo'])
def test_a_region_is_never_written_as_an_object(tmp_path, to):
  images = [dict(id=1, file_name='a.png', height=HEIGHT, width=WIDTH)]
  boxes = [dict(bbox=[1, 2, 20, 10], iscrowd=1), dict(bbox=[3, 4, 9, 8], iscrowd=0)]
  boxes = [dict(id=k, image_id=1, category_id=1) | b for k, b in enumerate(boxes)]
  content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='ship')])
  (tmp_path / 'in/annotations').mkdir(parents=True)
  (tmp_path / 'in/images/train').mkdir(parents=True)
  cv2.imwrite(f'{tmp_path}/in/images/train/a.png', np.zeros((HEIGHT, WIDTH), np.uint8))
  (tmp_path / 'in/annotations/train.json').write_text(json.dumps(content))
  report = convert.convert(raw.collect('coco', tmp_path / 'in'), to, tmp_path / 'out')
  [a] = raw.collect(to, tmp_path / 'out').annotations['train']
  if to == 'coco':
    assert a.extra['ignored'].tolist() == [True, False] and not report.skipped
  else:
    np.testing.assert_allclose(a.boxes, [[3, 4, 12, 12]], rtol=1e-6)
    reason = 'region in which nothing counts (iscrowd), which the format lacks: left out'
    assert report.skipped == {reason: 1}


def test_labels_of_another_size_are_left_out_or_taken_at_the_users_word(tmp_path, capsys):
  convert.convert(two_splits(tmp_path, 'obb'), 'coco_rotated', tmp_path / 'in')
  path = tmp_path / 'in/annotations/train.json'
  path.write_text(path.read_text().replace(f'"height": {HEIGHT}', '"height": 400', 1))
  argv = [
    'dataset',
    'convert',
    '--dataset=coco_rotated',
    f'--source={tmp_path}/in',
    '--to=dota_txt',
  ]
  for out, more, count in (('out', (), 1), ('taken', ('--sizes=ignore',), 2)):
    assert cli.main([*argv, f'--out={tmp_path / out}', *more]) == 0
    shown = capsys.readouterr().out
    assert ('size differs from the label file' in shown) == (count == 1)
    assert len(raw.collect('dota_txt', tmp_path / out).annotations['train']) == count


@pytest.mark.parametrize('to', OBB)
def test_folders_and_names_that_differ_in_suffix(tmp_path, to):
  """An image is its path: each finds its own labels again."""
  files = ('a.png', 'site/a.png', 'b.png', 'b.jpg', 'tile_0.5.png')
  for k, name in enumerate(files):
    path = tmp_path / 'in/images/train' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((HEIGHT, WIDTH), k, np.uint8))
  images = [dict(id=k, file_name=name) for k, name in enumerate(files)]
  boxes = [[10 + k, 20, 8, 4, 0.1 * k] for k in range(len(files))]
  objects = [dict(id=k, image_id=k, category_id=1, bbox=b) for k, b in enumerate(boxes)]
  content = dict(images=images, annotations=objects, categories=[dict(id=1, name='ship')])
  (tmp_path / 'in/annotations').mkdir()
  (tmp_path / 'in/annotations/train.json').write_text(json.dumps(content))
  convert.convert(raw.collect('coco_radian', tmp_path / 'in'), to, tmp_path / 'out')
  found = raw.collect(to, tmp_path / 'out').annotations['train']
  assert len(found) == len(files)
  for a in found:
    k = round(cv2.imread(str(a.image), cv2.IMREAD_UNCHANGED).mean())
    same(box_lib.to_polygon(a.boxes), box_lib.to_polygon(np.array(boxes[k : k + 1])))


def test_a_horizontal_box_is_a_rectangle_of_oriented_formats(tmp_path):
  c = two_splits(tmp_path / 'in', 'hbb')
  for to in OBB:
    convert.convert(c, to, tmp_path / to)
    a = raw.collect(to, tmp_path / to).annotations['val'][0]
    same(box_lib.to_polygon(a.boxes), c.annotations['val'][0].polygons)


def test_names_with_white_space(tmp_path):
  image = {'a': (['large vehicle'], [[20, 15, 8, 6, 0.3]], None, [0])}
  c = collected(tmp_path, {'train': image}, 'obb', ('large vehicle',))
  report = convert.convert(c, 'dota_txt', tmp_path / 'o')
  assert report.classes == ('large-vehicle',)
  assert raw.collect('dota_txt', tmp_path / 'o').annotations['train'][0].names == report.classes
  assert report.skipped == {"class 'large vehicle', written as 'large-vehicle'": 1}
  for to in set(OBB) - {'dota_txt'}:
    convert.convert(c, to, tmp_path / to)
    assert raw.collect(to, tmp_path / to).annotations['train'][0].names == ('large vehicle',)
  c = collected(tmp_path, {'train': image}, 'obb', ('large vehicle', 'large-vehicle'))
  with pytest.raises(UserError, match='differ only in white space'):
    convert.convert(c, 'dota_txt', tmp_path / 'q')


def test_the_inner_part_of_a_bordered_image(tmp_path):
  """DroneVehicle's raw release: the border goes, with the labels moved."""
  pixels = np.random.default_rng(0).integers(0, 255, (712, 840, 3), np.uint8)
  folder = tmp_path / 'in/train'
  for sub in ('trainimgr', 'trainlabelr'):
    (folder / sub).mkdir(parents=True)
  cv2.imwrite(str(folder / 'trainimgr/1.png'), pixels)
  points = zip(CORNERS, (200, 150, 240, 150, 240, 170, 200, 170), strict=True)
  corners = ''.join(f'<{k}>{v}</{k}>' for k, v in points)
  text = f'<a><object><name>car</name><polygon>{corners}</polygon></object></a>'
  (folder / 'trainlabelr/1.xml').write_text(text)
  c = raw.collect('dronevehicle_xml', tmp_path / 'in')
  convert.convert(c, 'dronevehicle_xml', tmp_path / 'out', images='link')
  [a] = raw.collect('dronevehicle_xml', tmp_path / 'out').annotations['train']
  same(a.polygons, [[100, 50, 140, 50, 140, 70, 100, 70]])
  np.testing.assert_array_equal(cv2.imread(str(a.image)), pixels[100:-100, 100:-100])


def test_an_image_that_exif_turns_is_written_as_its_labels_see_it(tmp_path):
  """Whether a reader obeys EXIF or not no longer matters: the new file has none."""
  c = two_splits(tmp_path, 'hbb')
  pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
  pixels[2:30, 2:20] = 255
  data = cv2.imencode('.jpg', pixels)[1].tobytes()
  entry = b'\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00'  # orientation 6
  exif = b'Exif\0\0II*\x00\x08\x00\x00\x00\x01\x00' + entry + b'\0\0\0\0'
  path = tmp_path / 'turned.jpg'
  path.write_bytes(data[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + data[2:])
  # EXIF shows it with 60 rows: a point x, y of the stored pixels is at 40 - y, x
  shown = np.float32([[10, 2, 38, 20]])
  a = dataclasses.replace(
    c.annotations['train'][0],
    image=path,
    names=('ship',),
    boxes=shown,
    polygons=box_lib.to_polygon(shown),
    difficult=np.int8([0]),
    declared=(WIDTH, HEIGHT),
  )
  c = c._replace(annotations={'train': [a]})
  report = convert.convert(c, 'voc', tmp_path / 'out', images='link')
  assert report.skipped == {'labels of the view that EXIF turns (mended)': 1}
  [found] = raw.collect('voc', tmp_path / 'out').annotations['train']
  assert found.image.name == 'a.png' and found.declared == (HEIGHT, WIDTH)
  np.testing.assert_array_equal(image_lib.read(found.image), image_lib.read(path))
  x1, y1, x2, y2 = found.boxes[0].astype(int)
  assert image_lib.read(found.image)[y1:y2, x1:x2].min() > 200


def test_images_are_copied_linked_or_left(tmp_path):
  for mode in ('copy', 'link', 'none'):
    c = two_splits(tmp_path / 'in', 'obb')
    convert.convert(c, 'dota_txt', tmp_path / mode, images=mode)
  files = [tmp_path / mode / 'train/images/a.png' for mode in ('copy', 'link', 'none')]
  source = tmp_path / 'in/train/a.png'
  assert [f.exists() and f.samefile(source) for f in files] == [False, True, False]
  assert files[0].read_bytes() == source.read_bytes() and not files[2].exists()


@pytest.mark.parametrize(
  'arguments, text',
  [
    (('--to=coco',), '--to=coco has horizontal boxes, the source oriented ones: --box=hbb takes'),
    (('--to=dota_txt', '--convention=oc'), '--convention=oc: dota_txt has no angles'),
    (('--to=dota_txt', '--dataset=soi_det'), 'name one of soi_det_sar'),
    (('--to=dota',), "invalid choice: 'dota'"),
    (('--to=voc_rotated', '--convention=le180'), "invalid choice: 'le180'"),
    (('--to=yolo_obb', '--classes=tank'), "class 'ship' is not among the classes tank"),
  ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, arguments, text):
  convert.convert(two_splits(tmp_path, 'obb'), 'dota_txt', tmp_path / 'in')
  argv = ['--dataset=dota_txt', f'--source={tmp_path}/in', f'--out={tmp_path}/out', *arguments]
  try:
    status = cli.main(['dataset', 'convert', *argv])
  except SystemExit as error:
    status = error.code
  shown = capsys.readouterr().err.strip().splitlines()[-1]
  assert status == 2 and text in shown
  assert not (tmp_path / 'out').exists() and not (tmp_path / 'out.partial').exists()


def test_nothing_is_overwritten(tmp_path, capsys):
  argv = [
    '--dataset=dota_txt',
    f'--source={tmp_path}/in',
    '--to=coco_rotated',
    '--convention=le135',
  ]
  argv = ['dataset', 'convert', *argv, f'--out={tmp_path}/out']
  convert.convert(two_splits(tmp_path, 'obb'), 'dota_txt', tmp_path / 'in')
  (tmp_path / 'out').mkdir()
  assert cli.main(argv) == 0
  shown = capsys.readouterr().out.split()
  assert shown[:7] == ['coco_rotated', 'train', 'val', 'images', '2', '1', 'objects']
  before = (tmp_path / 'out/annotations/train.json').stat()
  assert cli.main(argv) == 2
  assert 'is not empty; name a new folder' in capsys.readouterr().err
  assert (tmp_path / 'out/annotations/train.json').stat() == before


@pytest.mark.parametrize('to', READ_BACK)
@pytest.mark.parametrize('id', ['back\\sl', 'l\\xb8', ' lead', 'tail ', 'n\nl', 'x\u2028y', 'a b'])
def test_odd_names_read_back_or_are_refused(tmp_path, to, id):
  boxes = [[1, 2, 20, 30]] if to in HBB else [[20, 15, 18, 6, 0.3]]
  box = 'hbb' if to in HBB else 'obb'
  c = collected(tmp_path, {'train': {id: (['ship'], boxes, None, [0])}}, box)
  if to.startswith('voc') and id not in ('back\\sl', 'l\\xb8', 'a b'):
    with pytest.raises(UserError, match='rename the image, or take another --to'):
      convert.convert(c, to, tmp_path / 'out')
  else:
    convert.convert(c, to, tmp_path / 'out')
    [a] = raw.collect(to, tmp_path / 'out').annotations['train']
    assert (a.id, len(a.names)) == (id, 1)


def test_voc_of_a_test_split_alone(tmp_path):
  c = two_splits(tmp_path, 'hbb')
  convert.convert(c._replace(annotations={'test': c.annotations['val']}), 'voc', tmp_path / 'out')
  found = raw.collect('voc', tmp_path / 'out').annotations
  assert {s: [a.id for a in listed] for s, listed in found.items()} == {'test': ['c.5']}


def test_voc_has_one_folder_for_all_splits(tmp_path):
  c = two_splits(tmp_path, 'hbb')
  c = c._replace(annotations={'train': c.annotations['train'], 'test': c.annotations['train']})
  with pytest.raises(UserError, match='train and test have an image a each'):
    convert.convert(c, 'voc', tmp_path / 'out')


def test_an_image_that_does_not_read_is_left_out(tmp_path):
  c = two_splits(tmp_path, 'obb')
  (tmp_path / 'train/a.png').write_bytes(b'no image')
  report = convert.convert(c, 'dota_txt', tmp_path / 'out')
  assert report.images == {'train': 1, 'val': 1}
  assert report.skipped == {'image does not decode': 1}
  (tmp_path / 'val/c.5.png').write_bytes(b'no image')
  with pytest.raises(UserError, match="split 'val' has no images"):
    convert.convert(c, 'dota_txt', tmp_path / 'again')
  assert not (tmp_path / 'again').exists()


def test_a_truncated_image_is_not_copied(tmp_path):
  c = two_splits(tmp_path, 'obb')
  path = tmp_path / 'train/a.png'
  path.write_bytes(path.read_bytes()[:-20])
  for mode in ('copy', 'link'):
    report = convert.convert(c, 'dota_txt', tmp_path / mode, images=mode)
    assert report.images == {'train': 1, 'val': 1}
    assert list((tmp_path / mode / 'train/images').iterdir()) == [
      tmp_path / mode / 'train/images/b.png'
    ]


def test_regions_to_ignore_are_no_objects_of_the_table(tmp_path):
  c = two_splits(tmp_path, 'hbb')
  listed = [
    dataclasses.replace(a, extra={'ignored': np.arange(len(a.names)) > 0})
    for a in c.annotations['train']
  ]
  report = convert.convert(c._replace(annotations={'train': listed}), 'coco', tmp_path / 'out')
  assert report.objects == {'train': {'ship': 1}}


def test_a_folder_inside_of_the_source_is_refused(tmp_path, capsys):
  convert.convert(two_splits(tmp_path, 'obb'), 'dota_txt', tmp_path / 'in')
  out = tmp_path / 'in/train/images/new'
  argv = ['--dataset=dota_txt', f'--source={tmp_path}/in', f'--out={out}']
  for verb in (['convert', '--to=coco_rotated'], ['split', '--fractions=train=1'], ['tile']):
    assert cli.main(['dataset', *verb, *argv]) == 2
    assert 'where nothing is written; name another folder' in capsys.readouterr().err
  assert not out.exists()


def test_a_rate_twice_is_refused(tmp_path):
  with pytest.raises(UserError, match='--rates=0.5,0.5: a rate twice'):
    tile.tile(two_splits(tmp_path, 'obb'), tmp_path / 'out', rates=(0.5, 0.5))


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'utf-8'])
def test_a_table_that_the_screen_cannot_show(tmp_path, monkeypatch, encoding):
  c = two_splits(tmp_path, 'obb')
  c = c._replace(classes=('storage-tank', '船'), label=lambda name, _: int(name == 'ship'))
  convert.convert(c, 'dota_txt', tmp_path / 'in')
  screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
  monkeypatch.setattr('sys.stdout', screen)
  argv = ['--dataset=dota_txt', f'--source={tmp_path}/in', f'--out={tmp_path}/\udcb8']
  assert cli.main(['dataset', 'convert', '--to=coco_rotated', *argv]) == 0
  screen.flush()
  shown = screen.buffer.getvalue().decode(encoding)
  assert ('船' if encoding == 'utf-8' else r'\u8239') in shown and r'/\udcb8' in shown
