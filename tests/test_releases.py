"""Data sets as their authors release them: folders, lists, label files, boxes, protocols."""

import cv2
import numpy as np
import pytest
from test_readers import write, write_image

from data_pipelines.builders import auto
from data_pipelines.raw import collect
from data_pipelines.source import Source
from sm3det_jax import cli

SIZE = '<size><width>60</width><height>40</height><depth>3</depth></size>'
CORNERS = ('left_top', 'right_top', 'right_bottom', 'left_bottom')
TURNED = (30.0, 20.0, 24.0, 8.0, 0.6)  # cx, cy, w, h, radians clockwise on the screen; 60 x 40 px
OF_OTHERS = 'label file without an image'  # DIOR's folder of labels serves both folders of images


def drawn(rectangle):
  """The corners of a turned rectangle as OpenCV has them: degrees, clockwise on the screen."""
  cx, cy, w, h, theta = (float(v) for v in rectangle)
  return cv2.boxPoints(((cx, cy), (w, h), np.degrees(theta)))


def same_area(box, corners):
  """Whether an oriented box is the quadrilateral, by the pixels that both fill at 16 times."""
  filled = lambda points: cv2.fillPoly(np.zeros((640, 960)), [np.int32(points * 16)], 1)
  ours, theirs = filled(drawn(box)), filled(np.asarray(corners))
  return (ours * theirs).sum() > 0.97 * np.maximum(ours, theirs).sum() > 0


def named(name, box):
  pose = f'<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>'
  return f'<annotation><filename>x</filename>{SIZE}{pose}{box}</object></annotation>'


def level(x1, y1, x2, y2):
  return f'<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>'


def corners_of(points):
  named = zip(CORNERS, points, strict=True)
  text = ''.join(f'<x_{n}>{x}</x_{n}><y_{n}>{y}</y_{n}>' for n, (x, y) in named)
  return f'<robndbox>{text}</robndbox><angle>-35</angle>'  # which nothing reads


def hrsc(*rectangles, size=(60, 40)):
  keys = ('cx', 'cy', 'w', 'h', 'ang')
  objects = ''.join(
    '<HRSC_Object><Object_ID>1</Object_ID><Class_ID>100000006</Class_ID><difficult>0</difficult>'
    + '<box_xmin>1</box_xmin><box_ymin>1</box_ymin><box_xmax>9</box_xmax><box_ymax>9</box_ymax>'
    + ''.join(f'<mbox_{k}>{v}</mbox_{k}>' for k, v in zip(keys, r, strict=True))
    + '</HRSC_Object>'
    for r in rectangles
  )
  width, height = size
  sizes = f'<Img_SizeWidth>{width}</Img_SizeWidth><Img_SizeHeight>{height}</Img_SizeHeight>'
  return f'<HRSC_Image><Img_ID>1</Img_ID>{sizes}<HRSC_Objects>{objects}</HRSC_Objects></HRSC_Image>'


def write_dior(folder):
  """Both kinds of labels; lists of parts that share one folder of images, as in the release."""
  lists = dict(train=['00001'], val=['00002'], test=['11726'])
  for split, names in lists.items():
    write(folder / f'ImageSets/Main/{split}.txt', '\n'.join(names) + '\n')
    for name in names:
      images = 'JPEGImages-test' if split == 'test' else 'JPEGImages-trainval'
      write_image(folder / images / f'{name}.jpg')
      text = named('Expressway-Service-area', level(10, 12, 30, 25))
      write(folder / f'Annotations/Horizontal Bounding Boxes/{name}.xml', text)
      text = named('golffield', corners_of(drawn(TURNED)))
      write(folder / f'Annotations/Oriented Bounding Boxes/{name}.xml', text)


def write_hrsc(folder):
  lists = dict(train=['100000001'], val=['100000002'], test=['100000003'])
  lists['trainval'] = lists['train'] + lists['val']
  for split, names in lists.items():
    write(folder / f'ImageSets/{split}.txt', '\r\n'.join(names) + '\r\n')
    for name in names:
      write_image(folder / f'FullDataSet/AllImages/{name}.bmp')
      write(folder / f'FullDataSet/Annotations/{name}.xml', hrsc(TURNED))
  write_image(folder / 'FullDataSet/AllImages/100000009.bmp')  # there are many without labels


def write_sar_aircraft(folder):
  for split, name in dict(train='0000001', val='0000002', test='0000003').items():
    write(folder / f'ImageSets/Main/{split}.txt', f'{name}\n')
    write_image(folder / f'JPEGImages/{name}.jpg')
    write(folder / f'Annotations/{name}.xml', named('A320/321', level(10, 12, 30, 25)))


WRITE = {
  'dior': write_dior,
  'dior_r': write_dior,
  'hrsc2016': write_hrsc,
  'sar_aircraft': write_sar_aircraft,
}
PARTS = {  # of a release: images of each split
  'dior': {'trainval': ['00001', '00002'], 'test': ['11726']},
  'dior_r': {'trainval': ['00001', '00002'], 'test': ['11726']},
  'hrsc2016': {'trainval': ['100000001', '100000002'], 'test': ['100000003']},
  'sar_aircraft': {'train': ['0000001'], 'val': ['0000002'], 'test': ['0000003']},
}


@pytest.mark.parametrize('name', WRITE)
def test_a_release_has_its_splits_classes_and_boxes(tmp_path, name):
  WRITE[name](tmp_path)
  c = collect(name, tmp_path)
  assert {s: [a.id for a in part] for s, part in c.annotations.items()} == PARTS[name]
  assert c.box == ('hbb' if name in ('dior', 'sar_aircraft') else 'obb')
  assert set(c.skipped.counts) <= {OF_OTHERS}  # no list or folder is left over
  for annotation in (a for part in c.annotations.values() for a in part):
    assert annotation.declared == (40, 60)
    (box,), (label,) = annotation.boxes, [c.label(n, annotation.image) for n in annotation.names]
    if c.box == 'hbb':
      assert box.tolist() == [10, 12, 30, 25]
    else:
      assert same_area(box, drawn(TURNED)) and not same_area(box, drawn((*TURNED[:4], -0.6)))
    assert (
      c.classes[label]
      == {
        'dior': 'expressway-service-area',
        'dior_r': 'golffield',
        'hrsc2016': 'ship',
        'sar_aircraft': 'A320/321',
      }[name]
    )
  assert len(c.classes) == {'hrsc2016': 1, 'sar_aircraft': 7}.get(name, 20)


@pytest.mark.parametrize('theta', [-1.5, -0.7, 0.0, 0.3, 1.2, 1.5707963])
def test_hrsc_angles_are_clockwise_radians(tmp_path, theta):
  write_hrsc(tmp_path)
  rectangle = (*TURNED[:4], theta)
  write(tmp_path / 'FullDataSet/Annotations/100000003.xml', hrsc(rectangle))
  (found,) = collect('hrsc2016', tmp_path).annotations['test']
  assert same_area(found.boxes[0], drawn(rectangle))


def test_hrsc_without_a_list_of_both_parts_has_them_apart(tmp_path):
  write_hrsc(tmp_path)
  (tmp_path / 'ImageSets/trainval.txt').unlink()
  assert list(collect('hrsc2016', tmp_path).annotations) == ['train', 'val', 'test']


def test_parts_of_dior_can_be_had(tmp_path):
  write_dior(tmp_path)
  place = 'Annotations/Horizontal Bounding Boxes:JPEGImages-trainval'
  c = collect('dior', tmp_path, splits={'train': place, 'val': place})
  assert {s: [a.id for a in part] for s, part in c.annotations.items()} == {
    'train': ['00001'],
    'val': ['00002'],
  }


def test_a_declared_size_of_hrsc_counts(tmp_path):
  write_hrsc(tmp_path)
  write(tmp_path / 'FullDataSet/Annotations/100000003.xml', hrsc(TURNED, size=(61, 40)))
  (found,) = collect('hrsc2016', tmp_path).annotations['test']
  assert found.declared == (40, 61)


@pytest.mark.parametrize('name', WRITE)
def test_a_wrong_layout_is_one_line(tmp_path, name, capsys):
  write_image(tmp_path / 'pictures/a.jpg')
  arguments = ['prepare', f'--dataset={name}', f'--source={tmp_path}', f'--data_root={tmp_path}/d']
  assert cli.main(arguments) == 2
  (line,) = [row for row in capsys.readouterr().err.splitlines() if row]
  assert f'{name}: {tmp_path} has none of the known layouts' in line and '--splits=' in line


@pytest.mark.parametrize('name', ['dior', 'hrsc2016'])
def test_a_release_is_prepared_and_read_back(tmp_path, name):
  WRITE[name](tmp_path / 'raw')
  command = auto.look(tmp_path / 'raw', tmp_path / 'data').splitlines()[-1].split()
  assert command[2] == f'--dataset={name}'
  assert cli.main(command[1:]) == 0
  for split, names in PARTS[name].items():
    assert len(Source(tmp_path / 'data', name, split)) == len(names)
