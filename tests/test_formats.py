"""Further formats, presets by their published layouts, and what is decided for a whole set."""

import json
import math

import cv2
import numpy as np
import pytest
import rasterio
import rasterio.warp
from test_readers import drone_xml, same_rectangle, write, write_image

from data_pipelines import classes, prepare_command
from data_pipelines.builders import auto
from data_pipelines.builders.decisions import Decisions
from data_pipelines.errors import UserError
from data_pipelines.prepare import prepare
from data_pipelines.raw import collect
from data_pipelines.readers import BadEntry, Skipped
from data_pipelines.source import Source

BOX = [10, 10, 30, 10, 30, 20, 10, 20]  # of an image of 40 x 60


def only(source, form, **arguments):
  """The annotations of the one split of a source in a format."""
  (found,) = collect(form, source, **arguments).annotations.values()
  return found


def test_labelme(tmp_path):
  write_image(tmp_path / 'images/a.png')
  shapes = [
    dict(label='ship', points=[[10, 20], [30, 10]], shape_type='rectangle'),
    dict(label='tank', points=[[20, 20], [25, 20]], shape_type='circle', flags={'difficult': True}),
    dict(label='ship', points=np.reshape(BOX, (4, 2)).tolist(), shape_type='polygon'),
    dict(label='ship', points=[[1, 1]], shape_type='point'),
    dict(points=[[1, 1]]),
  ]
  content = dict(shapes=shapes, imageHeight=40, imageWidth=60, imagePath='a.png')
  write(tmp_path / 'images/a.json', json.dumps(content))
  skipped = Skipped()
  (a,) = only(tmp_path, 'labelme', skipped=skipped)
  assert a.names == ('ship', 'tank', 'ship') and a.difficult.tolist() == [0, 1, 0]
  assert a.declared == (40, 60)
  same_rectangle(a.boxes[[0, 2]], [[20, 15, 20, 10, 0]] * 2)
  same_rectangle(a.boxes[1:2], [[20, 20, 10, 10, 0]])
  assert skipped.counts == {'shape that is no area (point)': 1, 'shape without a label': 1}


def test_cvat(tmp_path):
  write_image(tmp_path / 'images/x/a.png')
  box = '<box label="ship" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90.0"/>'
  polygon = '<polygon label="tank" points="10,10;30,10;30,20;10,20"/><points points="1,1"/>'
  image = f'<image id="0" name="x/a.jpg" width="60" height="40">{box}{polygon}</image>'
  write(tmp_path / 'annotations.xml', f'<annotations>{image}</annotations>')
  (a,) = only(tmp_path, 'cvat')
  assert (a.id, a.names, a.declared) == ('x/a', ('ship', 'tank'), (40, 60))
  same_rectangle(a.boxes, [[20, 15, 10, 20, 0], [20, 15, 20, 10, 0]])


@pytest.mark.parametrize('crs', ['EPSG:32632', None])
def test_geojson_over_geotiff(tmp_path, crs):
  own, transform = 'EPSG:32632', rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000)
  (tmp_path / 'images').mkdir()
  with rasterio.open(
    tmp_path / 'images/a.tif', 'w', driver='GTiff', height=40, width=60, count=1, dtype='uint8',
    crs=own, transform=transform,
  ) as raster:  # fmt: skip
    raster.write(np.zeros((1, 40, 60), np.uint8))
  x, y = transform @ np.reshape(BOX, (4, 2)).T
  x, y = rasterio.warp.transform(own, crs or 'OGC:CRS84', x, y)
  ring = np.stack([x, y], -1).tolist()
  feature = dict(
    type='Feature', properties={'class': 'ship'}, geometry=dict(type='Polygon', coordinates=[ring])
  )
  content = dict(type='FeatureCollection', features=[feature, {'properties': None}])
  if crs:
    content['crs'] = dict(type='name', properties=dict(name=crs))
  write(tmp_path / 'images/a.geojson', json.dumps(content))
  skipped = Skipped()
  (a,) = only(tmp_path, 'geojson', skipped=skipped)
  assert a.names == ('ship',) and skipped.counts == {'feature that is no polygon': 1}
  np.testing.assert_allclose(a.polygons, [BOX], atol=1e-2)


@pytest.mark.parametrize('line, name', [('0 0.5 0.5 0.4 0.5', 'yolo'), ('0 ' + ' '.join(
  map(str, np.array(BOX) / np.tile([60, 40], 4))), 'yolo_obb')])  # fmt: skip
def test_yolo_in_shares_and_pixels(tmp_path, line, name):
  write(tmp_path / 'data.yaml', "names: ['ship, small']")
  write_image(tmp_path / 'images/a.png')
  write(tmp_path / 'labels/a.txt', line)
  (a,) = only(tmp_path, name)
  assert a.names == ('ship, small',)
  want = [18, 10, 42, 10, 42, 30, 18, 30] if name == 'yolo' else BOX
  np.testing.assert_allclose(a.polygons, [want], atol=1e-4)
  number, *rest = line.split()
  pixels = np.float64(rest) * np.tile([60, 40], len(rest) // 2)
  write(tmp_path / 'labels/a.txt', ' '.join([number, *map(str, pixels)]))
  skipped = Skipped()
  (b,) = only(tmp_path, name, skipped=skipped)
  np.testing.assert_allclose(b.polygons, [want], atol=1e-4)
  assert 'coordinates are read as pixels' in skipped.notes[0]
  with pytest.raises(UserError, match='--coordinates=no'):
    Decisions(coordinates='no')


def dior(*objects):
  keys = [
    f'{a}_{c}' for c in ('left_top', 'right_top', 'right_bottom', 'left_bottom') for a in 'xy'
  ]
  corners = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(keys, BOX, strict=True))
  return drone_xml(*((name, f'<robndbox>{corners}</robndbox>') for name in objects))


FAIR1M = (
  '<annotation><objects><object><possibleresult><name>Small Car</name></possibleresult>'
  '<points><point>10,10</point><point>30,10</point><point>30,20</point><point>10,20</point>'
  '<point>10,10</point></points></object></objects></annotation>'
)
HRSC = (
  '<HRSC_Image><HRSC_Objects><HRSC_Object><Class_ID>100000001</Class_ID><mbox_cx>20</mbox_cx>'
  '<mbox_cy>15</mbox_cy><mbox_w>10</mbox_w><mbox_h>20</mbox_h><mbox_ang>1.5707963</mbox_ang>'
  '<difficult>1</difficult></HRSC_Object></HRSC_Objects></HRSC_Image>'
)
SODA = json.dumps(
  dict(
    images=dict(file_name='1.png', height=40, width=60),
    categories=[dict(id=4, name='ship'), dict(id=9, name='ignore')],
    annotations=[dict(poly=BOX, category_id=4), dict(poly=BOX, category_id=9), dict(poly=[1])],
  )
)
LINE = ' '.join(map(str, BOX))
LAYOUTS = {  # preset: (its files of the training split, of the test split; class)
  'rsar': (('train/images/1.png', 'train/annfiles/1.txt', f'{LINE} ship 0'),
           ('test/images/2.png', 'test/annfiles/2.txt', f'{LINE} ship 0'), 'ship'),
  'dior_r': (('JPEGImages-trainval/1.png', 'Annotations/Oriented Bounding Boxes/1.xml',
              dior('Expressway-Service-area')),
             ('JPEGImages-test/2.png', 'Annotations/Oriented Bounding Boxes/2.xml',
              dior('Expressway-Service-area')), 'expressway-service-area'),
  'fair1m': (('train/part1/images/1.png', 'train/part1/labelXml/1.xml', FAIR1M),
             ('train/part2/images/1.png', 'train/part2/labelXml/1.xml', FAIR1M), 'Small Car'),
  'hrsc2016': (('Train/AllImages/1.png', 'Train/Annotations/1.xml', HRSC),
               ('Test/AllImages/2.png', 'Test/Annotations/2.xml', HRSC), 'ship'),
  'soda_a': (('Images/1.png', 'Annotations/train/1.json', SODA),
             ('Images/2.png', 'Annotations/test/2.json', SODA.replace('1.png', '2.png')), 'ship'),
  'star': (('train/images/1.png', 'train/labelTxt/1.txt', f'{LINE} goods_yard 0'),
           ('val/images/2.png', 'val/labelTxt/2.txt', f'{LINE} goods_yard 0'), 'goods_yard'),
}  # fmt: skip


@pytest.mark.parametrize('name', LAYOUTS)
def test_published_layouts(tmp_path, name):
  *files, class_name = LAYOUTS[name]
  for image, labels, text in files:
    write_image(tmp_path / image)
    write(tmp_path / labels, text)
  if name == 'dior_r':
    write(tmp_path / 'ImageSets/Main/train.txt', '1\n')
  c = collect(name, tmp_path)
  found = [a for part in c.annotations.values() for a in part]
  assert len(found) == 2 and len({a.id for a in found}) == 2
  for a in found:
    labels = [c.label(n, a.image) for n in a.names]
    assert c.classes[labels[0]] == class_name
    same_rectangle(a.boxes[:1], [[20, 15, 20, 10, 0]])
  text = auto.look(tmp_path, 'data')
  assert text.splitlines()[-1].startswith('  sm3det prepare --dataset=')
  assert not (tmp_path / 'data').exists()
  if name not in ('rsar', 'star'):  # which are DOTA's format
    assert f'--dataset={name} ' in text


def test_class_lists_have_no_name_twice():
  lists = {n: v for n, v in vars(classes).items() if n.isupper()}
  assert all(len(set(v)) == len(v) for v in lists.values())
  counts = {n: len(lists[f'{n}_CLASSES']) for n in ('DIOR', 'FAIR1M', 'SODA', 'STAR')}
  assert counts == {'DIOR': 20, 'FAIR1M': 37, 'SODA': 9, 'STAR': 48}


def test_auto_says_what_it_does_not_know(tmp_path, capsys):
  write_image(tmp_path / 'a.png')
  with pytest.raises(UserError, match=r'no label file of any known format; there are 1 \.png'):
    auto.look(tmp_path, 'data')


# COCO: what contradicts the boxes


def coco(folder, annotations, images=None, **content):
  images = images or [dict(id=1, file_name='a.png')]
  annotations = [dict(id=i, image_id=1, category_id=3) | a for i, a in enumerate(annotations)]
  whole = dict(images=images, annotations=annotations, categories=[dict(id=3, name='ship')])
  write(folder / 'train.json', json.dumps(whole | content))
  for image in images:
    write_image(folder / 'images' / image['file_name'])
  return dict(splits={'train': 'train.json:images'})


def test_a_rotation_beside_the_box(tmp_path):
  where = coco(tmp_path, [dict(bbox=[20, 10, 20, 10], attributes=dict(rotation=90.0))])
  (a,) = only(tmp_path, 'coco', **where)
  np.testing.assert_allclose(a.boxes, [[25, 5, 35, 25]], atol=1e-4)
  (a,) = only(tmp_path, 'coco_rotated', **where)
  same_rectangle(a.boxes, [[30, 15, 10, 20, 0]])


@pytest.mark.parametrize('area', [True, False])
def test_corners_in_the_place_of_sizes_are_told(tmp_path, area):
  boxes = [(20 + i, 10 + i, 40 + i, 25 + i) for i in range(12)]
  rows = [dict(bbox=list(b)) | ({'area': 300} if area else {}) for b in boxes]
  sized = [dict(id=1, file_name='a.png', height=40, width=60)]
  skipped = Skipped()
  (a,) = only(tmp_path, 'coco', skipped=skipped, **coco(tmp_path, rows, sized))
  np.testing.assert_array_equal(a.boxes, boxes)
  assert list(skipped.counts.values()) == [12]
  (a,) = only(tmp_path, 'coco', **coco(tmp_path, [dict(bbox=[1, 1, 9, 9])], sized))
  np.testing.assert_array_equal(a.boxes, [[1, 1, 10, 10]])  # one box alone is no evidence


def test_an_area_beyond_the_box_is_left_out_unless_all_are(tmp_path):
  good, bad = dict(bbox=[1, 1, 9, 9], area=81), dict(bbox=[1, 1, 9, 9], area=900)
  skipped = Skipped()
  (a,) = only(tmp_path, 'coco', skipped=skipped, **coco(tmp_path, [good, good, bad]))
  assert len(a.boxes) == 2 and skipped.counts == {'area larger than the box': 1}
  (a,) = only(tmp_path, 'coco', **coco(tmp_path, [bad, bad]))
  assert len(a.boxes) == 2


def test_outlines_and_crowds(tmp_path):
  runs = dict(size=[40, 60], counts=[10 * 40 + 5, 20, 40 * 60 - 425])
  rows = [
    dict(segmentation=[[10, 10, 30, 10, 30, 20, 10, 20, 5, 15]]),
    dict(segmentation=runs, iscrowd=1),
    dict(segmentation='x'),
    dict(bbox=[1, 1, 9, 9], segmentation=[[0.0]]),
  ]
  skipped = Skipped()
  where = coco(tmp_path, rows)
  (a,) = only(tmp_path, 'coco', skipped=skipped, **where)
  np.testing.assert_array_equal(a.boxes, [[5, 10, 30, 20], [10, 5, 11, 25], [1, 1, 10, 10]])
  assert a.extra['ignored'].tolist() == [False, True, False] and a.difficult.tolist() == [0, 1, 0]
  assert sum(skipped.counts.values()) == 1
  report = prepare('coco', tmp_path, tmp_path / 'out', name='a', **where)
  assert report.objects == {'train': [2]}


def test_one_id_of_two_images_or_classes_is_an_error(tmp_path):
  twice = [dict(id=1, file_name='a.png'), dict(id=1, file_name='b.png')]
  with pytest.raises(UserError, match=r"two images have the id 1: 'a.png' and 'b.png'"):
    only(tmp_path, 'coco', **coco(tmp_path, [], twice))
  names = [dict(id=3, name='ship'), dict(id=3, name='tank')]
  with pytest.raises(UserError, match='two categories have the id 3'):
    only(tmp_path, 'coco', **coco(tmp_path, [], categories=names))


def test_the_unit_of_angles_is_that_of_all_splits(tmp_path):
  for split, angle in (('train', 45), ('val', 2)):
    where = coco(tmp_path / split, [dict(bbox=[30, 20, 20, 10, angle])])
  where = {s: f'{s}/train.json:{s}/images' for s in ('train', 'val')}
  skipped = Skipped()
  parts = collect('coco_rotated', tmp_path, splits=where, skipped=skipped).annotations
  same_rectangle(parts['val'][0].boxes, [[30, 20, 20, 10, math.radians(2)]])
  assert 'degrees: the largest is 45' in skipped.notes[0]
  collect('coco_rotated', tmp_path, splits={'val': where['val']}, skipped=skipped)
  assert any('; a guess: --angle=degree' in note for note in skipped.notes)
  how = Decisions(angle='degree', turn='counterclockwise')
  (a,) = only(tmp_path, 'coco_rotated', splits={'val': where['val']}, how=how)
  same_rectangle(a.boxes, [[30, 20, 20, 10, math.radians(-2)]])
  with pytest.raises(UserError, match='--angle=degree: the angles of dota_txt'):
    collect('dota_txt', tmp_path, splits=where, how=Decisions(angle='degree'))


# the size and the view that labels are of


def oriented_jpeg(path, orientation):
  """A JPEG of 40 x 60 with a bright rectangle at BOX and an EXIF orientation."""
  image = np.full((40, 60, 3), 20, np.uint8)
  image[10:20, 10:30] = 230
  data = cv2.imencode('.jpg', image)[1].tobytes()
  tiff = b'MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0' + bytes([orientation]) + b'\0\0\0\0\0\0'
  exif = b'Exif\0\0' + tiff
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + data[2:])


SHOWN = {  # x1, y1, x2, y2 of BOX as EXIF turns or mirrors the image of 40 x 60
  2: (30, 10, 50, 20), 3: (30, 20, 50, 30), 4: (10, 20, 30, 30), 5: (10, 10, 20, 30),
  6: (20, 10, 30, 30), 7: (20, 30, 30, 50), 8: (10, 30, 20, 50),
}  # fmt: skip


@pytest.mark.parametrize('orientation', SHOWN)
def test_labels_of_the_view_that_exif_turns(tmp_path, orientation):
  x1, y1, x2, y2 = SHOWN[orientation]
  turned = orientation >= 5
  size = dict(height=60, width=40) if turned else dict(height=40, width=60)
  where = coco(
    tmp_path, [dict(bbox=[x1, y1, x2 - x1, y2 - y1])], [dict(id=1, file_name='a.png') | size]
  )
  (tmp_path / 'images/a.png').unlink()
  oriented_jpeg(tmp_path / 'images/a.jpg', orientation)
  arguments = dict(name='a', **where)
  if turned:
    report = prepare('coco', tmp_path, tmp_path / 'out', **arguments)
    assert report.skipped['labels of the view that EXIF turns (mended)'] == 1
  else:  # the size does not tell
    with pytest.raises(UserError, match=f'orientation {orientation} is not applied'):
      prepare('coco', tmp_path, tmp_path / 'out', **arguments)
    prepare('coco', tmp_path, tmp_path / 'out', how=Decisions(exif='shown'), **arguments)
  (sample,) = Source(tmp_path / 'out', 'a', 'train')
  np.testing.assert_allclose(sample['objects']['boxes'], [[10, 10, 30, 20]], atol=1e-4)


def test_another_size_than_the_labels_declare(tmp_path):
  sizes = [dict(id=1, file_name='a.png', height=400, width=600)]
  where = coco(tmp_path, [dict(bbox=[1, 1, 9, 9])], sizes)
  with pytest.raises(UserError, match=r'--sizes=ignore.*declared 600 x 400, the image is 60 x 40'):
    prepare('coco', tmp_path, tmp_path / 'out', name='a', **where)
  prepare('coco', tmp_path, tmp_path / 'out', name='a', how=Decisions(sizes='ignore'), **where)
  with pytest.raises(BadEntry):
    prepare('coco', tmp_path, tmp_path / 'out', name='a', skipped=Skipped(strict=True), **where)


# the options mean what they say


def test_options_that_say_nothing_are_named(tmp_path):
  where = coco(tmp_path, [dict(bbox=[1, 1, 9, 9])])
  write(tmp_path / 'none.txt', 'no such image\n')
  with pytest.raises(UserError, match='the subset has none of the 1 images, such as a'):
    subset = prepare_command.read_subset(tmp_path / 'none.txt')
    prepare('coco', tmp_path, tmp_path / 'out', name='a', subset=subset, **where)
  report = prepare('coco', tmp_path, tmp_path / 'out', name='a', classes=('ship', 'tank'), **where)
  assert report.places == {'class of --classes that never occurs': ['tank']}
  with pytest.raises(FileNotFoundError, match=r'tain.json .*does not exist'):
    prepare('coco', tmp_path, tmp_path / 'out', name='a', splits={'train': 'tain.json:images'})


# readings that a trial found wrong


def test_shares_of_the_view_that_exif_turns(tmp_path):
  write(tmp_path / 'data.yaml', 'names: [ship]')
  oriented_jpeg(tmp_path / 'images/a.jpg', 6)
  x1, y1, x2, y2 = np.array(SHOWN[6]) / np.array([40, 60, 40, 60])
  write(tmp_path / 'labels/a.txt', f'0 {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}')
  prepare('yolo_obb', tmp_path, tmp_path / 'out', name='a', how=Decisions(exif='shown'))
  (sample,) = Source(tmp_path / 'out', 'a', 'train')
  same_rectangle(sample['boxes'], [[20, 14.5, 20, 10, 0]], atol=1.01)  # pixels' centres


def test_what_boxes_of_four_numbers_are_is_told_by_all_splits(tmp_path):
  of_both = dict(bbox=[0, 0, 50, 30], area=1500)  # the same either way
  for split, rows in {
    'train': [of_both, dict(bbox=[10, 10, 30, 20], area=200)],
    'val': [dict(bbox=[20, 10, 50, 30])],
  }.items():
    coco(tmp_path / split, rows)
  where = {s: f'{s}/train.json:{s}/images' for s in ('train', 'val')}
  found = collect('coco', tmp_path, splits=where).annotations
  np.testing.assert_array_equal(found['val'][0].boxes, [[20, 10, 50, 30]])
  coco(tmp_path / 'train', [dict(bbox=[10, 10, 30, 20], segmentation=[[10, 10, 30, 10, 30, 20]])])
  found = collect('coco', tmp_path, splits=where).annotations
  np.testing.assert_array_equal(found['val'][0].boxes, [[20, 10, 50, 30]])


def test_level_boxes_of_an_oriented_set_are_rectangles(tmp_path):
  coco(tmp_path / 'train', [dict(bbox=[30, 20, 20, 10], attributes={'rotation': 30})])
  coco(tmp_path / 'val', [dict(bbox=[20, 10, 20, -10], attributes={'rotation': 0}, iscrowd='0')])
  where = {s: f'{s}/train.json:{s}/images' for s in ('train', 'val')}
  found = collect('coco_rotated', tmp_path, splits=where).annotations
  same_rectangle(found['val'][0].boxes, [[30, 5, 20, 10, 0]])
  assert found['val'][0].difficult.tolist() == [0]
  how = Decisions(turn='counterclockwise')
  (a,) = only(tmp_path, 'coco_rotated', splits={'train': where['train']}, how=how)
  same_rectangle(a.boxes, [[40, 25, 20, 10, math.radians(-30)]])


def test_angles_of_rolabelimg_in_degrees(tmp_path):
  box = '<robndbox><cx>30</cx><cy>20</cy><w>20</w><h>-10</h><angle>{}</angle></robndbox>'
  write(tmp_path / 'xml/a.xml', drone_xml(('car', box.format(3)), ('car', box.format(45))))
  write_image(tmp_path / 'images/a.png')
  (a,) = only(tmp_path, 'rolabelimg')
  same_rectangle(a.boxes, [[30, 20, 20, 10, math.radians(d)] for d in (3, 45)])


def test_corners_outweigh_an_angle_of_another_unit(tmp_path):
  theta = 0.6
  x, y = 10 * math.cos(theta), 10 * math.sin(theta)
  corners = [20 - x, 20 - y, 20 + x, 20 + y, 18 + x, 23 + y, 18 - x, 23 - y]
  keys = ('rotated_bbox_cx', 'rotated_bbox_cy', 'rotated_bbox_w', 'rotated_bbox_h')
  values = dict(zip(keys, (19, 21.5, 20, 3.6), strict=True)) | {'rotated_bbox_theta': theta}
  values |= {f'{a}{k + 1}': corners[2 * k + i] for k in range(4) for i, a in enumerate('xy')}
  text = ''.join(f'<{k}>{v}</{k}>' for k, v in values.items())
  write(
    tmp_path / 'Annotations/a.xml', drone_xml(('ship', f'<rotated_bndbox>{text}</rotated_bndbox>'))
  )
  write_image(tmp_path / 'JPEGImages/a.png')
  skipped = Skipped()
  (a,) = only(tmp_path, 'voc_rotated', skipped=skipped)
  assert skipped.counts == {'angle that contradicts the corners (mended)': 1}
  np.testing.assert_allclose(np.mod(a.boxes[0, 4], math.pi), theta, atol=0.05)


@pytest.mark.parametrize('line', ['0 .5 .5 .2 .2 .9 7', '0 .5 .5 .2 .2 .4 .4 2 .6 .6 1'])
def test_keypoints_and_tracks_are_no_outlines(tmp_path, line):
  write(tmp_path / 'data.yaml', 'names: [ship]')
  write_image(tmp_path / 'images/a.png')
  write(tmp_path / 'labels/a.txt', f'{line}\n0 .5 .5 .2 .2')
  skipped = Skipped()
  (a,) = only(tmp_path, 'yolo', skipped=skipped)
  assert len(a.names) == 1 and sum(skipped.counts.values()) == 1


def test_shapes_without_area_are_left_out(tmp_path):
  shapes = [dict(label='a', points=[[1, 1], [9, 1], [9, 9]], shape_type=kind, difficult='0')
            for kind in ('linestrip', 'points', 'polygon')]  # fmt: skip
  write(
    tmp_path / 'images/a.json', json.dumps(dict(shapes=shapes, imageHeight='40', imageWidth=60.0))
  )
  write_image(tmp_path / 'images/a.png')
  (a,) = only(tmp_path, 'labelme')
  assert a.names == ('a',) and a.declared == (40, 60) and a.difficult.tolist() == [0]


@pytest.mark.parametrize('text', ['names: {0: a, 0: b}', 'names: [no, yes]', 'names: [~]'])
def test_class_names_that_are_no_texts_are_refused(tmp_path, text):
  write(tmp_path / 'data.yaml', text)
  write_image(tmp_path / 'images/a.png')
  write(tmp_path / 'labels/a.txt', '')
  with pytest.raises((UserError, FileNotFoundError), match='stands twice|quote the text'):
    only(tmp_path, 'yolo')


def test_a_name_of_white_space_is_none(tmp_path):
  box = '<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>6</ymax></bndbox>'
  write(tmp_path / 'Annotations/a.xml', drone_xml(('ship ', box), (' ', box)))
  write_image(tmp_path / 'JPEGImages/a.png')
  skipped = Skipped()
  (a,) = only(tmp_path, 'voc', skipped=skipped)
  assert a.names == ('ship',) and skipped.counts == {'object without a class name': 1}


def test_splits_by_their_other_names(tmp_path):
  write(tmp_path / 'data.yaml', 'names: [ship]')
  for split in ('train', 'valid'):
    write_image(tmp_path / split / 'images/a.png')
    write(tmp_path / split / 'labels/a.txt', '0 .5 .5 .2 .2')
  assert list(collect('yolo', tmp_path).annotations) == ['train', 'val']


@pytest.mark.parametrize(
  'change',
  [
    dict(features=None),
    dict(crs=None),
    dict(crs=dict(properties=dict(code=32632))),
    dict(features=[dict(properties=[], geometry=dict(type='Polygon', coordinates=[[]]))]),
  ],
)
def test_odd_geojson_is_no_traceback(tmp_path, change):
  (tmp_path / 'images').mkdir()
  with rasterio.open(
    tmp_path / 'images/a.tif', 'w', driver='GTiff', height=40, width=60, count=1, dtype='uint8',
    crs='EPSG:32632', transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000),
  ) as raster:  # fmt: skip
    raster.write(np.zeros((1, 40, 60), np.uint8))
  ring = [[500_000, 5_300_000], [500_010, 5_300_000], [500_010, 5_299_990]]
  feature = dict(properties={'class': 'a'}, geometry=dict(type='Polygon', coordinates=[ring]))
  write(tmp_path / 'images/a.geojson', json.dumps(dict(features=[feature]) | change))
  skipped = Skipped()
  assert len(only(tmp_path, 'geojson', skipped=skipped)) + sum(skipped.counts.values()) >= 1
