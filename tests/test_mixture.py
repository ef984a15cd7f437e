"""Mixing tasks: ratio, order, hosts, workers, resumption, bad data."""

import itertools
import json
import logging
import multiprocessing
import os

import cv2
import numpy as np
import pytest

from data_pipelines import mixture, objects, prepare, source, transforms
from data_pipelines import task as task_lib
from sm3det_jax import train
from sm3det_jax.config import ConfigDict, default, label_space, task

SIZES = {'radar': 7, 'colour': 5, 'heat': 11}  # windows of each data set


class Windows:
  """Stands for `Source`: window i is a constant image of value i with `num_objects[i]` objects."""

  def __init__(self, root, dataset, split, tile):
    self.dataset, self.box = dataset, 'hbb' if dataset == 'radar' else 'obb'
    self.classes = {
      'radar': ('tank', 'ship'), 'colour': ('ship', 'plane'), 'heat': ('car',), 'none': (),
    }[dataset]  # fmt: skip
    self.num_objects = (
      np.ones(SIZES.get(dataset, 0), np.int32) + np.arange(SIZES.get(dataset, 0)) % 2
    )
    self.fingerprint, self.extra = f'{dataset} {split} {dict(tile)}', {}

  def __len__(self):
    return len(self.num_objects)

  def __getitem__(self, i):
    i, n = int(i), int(self.num_objects[i])
    box = [4, 4, 12, 10] if self.box == 'hbb' else [8, 8, 8, 6, 0.1]
    return {
      'image': np.full((16, 16, 3), i, np.uint8),
      'objects': {
        'boxes': np.tile(np.float32(box), (n, 1)),
        'labels': np.arange(n, dtype=np.int32) % len(self.classes),
        'difficult': np.zeros(n, bool),
        'polygons': np.tile(np.float32([4, 4, 12, 4, 12, 10, 4, 10]), (n, 1)),
      },
      'id': f'{self.dataset}_{i}',
      'offset': (100 * i, 7),
      'full_size': (2000, 3000),
    }


class NoBackend(Windows):
  """Fails in a worker process in which a JAX backend exists."""

  create = False

  def __getitem__(self, i):
    if multiprocessing.parent_process() is not None:
      if self.create:
        import jax

        jax.devices()
      from jax._src import xla_bridge

      if xla_bridge._backends:
        raise RuntimeError('a worker process made a JAX backend')
    return super().__getitem__(i)


class WithBackend(NoBackend):
  create = True


@pytest.fixture(autouse=True)
def windows(monkeypatch):
  monkeypatch.setattr(task_lib, 'Source', Windows)


def make_config(**changes):
  config = default()
  small = dict(size=(16, 16), max_objects=3, train=dict(rotate=0.0))
  config.tasks = ConfigDict(sort_keys=False)
  config.tasks.sar = task('hbb', 'radar', ('ship', 'car', 'tank'), ratio=2, **small)
  config.tasks.rgb = task('obb', 'colour', ('plane', 'ship'), **small)
  config.tasks.ifr = task('obb', 'heat', ('car',), **small)
  config.update({'batch_size': 16, 'workers': '0', **changes})
  return config


def take(n, config, **where):
  batches = mixture.train_batches(config, **where)
  out = [next(batches) for _ in range(n)]
  batches.close()
  return out


def shown(batches, name):
  """Which windows a task's batches hold, in order."""
  return np.concatenate([b[name]['images'][:, 8, 8, 0] for b in batches]).tolist()


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    for key in a[name]:
      np.testing.assert_array_equal(a[name][key], b[name][key], err_msg=f'{name}/{key}')


def joined(parts):
  return {
    name: {k: np.concatenate([p[name][k] for p in parts]) for k in parts[0][name]}
    for name in parts[0]
  }


def test_every_task_has_its_share_of_a_batch():
  (batch,) = take(1, make_config())
  assert {name: len(t['images']) for name, t in batch.items()} == {'sar': 8, 'rgb': 4, 'ifr': 4}
  assert batch['sar']['boxes'].shape == (8, 3, 4) and batch['ifr']['boxes'].shape == (4, 3, 5)
  assert batch['rgb']['images'].shape == (4, 16, 16, 3)
  assert batch['rgb']['images'].dtype == np.uint8


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_share_the_same_global_batches(hosts):
  config = make_config()
  whole = take(5, config)
  parts = [take(5, config, host=h, hosts=hosts) for h in range(hosts)]
  for i in range(5):
    local = {name: len(t['images']) for name, t in parts[0][i].items()}
    assert local == {'sar': 8 // hosts, 'rgb': 4 // hosts, 'ifr': 4 // hosts}
    assert_equal(joined([p[i] for p in parts]), whole[i])


def test_an_epoch_shows_every_window_once_and_the_next_in_another_order():
  batches = take(11, make_config())
  for name, c in make_config().tasks.items():
    order, n = shown(batches, name), SIZES[c.dataset]
    epochs = [order[k : k + n] for k in range(0, len(order) - n, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_tasks_and_seeds_have_their_own_order(monkeypatch):
  monkeypatch.setitem(SIZES, 'colour', 30)
  monkeypatch.setitem(SIZES, 'heat', 30)
  batches = take(7, make_config())
  assert shown(batches, 'rgb') != shown(batches, 'ifr')
  assert shown(take(7, make_config(seed=1)), 'rgb') != shown(batches, 'rgb')
  assert shown(take(7, make_config()), 'rgb') == shown(batches, 'rgb')


def test_starting_at_a_step_equals_skipping_to_it():
  config = make_config()
  for skipped, direct in zip(take(9, config)[6:], take(3, config, step=6), strict=True):
    assert_equal(skipped, direct)


def test_augmentation_differs_between_epochs():
  batches = take(20, make_config())
  boxes = joined(batches)['rgb']['boxes'][:, 0]
  assert len(np.unique(boxes, axis=0)) > 1


@pytest.mark.parametrize('workers', [1, 2])
def test_worker_processes_load_the_same_and_make_no_backend(monkeypatch, workers):
  monkeypatch.setattr(task_lib, 'Source', NoBackend)
  for own, theirs in zip(
    take(3, make_config()), take(3, make_config(workers=str(workers))), strict=True
  ):
    assert_equal(own, theirs)


def test_the_check_for_a_backend_sees_one(monkeypatch):
  monkeypatch.setattr(task_lib, 'Source', WithBackend)
  with pytest.raises(RuntimeError, match='made a JAX backend'):
    take(1, make_config(workers='1'))


def test_auto_workers(monkeypatch):
  asked = []

  def mp_prefetch(batches, options):
    asked.append(options.num_workers)
    return batches

  monkeypatch.setattr('grain.IterDataset.mp_prefetch', mp_prefetch)
  for cpus in (2, 6, 64):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _, n=cpus: set(range(n)), raising=False)
    take(1, make_config(workers='auto'))
  assert asked == [3, 8]
  with pytest.raises(ValueError, match="workers='many'"):
    take(1, make_config(workers='many'))


def with_objects(sample, rows):
  return {**sample, 'objects': objects.take(sample['objects'], rows)}


def only_even_windows(sample, config, rng, classes):
  keep = sample['image'][0, 0, 0] % 2 == 0
  return with_objects(sample, slice(None if keep else 0))


def test_a_sample_left_empty_gives_way_to_another(monkeypatch, caplog):
  monkeypatch.setattr(transforms, 'train_transform', only_even_windows)
  batches = take(9, make_config())
  for name in ('sar', 'rgb', 'ifr'):
    assert all(i % 2 == 0 for i in shown(batches, name))
    assert all(b[name]['valid'].any(1).all() for b in batches)
  assert 'task sar' in caplog.text and 'drawn anew' in caplog.text
  assert 'left empty' not in caplog.text
  for skipped, direct in zip(batches[4:], take(5, make_config(), step=4), strict=True):
    assert_equal(skipped, direct)


def test_ten_draws_without_an_object_leave_an_empty_image(monkeypatch, caplog):
  calls = []

  def nothing(sample, config, rng, classes):
    calls.append(rng.integers(1 << 30))
    return with_objects(sample, slice(0))

  monkeypatch.setattr(transforms, 'train_transform', nothing)
  caplog.set_level(logging.WARNING)
  (batch,) = take(1, make_config())
  assert not batch['sar']['valid'].any()
  assert len(calls) >= 160 and len(set(calls)) == len(calls)
  assert '36 drawn anew, 4 left empty' in caplog.text  # 4 infrared images, 9 further draws each


@pytest.mark.parametrize('keep_empty', [False, True])
def test_windows_without_objects_are_left_out_unless_kept(monkeypatch, keep_empty):
  class Sparse(Windows):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      self.num_objects[::2] = 0

  monkeypatch.setattr(task_lib, 'Source', Sparse)
  config = make_config()
  config.tasks.ifr.train.keep_empty = keep_empty
  seen = set(shown(take(6, config), 'ifr'))
  assert seen == (set(range(11)) if keep_empty else {1, 3, 5, 7, 9})


def test_labels_go_by_name_into_the_label_space_of_the_head():
  for kind in ('joint', 'per_task'):
    config = make_config(label_space=kind)
    (batch,) = take(1, config)
    for name, classes in (('sar', ('tank', 'ship')), ('rgb', ('ship', 'plane')), ('ifr', ('car',))):
      space = label_space(config, name)
      window = shown([batch], name)
      for i, labels, valid in zip(window, batch[name]['labels'], batch[name]['valid'], strict=True):
        expected = [classes[k % len(classes)] for k in range(1 + i % 2)]
        assert [space[k] for k in labels[valid]] == expected


def test_the_transform_learns_the_names_of_the_labels(monkeypatch):
  def named(sample, config, rng, classes):
    return with_objects(sample, np.array(classes)[sample['objects']['labels']] == 'ship')

  monkeypatch.setattr(transforms, 'train_transform', named)
  batches = take(3, make_config())
  ships = [
    (i, n.sum()) for b in batches for i, n in zip(shown([b], 'sar'), b['sar']['valid'], strict=True)
  ]
  assert {n for _, n in ships} == {1} and {i % 2 for i, _ in ships} == {1}  # the second label


def test_objects_that_do_not_fit_are_counted_and_reported(caplog):
  config = make_config()
  config.tasks.ifr.max_objects = 1
  batches = take(11, config)  # 44 images: 4 epochs, 5 of 11 windows with a second object
  assert all(b['ifr']['valid'].sum() == 4 for b in batches)
  assert '20 objects over max_objects' in caplog.text
  reports = [r.getMessage().split(',')[1] for r in caplog.records if 'task ifr' in r.getMessage()]
  assert reports == [' epoch 1', ' epoch 2', ' epoch 4', ' epoch 4']  # the last one at the end
  assert not [r for r in caplog.records if 'task sar' in r.getMessage()]


def test_a_task_without_images_is_an_error_that_names_it():
  config = make_config()
  config.tasks.ifr.dataset = 'none'
  config.tasks.ifr.train.split = 'trainval'
  with pytest.raises(ValueError, match="config.tasks.ifr: data set 'none', split 'trainval'"):
    mixture.train_batches(config)
  with pytest.raises(ValueError, match="split 'test' has no image"):
    mixture.eval_batches(config, 'ifr')


def test_a_class_that_the_config_does_not_know_is_an_error_that_names_it():
  config = make_config()
  config.tasks.rgb.classes = ('plane', 'harbour')
  with pytest.raises(ValueError, match=r"config.tasks.rgb.classes=.*harbour.*\['ship'\]"):
    mixture.train_batches(config)


def test_boxes_of_another_kind_are_an_error():
  config = make_config()
  config.tasks.rgb.dataset = 'radar'
  with pytest.raises(ValueError, match="'hbb', not 'obb'"):
    mixture.train_batches(config)


@pytest.mark.parametrize('size, hosts, nearest', [(16, 3, 12), (6, 1, 4), (4, 2, 8)])
def test_a_batch_that_does_not_divide_is_an_error_with_the_arithmetic(size, hosts, nearest):
  config = make_config()
  config.batch_size = size
  with pytest.raises(
    ValueError, match=rf'batch_size={size}.*2 \+ 1 \+ 1.*{hosts} hosts.*{nearest}$'
  ):
    mixture.train_batches(config, hosts=hosts)


@pytest.mark.parametrize(
  'image, message',
  [
    (np.zeros((16, 17, 3), np.uint8), r"heat_\d+' is \(16, 17\).*size=\(16, 16\)"),
    (np.zeros((16, 16, 3), np.uint16), 'is uint16, the first of the data set is uint8'),
  ],
)
def test_an_image_that_does_not_fit_is_an_error(monkeypatch, image, message):
  def other_image(sample, config, rng, classes):
    return {**sample, 'image': image if 'heat' in sample['id'] else sample['image']}

  monkeypatch.setattr(transforms, 'train_transform', other_image)
  with pytest.raises(ValueError, match=message):
    take(1, make_config())


def test_smaller_images_are_padded(monkeypatch):
  def smaller(sample, config, rng, classes):
    return {**sample, 'image': np.full((10, 12, 3), 9, np.uint8)}

  monkeypatch.setattr(transforms, 'train_transform', smaller)
  (batch,) = take(1, make_config())
  images = batch['rgb']['images']
  assert (images[:, :10, :12] == 9).all()
  assert not images[:, 10:].any() and not images[:, :, 12:].any()
  assert (batch['rgb']['shapes'] == (10, 12)).all()


@pytest.mark.parametrize('hosts', [1, 2])
def test_evaluation_shows_every_window_once_in_order(hosts):
  config = make_config()
  parts = [
    list(mixture.eval_batches(config, 'ifr', batch_size=4, host=h, hosts=hosts))
    for h in range(hosts)
  ]
  assert {len(p) for p in parts} == {3}  # as many on every host
  batches = [b for together in zip(*parts, strict=True) for b in together]
  assert all(len(b['images']) == 4 // hosts == len(b['offsets']) for b in batches)
  assert all(len(b['scales']) == len(b['full_sizes']) == 4 // hosts for b in batches)
  assert [i for b in batches for i in b['ids']] == [f'heat_{i}' for i in range(11)]
  real = [b['images'][k, 0, 0, 0] for b in batches for k in range(len(b['ids']))]
  assert real == list(range(11))
  last = batches[-1]
  assert len(last['ids']) == 4 // hosts - 1 and not last['valid'][-1].any()


def test_truth_is_in_the_full_image_with_the_labels_of_the_task():
  (batch,) = mixture.eval_batches(make_config(), 'sar', batch_size=8)
  truth = batch['truth'][3]
  assert truth['id'] == 'radar_3' and len(batch['truth']) == 7
  np.testing.assert_array_equal(truth['boxes'], [[304, 11, 312, 17]] * 2)
  np.testing.assert_array_equal(truth['polygons'][0], [304, 11, 312, 11, 312, 17, 304, 17])
  assert truth['labels'].tolist() == [2, 0]  # tank, ship in the task's list
  boxes = batch['boxes'][3, :2] / batch['scales'][3] + np.tile(batch['offsets'][3], 2)
  np.testing.assert_allclose(boxes, truth['boxes'], atol=1e-4)
  assert batch['full_sizes'][3].tolist() == [2000, 3000]
  (batch,) = mixture.eval_batches(make_config(), 'rgb', batch_size=8)
  np.testing.assert_allclose(batch['truth'][1]['boxes'][0], [108, 15, 8, 6, 0.1], rtol=1e-6)
  assert batch['truth'][1]['labels'].tolist() == [1, 0]  # ship, plane; the joint space has [0, 3]
  assert batch['labels'][1, :2].tolist() == [0, 3]


def test_evaluation_needs_a_batch_that_hosts_divide():
  with pytest.raises(ValueError, match='batch_size=5'):
    mixture.eval_batches(make_config(), 'ifr', batch_size=5, hosts=2)


def test_the_fingerprint_follows_what_decides_the_order():
  base = mixture.fingerprint(make_config())
  assert base == mixture.fingerprint(make_config(checkpoint_every=3, optim=dict(lr=1.0)))
  changed = [make_config(seed=1)] + [make_config() for _ in range(5)]
  changed[1].batch_size = 8
  changed[2].tasks.sar.ratio = 6
  changed[3].tasks.rgb.train.keep_empty = True
  changed[4].tasks.ifr.train.split = 'trainval'
  changed[5].tasks.ifr.train.tile.size = 800
  assert len({base, *map(mixture.fingerprint, changed)}) == 7


def test_nothing_is_logged_about_flawless_data(caplog):
  caplog.set_level(logging.WARNING)
  take(4, make_config())
  assert not caplog.records


SHIPS = np.float32(
  [[30, 40, 90, 70], [500, 20, 560, 60], [900, 300, 1000, 360], [40, 430, 80, 480]]
)


@pytest.fixture(scope='module')
def ships(tmp_path_factory):
  """A prepared data set of two images of 1100 x 500 px with `SHIPS`, and one without any."""
  folder, root = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('prepared')
  images, annotations = [], []
  for k, name in enumerate(('a', 'b', 'empty')):
    image = np.random.default_rng(k).integers(0, 255, (500, 1100, 3), np.uint8)
    (folder / f'{name}.png').write_bytes(cv2.imencode('.png', image)[1])
    images.append({'id': k, 'file_name': f'{name}.png', 'width': 1100, 'height': 500})
    for x1, y1, x2, y2 in SHIPS.tolist() if name != 'empty' else []:
      box = {'bbox': [x1, y1, x2 - x1, y2 - y1], 'area': (x2 - x1) * (y2 - y1), 'iscrowd': 0}
      annotations.append({'id': len(annotations) + 1, 'image_id': k, 'category_id': 1, **box})
  text = {'images': images, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'ship'}]}
  (folder / 'all.json').write_text(json.dumps(text))
  splits = {'train': 'all.json:.', 'test': 'all.json:.'}
  prepare.prepare('coco', folder, root, name='ships', splits=splits)
  return root


def ship_config(root, workers='0'):
  config = default()
  config.tasks = ConfigDict(sort_keys=False)
  tile = dict(size=500, overlap=100)
  config.tasks.sar = task(
    'hbb', 'ships', ('plane', 'ship'), size=(500, 500), train=dict(tile=tile), test=dict(tile=tile)
  )
  config.update({'batch_size': 2, 'workers': workers, 'data_root': str(root)})
  return config


def test_windows_of_prepared_images(ships, monkeypatch):
  monkeypatch.setattr(task_lib, 'Source', source.Source)
  batches = list(mixture.eval_batches(ship_config(ships), 'sar', batch_size=4))
  assert [i for b in batches for i in b['ids']] == ['a'] * 3 + ['b'] * 3 + ['empty'] * 3
  assert np.concatenate([b['offsets'] for b in batches])[:3].tolist() == [
    [0, 0],
    [400, 0],
    [600, 0],
  ]
  seen = np.concatenate([t['boxes'] for b in batches for t in b['truth'] if t['id'] == 'b'])
  np.testing.assert_allclose(np.unique(seen, axis=0), SHIPS[np.lexsort(SHIPS.T[::-1])])
  config = ship_config(ships)
  assert len(task_lib.Task(config, 'sar', 'train').pool) == 6  # without the empty image's windows
  for own, theirs in zip(take(4, config), take(4, ship_config(ships, '1')), strict=True):
    assert own['sar']['valid'].any(1).all()
    assert_equal(own, theirs)


def test_random_mixing_follows_the_sizes_of_the_data_sets():
  config, sizes = make_config(sampling='random'), {'sar': 7, 'rgb': 5, 'ifr': 11}
  mix = mixture.Mix(config, groups=4, sizes=sizes)
  counts = np.array([[n for _, n in mix.of(i).values()] for i in range(4000)])
  assert (counts.sum(1) == 16).all() and (counts % 4 == 0).all()
  np.testing.assert_allclose(counts.mean(0) / 16, np.array([7, 5, 11]) / 23, atol=0.01)
  assert len({*map(tuple, counts)}) == 15  # every way to share four parts among three tasks
  before = np.array([[first for first, _ in mix.of(i).values()] for i in range(4000)])
  np.testing.assert_array_equal(before[1:], counts.cumsum(0)[:-1])  # no image left out or twice


def test_random_mixing_across_the_blocks_it_is_drawn_in(monkeypatch):
  monkeypatch.setattr(mixture, 'BLOCK', 3)
  mixture._random_parts.cache_clear()
  mix = mixture.Mix(make_config(sampling='random', seed=5), 1, {'sar': 1, 'rgb': 1, 'ifr': 1})
  where = [mix.of(i) for i in range(11)]
  for now, after in itertools.pairwise(where):
    assert all(after[name][0] == sum(now[name]) for name in now)
  mixture._random_parts.cache_clear()


def test_random_batches_are_the_same_on_any_hosts_and_after_a_restart():
  config = make_config(sampling='random', batch_size=8)
  whole = take(6, config)
  assert [sorted(b) for b in take(2, config, step=4)] == [sorted(b) for b in whole[4:]]
  halves = [take(6, config, host=h, hosts=2) for h in (0, 1)]
  for i, batch in enumerate(whole):
    for name in batch:
      parts = [h[i][name]['images'] for h in halves]
      np.testing.assert_array_equal(batch[name]['images'], np.concatenate(parts))
  assert any(len(b) < 3 for b in whole)  # some batch lacks a task


def test_data_that_are_open_are_not_opened_again(monkeypatch):
  opened = []

  class Counted(Windows):
    def __init__(self, root, dataset, *args, **kwargs):
      opened.append(dataset)
      super().__init__(root, dataset, *args, **kwargs)

  monkeypatch.setattr(task_lib, 'Source', Counted)
  config = make_config()
  tasks = mixture.open_tasks(config)
  assert mixture.fingerprint(config, tasks) and take(2, config, tasks=tasks)
  batches = train.micro_batches(make_config(), 0, 0, 1, tasks)
  next(batches)
  batches.close()
  assert sorted(opened) == ['colour', 'heat', 'radar']
  assert mixture.fingerprint(config) == mixture.fingerprint(config, tasks) and len(opened) == 6
