"""What an image is called: paths, links, suffixes, forms of Unicode, lists of names."""

import os
import pathlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.readers import BadEntry, Skipped, files, texts
from sm3det_jax.results import places


def touch(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def ids(folder, skipped=None):
  return list(files.image_files(folder, skipped or Skipped(), folder.parent))


def test_an_image_is_its_path_below_the_folder(tmp_path):
  touch(tmp_path, 'x/1.png', 'y/1.png', 'a.jpg', 'a.png', 'tile_0.5.TIF', 'b.txt', '._b.png')
  touch(tmp_path, '.cache/c.png', '__MACOSX/d.png', 'Thumbs.db', 'set[1]/e.png')
  assert ids(tmp_path) == ['a.jpg', 'a.png', 'set[1]/e', 'tile_0.5', 'x/1', 'y/1']


def test_a_name_that_is_no_unicode_is_spelt_out(tmp_path):
  with open(os.fsencode(tmp_path) + b'/\xb8\xdb.png', 'wb'):
    pass
  assert ids(tmp_path) == ['\\xb8\\xdb']


WORDS = st.sampled_from(['a', 'A', 'a.png', 'b', 'é', 'e\u0301', 'a~2', 'x/a', 'X/a', 'a.png~2'])


@given(st.sets(st.tuples(WORDS, st.sampled_from(['.png', '.PNG', '.jpg', ''])), max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_two_images_have_a_name_that_any_file_system_takes_for_the_same(parts):
  names = sorted({word + suffix for word, suffix in parts})
  found = files.named((name, pathlib.Path(name)) for name in names)
  assert sorted(map(str, found.values())) == names
  alike = {unicodedata.normalize('NFC', id).casefold() for id in found}
  assert len(alike) == len(names)


def test_links_are_followed_below_the_source_and_counted(tmp_path):
  root = tmp_path / 'set'
  touch(tmp_path, 'set/images/a.png', 'set/more/b.png', 'outside/c.png')
  for name, target in {
    'b.png': root / 'more/b.png',
    'c.png': tmp_path / 'outside/c.png',
    'folder': root / 'more',
    'circle': root / 'images',
    'gone.png': root / 'gone.png',
  }.items():
    (root / 'images' / name).symlink_to(target)
  skipped = Skipped()
  assert ids(root / 'images', skipped) == ['a', 'b', 'folder/b']
  assert skipped.counts == {
    'link (followed)': 3,
    'link that leads in a circle': 1,
    'broken link': 1,
    'link that leads out of the source (--follow_links takes it)': 1,
  }
  assert 'c' in ids(root / 'images', Skipped(follow_links=True))


def paired(tmp_path, skipped):
  found = files.pairs(tmp_path / 'labels', tmp_path / 'images', '.txt', skipped)
  return {id: label and label.relative_to(tmp_path / 'labels').as_posix() for id, _, label in found}


def test_labels_belong_to_the_image_of_the_same_path(tmp_path):
  touch(tmp_path, 'images/x/1.png', 'images/y/1.png', 'images/tile_0.5.png', 'images/e\u0301.png')
  touch(tmp_path, 'labels/x/1.txt', 'labels/tile_0.5.TXT', 'labels/é.txt', 'labels/1.txt')
  skipped = Skipped()
  assert paired(tmp_path, skipped) == {
    'e\u0301': 'é.txt',
    'tile_0.5': 'tile_0.5.TXT',
    'x/1': 'x/1.txt',
    'y/1': None,
  }
  assert skipped.counts == {'label file without an image': 1}


def test_a_label_that_could_be_of_two_images_is_of_none(tmp_path):
  touch(tmp_path, 'images/a.png', 'images/a.jpg', 'images/b.png', 'labels/a.txt', 'labels/b.txt')
  skipped = Skipped()
  assert paired(tmp_path, skipped) == {'b': 'b.txt'}
  assert list(skipped.counts.values()) == [2]


@pytest.mark.parametrize(
  'name, found',
  [
    ('a.png', 'a.png'),
    ('a.jpg', 'a.png'),
    ('tile_0.5', 'tile_0.5.png'),
    ('train\\b.png', 'train/b.png'),
    ('images/train/b.png', 'train/b.png'),
    ('images/train\\b.png', 'train/b.png'),
    ('D:\\set\\train\\b.png', 'train/b.png'),
    ('back\\sl.png', 'back\\sl.png'),
    ('images/back\\sl.jpg', 'back\\sl.png'),
    ('..\\set\\a.png', None),
    ('A.PNG', 'a.png'),
    ('./train/../a.png', 'a.png'),
    ('../set/a.png', None),
    ('/etc/a.png', None),
    ('c.png', None),
    ('x' * 5000, None),
  ],
)
def test_files_by_the_names_that_labels_give(tmp_path, name, found):
  touch(tmp_path, 'images/a.png', 'images/tile_0.5.png', 'images/train/b.png', 'set/a.png')
  touch(tmp_path, 'images/back\\sl.png')
  listing = files.Listing(tmp_path / 'images', tmp_path, Skipped())
  if found:
    assert listing.find(name, 'here')[0] == found
  else:
    with pytest.raises(BadEntry, match='^here: '):
      listing.find(name, 'here')


def test_a_list_of_names(tmp_path):
  path = tmp_path / 'list.txt'
  path.write_bytes('\ufeffharbour 1\n\nc.png\nx/d\ngone\n'.encode())
  skipped = Skipped()
  names = texts.Names(path, texts.lines(path, skipped))
  assert [names(id) for id in ('harbour 1', 'harbour', 'c', 'x/d', 'y/d', 'd', 'z/c')] == [
    True, False, True, True, False, True, True
  ]  # fmt: skip
  names.finish(skipped)
  assert skipped.places == {'name in a list without an image': [f'{path}: gone']}


@pytest.mark.parametrize(
  'line, taken',
  [
    ('a.jpg', ['a.jpg']),
    ('a.JPG', ['a.jpg']),
    ('a', ['a.jpg', 'a.png']),
    ('b.png', ['b.png~2']),
    ('B.png', ['B.png']),
    ('images/site/c.png', ['site/c']),
    ('JPEGImages\\d.tif', ['d']),
    ('/abs/olute/site/c', ['site/c']),
    ('other/c.png', []),
    ('xsite/c.png', []),
    ('sl', ['back\\sl']),
    ('back\\sl.png', ['back\\sl']),
  ],
)
def test_a_line_of_a_list_takes_the_images_that_it_names(tmp_path, line, taken):
  touch(tmp_path, 'images/a.jpg', 'images/a.png', 'images/b.png', 'images/B.png')
  touch(tmp_path, 'images/site/c.png', 'images/d.png', 'images/back\\sl.png')
  listed = texts.Names(tmp_path / 'list.txt', [line])
  assert [id for id in ids(tmp_path / 'images') if listed(id)] == taken


@pytest.mark.parametrize(
  'data, encoding, text',
  [
    ('船'.encode('utf-16'), 'utf-8', '船'),
    ('\ufeff船'.encode(), 'gbk', '船'),
    ('船'.encode('gbk'), 'gbk', '船'),
    ('船'.encode('gbk'), 'utf-8', None),
    (b'a', 'no such', None),
    (b'a', 'undefined', None),
  ],
)
def test_texts_in_any_encoding(tmp_path, data, encoding, text):
  (tmp_path / 'a.txt').write_bytes(data)
  read = lambda: texts.read(tmp_path / 'a.txt', Skipped(encoding=encoding))
  if text:
    assert read() == text
  else:
    with pytest.raises(BadEntry, match=r'a\.txt: .*encoding'):
      read()


@pytest.mark.parametrize('text', ['{', '[' * 100_000, '9' * 5000])
def test_what_is_no_json_is_told_by_its_name(tmp_path, text):
  (tmp_path / 'a.json').write_text(text)
  with pytest.raises(BadEntry, match=r'a\.json: not json'):
    texts.json_of(tmp_path / 'a.json', Skipped())


def test_results_of_predict_mirror_the_tree(tmp_path, monkeypatch):
  touch(tmp_path, 'x/scene.png', 'y/scene.png', 'y/scene_1.png', 'y/a.png', 'y/a.jpg')
  touch(tmp_path, 'y/out_detections.png', 'y/out_detections.json')
  names = lambda *paths: [name for _, name in places.of_images([tmp_path / p for p in paths])]
  assert names('x', 'y') == ['x/scene', 'y/a.jpg', 'y/a.png', 'y/scene', 'y/scene_1']
  assert names('y/a.png', 'y/scene.png', 'y/a.png') == ['a', 'scene']
  assert names('x') == ['scene']
  monkeypatch.chdir(tmp_path / 'x')
  found = places.of_images(['../y/scene.png', 'scene.png', '../x', '.'])
  assert [name for _, name in found] == ['y/scene', 'x/scene']
