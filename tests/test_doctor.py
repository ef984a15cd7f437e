"""What `sm3det doctor` says of a data set, and the quarantine that `prepare` and loaders honour."""

import dataclasses
import hashlib
import json
import pickle
import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import boxes as box_lib
from data_pipelines import quarantine
from data_pipelines.builders import scan
from data_pipelines.errors import UserError
from data_pipelines.prepare import prepare
from data_pipelines.raw import Collected
from data_pipelines.readers import Annotation, Skipped
from data_pipelines.source import Source
from sm3det_jax import cli, config
from sm3det_jax.analysis.doctor import duplicates, findings, overlaps, pixels, reach, reading
from sm3det_jax.analysis.doctor import examine as examine_lib
from sm3det_jax.metrics import polygon


def texture(seed, height=96, width=128):
  """A picture that looks like no other one."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(0, 255, (height // 8, width // 8)).astype(np.float32)
  return cv2.resize(coarse, (width, height)).astype(np.uint8)


def write_png(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), image)
  return path


def annotation(tmp_path, id, image, boxes, names=None, polygons=None, difficult=None):
  boxes = np.array(boxes, np.float32).reshape(-1, 5)
  return Annotation(
    id=id,
    image=write_png(tmp_path / f'{id}.png', image),
    names=tuple(names or ['ship'] * len(boxes)),
    boxes=boxes,
    polygons=box_lib.to_polygon(boxes).astype(np.float32) if polygons is None else polygons,
    difficult=np.zeros(len(boxes), np.int8) if difficult is None else np.array(difficult, np.int8),
    labels=tmp_path / f'{id}.txt',
  )


def of(annotations, classes=('ship', 'plane'), box='obb', ignore=()):
  label = scan.labeller(classes, ignore)
  return reading.of_sources(Collected('made_up', box, classes, label, annotations, Skipped()))


def places(d):
  """{kind: [(split, image, number of the object)]}."""
  return {
    f.kind.name: [
      (d.images[r.image].split, d.images[r.image].id, int(d.objects['row'][r.object]))
      if r.object >= 0
      else (d.images[r.image].split, d.images[r.image].id)
      if r.image >= 0
      else r.text
      for r in f.rows
    ]
    for f in findings.find(d)
  }


GOOD = [[30 + 4 * k, 40 + 3 * k, 24, 10, 0.1 * k] for k in range(5)]  # they touch, none too much


def good(tmp_path, split, count=3, seed=0):
  return [
    annotation(tmp_path, f'{split}_{k}', texture(seed + k), [GOOD[k], [90, 60, 20, 12, 0.4]] * 1)
    for k in range(count)
  ]


# findings


def test_a_good_set_has_nothing_but_few_objects(tmp_path):
  d = of({'train': good(tmp_path, 'train', 5), 'test': good(tmp_path, 'test', seed=50)}, ('ship',))
  assert places(d) == {}
  assert d.splits == ['test', 'train'] and d.counts().tolist() == [2] * 8


def test_the_copy_that_is_left_out_is_not_of_the_test_split(tmp_path):
  splits = ('train', 'extra', 'val', 'test')
  d = of({s: [annotation(tmp_path, s, texture(0), [GOOD[0]])] for s in splits}, ('ship',))
  assert d.splits == ['test', 'val', 'extra', 'train']
  assert [place[1] for place in places(d)['split_copies']] == ['val', 'extra', 'train']


def test_faults_of_objects_are_found_where_they_are(tmp_path):
  boxes = [
    [64, 48, 24, 10, 0.2],
    [20, 20, 1.2, 9, 0.0],  # thin
    [300, 48, 24, 10, 0.2],  # outside
    [129, 48, 24, 10, 0.0],  # half and a pixel outside
    [np.nan, 48, 24, 10, 0.2],
    [64, 49, 24, 10, 0.2],  # upon the first, another class
    [20, 70, 24, 10, 0.2],
    [20, 70.5, 24, 10, 0.2],  # upon the one before
    [64, 48, 127, 95, 0.0],  # all
    [64, 80, 60, 2.1, 0.0],  # long
    [100, 20, 24, 10, 0.2],
    [100, 20, 24, 10, 0.2],  # upon the one before, but difficult
  ]  # fmt: skip
  names = ['ship'] * len(boxes)
  names[5], names[10] = 'plane', 'shipp'
  polygons = box_lib.to_polygon(np.array(boxes)).astype(np.float32)
  polygons[6] = polygons[6][[0, 1, 2, 3, 6, 7, 4, 5]]  # corners out of order
  bad = annotation(tmp_path, 'bad', texture(9), boxes, names, polygons, [0] * 11 + [1])
  found = places(of({'train': [bad, *good(tmp_path, 'train')]}))
  assert found.pop('rare') == ['plane: 1 objects in train']
  assert found == {
    'unknown_class': [('train', 'bad', 10)],
    'thin': [('train', 'bad', 1)],
    'outside': [('train', 'bad', 2)],
    'mostly_outside': [('train', 'bad', 3)],
    'not_finite': [('train', 'bad', 4)],
    'two_classes': [('train', 'bad', 0)],
    'twice': [('train', 'bad', 6)],
    'crossing': [('train', 'bad', 6)],
    'whole_image': [('train', 'bad', 8)],
    'elongated': [('train', 'bad', 9)],
  }


def test_faults_of_images_are_found(tmp_path):
  test = good(tmp_path, 'test')
  train = good(tmp_path, 'train', 5, seed=50)
  first = cv2.imread(str(test[0].image), 0)
  half = cv2.resize(first, (64, 48))
  noisy = np.clip(first + np.random.default_rng(0).normal(0, 25, first.shape), 0, 255)
  train += [
    annotation(tmp_path, 'copy', first, [GOOD[0]]),
    annotation(tmp_path, 'small', half, [GOOD[0]]),
    annotation(tmp_path, 'noisy', noisy.astype(np.uint8), [GOOD[0]]),
    annotation(tmp_path, 'flat', np.full((96, 128), 7, np.uint8), [GOOD[0]]),
    annotation(tmp_path, 'dark', texture(70) // 20, [GOOD[0]]),
    annotation(tmp_path, 'half', texture(71) * (np.arange(128) < 50), [GOOD[0]]),
    annotation(tmp_path, 'deep', texture(72).astype(np.uint16), [GOOD[0]]),
    annotation(tmp_path, 'color', np.dstack([texture(73)] * 3), [GOOD[0]]),
    annotation(tmp_path, 'broken', texture(74), [GOOD[0]]),
    annotation(tmp_path, 'empty', texture(75), []),
    annotation(tmp_path, 'P1__1__0___0', texture(76), [GOOD[0]]),
  ]
  test.append(annotation(tmp_path, 'P1__1__0___512', texture(77), [GOOD[0]]))
  broken = tmp_path / 'broken.png'
  broken.write_bytes(broken.read_bytes()[:900])
  d = of({'train': train, 'test': test}, ('ship',))
  found = places(d)
  assert found == {
    'unreadable': [('train', 'broken')],
    'one_value': [('train', 'flat')],
    'split_copies': [('train', 'copy'), ('train', 'small')],
    'split_twins': [('train', 'noisy')],
    'twins': found['twins'],
    'split_scenes': [('train', 'P1__1__0___0')],
    'types': [('train', 'deep')],
    'bands': [('train', 'color')],
    'dark_range': [('train', 'dark')],
    'no_data': [('train', 'half')],
    'empty': [('train', 'empty')],
  }
  assert set(found['twins']) == {('train', 'small'), ('train', 'noisy')}
  out = findings.images_to_leave_out(findings.find(d))
  clear = {d.images[k].id for k, (is_clear, _) in out.items() if is_clear}
  assert clear == {'broken', 'flat', 'copy', 'small'}
  assert {d.images[k].id for k in out} - clear == {'noisy', 'P1__1__0___0', 'deep', 'dark', 'half'}


def test_what_prepare_leaves_out_or_mends_is_said(tmp_path):
  test = good(tmp_path, 'test')
  declared = dataclasses.replace(test[0], declared=(128, 96))
  holes = texture(80).astype(np.float32)
  holes[:60] = np.nan
  np.save(tmp_path / 'holes.npy', holes)
  holes = dataclasses.replace(test[1], image=tmp_path / 'holes.npy')
  ignored = annotation(tmp_path, 'ignored', texture(81), [GOOD[0], [64, 48, 127, 95, 0]])
  ignored = dataclasses.replace(ignored, extra={'ignored': np.array([False, True])})
  d = of({'test': [declared, holes, ignored, test[2]]}, ('ship',))
  assert places(d) == {
    'misfit': [('test', 'test_0')],
    'types': [('test', 'test_1')],
    'no_data': [('test', 'test_1')],
  }
  assert d.counts().tolist() == [2, 2, 1, 2]
  report = examine_lib.examine(d, tmp_path / 'look')
  skipped = report.summary['skipped']
  (missing,) = (s['count'] for reason, s in skipped.items() if 'without data' in reason)
  assert missing == 60 * 128
  (sizes,) = (s['places'] for reason, s in skipped.items() if 'size differs' in reason)
  assert 'declared 96 x 128, the image is 128 x 96' in sizes[0]
  assert sizes[0] in (tmp_path / 'look/report.html').read_text()


def test_faults_of_classes(tmp_path):
  flat = [[12 * k + 8, 20 * (k % 4) + 12, 10, 6, 0 if k % 2 else -np.pi / 2] for k in range(10)]
  names = ['ship', 'Ships', 'tank', 'ship', 'ship'] * 2
  train = [annotation(tmp_path, f'a{k}', texture(k), flat[:8], names[:8]) for k in range(3)]
  test = [annotation(tmp_path, 'b', texture(9), flat, [*names[:9], 'plane'])]
  found = places(of({'train': train, 'test': test}, ('ship', 'Ships', 'tank', 'plane')))
  assert found.pop('untaught') == ['plane: 1 objects in test, none in train']
  assert found.pop('flat_angles')[0].startswith('all 34 boxes stand upright')
  assert found.pop('like_names')[0].startswith('ship, Ships: one class? --aliases=Ships=ship')
  assert [text.split(':')[0] for text in found.pop('rare')] == ['plane', 'Ships', 'tank']
  assert not found


def test_a_size_unlike_its_class(tmp_path):
  boxes = [[10 + 20 * (k % 6), 10 + 16 * (k // 6), 8, 4, 0.3] for k in range(24)]
  a = annotation(tmp_path, 'a', texture(0), [*boxes, [64, 48, 90, 60, 0.1]])
  assert places(of({'train': [a]}, ('ship',)))['odd_size'] == [('train', 'a', 24)]


# parts


def _undoes(name, other):
  x = np.arange(9).reshape(3, 3)
  return (pixels.ORIENTATIONS[name](pixels.ORIENTATIONS[other](x)) == x).all()


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
@settings(max_examples=20, deadline=None)
def test_closest_is_what_all_pairs_say(seed, count):
  rng = np.random.default_rng(seed)
  # kin of the first few, in any orientation: an image has that one's hash, the others are chance
  hashes = rng.integers(0, 2**63, (count, 8, 2)).astype(np.uint64)
  like = rng.integers(0, max(1, count // 3), count)
  turn = rng.integers(0, 8, count)
  flips = np.zeros((count, 128), bool)
  for row in flips:
    row[rng.choice(128, rng.integers(0, 7), replace=False)] = True
  mine = hashes[like, 0] ^ np.packbits(flips, axis=1).view(np.uint64)
  hashes[np.arange(count), turn] = mine
  thumbnails = rng.normal(size=(count, 16))[like] + 0.05 * rng.normal(size=(count, 16))
  thumbnails -= thumbnails.mean(1, keepdims=True)
  thumbnails = (thumbnails / np.linalg.norm(thumbnails, axis=1, keepdims=True)).astype(np.float32)
  groups = rng.integers(0, 2, count)
  for k, name in enumerate(pixels.ORIENTATIONS):  # `turn` brings it back
    back = next(n for n in pixels.ORIENTATIONS if _undoes(n, name))
    thumbnails[turn == k] = pixels.turned(thumbnails[turn == k], back)
  turned = np.stack([pixels.turned(thumbnails, t) for t in pixels.ORIENTATIONS], 1)
  bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :, :1]).sum(-1)  # [j, i, turn of j]
  alike = np.where(bits <= duplicates.DIFFERENT, np.einsum('jtk,ik->jit', turned, thumbnails), -1)
  alike = alike.max(2)
  near = (alike > -1) & np.tri(count, k=-1, dtype=bool)
  for foreign, twin in enumerate(duplicates.closest(hashes, thumbnails, groups)):
    allowed = near & ((groups[:, None] != groups) == foreign)
    score = np.where(allowed, alike, -1)
    there = score.max(1) > duplicates.ALIKE + 1e-6
    np.testing.assert_array_equal(twin >= 0, there)
    found = score[np.arange(count), twin][there]
    assert (found >= np.minimum(score.max(1)[there], duplicates.COPY) - 1e-6).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from(['hbb', 'obb']))
@settings(max_examples=40, deadline=None)
def test_overlaps_are_what_all_pairs_say(seed, count, kind):
  rng = np.random.default_rng(seed)
  image = np.sort(rng.integers(0, 3, count))
  boxes = rng.uniform([10, 10, 8, 4, -1.5], [40, 40, 30, 8, 1.5], (count, 5))
  if kind == 'hbb':
    boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], 1)
  pairs, ious = overlaps.pairs(boxes.astype(np.float32), image, 0.3)
  quads = box_lib.to_polygon(boxes.astype(np.float32))
  every = polygon.iou_matrix(quads, quads) * (image[:, None] == image) * ~np.tri(count, dtype=bool)
  np.testing.assert_array_equal(pairs, np.argwhere(every >= 0.3))
  np.testing.assert_allclose(ious, every[every >= 0.3])


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'float32', 'int32'])
def test_a_look_at_pixels_of_any_type(dtype):
  image = np.random.default_rng(0).uniform(-90, 90, (40, 50, 5)).clip(-90).astype(dtype)
  image = np.abs(image) if dtype[0] == 'u' else image
  image[:10] = 0
  values = image.astype(np.float64)
  if dtype == 'float32':
    image[10:20, :, 1], values[10:20, :, 1] = np.inf, np.nan
    image[20:30] = values[20:30] = np.nan
  look = pixels.look(image)
  assert (look.height, look.width, look.bands, look.dtype) == (40, 50, 5, dtype)
  assert (look.low, look.high) == (np.nanmin(values), np.nanmax(values))
  np.testing.assert_allclose(look.mean, np.nanmean(values, (0, 1)), rtol=1e-6)
  np.testing.assert_allclose(look.std, np.nanstd(values, (0, 1)), rtol=1e-6)
  some = (np.nan_to_num(values) != 0).any(2).mean()
  assert look.filled == pytest.approx(some) and look.filled < 0.8
  np.testing.assert_allclose(
    [look.thumbnail.sum(), look.thumbnail @ look.thumbnail], [0, 1], atol=1e-5
  )
  other = pixels.look(image[::-1].copy())
  assert look.checksum != other.checksum and (look.hashes[0] != other.hashes[0]).all()


@pytest.mark.parametrize('value', [0, 7, np.nan])
def test_a_look_at_one_value(value):
  look = pixels.look(np.full((5, 3, 2), value, np.float32))
  assert look.low == look.high == np.nan_to_num(value) and not look.thumbnail.any()
  assert look.filled == (value == 7)


@pytest.mark.parametrize(
  'name, turn',
  [
    ('turned by 90 degrees', lambda x: cv2.rotate(x, cv2.ROTATE_90_CLOCKWISE)),
    ('turned by 180 degrees', lambda x: cv2.rotate(x, cv2.ROTATE_180)),
    ('turned by 270 degrees', lambda x: cv2.rotate(x, cv2.ROTATE_90_COUNTERCLOCKWISE)),
    ('mirrored left to right', lambda x: cv2.flip(x, 1)),
    ('mirrored top to bottom', lambda x: cv2.flip(x, 0)),
    ('mirrored along a diagonal', cv2.transpose),
    ('mirrored along the other diagonal', lambda x: cv2.transpose(cv2.rotate(x, cv2.ROTATE_180))),
  ],
)
def test_a_mirrored_or_turned_copy_in_another_split_is_found(tmp_path, name, turn):
  other = annotation(tmp_path, 'other', texture(9), [GOOD[0]])
  d = of({
    'test': [annotation(tmp_path, 'seen', texture(3), [GOOD[0]])],
    'train': [other, annotation(tmp_path, 'leak', turn(texture(3)), [GOOD[0]])],
  })  # fmt: skip
  assert places(d)['split_copies'] == [('train', 'leak')]
  assert 'split_twins' not in places(d) and 'twins' not in places(d)
  (row,) = (r for f in findings.find(d) if f.kind.name == 'split_copies' for r in f.rows)
  assert row.text == f'{name}, copies seen of split test'


@pytest.mark.parametrize('quality', [40, 90])
def test_a_picture_compressed_anew_is_a_copy(quality):
  image = texture(3, 200, 300)[..., None]
  data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
  a, b = pixels.look(image), pixels.look(cv2.imdecode(data, 0)[..., None])
  assert np.bitwise_count(a.hashes[0] ^ b.hashes[0]).sum() <= duplicates.DIFFERENT
  assert a.thumbnail @ b.thumbnail > duplicates.COPY


def test_reach_says_which_class_is_too_small(tmp_path):
  c = config.default()
  for name in ('rgb', 'ifr'):
    c.tasks[name].size = (96, 128)
  c.tasks.rgb.dataset = 'made_up'
  boxes = [[64, 48, 40, 28, 0.0], [20, 20, 9, 7, 0.3], [100, 80, 8, 8, 0.0]]
  d = of({'train': [annotation(tmp_path, 'a', texture(0), boxes, ['ship', 'plane', 'plane'])]})
  ((task, found),) = reach.shares(d, c).items()
  assert task == 'rgb' and found['classes'] == {'ship': (1, 1), 'plane': (0, 2)}
  assert found['sides'] == {'4 – 8': (0, 1), '8 – 16': (0, 1), '32 – 64': (1, 1)}
  assert found['share'] == 1 / 3 and 'RPN' in found['what']
  c.tasks.rgb.train.tile.update(size=48, overlap=0)  # twice as large in the task
  c.tasks.rgb.size = (96, 96)
  assert list(reach.shares(d, c)['rgb']['sides']) == ['8 – 16', '16 – 32']
  del c.tasks['rgb'], c.tasks['ifr']
  with pytest.raises(UserError, match="boxes of kind 'obb'"):
    reach.shares(d, c)


# quarantine

IDS = st.text('ab/é #\\\t\n\r\x0b\u2028\udcff', min_size=1)  # the last: a byte that is not UTF-8


@given(st.lists(st.tuples(st.sampled_from(['train', 'test']), IDS, IDS, st.booleans())))
@settings(max_examples=80, deadline=None)
def test_a_list_reads_as_it_was_written(tmp_path_factory, lines):
  path = tmp_path_factory.getbasetemp() / 'quarantine.txt'
  quarantine.write(path, [quarantine.Line(*line) for line in lines])
  wanted = {}
  for split, id, _, out in lines:
    if out:
      wanted.setdefault(split, set()).add(id)
  assert quarantine.read(path) == wanted


def test_lists_by_hand(tmp_path):
  path = tmp_path / 'list.txt'
  path.write_bytes('\ufeff# why\r\n\r\ntrain\ta/b c\r\ntrain\tü\tblurred\n'.encode())
  assert quarantine.read(path) == {'train': {'a/b c', 'ü'}}
  path.write_text('train\ta\ntrain b\n')
  with pytest.raises(UserError, match=r"list.txt:2: expected a split, a TAB .* not 'train b'"):
    quarantine.read(path)
  with pytest.raises(FileNotFoundError):
    quarantine.read(tmp_path / 'none.txt')


def write_raw(folder, size=(96, 128)):
  """DOTA's format; the third training image is a copy of the first test image."""
  for split, seeds in {'train': (0, 1, 9, 3), 'test': (9, 5)}.items():
    for k, seed in enumerate(seeds):
      write_png(folder / split / f'images/{split}{k}.png', texture(seed, *size))
      (folder / split / 'labelTxt').mkdir(exist_ok=True)
      text = ''.join(
        f'{x} 20 {x + 20} 24 {x + 19} 34 {x - 1} 30 ship 0\n' for x in range(10, 20 + 20 * k, 30)
      )
      (folder / split / f'labelTxt/{split}{k}.txt').write_text(text)
  return folder


def tree(folder):
  """{path: hash} of the files below a folder."""
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run(*arguments):
  return cli.main(list(map(str, arguments)))


def test_prepare_leaves_out_what_is_in_quarantine(tmp_path):
  raw = write_raw(tmp_path / 'raw')
  (tmp_path / 'list.txt').write_text('train\ttrain2\ntest\ttrain0\n')
  report = prepare(
    'dota_txt', raw, tmp_path / 'data', quarantine=quarantine.read(tmp_path / 'list.txt')
  )
  assert report.images == {'train': 3, 'test': 2}
  assert report.skipped == {
    'image in quarantine': 1,
    'line of the quarantine that names no image': 1,
  }


def test_a_loader_leaves_out_what_is_in_quarantine(tmp_path, caplog):
  prepare('dota_txt', write_raw(tmp_path / 'raw', (1100, 300)), tmp_path / 'data')  # in blocks
  tile = dict(size=550, overlap=0)
  whole, tiled = (Source(tmp_path / 'data', 'dota_txt', 'train', tile=t) for t in (None, tile))
  list_ = tmp_path / 'data/dota_txt/quarantine.txt'
  list_.write_text('train\ttrain1\ntest\ttest0\ntrain\tnobody\n')
  source = pickle.loads(pickle.dumps(Source(tmp_path / 'data', 'dota_txt', 'train')))
  assert "1 lines name no image of split 'train', such as 'nobody'" in caplog.text
  kept = [0, 2, 3]
  assert [s['id'] for s in source.truth()] == [f'train{k}' for k in kept]
  assert source.num_objects.tolist() == whole.num_objects[kept].tolist()
  for mine, before in zip(source, (whole[k] for k in kept), strict=True):
    assert mine['id'] == before['id']
    np.testing.assert_array_equal(mine['image'], before['image'])
    np.testing.assert_array_equal(mine['objects']['boxes'], before['objects']['boxes'])
  again = Source(tmp_path / 'data', 'dota_txt', 'train', tile=tile)
  assert len(tiled) == 8 and len(again) == 6 and again[2]['id'] == 'train2'
  assert source.fingerprint != whole.fingerprint
  list_.write_text('train\ttrain2\n')
  other = Source(tmp_path / 'data', 'dota_txt', 'train').fingerprint
  assert other not in (whole.fingerprint, source.fingerprint)
  list_.write_text('test\ttest0\n')
  assert Source(tmp_path / 'data', 'dota_txt', 'train').fingerprint == whole.fingerprint
  list_.write_text('test\ttest0\ntest\ttest1\n')
  with pytest.raises(UserError, match="quarantine.txt leaves no image of split 'test'"):
    Source(tmp_path / 'data', 'dota_txt', 'test')


# the verb


def test_the_verb_on_a_raw_and_a_prepared_set(tmp_path, capsys):
  raw, data, out = write_raw(tmp_path / 'raw'), tmp_path / 'data', tmp_path / 'look'
  before = tree(raw)
  assert run('doctor', '--dataset=dota_txt', f'--source={raw}', f'--out={out}') == 0
  text = capsys.readouterr().out
  assert re.search('error: copies of an image in two splits +1', text)
  assert str(out / 'report.html') in text
  assert tree(raw) == before
  assert {p.name for p in out.iterdir()} == {'report.html', 'report.json', 'quarantine.txt'}
  found = json.loads((out / 'report.json').read_text())
  assert (
    found['splits']['train']['images'] == 4 and found['classes']['ship']['objects']['test'] == 2
  )
  (copies,) = (f for f in found['findings'] if f['kind'] == 'split_copies')
  place = dict(
    split='train', image='train2', object=-1, text='has the pixels of test0 of split test'
  )
  assert copies['rows'] == [place]
  page = (out / 'report.html').read_text()
  assert page.count('<img src="data:image/jpeg;base64,') >= 1
  assert not re.search(r'(src|href)="(?!data:|#)', page)  # needs nothing else

  assert run('prepare', '--dataset=dota_txt', f'--source={raw}', f'--data_root={data}') == 0
  before = tree(data)
  where = f'--data_root={data}'
  assert run('doctor', 'dota_txt', where, f'--out={out}', '--strict') == 1
  same = json.loads((out / 'report.json').read_text())
  assert same['findings'] == found['findings'] and same['classes'] == found['classes']
  assert tree(data) == before
  list_ = f'--quarantine={out}/quarantine.txt'
  assert run('prepare', '--dataset=dota_txt', f'--source={raw}', where, list_) == 0
  assert run('doctor', 'dota_txt', where, f'--out={out}', '--strict') == 0
  assert json.loads((out / 'report.json').read_text())['splits']['train']['images'] == 3


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--out=OUT'], 'which data set?'),
    (['ships', '--out=OUT'], 'which data set?'),
    (['ships', '--data_root=RAW', '--dataset=coco', '--out=OUT'], 'which data set?'),
    (['--dataset=dota_txt', '--source=RAW', '--out=RAW/look'], 'name another folder'),
    (['x', '--data_root=RAW', '--out=OUT', '--splits=train=a:b'], '--splits: a prepared data set'),
    (['x', '--data_root=RAW', '--out=OUT', '--quarantine=RAW'], '--quarantine: a prepared'),
    (['--dataset=soi_det', '--source=RAW', '--out=OUT'], 'name one of soi_det_sar'),
    (['ships', '--data_root=RAW', '--out=OUT'], "no prepared data set 'ships'"),
    (['--dataset=dota_txt', '--source=RAW', '--out=OUT', '--config=nobody'], 'nobody'),
    (['--dataset=dota_txt', '--source=RAW', '--out=OUT', '--quarantine=RAW'], 'RAW'),
  ],
)
def test_slips_are_one_line(tmp_path, capsys, arguments, message):
  raw = write_raw(tmp_path / 'RAW')
  places = {'RAW': str(raw), 'OUT': str(tmp_path / 'OUT')}
  arguments = [re.sub('RAW|OUT', lambda m: places[m[0]], a) for a in arguments]
  assert run('doctor', *arguments) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('sm3det doctor: ') and message in error
  assert not (tmp_path / 'OUT').exists()


def test_a_set_of_images_alone(tmp_path):
  raw = write_raw(tmp_path / 'raw')
  assert (
    run('doctor', '--dataset=dota_txt', f'--source={raw}', '--box=image', f'--out={tmp_path}/look')
    == 0
  )
  found = json.loads((tmp_path / 'look/report.json').read_text())
  assert found['box'] == 'image' and found['classes'] == {}
  assert [f['kind'] for f in found['findings']] == ['split_copies']


def test_pictures_of_all_kinds_of_faults(tmp_path):
  boxes = [[300, 48, 24, 10, 0.2], [9000, 48, 24, 10, 0.2], [np.nan, 1, 2, 3, 0], [9, 9, 0, 0, 0]]
  a = annotation(tmp_path, 'a', texture(0), boxes)
  b = annotation(tmp_path, 'b', np.full((96, 128), 7, np.uint8), [])
  d = of({'train': [a, b]})
  report = examine_lib.examine(d, tmp_path / 'look')
  page = (tmp_path / 'look/report.html').read_text()
  assert page.count('<img ') == 6 and report.wrong  # four boxes, one value, without objects
