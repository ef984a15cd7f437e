"""From raw data sets to prepared ones: what is kept, counted, refused and reported."""

import argparse
import errno
import json
import logging
import pathlib

import cv2
import numpy as np
import pytest

from data_pipelines import images, prepare_command, raw, soi_det
from data_pipelines.builders import detection, presets, scan
from data_pipelines.dataset import convert
from data_pipelines.errors import UserError
from data_pipelines.prepare import prepare
from data_pipelines.readers import Annotation, Skipped
from data_pipelines.source import Source
from sm3det_jax import config as config_lib


def write_image(path, height=40, width=60, value=128):
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), np.full((height, width), value, np.uint8))


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def square(x, y, name='ship', difficult=0, side=10):
  return f'{x} {y} {x + side} {y} {x + side} {y + side} {x} {y + side} {name} {difficult}\n'


def write_dota(folder, labels='labelTxt', images='images', **texts):
  for name, text in texts.items():
    write(folder / labels / f'{name}.txt', text)
    write_image(folder / images / f'{name}.png')


def write_coco(folder, boxes, labels='train.json', images='images', names=('ship',), files='ab'):
  """`boxes`: (image number, category number, box)."""
  content = dict(
    images=[dict(id=i, file_name=f'{f}.png') for i, f in enumerate(files)],
    categories=[dict(id=i, name=n) for i, n in enumerate(names)],
    annotations=[
      dict(id=i, image_id=image, category_id=k, bbox=b) for i, (image, k, b) in enumerate(boxes)
    ],
  )
  write(folder / labels, json.dumps(content))
  for f in files:
    write_image(folder / images / f'{f}.png')


# the policy for boxes

LABEL = scan.labeller(
  ('ship', 'Large-Vehicle', 'tank'), ignore=('DontCare',), aliases={'boat': 'ship'}
)


def clean(boxes, names=None, polygons=None, box='obb', size=(100, 200)):
  from data_pipelines import boxes as box_lib

  boxes = np.array(boxes, np.float32)
  a = Annotation(
    id='a',
    image=pathlib.Path('a.png'),
    names=tuple(names or ['ship'] * len(boxes)),
    boxes=boxes,
    polygons=box_lib.to_polygon(boxes) if polygons is None else np.array(polygons, np.float32),
    difficult=np.arange(len(boxes), dtype=np.int8),
    labels=pathlib.Path('a.txt'),
  )
  skipped = Skipped()
  return scan.clean(a, *size, box, LABEL, skipped), skipped.counts


def test_oriented_boxes_that_are_left_out():
  nan = np.nan
  kept, counts = clean(
    [
      [50, 50, 20, 10, 0.1],
      [50, 50, 20, 1.9, 0.1],  # thin
      [50, 50, 0, 0, 0],
      [-20, 50, 20, 10, 0],  # wholly outside
      [230, 50, 20, 10, 0],
      [50, -6, 20, 10, 0],
      [50, 106, 20, 10, 0],
      [-5, 50, 20, 10, 0],  # partly outside
      [nan, 50, 20, 10, 0],
      [50, 50, 20, 2, 0.1],
    ]
  )
  assert kept['difficult'].tolist() == [0, 7, 9]
  np.testing.assert_allclose(kept['boxes'][1], [-5, 50, 20, 10, 0])  # as it was
  assert counts == {
    'box with a side under 2 px': 2,
    'box outside the image': 4,
    'box not finite': 1,
  }


def test_horizontal_boxes_that_are_left_out():
  boxes = [
    [10, 10, 20, 20],
    [10, 10, 10.5, 20],
    [10, 10, 5, 20],
    [200, 10, 210, 20],
    [-5, -5, 3, 3],
  ]
  kept, counts = clean(boxes, box='hbb')
  np.testing.assert_array_equal(kept['boxes'], [boxes[0], boxes[4]])
  assert counts == {'box with a side under 1 px': 2, 'box outside the image': 1}


def test_self_crossing_quadrilateral_becomes_its_rectangle():
  polygons = [[10, 10, 30, 10, 10, 20, 30, 20], [10, 10, 30, 10, 30, 20, 10, 20]]
  kept, counts = clean([[20, 15, 20, 10, 0]] * 2, polygons=polygons)
  np.testing.assert_allclose(kept['polygons'], [polygons[1]] * 2, atol=1e-4)
  assert list(counts.values()) == [1] and 'self-crossing' in next(iter(counts))


def test_oriented_labels_as_horizontal_boxes():
  kept, _ = clean([[50, 50, 20, 10, np.pi / 2]], box='hbb')
  np.testing.assert_allclose(kept['boxes'], [[45, 40, 55, 60]], atol=1e-4)
  np.testing.assert_allclose(kept['polygons'][0, :4], [45, 40, 55, 40], atol=1e-4)


def test_horizontal_labels_are_no_oriented_boxes():
  with pytest.raises(ValueError, match='a.txt: horizontal boxes'):
    clean([[1, 2, 30, 40]], box='obb')


def test_labels():
  names = ['tank', 'large vehicle', 'boat', 'DontCare', 'LARGE_VEHICLE']
  kept, counts = clean([[50, 50, 20, 10, 0]] * 5, names)
  assert kept['labels'].tolist() == [2, 1, 0, 1]
  assert counts == {"object of the ignored class 'DontCare'": 1}


def test_unknown_class_is_an_error():
  message = r"a\.txt: class 'tanks' is not among the classes ship, Large-Vehicle, tank.*'tank'"
  with pytest.raises(ValueError, match=message):
    clean([[50, 50, 20, 10, 0]], ['tanks'])
  # two classes that differ in case alone: no guess
  label = scan.labeller(('ship', 'Ship'))
  assert (label('ship', 'f'), label('Ship', 'f')) == (0, 1)
  with pytest.raises(ValueError, match="class 'SHIP'"):
    label('SHIP', 'f')


# whole data sets


def test_a_report(tmp_path, caplog):
  write_dota(tmp_path / 'raw/train', a=square(5, 5) + square(5, 5, 'plane'), b='', c=square(1, 1))
  write_dota(tmp_path / 'raw/val', d=square(5, 5) + square(500, 5))
  (tmp_path / 'raw/train/images/c.png').write_bytes(b'\x89PNG\r\n\x1a\nbroken')
  report = prepare('dota', tmp_path / 'raw', tmp_path / 'data')
  assert report.name == 'dota' and report.box == 'obb' and report.classes == presets.DOTA_V10
  assert report.images == {'train': 2, 'val': 1} and report.empty == {'train': 1, 'val': 0}
  ship, plane = presets.DOTA_V10.index('ship'), presets.DOTA_V10.index('plane')
  assert sum(report.objects['train']) == 2
  assert report.objects['train'][ship] == report.objects['train'][plane] == 1
  assert report.skipped == {'box outside the image': 1, 'image truncated': 1}
  assert any('c.png: image truncated' in r.getMessage() for r in caplog.records)
  lines = report.table().split('\n')
  rows = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in lines if line}
  place = lines.index('  1 image truncated') + 1
  assert lines[place].endswith('c.png')
  assert rows['images'] == ['2', '1'] and rows['plane'] == ['1', '0']
  assert len(Source(tmp_path / 'data', 'dota', 'train')) == 2
  assert sorted(p.name for p in (tmp_path / 'data').iterdir()) == ['dota']


def test_preparing_again_replaces(tmp_path):
  for n in (1, 2):
    write_dota(tmp_path / 'raw', **{f'image{n}': square(5, 5, 'thing')})
    prepare('dota_txt', tmp_path / 'raw', tmp_path / 'data')
    source = Source(tmp_path / 'data', 'dota_txt', 'train')
    assert len(source) == n and source.classes == ('thing',)


def test_a_failure_while_writing_keeps_the_older_set(tmp_path, monkeypatch):
  write_dota(tmp_path / 'raw', a=square(5, 5))
  prepare('dota_txt', tmp_path / 'raw', tmp_path / 'data')
  before = Source(tmp_path / 'data', 'dota_txt', 'train').fingerprint
  write_dota(tmp_path / 'raw', b=square(5, 5))

  def fail(entry):
    raise OSError('disk full')

  monkeypatch.setattr(detection, '_encoded', fail)
  with pytest.raises(OSError, match='disk full'):
    prepare('dota_txt', tmp_path / 'raw', tmp_path / 'data')
  source = Source(tmp_path / 'data', 'dota_txt', 'train')
  assert source.fingerprint == before and source[0]['id'] == 'a'


def test_what_a_killed_run_has_left_is_not_taken_up(tmp_path, caplog):
  write_dota(tmp_path / 'raw', a=square(5, 5))
  prepare('dota_txt', tmp_path / 'raw', tmp_path / 'data')
  left = tmp_path / 'data/.dota_txt.incomplete'
  left.mkdir()
  (tmp_path / 'data/dota_txt').rename(left / 'dota_txt')
  write_dota(tmp_path / 'raw', a=square(7, 7, 'boat'))
  prepare('dota_txt', tmp_path / 'raw', tmp_path / 'data')
  source = Source(tmp_path / 'data', 'dota_txt', 'train')
  assert source.classes == ('boat',) and source[0]['objects']['boxes'][0, 0] == 12
  assert any('was killed: then remove it' in r.getMessage() for r in caplog.records)


def test_several_sources_make_one_set(tmp_path):
  write_coco(tmp_path / 'one', [(0, 0, [1, 2, 10, 10])], 'train.json')
  box = '<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>16</ymax></bndbox>'
  write(tmp_path / 'two/xml/b.xml', f'<a><object><name>Ship</name>{box}</object></a>')
  write_image(tmp_path / 'two/images/b.png', 50, 50)
  report = prepare(
    ('coco', 'voc'),
    (tmp_path / 'one', tmp_path / 'two'),
    tmp_path / 'data',
    name='ships',
    classes=('ship',),
    splits=[{'train': 'train.json:images'}, {'train': 'xml:images', 'test': 'xml:images'}],
  )
  assert report.images == {'train': 3, 'test': 1} and report.objects == {'train': [2], 'test': [1]}
  source = Source(tmp_path / 'data', 'ships', 'train')
  assert [t['id'] for t in source.truth()] == ['a', 'b', 'two/b']  # no image lost to a name
  np.testing.assert_array_equal(source[2]['objects']['boxes'], [[1, 2, 11, 16]])


def test_classes_found_in_the_data_are_sorted(tmp_path):
  write_coco(tmp_path, [(0, 0, [1, 2, 9, 9]), (1, 1, [1, 2, 9, 9])], names=('zebra', 'ant'))
  report = prepare('coco', tmp_path, tmp_path / 'd', splits={'train': 'train.json:images'})
  assert report.classes == ('ant', 'zebra') and report.objects == {'train': [1, 1]}


def test_dronevehicle_spellings(tmp_path):
  spellings = ['car', 'feright car', 'feright_car', 'feright', 'truvk', 'truck', '*', 'van', 'bus']
  box = '<bndbox><xmin>110</xmin><ymin>120</ymin><xmax>150</xmax><ymax>140</ymax></bndbox>'
  objects = ''.join(f'<object><name>{n}</name>{box}</object>' for n in spellings)
  for split in ('train', 'test'):
    write(tmp_path / f'raw/{split}/{split}labelr/1.xml', f'<annotation>{objects}</annotation>')
    image = np.full((712, 840), 255, np.uint8)
    image[100:612, 100:740] = np.arange(640) % 200
    path = tmp_path / f'raw/{split}/{split}imgr/1.png'
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), image)
  report = prepare('dronevehicle', tmp_path / 'raw', tmp_path / 'data')
  assert report.classes == config_lib.DRONEVEHICLE_CLASSES
  assert dict(zip(report.classes, report.objects['train'], strict=True)) == {
    'CAR': 1, 'BUS': 1, 'FERIGHT_CAR': 3, 'TRUCK': 2, 'VAN': 1,
  }  # fmt: skip
  assert report.skipped == {"object of the ignored class '*'": 2}
  sample = Source(tmp_path / 'data', 'dronevehicle', 'test')[0]
  assert sample['image'].shape == (512, 640, 1) and sample['image'].max() == 199  # no border left
  np.testing.assert_allclose(sample['objects']['boxes'][0], [30, 30, 40, 20, 0], atol=1e-3)


@pytest.mark.parametrize(
  'splits, images',
  [({'train': 'labels:images'}, 'no images'), ({'train': 'empty:images'}, 'no objects')],
)
def test_an_empty_data_set_is_an_error(tmp_path, splits, images):
  write_dota(tmp_path, 'empty', a='')
  write(tmp_path / 'labels/other.txt', '')
  with pytest.raises(ValueError, match=f"set: split 'train' has {images}"):
    prepare('dota_txt', tmp_path, tmp_path / 'data', name='set', classes=('ship',), splits=splits)
  assert not (tmp_path / 'data').exists()


def test_an_unknown_class_writes_nothing(tmp_path):
  write_dota(tmp_path / 'raw/train', a=square(5, 5, 'submarine'))
  with pytest.raises(ValueError, match="a.txt: class 'submarine'.*add it to the classes"):
    prepare('dota', tmp_path / 'raw', tmp_path / 'data')
  assert not (tmp_path / 'data').exists()


def test_wrong_calls_are_errors(tmp_path):
  with pytest.raises(ValueError, match="'dotta' is not known; known: soi_det, sardet100k"):
    prepare('dotta', tmp_path, tmp_path)
  with pytest.raises(FileNotFoundError, match='dota: .* has none of the known layouts.*labelTxt'):
    prepare('dota', tmp_path, tmp_path)
  with pytest.raises(FileNotFoundError, match='is not a folder'):
    prepare('dota', tmp_path / 'no', tmp_path)
  with pytest.raises(ValueError, match='2 data sets but 1 sources'):
    prepare(('dota', 'coco'), tmp_path, tmp_path)
  with pytest.raises(ValueError, match='--splits is given 2 times'):
    prepare('dota', tmp_path, tmp_path, splits=[{}, {}])
  with pytest.raises(ValueError, match="name='My Set'"):
    prepare('dota', tmp_path, tmp_path, name='My Set')


def test_a_label_of_two_images_is_of_none(tmp_path):
  write_dota(tmp_path, a=square(1, 1))
  write_image(tmp_path / 'images/a.jpg')
  with pytest.raises(ValueError, match='no images; .* one name means two files: 2 .*a.jpg'):
    prepare('dota_txt', tmp_path, tmp_path / 'data')


def test_images_without_objects_stay(tmp_path):
  write_dota(tmp_path, a=square(1, 1), b='')
  prepare('dota_txt', tmp_path, tmp_path / 'data')
  assert Source(tmp_path / 'data', 'dota_txt', 'train').num_objects.tolist() == [1, 0]


# SOI-Det


def write_soi_det(root, sar_names):
  folder, boxes = root / 'SARDet_100K', [(0, 0, [1, 2, 9, 9]), (1, 1, [1, 2, 9, 9])]
  names = ('aircraft', 'ship')
  for split in ('train', 'test'):
    labels, images = f'Annotations/{split}.json', f'JPEGImages/{split}'
    write_coco(folder, boxes, labels, images, names, sar_names)
  write_dota(root / 'DOTA/train', P0001=square(5, 5) + square(9, 9, 'harbor', 2))
  write_dota(root / 'DOTA/val', P0003=square(5, 5, 'bridge'))
  for split in ('train', 'test'):
    labels, images = f'dota_{split}/annfiles', f'dota_{split}/png_images'
    write_dota(root / 'DroneVehicle', labels, images, **{f'{split}1': square(5, 5, 'feright_car')})


def test_soi_det(tmp_path):
  write_soi_det(tmp_path / 'raw', ['P0001_0_800_1200_2000', 'SSDD_000001'])
  reports = soi_det.prepare([tmp_path / 'raw'], tmp_path / 'data')
  assert [r.name for r in reports] == ['soi_det_sar', 'soi_det_rgb', 'soi_det_ifr']
  sar, rgb, ifr = reports
  assert sar.box == 'hbb' and rgb.box == ifr.box == 'obb'
  assert sar.images == {'train': 1, 'test': 1}  # HRSID is in, SSDD is not
  config = config_lib.default()
  for report, task in zip(reports, config.tasks.values(), strict=True):
    assert report.classes == tuple(task.classes) and report.name == task.dataset
  # difficult objects count as normal ones; the names are SOI-Det's
  assert Source(tmp_path / 'data', 'soi_det_rgb', 'train')[0]['objects']['labels'].tolist() == [
    3,
    4,
  ]
  assert ifr.objects['test'][ifr.classes.index('FERIGHT_CAR')] == 1
  assert '47,097' in sar.table() and '337,728' in rgb.table() and '316,411' in ifr.table()
  assert soi_det.WHY['rgb'] in rgb.table()


def test_soi_det_subset_by_list(tmp_path):
  write_soi_det(tmp_path / 'raw', ['0000001', '0000002'])
  with pytest.raises(ValueError, match="'0000001' does not tell.*--subset=FILE"):
    soi_det.prepare([tmp_path / 'raw'], tmp_path / 'data')
  write(tmp_path / 'list.txt', '0000002.png\n')
  content = dict(images=[dict(file_name='train/0000002.jpg')])
  write(tmp_path / 'list.json', json.dumps(content))
  for name in ('list.txt', 'list.json'):
    only = prepare_command.read_subset(tmp_path / name)
    assert only('0000002') and only('train/0000002') and not only('0000001')
  folders = [tmp_path / 'raw' / n for n in ('SARDet_100K', 'DOTA', 'DroneVehicle')]
  sar, *_ = soi_det.prepare(folders, tmp_path / 'data', only)
  assert sar.images == {'train': 1, 'test': 1}


def test_soi_det_takes_the_authors_extract_whole(tmp_path):
  write_soi_det(tmp_path / 'raw', ['0000001', '0000002'])
  folder = (tmp_path / 'raw/SARDet_100K').rename(tmp_path / 'raw/SARDet_50K')
  for split in ('train', 'test'):
    (folder / f'Annotations/{split}.json').rename(folder / f'Annotations/after_merge_{split}.json')
  sar, *_ = soi_det.prepare([tmp_path / 'raw'], tmp_path / 'data')
  assert sar.images == {'train': 2, 'test': 2}


def test_soi_det_names_the_missing_release(tmp_path):
  (tmp_path / 'DOTA').mkdir()
  with pytest.raises(FileNotFoundError, match='none of the folders SARDet_50K'):
    soi_det.prepare([tmp_path], tmp_path / 'data')


# the command line


def arguments(*words):
  parser = argparse.ArgumentParser()
  prepare_command.add_arguments(parser)
  return parser.parse_args(words)


def test_command_line(tmp_path):
  write_coco(tmp_path / 'a', [(0, 0, [1, 2, 9, 9]), (1, 1, [1, 2, 9, 9])], names=('boat', 'junk'))
  write_dota(tmp_path / 'b', 'txt', 'png', c=square(3, 3, 'Ship'), d=square(3, 3, 'Ship'))
  write(tmp_path / 'only.txt', 'a\nb\nd\n')
  (report,) = prepare_command.run(
    arguments(
      '--dataset=coco,dota_txt', f'--source={tmp_path}/a,{tmp_path}/b', f'--data_root={tmp_path}/d',
      '--name=ships', '--classes=ship', '--box=hbb', '--aliases=boat=ship', '--ignore=junk',
      '--splits=train=train.json:images', '--splits=train=txt:png,test=txt:png',
      f'--subset={tmp_path}/only.txt',
    )
  )  # fmt: skip
  assert report.images == {'train': 3, 'test': 1} and report.objects == {'train': [2], 'test': [1]}
  assert report.box == 'hbb' and report.skipped == {"object of the ignored class 'junk'": 1}
  source = Source(tmp_path / 'd', 'ships', 'test')
  np.testing.assert_allclose(source[0]['objects']['boxes'], [[3, 3, 13, 13]], atol=1e-4)


@pytest.mark.parametrize(
  'text', ['train', 'train=', '=a:b', 'Train=a:b', 'train=a:b,train=c:d', 'all=a:b']
)
def test_bad_splits_are_errors(text):
  with pytest.raises(ValueError, match='--splits='):
    prepare_command.parse_splits(text)


def test_a_split_of_an_odd_name_is_asked_about(caplog):
  assert prepare_command.parse_splits('trian=a:b,test=c:d,night=e:f') == {
    'trian': 'a:b', 'test': 'c:d', 'night': 'e:f'
  }  # fmt: skip
  (record,) = caplog.records
  assert record.getMessage() == "--splits: a split called 'trian'; did you mean 'train'?"


def test_ignored_classes_are_no_warnings(tmp_path, caplog):
  write_dota(tmp_path, a=square(1, 1) + square(9, 9, 'junk'))
  with caplog.at_level(logging.INFO):
    report = prepare('dota_txt', tmp_path, tmp_path / 'data', ignore=('junk',))
  assert report.classes == ('ship',)
  assert not [r for r in caplog.records if r.name.startswith('data_') and r.levelname == 'WARNING']


@pytest.mark.parametrize(
  'option, value',
  [
    ('name', 'x'), ('classes', 'ship'), ('box', 'hbb'), ('splits', 'train=a:b'), ('ignore', 'x'),
    ('aliases', 'a=b'), ('exif', 'stored'), ('coordinates', 'pixels'), ('angle', 'degree'),
    ('turn', 'counterclockwise'), ('sizes', 'ignore'), ('quarantine', '/none'),
  ],
)  # fmt: skip
@pytest.mark.parametrize('dataset', ['soi_det', 'auto'])
def test_no_option_is_ignored_in_silence(tmp_path, dataset, option, value):
  words = f'--dataset={dataset}', f'--source={tmp_path}', f'--data_root={tmp_path}/d'
  with pytest.raises(UserError, match=f'^--{option}: '):
    prepare_command.show(arguments(*words, f'--{option}={value}'))


def test_auto_honours_the_encoding(tmp_path):
  write_dota(tmp_path, a='')
  (tmp_path / 'labelTxt/a.txt').write_bytes(square(1e-05, 2, '船').encode('gbk'))
  words = '--dataset=auto', f'--source={tmp_path}', f'--data_root={tmp_path}/d'
  with pytest.raises(UserError, match='no label file of any known format'):
    prepare_command.show(arguments(*words))
  text = prepare_command.show(arguments(*words, '--encoding=gbk'))
  assert 'labels: dota_txt' in text and text.endswith(' --encoding=gbk')


def test_soi_det_and_auto_are_of_prepare_alone(tmp_path):
  for name in ('soi_det', 'auto'):
    words = f'--dataset=coco,{name}', f'--source={tmp_path},{tmp_path}', f'--data_root={tmp_path}'
    with pytest.raises(UserError, match=f'--dataset={name}.* only `sm3det prepare`'):
      prepare_command.run(arguments(*words))


def test_names_of_classes_are_checked(tmp_path):
  write_dota(tmp_path, a=square(1, 1) + square(9, 9, 'boat'))
  words = '--dataset=dota_txt', f'--source={tmp_path}', f'--data_root={tmp_path}/d'
  (report,) = prepare_command.run(
    arguments(*words, '--classes=ship, boat', '--ignore=shipp', '--aliases=tugg = boat')
  )
  assert report.classes == ('ship', 'boat') and report.objects == {'train': [1, 1]}
  assert report.places == {
    'class of --ignore that never occurs': ['shipp'],
    'spelling of --aliases that never occurs': ['tugg'],
  }
  for wrong in ('--classes=ship,ship', '--ignore=a, a', '--aliases=a=b,a=c', '--aliases= =b'):
    with pytest.raises(UserError, match=wrong.partition('=')[0]):
      prepare_command.run(arguments(*words, wrong))


@pytest.mark.parametrize(
  ('broken', 'message'),
  [
    ({'images/b.png': b'\x89PNG\r\n\x1a\nbroken'}, 'image truncated'),
    ({'images/b.jpg': b''}, 'one name means two files'),
    ({'labelTxt/b.txt': square(900, 9).encode()}, 'box outside the image'),
    ({'labelTxt/b.txt': square(9, 9, side=1).encode()}, 'box with a side under 2 px'),
    ({'labelTxt/b.txt': square(9, 9, 'junk').encode()}, None),
    ({'labelTxt/c.txt': b''}, None),
  ],
)
def test_strict_stops_at_what_would_be_left_out(tmp_path, broken, message):
  write_dota(tmp_path, a=square(1, 1), b='')
  for name, data in broken.items():
    (tmp_path / name).write_bytes(data)
  call = lambda: prepare(
    'dota_txt', tmp_path, tmp_path / 'data', ignore=('junk',), skipped=Skipped(strict=True)
  )
  if message:
    with pytest.raises(UserError, match=message):
      call()
    assert not (tmp_path / 'data').exists()
  else:
    call()


def no_rights(monkeypatch, *names):
  """Files that cannot be read, whoever asks."""

  def refused(real):
    def call(path, *rest, **more):
      if pathlib.Path(path).name in names:
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))
      return real(path, *rest, **more)

    return call

  monkeypatch.setattr(pathlib.Path, 'read_bytes', refused(pathlib.Path.read_bytes))
  monkeypatch.setattr(images, 'header', refused(images.header))


def test_files_without_rights_are_left_out(tmp_path, monkeypatch):
  write_dota(tmp_path / 'in', a=square(1, 1), b=square(1, 1), c=square(1, 1))
  no_rights(monkeypatch, 'b.txt', 'c.png')
  report = prepare('dota_txt', tmp_path / 'in', tmp_path / 'data')
  assert report.images == {'train': 1}
  assert report.skipped == {
    'file that cannot be read': 1,
    'image unreadable': 1,
  }
  report = convert.convert(raw.collect('dota_txt', tmp_path / 'in'), 'coco_rotated', tmp_path / 'o')
  assert report.images == {'train': 1}
  assert report.skipped == {'file that cannot be read': 1, 'image does not decode': 1}


def test_a_folder_of_images_that_is_a_link_is_followed_and_said(tmp_path):
  write_dota(tmp_path / 'elsewhere', a=square(1, 1))
  write_dota(tmp_path / 'in', a=square(1, 1))
  (tmp_path / 'in/images').rename(tmp_path / 'old')
  (tmp_path / 'in/images').symlink_to(tmp_path / 'elsewhere/images')
  report = prepare('dota_txt', tmp_path / 'in', tmp_path / 'data')
  assert report.images == {'train': 1}
  (note,) = (n for n in report.notes if 'leads out of the source' in n)
  assert str(tmp_path / 'elsewhere/images') in note
