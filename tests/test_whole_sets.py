"""What is decided and said of a data set as a whole: splits, units of angles, layouts, one walk."""

import json
import math
import pathlib
import shlex

import pytest
from test_formats import SODA, coco
from test_readers import drone_xml, same_rectangle, write, write_image

from data_pipelines.builders import auto
from data_pipelines.errors import UserError
from data_pipelines.raw import UNTAKEN, collect
from data_pipelines.readers import BadEntry, Skipped, coco_file, cvat, soda
from sm3det_jax import cli

LABELME = json.dumps(
  dict(shapes=[dict(label='ship', points=[[10, 10], [30, 10], [30, 20], [10, 20]])])
)
VOC_BOX = '<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>'
ROBOX = '<robndbox><cx>30</cx><cy>20</cy><w>20</w><h>10</h><angle>{}</angle></robndbox>'
LINE = '10 10 30 10 30 20 10 20 ship 0'


def rotated(folder, angle):
  """A COCO data set of one box, cx 30, cy 20, 20 x 10 px, turned by `angle`."""
  return coco(folder, [dict(bbox=[30, 20, 20, 10, angle])])['splits']


# one walk over pairs of image and label file, one over the images that a file names


@pytest.mark.parametrize(
  'form, suffix, good, bad, reason',
  [
    ('labelme', '.json', LABELME, b'{', 'file that is not json'),
    ('dota_txt', '.txt', LINE, b'\xff', 'text in another encoding'),
    ('voc', '.xml', drone_xml(('ship', VOC_BOX)), b'<a', 'label file is not XML'),
  ],
)
def test_images_and_label_files_are_paired_alike(tmp_path, form, suffix, good, bad, reason):
  for name in ('alone', 'bad', 'good'):
    write_image(tmp_path / f'images/{name}.png')
  path = tmp_path / f'labels/bad{suffix}'
  path.parent.mkdir()
  path.write_bytes(bad)
  write(tmp_path / f'labels/good{suffix}', good)
  splits = {'train': 'labels:images'}
  skipped = Skipped()
  found = collect(form, tmp_path, splits=splits, skipped=skipped).annotations['train']
  assert [a.id for a in found] == ['good']
  assert skipped.counts == {'image without a label file': 1, reason: 1}
  with pytest.raises(BadEntry, match='alone.png: image without a label file'):
    collect(form, tmp_path, splits=splits, skipped=Skipped(strict=True))


@pytest.mark.parametrize('reader', [cvat, soda])
def test_two_entries_of_one_image_are_an_error(tmp_path, reader):
  write_image(tmp_path / 'images/1.png')
  image = '<image name="1.png" width="60" height="40"/>'
  write(tmp_path / 'two.xml', f'<annotations>{image * 2}</annotations>')
  for name in 'ab':
    write(tmp_path / f'labels/{name}.json', SODA)
  labels = {cvat: 'two.xml', soda: 'labels'}[reader]
  with pytest.raises(
    UserError, match='two images have the name 1.png; the other: .*(image 0|a.json)'
  ):
    list(reader.read(tmp_path, 'train', labels=labels, images='images', skipped=Skipped()))


def test_coco_files_are_read_once(tmp_path, monkeypatch):
  loaded, load = [], coco_file.load
  monkeypatch.setattr(
    coco_file, 'load', lambda path, s: loaded.append(path.parent.name) or load(path, s)
  )
  for split in ('train', 'val'):
    coco(tmp_path / split, [dict(bbox=[1, 2, 3, 4]), dict(bbox=[1, 2, 3])])
  splits = {s: f'{s}/train.json:{s}/images' for s in ('train', 'val')}
  c = collect('coco', tmp_path, splits=splits)
  assert loaded == ['train', 'val']
  assert [len(a.names) for part in c.annotations.values() for a in part] == [1, 1]
  assert c.skipped.counts == {'bbox that is not four or five numbers': 2}


# units of angles


def test_sources_keep_their_own_units_of_angles_and_it_is_said(tmp_path):
  splits = [rotated(tmp_path / 'a', 45), rotated(tmp_path / 'b', 0.5)]
  sources = [tmp_path / 'a', tmp_path / 'b']
  c = collect(['coco_rotated'] * 2, sources, name='x', splits=splits)
  first, second = c.annotations['train']
  same_rectangle(first.boxes, [[30, 20, 20, 10, math.radians(45)]])
  same_rectangle(second.boxes, [[30, 20, 20, 10, 0.5]])
  degrees, radians, both = c.skipped.notes[:3]
  assert f'degrees: the largest is 45, in {sources[0]}' in degrees
  assert f'radians: the largest is 0.5, in {sources[1]}' in radians
  assert f'{sources[0]} (coco_rotated) in degrees, {sources[1]} (coco_rotated) in radians' in both


def test_sources_of_one_unit_or_without_angles_do_not_differ(tmp_path):
  splits = [rotated(tmp_path / 'a', 45), rotated(tmp_path / 'b', 0), rotated(tmp_path / 'c', 50)]
  c = collect(['coco_rotated'] * 3, [tmp_path / n for n in 'abc'], name='x', splits=splits)
  assert not any('differ' in note for note in c.skipped.notes)


def test_a_file_of_small_angles_among_degrees_is_named(tmp_path):
  for split, angle in (('train', 45), ('val', 1.5), ('test', 0)):
    rotated(tmp_path / split, angle)
  splits = {s: f'{s}/train.json:{s}/images' for s in ('train', 'val', 'test')}
  c = collect('coco_rotated', tmp_path, splits=splits)
  (note,) = (n for n in c.skipped.notes if 'if they are radians' in n)
  assert f'{tmp_path}/val/train.json are at most 1.5' in note


def test_angles_of_rolabelimg_are_told_by_folder(tmp_path, monkeypatch):
  for folder, angle in (('a', 45), ('b', 2)):
    write(tmp_path / folder / 'xml/1.xml', drone_xml(('car', ROBOX.format(angle))))
    write_image(tmp_path / folder / 'images/1.png')
  write(tmp_path / 'a/xml/locked.xml', drone_xml())
  read = pathlib.Path.read_bytes

  def locked(path):
    if path.name == 'locked.xml':
      raise PermissionError(13, 'Permission denied', str(path))
    return read(path)

  monkeypatch.setattr(pathlib.Path, 'read_bytes', locked)
  c = collect(['rolabelimg'] * 2, [tmp_path / 'a', tmp_path / 'b'], name='x')
  first, second = c.annotations['train']
  same_rectangle(first.boxes, [[30, 20, 20, 10, math.radians(45)]])
  same_rectangle(second.boxes, [[30, 20, 20, 10, 2]])
  assert any('angles differ between sources' in note for note in c.skipped.notes)
  assert not any('a guess' in note for note in c.skipped.notes)  # the tool writes 0 to pi


# splits that nothing takes


def voc(folder, *lists):
  for name in 'ab':
    write_image(folder / f'JPEGImages/{name}.png')
    write(folder / f'Annotations/{name}.xml', drone_xml(('ship', VOC_BOX)))
  for name in lists:
    write(folder / f'ImageSets/Main/{name}.txt', 'a\n' if name == 'train' else 'b\n')


def untaken(c):
  return c.skipped.counts[UNTAKEN], c.skipped.places.get(UNTAKEN, [])


def test_lists_that_no_split_takes_are_named(tmp_path, caplog):
  voc(tmp_path, 'train', 'val', 'trainval', 'holdout', 'ship_train')
  c = collect('voc', tmp_path)
  assert {s: [a.id for a in part] for s, part in c.annotations.items()} == {
    'train': ['a'],
    'val': ['b'],
  }
  assert untaken(c) == (1, [f'{tmp_path}/ImageSets/Main/holdout.txt'])
  assert 'holdout' not in caplog.text  # once, in the report
  splits = {'train': 'Annotations:JPEGImages', 'holdout': 'Annotations:JPEGImages'}
  c = collect('voc', tmp_path, splits=splits)
  assert [a.id for a in c.annotations['holdout']] == ['b'] and untaken(c) == (0, [])


def test_without_its_parts_trainval_is_named(tmp_path):
  voc(tmp_path, 'train', 'trainval')
  assert untaken(collect('voc', tmp_path)) == (1, [f'{tmp_path}/ImageSets/Main/trainval.txt'])


def test_folders_that_no_split_takes_are_named(tmp_path):
  for split in ('train', 'val', 'holdout'):
    write_image(tmp_path / f'images/{split}/{split}.png')
    write(tmp_path / f'labels/{split}/{split}.txt', LINE)
  write_image(tmp_path / 'images/pictures_alone/a.png')
  assert untaken(collect('dota_txt', tmp_path)) == (1, [f'{tmp_path}/labels/holdout'])


def test_a_format_without_lists_is_not_divided_by_them(tmp_path):
  for name in 'ab':
    write_image(tmp_path / f'images/{name}.png')
    write(tmp_path / f'labels/{name}.txt', LINE)
  for name in ('train', 'val'):
    write(tmp_path / f'ImageSets/Main/{name}.txt', 'a\n')
  c = collect('dota_txt', tmp_path)
  assert {s: [a.id for a in part] for s, part in c.annotations.items()} == {'train': ['a', 'b']}
  assert untaken(c)[0] == 2


# what is said, once


def test_a_decision_is_said_once(tmp_path, capsys, caplog):
  write_image(tmp_path / 'images/a.png')
  write(tmp_path / 'labels/a.txt', LINE)
  caplog.set_level('INFO')
  words = 'prepare', '--dataset=dota_txt', f'--source={tmp_path}', f'--data_root={tmp_path}/data'
  assert cli.main(list(words)) == 0
  assert (capsys.readouterr().out + caplog.text).count('classes are those found in the data') == 1


# auto


@pytest.mark.parametrize(
  'labels, form, text, place',
  [
    ('a.json', 'labelme', LABELME, '.:.'),
    ('a.txt', 'dota_txt', LINE, '.:.'),
    ('notes/a.txt', 'dota_txt', LINE, 'notes:.'),
    ('all.json', 'coco', None, 'all.json:.'),
  ],
  ids=str,
)
def test_the_command_for_a_flat_folder_works_as_printed(tmp_path, labels, form, text, place):
  source = tmp_path / 'my set'
  if text is None:
    coco(tmp_path, [dict(bbox=[1, 2, 30, 20])])
    text = (tmp_path / 'train.json').read_text()
  write_image(source / 'a.png')
  write(source / labels, text)
  command = shlex.split(auto.look(source, tmp_path / 'data').splitlines()[-1])
  assert command[:3] == ['sm3det', 'prepare', f'--dataset={form}']
  assert f'--splits=train={place}' in command
  assert cli.main(command[1:]) == 0
  assert (tmp_path / 'data' / form / '1.0.0/train_index.npz').exists()


def test_auto_prints_no_command_where_labels_lie_in_several_places(tmp_path):
  for name in 'ab':
    write_image(tmp_path / f'{name}.png')
    write(tmp_path / f'{name}/{name}.txt', LINE)
  assert 'no layout that is known' in auto.look(tmp_path, 'data').splitlines()[-1]
