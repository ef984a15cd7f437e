"""Scenes of any size: windows as files have them, merged whatever their order, resumed, in little
memory; around a detector that knows every object by its pixels."""

import json
import logging
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
import rasters as writers
from blobs import Blobs, dotted

from data_pipelines import images, rasters
from sm3det_jax import config as config_lib
from sm3det_jax import predict
from sm3det_jax.config import ConfigDict, label_space, task
from sm3det_jax.metrics import merge
from sm3det_jax.prediction import batches, journal, progress, scene

CLASSES = ('plane', 'ship')
TILE, OVERLAP = 64, 24


@pytest.fixture
def config():
  config = config_lib.default()
  config.tasks = ConfigDict(sort_keys=False)
  tile = dict(size=TILE, overlap=OVERLAP, keep=0.7)
  plain = dict(mean=(0.0,) * 3, std=(1.0,) * 3)
  config.tasks.rgb = task('obb', 'x', CLASSES, size=(TILE, TILE), test=dict(tile=tile), **plain)
  return config


@pytest.fixture
def detector(config, monkeypatch):
  monkeypatch.setattr(predict, 'build', Blobs)
  variables = {'label': jnp.asarray(label_space(config, 'rgb').index('ship'))}
  return predict.Detector(config, variables)


def write(path, image, **options):
  path.write_bytes(writers.by_rasterio(image, **options))
  return path


LAYOUTS = [
  dict(tiled=True, blockxsize=32, blockysize=16, compress='deflate'),
  dict(compress='lzw', interleave='band'),
  dict(tiled=True, blockxsize=16, blockysize=16, compress='deflate', interleave='band', nodata=9),
  dict(driver='JP2OpenJPEG', QUALITY=100, REVERSIBLE=True),
]


@pytest.mark.parametrize('options', LAYOUTS)
@pytest.mark.parametrize(('bands', 'dtype'), [(1, 'uint8'), (4, 'uint16'), (3, 'int16')])
def test_a_window_is_what_the_whole_has_there(tmp_path, options, bands, dtype):
  image = writers.pixels(bands, dtype)
  path = write(tmp_path / 'a', image, **options)
  whole = images.load(path).pixels
  with rasters.open_raster(path) as raster:
    assert (raster.height, raster.width, raster.bands, raster.dtype) == (*whole.shape, whole.dtype)
    for x1, y1, x2, y2 in ((0, 0, 53, 37), (3, 15, 20, 36), (40, 0, 53, 9)):
      there = image[y1:y2, x1:x2] == options.get('nodata', -1.5)
      np.testing.assert_array_equal(
        np.where(there, 0, raster.read(x1, y1, x2, y2)), np.where(there, 0, whole[y1:y2, x1:x2])
      )
    small, scale = raster.overview(20)
    assert small.shape == (14, 20, bands) and scale == 20 / 53


@pytest.mark.parametrize('block', [16, 32])
def test_an_overview_has_the_nearest_pixels(tmp_path, monkeypatch, block):
  monkeypatch.setattr(rasters, 'STRIP', 16)
  image = np.random.default_rng(0).integers(0, 255, (150, 101, 3), np.uint8)
  path = write(tmp_path / 'a', image, tiled=True, blockxsize=block, blockysize=block)
  with rasters.open_raster(path) as raster, rasterio.open(path) as file:
    small, _ = raster.overview(61)
    rows, columns = (
      ((np.arange(k) + 0.5) * (n / k)).astype(int) for k, n in ((61, 150), (41, 101))
    )
    np.testing.assert_array_equal(small, image[rows[:, None], columns])
    np.testing.assert_array_equal(small, file.read(out_shape=(3, 61, 41)).transpose(1, 2, 0))


@pytest.mark.parametrize('photometric', ['miniswhite', 'palette', 'alpha', 'pages', 'complex'])
def test_windows_go_by_the_rules_of_files(tmp_path, photometric):
  image = writers.pixels(4 if photometric == 'alpha' else 1)
  if photometric == 'complex':
    data = writers.by_rasterio(writers.pixels(2, 'complex64'))
  elif photometric == 'pages':
    data = writers.by_tifffile(np.stack([image, image + 1])[..., 0].transpose(1, 2, 0), planes=True)
  elif photometric == 'palette':
    table = np.arange(768, dtype=np.uint16).reshape(3, 256) * 80
    data = writers.by_tifffile(image, photometric='palette', colormap=table)
  elif photometric == 'alpha':
    data = writers.by_tifffile(image, photometric='rgb', extrasamples=['unassalpha'])
  else:
    data = writers.by_tifffile(image, photometric=photometric)
  (tmp_path / 'a').write_bytes(data)
  whole = images.load(tmp_path / 'a')
  with rasters.open_raster(tmp_path / 'a') as raster:
    np.testing.assert_array_equal(raster.read(5, 3, 41, 30), whole.pixels[3:30, 5:41])
    assert raster.remarks == whole.remarks


def test_no_data_is_the_mean_of_the_window(tmp_path):
  image = writers.pixels(2, 'float32')
  image[:20, :20] = -1
  image[25, 25] = np.nan
  path = write(tmp_path / 'a.tif', image, nodata=-1)
  part = image[10:30, 10:40]
  hole = (part == -1) | np.isnan(part)
  expected = np.where(hole, part[~hole.any(-1)].mean(0, dtype=np.float64).astype(np.float32), part)
  np.save(tmp_path / 'a.npy', np.where(image == -1, np.nan, image))
  for source in (path, tmp_path / 'a.npy', np.where(image == -1, np.nan, image)):
    with rasters.open_raster(source) as raster:
      assert raster.read(0, 0, 20, 20) is None
      np.testing.assert_allclose(raster.read(10, 10, 40, 30), expected, rtol=1e-6)
      assert images.NO_DATA in raster.remarks


def test_a_damaged_raster_is_one_line(tmp_path, detector):
  noise = np.random.default_rng(0).integers(0, 250, (200, 200, 3), dtype=np.uint8)
  options = dict(driver='COG', compress='deflate', blocksize=128)
  data = write(tmp_path / 'cog.tif', noise, **options).read_bytes()
  (tmp_path / 'cut.tif').write_bytes(data[: len(data) * 2 // 3])
  with pytest.raises(images.ImageError, match='cut.tif: truncated'):
    rasters.open_raster(tmp_path / 'cut.tif')
  middle = len(data) // 2
  (tmp_path / 'bad.tif').write_bytes(data[:middle] + bytes(5000) + data[middle + 5000 :])
  with pytest.raises(images.ImageError, match='bad.tif: (does not decode|a strip or tile)'):
    detector.predict(tmp_path / 'bad.tif', 'rgb')
  write(tmp_path / 'four.tif', writers.pixels(4), photometric='minisblack')
  with pytest.raises(ValueError, match='four.tif has 4 bands, the task has bands=3'):
    detector.predict(tmp_path / 'four.tif', 'rgb')
  assert len(detector.predict(tmp_path / 'cog.tif', 'rgb')['names']) > 4


def test_every_object_once_wherever_windows_cut(tmp_path, detector):
  image, dots = dotted(300, 420)
  path = write(tmp_path / 'a.tif', image, tiled=True, blockxsize=64, blockysize=64)
  for source in (path, image):
    found = detector.predict(source, 'rgb')
    np.testing.assert_array_equal(found['boxes'][::-1, :2], dots)  # in score order
    assert set(found['names']) == {'ship'}
  some = detector.predict(path, 'rgb', score_threshold=120 / 256)
  np.testing.assert_array_equal(some['boxes'][::-1, :2], dots[10:])


def test_a_scene_of_tiles_gives_what_the_tiles_give(config, detector):
  config.tasks.rgb.test.tile.overlap = 0
  tiles = [dotted(TILE, TILE, 2, seed)[0] for seed in range(6)]
  # two boxes of one window that overlap: not for a scene to judge
  tiles[4][40, 20:23:2] = 200
  whole = np.concatenate([np.concatenate(tiles[i : i + 3], 1) for i in (0, 3)], 0)
  expected = []
  for i, tile in enumerate(tiles):
    found = detector.predict(tile, 'rgb')['boxes']
    expected.append(found + np.array([i % 3 * TILE, i // 3 * TILE, 0, 0, 0]))
  found = detector.predict(whole, 'rgb')['boxes']
  assert len(found) == 6 * 2 + 2
  assert sorted(map(tuple, found)) == sorted(map(tuple, np.concatenate(expected)))


def rows(*windows, sides=4):
  return [
    {
      'window': place,
      'boxes': np.array([box for box, _ in found], float).reshape(-1, sides),
      'scores': np.array([score for _, score in found]),
      'labels': np.zeros(len(found), int),
    }
    for place, found in windows
  ]


LEFT, RIGHT = (0, 0, 100, 100), (60, 0, 160, 100)


def test_what_an_edge_cuts_yields_to_the_window_that_sees_it_whole():
  whole, part, other = (70, 20, 130, 40), (70, 20, 100, 40), (90, 60, 99.5, 70)
  windows = rows((LEFT, [(part, 0.9), (other, 0.8)]), (RIGHT, [(whole, 0.4)]))
  found = merge.merge_scene(windows, 0.6, 100, 160)
  np.testing.assert_array_equal(found['boxes'], [other, whole])  # the part goes, though stronger
  # at the scene's own edge nothing is cut
  alone = merge.merge_scene(rows((LEFT, [(part, 0.9)]), (RIGHT, [(whole, 0.4)])), 0.6, 100, 100)
  assert len(alone['scores']) == 2
  # both whole: the stronger stays
  same = rows((LEFT, [((70, 20, 90, 40), 0.5)]), (RIGHT, [((71, 20, 90, 40), 0.6)]))
  np.testing.assert_array_equal(merge.merge_scene(same, 0.6, 100, 160)['scores'], [0.6])


def test_the_order_of_windows_does_not_matter():
  rng = np.random.default_rng(0)
  places = scene.tiling.windows(400, 400, 100, 40).tolist()
  windows = []
  for x, y, x2, y2 in places:
    boxes = np.concatenate(
      [rng.uniform((x, y), (x2, y2), (25, 2)), rng.uniform(8, 50, (25, 2)), rng.random((25, 1))], 1
    ).round()  # with ties
    windows.append({'window': (x, y, x2, y2), 'boxes': boxes, 'labels': rng.integers(0, 2, 25)})
    windows[-1]['scores'] = rng.random(25).round(1)
  first = merge.merge_scene(windows, 0.3, 400, 400)
  assert 100 < len(first['scores']) < 25 * len(places)
  for _ in range(3):
    rng.shuffle(windows)
    again = merge.merge_scene(windows, 0.3, 400, 400)
    for k, values in first.items():
      np.testing.assert_array_equal(again[k], values)


def test_windows_without_data_are_skipped(tmp_path, config, detector, monkeypatch):
  image, dots = dotted(400, 400)
  image[:, 200:] = 0
  kept = dots[dots[:, 0] < 190]
  path = write(tmp_path / 'a.tif', image, nodata=0)
  computed = []
  steps = detector._steps
  monkeypatch.setattr(
    detector, '_steps', lambda task: lambda *a: (computed.append(a[2]), steps(task)(*a))[1]
  )
  found = detector.predict(path, 'rgb')
  assert {tuple(dot) for dot in kept} <= {tuple(box) for box in found['boxes'][:, :2]}
  assert len(computed) == -(-(5 * 10) // batches.BATCH)  # of 10 x 10 windows half have data
  empty = detector.predict(np.full((200, 200, 3), np.nan, np.float32), 'rgb')
  assert empty['boxes'].shape == (0, 5) and empty['names'] == []


class Stop(Exception):
  pass


def test_interrupted_it_resumes(tmp_path, config, detector, monkeypatch, caplog):
  caplog.set_level(logging.INFO)
  image, dots = dotted(300, 420)
  path = write(tmp_path / 'scene.tif', image)
  monkeypatch.setattr(predict.Detector, 'from_checkpoint', lambda *_: detector)
  steps, computed, limit = detector._steps, [], [5]

  def step(*arguments):
    if len(computed) == limit[0]:
      raise Stop
    computed.append(1)
    return steps('rgb')(*arguments)

  monkeypatch.setattr(detector, '_steps', lambda task: step)
  run = lambda **kwargs: predict.predict('run', 'rgb', [path], tmp_path / 'out', **kwargs)
  with pytest.raises(Stop):
    run()
  file = tmp_path / 'out/scene_detections.journal'
  done = len(file.read_bytes().splitlines()) - 1
  assert done == (5 - batches.IN_FLIGHT) * batches.BATCH
  file.write_bytes(file.read_bytes() + b'{"window": [0, 0, 6')  # torn
  limit[0], computed[:] = 99, []
  assert run(resume=True) == []
  total = len(scene.windows(300, 420, config.tasks.rgb))
  assert len(computed) == -(-(total - done) // batches.BATCH)
  content = json.loads((tmp_path / 'out/scene_detections.json').read_text())
  assert sorted(tuple(d['box'][:2]) for d in content['detections']) == sorted(map(tuple, dots))
  assert not file.exists() and f'{total}/{total} windows' in caplog.text
  # of another threshold: nothing of it is taken over
  limit[0], computed[:] = 5, []
  with pytest.raises(Stop):
    run()
  limit[0], computed[:] = 99, []
  run(resume=True, score_threshold=0.44)
  assert len(computed) == -(-total // batches.BATCH) and 'done anew' in caplog.text


def test_a_journal_gives_back_exactly_what_it_was_given(tmp_path):
  rng = np.random.default_rng(0)
  given = rows((LEFT, [(rng.random(5), 1 / 3), (rng.random(5), 0.1)]), (RIGHT, []), sides=5)
  with journal.Journal(tmp_path / 'j', 'key', False) as first:
    first.add(given)
  data = (tmp_path / 'j').read_bytes()
  for torn in (data, data + b'{"win', data[:-1]):
    (tmp_path / 'j').write_bytes(torn)
    with journal.Journal(tmp_path / 'j', 'key', True) as again:
      complete = given if torn != data[:-1] else given[:1]
      assert list(again.rows) == [row['window'] for row in complete]
      for row, expected in zip(again.rows.values(), complete, strict=True):
        for k in ('boxes', 'scores', 'labels'):
          np.testing.assert_array_equal(row[k], expected[k])
          assert row[k].shape == expected[k].shape
    kept = data[: data[:-1].rfind(b'\n') + 1] if torn == data[:-1] else data
    assert (tmp_path / 'j').read_bytes() == kept
  with journal.Journal(tmp_path / 'j', 'other', True) as other:
    assert not other.rows
  one, two = ({'w': jnp.asarray(x)} for x in ([1.0, 2.0], [1.0, 2.5]))
  assert journal.fingerprint(one) != journal.fingerprint(two)


def test_an_output_that_cannot_be_is_told_before_the_work(tmp_path, detector, monkeypatch):
  path = write(tmp_path / 'a.tif', dotted(300, 420)[0])
  monkeypatch.setattr(predict.Detector, 'from_checkpoint', lambda *_: detector)
  monkeypatch.setattr(detector, '_steps', lambda task: pytest.fail('computed'))
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError):
    predict.predict('run', 'rgb', [path], tmp_path / 'file/out')


def test_on_a_terminal_there_is_a_bar(detector, monkeypatch, capsys):
  monkeypatch.setattr(progress.logs, 'on_terminal', lambda: True)
  detector.predict(dotted(300, 420)[0], 'rgb', progress=True)
  text = capsys.readouterr().err
  assert '70/70' in text and 'windows/s' in text and 'found' in text


def test_reading_is_ahead_but_not_far(config):
  read, threads = [], set()

  def one(k):
    read.append(k)
    threads.add(threading.get_ident())
    return k

  for k in scene._ahead(one, range(50), 2, 4):
    assert len(read) <= k + 1 + 4
  assert sorted(read) == list(range(50)) and threading.get_ident() not in threads


MEMORY = """
import resource, sys
import numpy as np
from data_pipelines import rasters
from sm3det_jax import config as config_lib
from sm3det_jax.prediction import scene
from sm3det_jax.config import task
from sm3det_jax.inference import Pass
tile = dict(size=512, overlap=64, keep=.7)
c = task('obb', 'x', ('a',), size=(512, 512), test=dict(tile=tile))
kinds = ((5,), float), ((), float), ((), int), ((), bool)
none = lambda n: [np.zeros((n, 1, *k), t) for k, t in kinds]
from sm3det_jax.heads.common import Detections
step = lambda images, shapes: (Detections(*none(len(images))),)
own, thresholds = np.zeros(1, int), np.full(1, 0.3)
one = Pass({'a': c}, step, {'a': own}, {'a': thresholds})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
with rasters.open_raster(sys.argv[1]) as raster:
  (found,) = scene.detect([scene.Scene(raster, [one])])
  assert found.done == 45 * 45
  raster.overview()
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(tmp_path):
  """20,000 x 20,000 px of three bands are 1.2 GB; there is data in a corner of it."""
  path = tmp_path / 'large.tif'
  options = dict(tiled=True, blockxsize=512, blockysize=512, compress='deflate', sparse_ok=True)
  shape = dict(height=20_000, width=20_000, count=3, dtype='uint8', nodata=0)
  where = dict(transform=rasterio.Affine.translation(1, 1))
  with rasterio.open(path, 'w', driver='GTiff', **shape, **options, **where) as file:
    file.write(
      np.random.default_rng(0).integers(1, 9, (3, 1024, 3000), dtype=np.uint8),
      window=rasterio.windows.Window(9000, 9000, 3000, 1024),
    )
  run = subprocess.run([sys.executable, '-c', MEMORY, path], capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert float(run.stdout) < 500
