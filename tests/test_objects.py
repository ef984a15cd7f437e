"""What travels per object stays with its object; what a task of images has instead."""

import json

import cv2
import numpy as np
import pytest

from data_pipelines import batch as batch_lib
from data_pipelines import boxes as box_lib
from data_pipelines import mixture, objects, prepare, transforms
from data_pipelines.builders import formats
from data_pipelines.readers import Annotation
from data_pipelines.source import Source
from data_pipelines.task import Task
from sm3det_jax.config import ConfigDict, check, complete, copied, default, task

KINDS = ('hbb', 'obb')
SIZE, OBJECTS, DEPTH = 240, 14, 3  # px; objects of an image; numbers of an embedding


def all_boxes(kind, image):
  """Boxes of an image, some of them small, thin or near its edge; no two are alike."""
  rng = np.random.default_rng(image)
  middle, sides = rng.uniform(4, SIZE - 4, (OBJECTS, 2)), rng.uniform(3, 50, (OBJECTS, 2))
  if kind == 'hbb':
    return np.float32(np.concatenate([middle - sides / 2, middle + sides / 2], 1))
  angles = rng.uniform(-1.5, 1.5, (OBJECTS, 1))
  return box_lib.le90(np.concatenate([middle, sides, angles], 1))


def embedding(tags):
  """What an object has beside its box: its own number in the data set, and functions of it."""
  tags = np.asarray(tags, np.float32)[:, None]
  return np.concatenate([tags, tags**2, -tags], 1)


def reader(kind):
  """A format of three images whose objects have embeddings; every second is difficult."""

  def read(source, split, *, labels, images, skipped):
    for i in range(3):
      boxes, tags = all_boxes(kind, i), np.arange(OBJECTS) + 100 * i
      names = tuple('ab'[tag % 2] if tag % 5 else 'junk' for tag in tags)
      yield Annotation(
        id=str(i),
        image=source / images / f'{i}.png',
        names=names,
        boxes=boxes,
        polygons=np.float32(box_lib.to_polygon(boxes)),
        difficult=np.int8(tags % 3),
        extra={'embedding': embedding(tags), 'tag': np.int32(tags)},
      )

  return read


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Data sets `hbb` and `obb` with embeddings, and `image` without objects."""
  root = tmp_path_factory.mktemp('objects')
  (root / 'raw/images').mkdir(parents=True)
  for i in range(3):
    image = np.random.default_rng(i).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    cv2.imwrite(str(root / f'raw/images/{i}.png'), image)
  with pytest.MonkeyPatch.context() as patch:
    for kind in KINDS:
      row = formats.Format(reader(kind), kind, (('.', 'images'),))
      patch.setitem(formats.FORMATS, kind, row)
    for box in (*KINDS, 'image'):
      made = prepare.prepare(
        'hbb' if box == 'image' else box, root / 'raw', root, name=box, box=box, ignore=('junk',)
      )
      assert sum(map(sum, made.objects.values())) == 0 or box != 'image'
      assert f'{box} ({box})' in made.table()
  return root


def assert_aligned(found, kind, offset=(0, 0)):
  """Objects of an untransformed window are those of the data set that their tags name."""
  for i, tag in enumerate(found['tag']):
    image, k = divmod(int(tag), 100)
    box = objects.moved({'boxes': found['boxes'][[i]], 'polygons': np.zeros((1, 8))}, *offset)
    np.testing.assert_allclose(box['boxes'][0], all_boxes(kind, image)[k], atol=1e-3)
    assert found['labels'][i] == tag % 2 and found['difficult'][i] == bool(tag % 3) and tag % 5
  np.testing.assert_array_equal(found['embedding'], embedding(found['tag']))
  assert len({len(values) for values in found.values()}) == 1


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_prepared_and_cut_stays_with_its_object(root, kind):
  whole = Source(root, kind, 'train')
  assert set(whole.extra) == {'embedding', 'tag'}
  assert whole.extra['embedding'] == batch_lib.Array((DEPTH,), np.float32)
  assert 0 < whole.num_objects.sum() < 3 * OBJECTS  # the junk and the smallest are left out
  for truth in whole.truth():
    assert_aligned({k: v for k, v in truth.items() if k not in ('id', 'full_size')}, kind)
  tiles = Source(root, kind, 'train', dict(size=100, overlap=40, keep=0.6))
  assert len(set(tiles.num_objects.tolist())) > 2
  for i in range(len(tiles)):
    sample = tiles[i]
    assert_aligned(sample['objects'], kind, sample['offset'])


def alone(sample, row):
  return sample | {'objects': objects.take(sample['objects'], [row])}


@pytest.mark.parametrize('kind', KINDS)
def test_every_transform_keeps_objects_together(root, kind):
  """What becomes of an object among others is what becomes of it alone."""
  c = task(kind, kind, ('a', 'b'), size=(160, 200))
  c.train.update(flip=(0.3, 0.3, 0.3), min_side=6.0)
  sample, kept = Source(root, kind, 'train')[1], []
  for seed in range(20):
    found = transforms.train_transform(sample, c, np.random.default_rng(seed))['objects']
    assert found.keys() == sample['objects'].keys() - {'polygons'}
    np.testing.assert_array_equal(found['embedding'], embedding(found['tag']))
    parts = []
    for row in range(objects.count(sample['objects'])):
      rng = np.random.default_rng(seed)
      parts.append(transforms.train_transform(alone(sample, row), c, rng)['objects'])
    for name, values in found.items():
      np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))
    kept.append(objects.count(found))
  assert max(kept) < objects.count(sample['objects']) and min(kept) > 2


def config_of(root, **kinds):
  """A config of tasks {name: kind}, windows cut and few objects a batch."""
  c = default()
  c.tasks = ConfigDict(sort_keys=False)
  for name, kind in kinds.items():
    c.tasks[name] = task(kind, kind, ('a', 'b') if kind != 'image' else (), size=(96, 96))
    for part in (c.tasks[name].train, c.tasks[name].test):
      part.split, part.tile = 'train', dict(size=120, overlap=40, keep=0.5)
    if kind != 'image':
      c.tasks[name].max_objects = 4
  c.batch_size, c.workers, c.data_root = 2 * len(kinds), '0', str(root)
  return c


def take(c, n):
  batches = mixture.train_batches(c)
  out = [next(batches) for _ in range(n)]
  batches.close()
  return out


@pytest.mark.parametrize('kind', KINDS)
def test_batches_have_it_beside_the_boxes(root, kind):
  seen, cut = set(), 0
  for batch in take(config_of(root, some=kind), 12):
    some = batch['some']
    table = batch_lib.of_objects(
      config_of(root, some=kind).tasks.some, Source(root, kind, 'train').extra
    )
    assert {k: (v.shape[1:], v.dtype) for k, v in some.items() if k in table} == table
    valid = some['valid']
    np.testing.assert_array_equal(some['embedding'][valid], embedding(some['tag'][valid]))
    np.testing.assert_array_equal(some['labels'][valid], some['tag'][valid] % 2)
    assert not some['embedding'][~valid].any() and not some['tag'][~valid].any()
    cut += valid.all(1).sum()
    seen |= set(some['tag'][valid].tolist())
  assert cut and len(seen) > 15
  (batch, *_) = mixture.eval_batches(config_of(root, some=kind), 'some', batch_size=4)
  np.testing.assert_array_equal(
    batch['embedding'][batch['valid']], embedding(batch['tag'][batch['valid']])
  )


REGION = [20, 30, 220, 230]
SHIPS = [[30, 40, 50, 60], [5, 5, 25, 25], [115, 115, 145, 145]]


@pytest.fixture
def regions(root, tmp_path, monkeypatch):
  """Data set `regions` of one image: a large region to ignore, listed before three ships."""

  def read(source, split, *, labels, images, skipped):
    boxes = np.float32([REGION, *SHIPS])
    yield Annotation(
      id='0', image=source / images / '0.png', names=('ship',) * 4, boxes=boxes,
      polygons=np.float32(box_lib.to_polygon(boxes)), difficult=np.int8([1, 0, 0, 0]),
      extra={'ignored': np.asarray([True, False, False, False])},
    )  # fmt: skip

  monkeypatch.setitem(formats.FORMATS, 'hbb', formats.Format(read, 'hbb', (('.', 'images'),)))
  prepare.prepare('hbb', root / 'raw', tmp_path, name='regions')
  c = default()
  c.tasks = ConfigDict({'some': task('hbb', 'regions', ('ship',), size=(SIZE, SIZE))})
  c.tasks.some.max_objects, c.data_root = 3, str(tmp_path)
  return c


def test_a_window_has_every_region_to_ignore_that_touches_it(regions):
  open_ = lambda tile: Source(regions.data_root, 'regions', 'train', tile)
  assert open_(None).extra == {'ignored': batch_lib.Array((), np.bool)}
  assert open_(None).num_objects.tolist() == [3]
  windows = open_(dict(size=120, overlap=0, keep=0.6))
  assert windows.num_objects.tolist() == [2, 0, 0, 1]  # 0.69 of the last ship
  for i, sample in enumerate(windows):
    assert sample['objects']['ignored'].sum() == 1
    assert sample['objects']['labels'].shape == (1 + windows.num_objects[i],)
  assert open_(dict(size=20, overlap=0, keep=0.6))[0]['objects']['ignored'].tolist() == []


def test_regions_to_ignore_are_no_objects_of_a_batch(regions):
  """They come last, so that no object has to go for them."""
  data = Task(regions, 'some', 'test', 'train')
  batch, lost = data.stack([data.sample(0)], 2)
  assert lost == 1 and batch['valid'].tolist() == [[True] * 3, [False] * 3]
  np.testing.assert_array_equal(batch['boxes'][0], SHIPS)
  assert batch['ignored'].dtype == bool and not batch['ignored'].any()
  regions.tasks.some.max_objects = 6
  batch, lost = data.stack([data.sample(0)], 1)
  assert lost == 0 and batch['valid'][0].tolist() == [True] * 3 + [False] * 3
  assert batch['ignored'][0].tolist() == [False] * 3 + [True] + [False] * 2
  np.testing.assert_array_equal(batch['boxes'][0, 3:], [REGION, [0] * 4, [0] * 4])


def test_what_has_regions_alone_is_no_image_with_objects(regions, monkeypatch):
  regions.tasks.some.train.tile = dict(size=120, overlap=0, keep=0.6)
  data = Task(regions, 'some', 'train')
  assert data.pool.tolist() == [0, 3]
  nothing = lambda sample, *args: sample | {'objects': objects.take(sample['objects'], [0])}
  monkeypatch.setattr(transforms, 'train_transform', nothing)
  assert data.draw(0)[1] == 9  # drawn anew as long as may be


def rewritten(root, folder, **changes):
  """A copy of data set `obb` whose index has other arrays."""
  (source,) = (root / 'obb').glob('*')
  target = folder / 'obb' / source.name
  target.mkdir(parents=True)
  (target / 'metadata.json').write_text((source / 'metadata.json').read_text())
  index = dict(np.load(source / 'train_index.npz')) | changes
  np.savez(target / 'train_index.npz', **index)
  return folder


def test_an_index_whose_arrays_do_not_fit_is_an_error(root, tmp_path):
  count = int(Source(root, 'obb', 'train').num_objects.sum())
  Source(rewritten(root, tmp_path / 'a', quality=np.ones(count)), 'obb', 'train')
  with pytest.raises(
    ValueError, match=rf"train_index.npz: 'quality' has 3 rows, .*{count} objects"
  ):
    Source(rewritten(root, tmp_path / 'b', quality=np.ones(3)), 'obb', 'train')
  with pytest.raises(ValueError, match="'valid' is an array of batches"):
    Source(rewritten(root, tmp_path / 'c', valid=np.ones(count)), 'obb', 'train')


@pytest.mark.parametrize(
  'extra, message',
  [
    (lambda i: {'quality': np.ones((OBJECTS, 1 + i))}, 'same names, types and shapes'),
    (lambda i: {'quality': np.ones(OBJECTS)} if i else {}, 'same names, types and shapes'),
    (lambda i: {'starts': np.ones(OBJECTS)}, r"\['starts'\] are names of other things"),
  ],
)
def test_images_with_different_arrays_are_an_error(root, tmp_path, monkeypatch, extra, message):
  def read(*args, **kwargs):
    for i, a in enumerate(reader('obb')(*args, **kwargs)):
      yield Annotation(**{**vars(a), 'extra': extra(i)})

  monkeypatch.setitem(formats.FORMATS, 'odd', formats.Format(read, 'obb', (('.', 'images'),)))
  with pytest.raises(ValueError, match=message):
    prepare.prepare('odd', root / 'raw', tmp_path, ignore=('junk',))


# tasks of images


def test_a_task_of_images_has_no_head_and_no_objects():
  c = task('image', 'anything')
  assert not {'head', 'max_objects'} & set(c) and not {'min_side', 'keep_empty'} & set(c.train)
  assert set(batch_lib.arrays(c)) == {'images', 'shapes'}
  config = config_of('', pictures='image')
  assert complete(copied(config)).tasks.to_dict() == config.tasks.to_dict()
  with pytest.raises(ValueError, match="kind='image': config.model='m2det' has no head"):
    check(config)


def test_images_and_boxes_in_one_mixture(root):
  config = config_of(root, boxes='obb', pictures='image', leftover='image')
  config.tasks.leftover.dataset = 'hbb'  # its objects are left out
  for name in ('pictures', 'leftover'):
    config.tasks[name].train.rotate = 1.0  # nothing there that might not turn
  plain = {}
  for name, c in config.tasks.items():
    plain[name] = {k: (a.shape, a.dtype) for k, a in batch_lib.arrays(c).items()}
  for batch in take(config, 4):
    found = {n: {k: (v.shape[1:], v.dtype) for k, v in b.items()} for n, b in batch.items()}
    assert {k: found['boxes'].pop(k)[0] for k in ('embedding', 'tag')} == {
      'embedding': (4, DEPTH), 'tag': (4,),
    }  # fmt: skip
    assert found == plain
    assert all(b['images'].any() for b in batch.values())
  # every window has its turn, those without objects too
  leftover = Task(config, 'leftover', 'train')
  assert len(leftover.pool) == len(leftover.source) > (leftover.source.num_objects > 0).sum()
  assert mixture.fingerprint(config)


def test_evaluation_of_a_task_of_images(root):
  batches = list(mixture.eval_batches(config_of(root, pictures='image'), 'pictures', batch_size=8))
  ids = [name for batch in batches for name in batch['ids']]
  assert ids == ['0'] * 9 + ['1'] * 9 + ['2'] * 9
  truths = [truth for batch in batches for truth in batch['truth']]
  assert truths == [{'id': name} for name in ids]
  assert batches[0].keys() >= {'images', 'shapes', 'scales', 'offsets', 'full_sizes'}
  assert 'boxes' not in batches[0]


def test_a_data_set_without_objects_is_read(root):
  source = Source(root, 'image', 'train')
  assert (len(source), source.box, source.classes, source.extra) == (3, 'image', (), {})
  assert source[0]['objects'] == {} and not source.num_objects.any()
  (folder,) = (root / 'image').glob('*')
  assert set(np.load(folder / 'train_index.npz')) == {'ids', 'sizes', 'starts'}
  assert 'boxes' not in json.loads((folder / 'features.json').read_text()).__str__()
  with pytest.raises(ValueError, match="boxes of kind 'image', not 'obb'"):
    config = config_of(root, some='obb')
    config.tasks.some.dataset = 'image'
    mixture.train_batches(config)
