"""Each label format, its edge cases included, from files written here by hand."""

import json
import logging
import math

import cv2
import numpy as np
import pytest

from data_pipelines import boxes as box_lib
from data_pipelines.readers import (
  BadEntry,
  Skipped,
  coco,
  dota_txt,
  dronevehicle_xml,
  rolabelimg,
  voc,
  xml,
  yolo,
)


@pytest.fixture
def skipped():
  return Skipped()


@pytest.fixture
def strict():
  return Skipped(strict=True)


def write_image(path, height=40, width=60, value=128):
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), np.full((height, width), value, np.uint8))


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding='utf-8')


def same_rectangle(found, expected, atol=1e-3):
  """Oriented boxes as sets of corners, so that no angle convention matters."""
  found, expected = (
    np.sort(np.float32(box_lib.to_polygon(b)).reshape(-1, 4, 2).view('f4,f4'), axis=1).view('f4')
    for b in (np.asarray(found, np.float32), np.asarray(expected, np.float32))
  )
  np.testing.assert_allclose(found, expected, atol=atol)


# COCO


def write_coco(folder, annotations, **changes):
  content = dict(
    images=[dict(id=1, file_name='a.png'), dict(id=2, file_name='b.png')],
    categories=[dict(id=3, name='ship'), dict(id=7, name='tank')],
    annotations=[dict(id=i) | a for i, a in enumerate(annotations)],
  )
  write(folder / 'train.json', json.dumps(content | changes))
  for name in 'ab':
    write_image(folder / 'images' / f'{name}.png')


def read_coco(folder, skipped, **options):
  found = coco.read(
    folder, 'train', labels='train.json', images='images', skipped=skipped, **options
  )
  return list(found)


def test_coco_horizontal(tmp_path, skipped):
  boxes = [
    dict(image_id=1, category_id=7, bbox=[1, 2, 10, 20]),
    dict(image_id=1, category_id=3, bbox=[0.5, 1.5, 3, 4], iscrowd=1),
  ]
  write_coco(tmp_path, boxes)
  first, second = read_coco(tmp_path, skipped)
  assert (first.id, first.names, first.image.name) == ('a', ('tank', 'ship'), 'a.png')
  np.testing.assert_array_equal(first.boxes, [[1, 2, 11, 22], [0.5, 1.5, 3.5, 5.5]])
  np.testing.assert_array_equal(first.polygons[0], [1, 2, 11, 2, 11, 22, 1, 22])
  assert first.difficult.tolist() == [0, 1]
  assert second.names == () and second.boxes.shape == (0, 4) and second.polygons.shape == (0, 8)
  assert not skipped.counts


@pytest.mark.parametrize(
  'angles, options, theta',
  [
    ((30.0, 95.0), {}, math.radians(30)),  # 95 cannot be radians
    ((0.5, 3.1), {}, 0.5),
    ((0.5, 3.1), {'angle': 'degree'}, math.radians(0.5)),
  ],
)
def test_coco_rotated(tmp_path, skipped, angles, options, theta):
  boxes = [dict(image_id=1, category_id=3, bbox=[20, 15, 10, 4, a]) for a in angles]
  write_coco(tmp_path, boxes)
  first, second = read_coco(tmp_path, skipped, **options)
  same_rectangle(first.boxes[:1], [[20, 15, 10, 4, theta]])
  assert first.boxes.shape == (2, 5) and second.boxes.shape == (0, 5)
  assert (first.boxes[:, 2] >= first.boxes[:, 3]).all()
  # the first corner of the raw quadrilateral: top left of the unrotated box
  expected = [20 - 5 * math.cos(theta) + 2 * math.sin(theta)]
  np.testing.assert_allclose(first.polygons[0, :1], expected, atol=1e-4)


def test_coco_missing_image_unknown_image_and_filename_key(tmp_path, skipped):
  entries = [dict(id=1, filename='a.jpg'), dict(id=2, file_name='gone.png')]
  boxes = [dict(image_id=i, category_id=3, bbox=[1, 2, 3, 4]) for i in (1, 2, 99)]
  write_coco(tmp_path, boxes, images=entries)
  (only,) = read_coco(tmp_path, skipped)
  assert only.image.name == 'a.png'  # a converted copy keeps its labels
  assert skipped.counts == {
    'image file missing': 1,
    'image file under another suffix (mended)': 1,
    'object of an image that the file does not list': 1,
  }


@pytest.mark.parametrize(
  'annotation, message',
  [
    (dict(image_id=1, category_id=5, bbox=[1, 2, 3, 4]), 'category_id 5 is not among'),
    (dict(image_id=1, category_id=3, bbox=[1, 2, 3]), r'bbox is \[1, 2, 3\]'),
    (dict(image_id=1, category_id=3), 'bbox is None'),
  ],
)
def test_coco_bad_object_is_left_out(tmp_path, skipped, strict, annotation, message):
  write_coco(tmp_path, [dict(image_id=2, category_id=3, bbox=[1, 2, 3, 4]), annotation])
  assert [a.names for a in read_coco(tmp_path, skipped)] == [(), ('ship',)]
  (places,) = skipped.places.values()
  with pytest.raises(ValueError, match=rf'train.json: annotations\[1\] \(id 1\): {message}') as e:
    read_coco(tmp_path, strict)
  assert places == [str(e.value)]


@pytest.mark.parametrize('text', ['{', '[]', '{"images": []}'])
def test_what_is_no_coco_json_is_an_error(tmp_path, skipped, text):
  write(tmp_path / 'train.json', text)
  (tmp_path / 'images').mkdir()
  with pytest.raises(ValueError, match='train.json: not COCO json'):
    read_coco(tmp_path, skipped)


def test_missing_folder_is_an_error(tmp_path, skipped):
  write(tmp_path / 'train.json', '{}')
  with pytest.raises(FileNotFoundError, match='images .train images. does not exist'):
    read_coco(tmp_path, skipped)


# DOTA


def read_dota(folder, skipped, **options):
  found = dota_txt.read(
    folder, 'train', labels='labelTxt', images='images', skipped=skipped, **options
  )
  return {a.id: a for a in found}


def test_dota_header_token_counts_and_difficult(tmp_path, skipped):
  text = '\ufeffimagesource:GoogleEarth\ngsd:0.115\n\n'
  text += '10 10 30 10 30 20 10 20 ship 0\n10 10 30 10 30 20 10 20 harbor\n'
  text += '1.5 2 9 2 9 8 1.5 8 large vehicle 2\n5 5 9 5 9 9 5 9 plane 1\n'
  write(tmp_path / 'labelTxt/a.txt', text)
  write(tmp_path / 'labelTxt/b.txt', 'imagesource:None\n')
  for name in 'ab':
    write_image(tmp_path / f'images/{name}.png')
  found = read_dota(tmp_path, skipped)
  assert found['a'].names == ('ship', 'harbor', 'large vehicle', 'plane')
  assert found['a'].difficult.tolist() == [0, 0, 2, 1]
  same_rectangle(found['a'].boxes[:1], [[20, 15, 20, 10, 0]])
  np.testing.assert_array_equal(found['a'].polygons[2], [1.5, 2, 9, 2, 9, 8, 1.5, 8])
  assert found['b'].boxes.shape == (0, 5)
  assert not skipped.counts


@pytest.mark.parametrize(
  'line', ['1 2 3 4 5 6 7 8', '1 2 3 4 5 6 7 ship 0', '1 2 3 4 5 6 7 8 ship hard']
)
def test_dota_bad_line_is_left_out(tmp_path, skipped, strict, line):
  write(tmp_path / 'labelTxt/a.txt', f'gsd:1\n{line}\n10 10 30 10 30 20 10 20 ship 0\n')
  write_image(tmp_path / 'images/a.png')
  assert read_dota(tmp_path, skipped)['a'].names == ('ship',)
  assert sum(skipped.counts.values()) == 1
  with pytest.raises(ValueError, match=r'a\.txt:2: expected eight coordinates'):
    read_dota(tmp_path, strict)


def test_dota_labels_in_another_form_of_unicode(tmp_path, skipped):
  write(tmp_path / 'labelTxt/é.txt', '10 10 30 10 30 20 10 20 ship 0')
  write_image(tmp_path / 'images/e\u0301.png')
  assert read_dota(tmp_path, skipped)['e\u0301'].names == ('ship',)


def test_dota_files_without_partner_are_counted(tmp_path, skipped):
  write(tmp_path / 'labelTxt/lost.txt', '')
  write(tmp_path / 'labelTxt/a.txt', '')
  write_image(tmp_path / 'images/a.png')
  write_image(tmp_path / 'images/bare.png')
  assert list(read_dota(tmp_path, skipped)) == ['a']
  assert skipped.counts == {'image without a label file': 1, 'label file without an image': 1}


def test_dota_patch_takes_the_labels_of_its_full_image(tmp_path, skipped):
  # in the patch 100..160 x 200..240: inside; 60 % inside; 80 % inside; outside
  rows = [(110, 210, 130, 220), (148, 210, 168, 220), (144, 230, 164, 240), (10, 10, 30, 20)]
  lines = [f'{a} {b} {c} {b} {c} {d} {a} {d} ship {i}' for i, (a, b, c, d) in enumerate(rows)]
  write(tmp_path / 'labelTxt/P1.txt', '\n'.join(lines))
  write_image(tmp_path / 'images/P1__1__100___200.png')
  found = read_dota(tmp_path, skipped)['P1__1__100___200']
  assert found.difficult.tolist() == [0, 2]
  same_rectangle(found.boxes, [[20, 15, 20, 10, 0], [54, 35, 20, 10, 0]])
  assert not skipped.counts


# DroneVehicle

POLYGON = '<polygon>' + ''.join(
  f'<{k}>{v}</{k}>'
  for k, v in dict(x1=120, y1=130, x2=140, y2=130, x3=140, y3=140, x4=120, y4=140).items()
) + '</polygon>'  # fmt: skip
BNDBOX = '<bndbox><xmin>110</xmin><ymin>120</ymin><xmax>150</xmax><ymax>140</ymax></bndbox>'


def drone_xml(*objects):
  body = ''.join(f'<object><name>{n}</name>{box}</object>' for n, box in objects)
  return f'<annotation>{body}</annotation>'


def read_drone(folder, skipped):
  found = dronevehicle_xml.read(folder, 'train', labels='labels', images='images', skipped=skipped)
  return {a.id: a for a in found}


@pytest.mark.parametrize(
  'size, shift, crop', [((712, 840), 100, (100, 100, 740, 612)), ((512, 640), 0, None)]
)
def test_dronevehicle_border(tmp_path, skipped, size, shift, crop):
  xml = drone_xml(('car', POLYGON), ('feright car', BNDBOX), ('*', POLYGON), ('bus', ''))
  write(tmp_path / 'labels/1.xml', xml)
  write_image(tmp_path / 'images/1.jpg', *size)
  found = read_drone(tmp_path, skipped)['1']
  assert found.names == ('car', 'feright car', '*')
  assert found.crop == crop
  expected = np.array([[130, 135, 20, 10, 0], [130, 130, 40, 20, 0]]) - [shift, shift, 0, 0, 0]
  same_rectangle(found.boxes[:2], expected)
  assert skipped.counts == {'object without a polygon or bndbox': 1}


def test_dronevehicle_broken_files_are_counted(tmp_path, skipped):
  write(tmp_path / 'labels/1.xml', drone_xml(('car', POLYGON)))
  write(tmp_path / 'labels/2.xml', '<annotation><object>')
  write(tmp_path / 'labels/3.xml', drone_xml())
  write(tmp_path / 'labels/4.xml', drone_xml())
  for name in '1245':
    write_image(tmp_path / f'images/{name}.jpg')
  (tmp_path / 'images/4.jpg').write_bytes(b'\xff\xd8')
  assert list(read_drone(tmp_path, skipped)) == ['1']
  assert skipped.counts == {
    'label file is not XML': 1,
    'label file without an image': 1,
    'image without a label file': 1,
    'image does not decode': 1,
  }


def test_dronevehicle_bad_number_is_left_out(tmp_path, skipped, strict):
  bad = POLYGON.replace('120', 'x', 1)
  write(tmp_path / 'labels/1.xml', drone_xml(('bus', POLYGON), ('car', bad)))
  write_image(tmp_path / 'images/1.jpg')
  assert read_drone(tmp_path, skipped)['1'].names == ('bus',)
  assert skipped.counts == {'<polygon> without its numbers': 1}
  with pytest.raises(ValueError, match=r"1\.xml: object 2: <polygon> needs numbers, has x1='x'"):
    read_drone(tmp_path, strict)


# YOLO-OBB


@pytest.mark.parametrize(
  'text',
  [
    'names:\n  0: plane\n  1: storage tank  # round\n',
    "path: x\nnames: ['plane', 'storage tank']\nnc: 2\n",
    'names:\n- plane\n- "storage tank"\n\nnc: 2\n',
    'names: {0: plane, 1: storage tank}\n',
    'names: [plane,\n  storage tank]\nnc: 2',
    'train: a\nnames:\n  1: storage tank\n  0: plane\nother:\n  2: no\n',
  ],
)
def test_yolo_class_names(tmp_path, text):
  write(tmp_path / 'data.yaml', text)
  assert yolo.class_names(tmp_path / 'data.yaml') == {0: 'plane', 1: 'storage tank'}


def test_yolo_without_names_is_an_error(tmp_path, skipped):
  write(tmp_path / 'data.yaml', 'names:\nnc: 2\n')
  with pytest.raises(ValueError, match='no class names'):
    yolo.class_names(tmp_path / 'data.yaml')
  write(tmp_path / 'data.yaml', 'nc: 2\n')
  with pytest.raises(FileNotFoundError, match='found none'):
    list(yolo.read(tmp_path, 'train', labels='l', images='i', skipped=skipped))


def read_yolo(folder, skipped, line):
  write(folder / 'data.yaml', 'names:\n  0: plane\n  1: ship\n')
  write(folder / 'labels/train/a.txt', line)
  for name in 'ab':
    write_image(folder / f'images/train/{name}.png', height=40, width=60)
  found = yolo.read(folder, 'train', labels='labels/train', images='images/train', skipped=skipped)
  return list(found)


def test_yolo_gives_shares(tmp_path, skipped):
  first, second = read_yolo(tmp_path, skipped, '1 0.5 0.25 1.1 0.25 1.1 0.75 0.5 0.75\n\n')
  assert first.names == ('ship',)
  expected = [[0.5, 0.25, 1.1, 0.25, 1.1, 0.75, 0.5, 0.75]]
  np.testing.assert_allclose(first.polygons, expected, rtol=1e-6)
  assert second.names == () and not skipped.counts  # an image of background alone


@pytest.mark.parametrize('line', ['2 0 0 1 0 1 1 0 1', '0 0.5 0.5 0.1 0.1', 'x 0 0 1 0 1 1 0 1'])
def test_yolo_bad_line_is_left_out(tmp_path, skipped, strict, line):
  both = f'{line}\n1 0 0 1 0 1 1 0 1\n'
  assert read_yolo(tmp_path, skipped, both)[0].names == ('ship',)
  assert sum(skipped.counts.values()) == 1
  with pytest.raises(ValueError, match=r'a\.txt:1: expected a class number of \[0, 1\]'):
    read_yolo(tmp_path, strict, both)


# roLabelImg and VOC


def test_rolabelimg(tmp_path, skipped):
  robndbox = '<robndbox><cx>30</cx><cy>20</cy><w>8</w><h>20</h><angle>3.0</angle></robndbox>'
  bndbox = '<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>6</ymax></bndbox>'
  extra = '<difficult>1</difficult>'
  write(tmp_path / 'xml/a.xml', drone_xml(('Car', robndbox), ('Bus', bndbox + extra), ('Car', '')))
  write_image(tmp_path / 'images/a.png')
  found = rolabelimg.read(tmp_path, 'train', labels='xml', images='images', skipped=skipped)
  (a,) = found
  assert a.names == ('Car', 'Bus') and a.difficult.tolist() == [0, 1]
  same_rectangle(a.boxes, [[30, 20, 8, 20, 3.0], [6, 4, 10, 4, 0]])
  assert (a.boxes[:, 2] >= a.boxes[:, 3]).all() and (np.abs(a.boxes[:, 4]) <= math.pi / 2).all()
  assert skipped.counts == {'object without a robndbox or bndbox': 1}


ROTATED = (
  '<rotated_bndbox><rotated_bbox_cx>30</rotated_bbox_cx><rotated_bbox_cy>20</rotated_bbox_cy>'
  '<rotated_bbox_w>10</rotated_bbox_w><rotated_bbox_h>20</rotated_bbox_h>'
  '<rotated_bbox_theta>90.0</rotated_bbox_theta><x1>40</x1><y1>15</y1><x2>40</x2><y2>25</y2>'
  '<x3>20</x3><y3>25</y3><x4>20</x4><y4>15</y4></rotated_bndbox>'
)


def test_voc(tmp_path, skipped):
  bndbox = '<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>6</ymax></bndbox>'
  write(tmp_path / 'xml/a.xml', drone_xml(('ship', bndbox + ROTATED), ('ship', ROTATED)))
  write(tmp_path / 'xml/b.xml', drone_xml())
  for name in 'ab':
    write_image(tmp_path / f'images/{name}.png')
  arguments = dict(labels='xml', images='images', skipped=skipped)
  a, b = voc.read(tmp_path, 'train', **arguments)
  np.testing.assert_array_equal(a.boxes, [[1, 2, 11, 6]])
  assert b.boxes.shape == (0, 4)
  assert skipped.counts == {'object without a bndbox': 1}
  a, b = voc.read(tmp_path, 'train', rotated=True, **arguments)
  same_rectangle(a.boxes[:1], [[30, 20, 20, 10, 0]])
  np.testing.assert_array_equal(a.polygons[0], [40, 15, 40, 25, 20, 25, 20, 15])
  assert b.boxes.shape == (0, 5)
  write(tmp_path / 'ImageSets/Main/test.txt', 'b\n')
  assert [x.id for x in voc.read(tmp_path, 'test', **arguments)] == ['b']


# what they share


def test_skips_are_logged_once_a_file_and_capped(caplog):
  skipped = Skipped()
  for _ in range(3):
    skipped.add('bad box', 'a.txt')
  skipped.add('bad box', 'b.txt', 0)
  assert [r.getMessage() for r in caplog.records] == ['a.txt: bad box']
  for i in range(100):
    skipped.add('bad box', f'{i}.txt', 2)
  assert skipped.counts == {'bad box': 203}
  assert len(caplog.records) == Skipped.LOGGED + 1
  assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize(
  ('declared', 'real', 'option'),
  [
    ('utf-16', 'utf-8', 'utf-8-sig'),  # as C# writes
    ('UTF-16', 'gbk', 'gbk'),
    ('utf-8', 'gbk', 'gbk'),
    ('gb2312', 'utf-8', 'utf-8-sig'),
    ('no-such', 'utf-8', 'utf-8-sig'),
    ('gbk', 'gbk', 'utf-8-sig'),
    ('utf-16', 'utf-16', 'utf-8-sig'),
  ],
)
def test_xml_whose_declaration_is_wrong(tmp_path, declared, real, option):
  for name in ('军舰', '船'):  # of odd and even bytes
    text = f'<?xml version="1.0" encoding="{declared}"?><annotation>{name}</annotation>'
    (tmp_path / 'a.xml').write_bytes(text.encode(real))
    found = Skipped(encoding=option)
    assert xml.parse(tmp_path / 'a.xml', found).text == name
    assert sum(found.counts.values()) == (declared.lower() != real)


def test_xml_in_another_encoding_than_it_declares_asks_for_it(tmp_path, skipped):
  (tmp_path / 'a.xml').write_bytes('<?xml version="1.0" encoding="utf-8"?><a>船</a>'.encode('gbk'))
  with pytest.raises(BadEntry, match='not in UTF-8 .* --encoding=gbk'):
    xml.parse(tmp_path / 'a.xml', skipped)


@pytest.mark.parametrize(
  ('text', 'taken'),
  [
    ('<annotation/>', True),
    ('<Annotations><folder>x</folder></Annotations>', True),
    ('<doc><size><width>60</width><height>40</height></size></doc>', True),
    ('<html><head><title>404</title></head><body/></html>', False),
    ('<svg><rect/></svg>', False),
  ],
)
def test_xml_of_something_else_is_no_image_without_objects(tmp_path, skipped, text, taken):
  write(tmp_path / 'xml/a.xml', text)
  write_image(tmp_path / 'images/a.png')
  found = list(voc.read(tmp_path, 'train', labels='xml', images='images', skipped=skipped))
  assert len(found) == taken
  assert skipped.counts == ({} if taken else {'label file without any known element': 1})
