"""What a prediction may be given and asked for, around a detector that knows every object by its
pixels: sources, shared batches, thresholds, devices, several tasks, and what a user did wrong."""

import json
import logging
import weakref

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasters as writers
from blobs import Blobs, dotted
from PIL import Image
from rasterio import Affine
from rasterio.control import GroundControlPoint
from tiny import SIZE, tiny_config

from data_pipelines import georeference, rasters
from data_pipelines.errors import UserError
from sm3det_jax import cli, predict
from sm3det_jax import config as config_lib
from sm3det_jax.backbones.stages import Backbone
from sm3det_jax.config import ConfigDict, label_space, task
from sm3det_jax.detector import build
from sm3det_jax.prediction import batches, journal, scene, selection, sources

TILE = 64


@pytest.fixture
def config():
  """`sar` and `rgb` read images alike, `multi` has four bands of 16 bits."""
  config = config_lib.default()
  config.tasks = ConfigDict(sort_keys=False)
  same = dict(size=(TILE, TILE), test=dict(tile=dict(size=TILE, overlap=24)))
  plain = dict(mean=(0.0,) * 3, std=(1.0,) * 3)
  config.tasks.sar = task('hbb', 'radar', ('ship',), **same, **plain)
  config.tasks.rgb = task('obb', 'x', ('plane', 'ship'), **same, **plain)
  bands = dict(bands=4, mean=(900.0,) * 4, std=(500.0,) * 4)
  config.tasks.multi = task('obb', 'y', ('plane', 'ship'), **same, **bands)
  return config


@pytest.fixture
def detector(config, monkeypatch):
  monkeypatch.setattr(predict, 'build', Blobs)
  label = label_space(config, 'rgb').index('ship')
  detector = predict.Detector(config, {'label': jnp.asarray(label)})
  monkeypatch.setattr(predict.Detector, 'from_checkpoint', lambda *_: detector)
  return detector


@pytest.fixture
def computed(detector, monkeypatch):
  """(tasks, type of pixels, windows) of every batch that the detector computes."""
  steps, seen = detector._steps, []

  def of(task):
    def step(variables, images, shapes):
      seen.append((task, images.dtype.name, len(images)))
      return steps(task)(variables, images, shapes)

    return step

  monkeypatch.setattr(detector, '_steps', of)
  return seen


def chip(seed, dtype='uint8'):
  image, dots = dotted(TILE, TILE, 1, seed)
  return image.astype(dtype), dots[0]


def write_chips(folder, count=3):
  folder.mkdir(parents=True, exist_ok=True)
  paths = [folder / f'{k}.png' for k in range(count)]
  for k, path in enumerate(paths):
    cv2.imwrite(str(path), chip(k)[0])
  return paths


def run(*arguments):
  return cli.main(['predict', '--workdir=run', *map(str, arguments)])


def last_line(capsys):
  return capsys.readouterr().err.splitlines()[-1]


def test_what_a_source_may_be(tmp_path, monkeypatch):
  a, b = write_chips(tmp_path / 'data', 2)
  (c,) = write_chips(tmp_path / 'data/more', 1)
  (tmp_path / 'data/notes.md').write_text('')
  (tmp_path / 'list.txt').write_text('data/1.png\n\n  data/more \n')
  image = np.zeros((4, 4, 3), np.uint8)
  given = lambda source: (lambda alone, count, found: (alone, count, list(found)))(
    *sources.images(source)
  )
  assert given(str(a)) == (True, 1, [str(a)])
  assert given(tmp_path / 'no.png') == (True, 1, [tmp_path / 'no.png'])  # told when it is opened
  assert given(tmp_path / 'data') == (False, 3, [a, b, c])
  assert given(f'{tmp_path}/data/*') == (False, 2, [a, b])
  assert given(f'{tmp_path}/**/*.png') == (False, 3, [a, b, c])
  assert given(f'{tmp_path}/data/0.*') == (False, 1, [a])  # a glob is a collection, always
  assert given(tmp_path / 'list.txt') == (False, 2, [b, c])
  monkeypatch.chdir(tmp_path / 'data')
  (tmp_path / 'data/here.txt').write_text('more/0.png')
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere/list.txt').write_text('0.png')  # of the current folder
  assert [p.resolve() for p in given('here.txt')[2]] == [c]
  assert [p.resolve() for p in given(tmp_path / 'elsewhere/list.txt')[2]] == [a]
  alone, count, found = sources.images(image)
  assert (alone, count) == (True, 1) and next(found) is image
  assert given([image, a])[:2] == (False, 2)
  assert given(x for x in [a])[:2] == (False, None)


@pytest.mark.parametrize(
  'source, message',
  [
    ('empty', 'no image among .*empty'),
    ('*.tif', r'\*.tif: no image matches$'),
    ('a[1].tif', r'a\[1\].tif: no image matches; a \[ that is meant as such is written \[\[\]'),
    ('none.txt', 'none.txt: no path in it'),
    ('bytes.txt', 'bytes.txt: expected a text of paths'),
    ([], 'no image: the collection is empty'),
    (3, 'images of type int: expected a path'),
    ({'a': 1}, 'images of type dict: expected a path'),
    (Image.new('L', (8, 8)), r'images of type Image: .*; np.asarray\(image\) makes an array of it'),
  ],
)
def test_a_source_without_images_is_one_line(tmp_path, monkeypatch, source, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'none.txt').write_text(' \n')
  (tmp_path / 'bytes.txt').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(UserError, match=message):
    sources.images(source)


def test_small_images_share_batches(detector, computed):
  chips = [chip(k, 'uint16' if k == 1 else 'uint8') for k in range(9)]
  found = detector.predict([image for image, _ in chips], 'rgb')
  assert sorted(computed) == [('rgb', 'uint16', 4), ('rgb', 'uint8', 4), ('rgb', 'uint8', 4)]
  for result, (image, dot) in zip(found, chips, strict=True):
    assert result.image is image and result.names == ['ship']
    np.testing.assert_array_equal(result.boxes[:, :2], [dot])
  alone = detector.predict(chips[0][0], 'rgb')  # one window is not computed four times
  assert computed[-1] == ('rgb', 'uint8', 1) and len(alone) == 1
  scene_image, dots = dotted(130, 70, 4)
  both = detector.predict([chips[2][0], scene_image, chips[3][0]], 'rgb')
  assert [len(r) for r in both] == [1, 4, 1]
  assert {tuple(box[:2]) for box in both[1].boxes} == set(map(tuple, dots))


def test_a_stream_keeps_nothing(detector):
  """An image of another type, whose batch never fills, holds nothing up either."""
  drawn, lead, dots = [], [], []

  def images():
    for k in range(200):
      image, dot = chip(k, 'uint16' if k == 0 else 'uint8')
      drawn.append(weakref.ref(image))
      dots.append(dot)
      yield image

  for k, result in enumerate(detector.predict(images(), 'rgb', stream=True)):
    np.testing.assert_array_equal(result.boxes[:, :2], dots[k : k + 1])
    lead.append(sum(ref() is not None for ref in drawn))
  ahead = 4 * scene.THREADS + (batches.IN_FLIGHT + 2) * batches.BATCH
  assert k == 199 and max(lead[:2]) <= scene.PATIENCE + ahead and max(lead[80:]) <= ahead


def test_what_cannot_be_used_is_left_out(detector, tmp_path, caplog):
  paths = write_chips(tmp_path, 4)
  paths[1].write_bytes(paths[1].read_bytes()[:60])
  four = writers.by_rasterio(writers.pixels(4), photometric='minisblack')
  (tmp_path / '1_four.tif').write_bytes(four)
  found = detector.predict(tmp_path, 'rgb')
  assert [r.image for r in found] == [paths[k] for k in (0, 2, 3)]
  first, second = (r.message for r in caplog.records)  # in their order, whenever they are found
  assert first.startswith(f'{paths[1]}: ') and '1_four.tif has 4 bands' in second
  with pytest.raises(UserError, match='none of 2 images could be used; the first: .*0.png has 3'):
    detector.predict(paths[:2], 'multi')
  with pytest.raises(UserError, match='none of 2 .*: images of type list: expected a path'):
    detector.predict([[1, 2], [3, 4]], 'rgb')
  with pytest.raises(UserError, match='1.png: '):
    detector.predict(paths[1], 'rgb')
  with pytest.raises(FileNotFoundError):
    detector.predict(tmp_path / 'no.png', 'rgb')


def test_a_threshold_a_class(detector):
  image, dots = dotted(TILE, TILE, 2, 0)  # as strong as 110 / 256 and 111 / 256
  assert len(detector.predict(image, 'rgb', {'ship': 0.43})) == 1
  assert len(detector.predict(image, 'rgb', {'plane': 1})) == 2  # others keep 0.3
  assert len(detector.predict(image, 'rgb', {'ship': 0.5})) == 0
  found = selection.thresholds({'ship': 0.5}, {'rgb': ('plane', 'ship')})
  np.testing.assert_array_equal(found['rgb'], [0.3, 0.5])
  assert selection.parse_threshold('0.25') == 0.25
  assert selection.parse_threshold('ship=0.5, big ship=1') == {'ship': 0.5, 'big ship': 1}
  for wrong in ('high', 'ship=much', '='):
    with pytest.raises(UserError, match=f'score_threshold={wrong}: expected a number'):
      selection.parse_threshold(wrong)
  for wrong, message in (
    ({'shipp': 0.5}, "no class 'shipp'; near it: ship"),
    (1.5, '1.5: scores'),
    ('0.5', "score_threshold='0.5' is of type str: expected a number"),
    ({'ship': None}, 'score_threshold=None is of type NoneType'),
  ):
    with pytest.raises(UserError, match=message):
      detector.predict(image, 'rgb', wrong)


def test_a_device(detector):
  image, dot = chip(0)
  found = detector.predict(image, 'rgb', device='cpu:1')
  np.testing.assert_array_equal(found.boxes[:, :2], [dot])
  assert detector._on('cpu:1').variables['label'].devices() == {jax.devices()[1]}
  assert selection.device(2) == selection.device('2') == jax.devices()[2]
  assert selection.device('CPU') == jax.devices('cpu')[0]
  for wrong in ('gpu', 'cpu:99', 99, 'x', '-1', 'cpu:x', '', ':'):
    with pytest.raises(UserError, match=f'device .?{wrong}.?: expected one of cpu:0, cpu:1'):
      detector.predict(image, 'rgb', device=wrong)


def test_several_tasks_on_one_pass(config, detector, computed):
  chips = [chip(k) for k in range(4)]
  found = detector.predict([image for image, _ in chips], 'sar,rgb')
  assert computed == [(('sar', 'rgb'), 'uint8', 4)]
  for by_task, (_, dot) in zip(found, chips, strict=True):
    assert list(by_task) == ['sar', 'rgb'] and by_task['sar'].task == 'sar'
    np.testing.assert_array_equal(by_task['rgb'].boxes[:, :2], [dot])
    np.testing.assert_array_equal(by_task['sar'].boxes, [[*(dot - (5, 3)), *(dot + (5, 3))]])
  single = detector.predict(chips[0][0], ['rgb'])
  assert list(single) == ['rgb'] and len(single['rgb']) == 1
  config.tasks.rgb.std = (0.99,) * 3  # another input: a pass each
  computed.clear()
  again = detector.predict(chips[0][0], ('rgb', 'sar'))
  assert [c[0] for c in computed] == ['rgb', 'sar']
  np.testing.assert_array_equal(again['sar'].boxes, found[0]['sar'].boxes)


def test_which_tasks_share_a_pass(config):
  groups = lambda: selection.of_one_pass(('sar', 'rgb', 'multi'), config)
  assert groups() == [('sar', 'rgb'), ('multi',)]
  config.tasks.sar.test.tile.overlap = 8  # other windows
  assert len(groups()) == 3
  config.tasks.rgb.test.tile.overlap = 8
  assert len(groups()) == 2
  config.tasks.rgb.size = (128, 64)
  assert len(groups()) == 3
  config.tasks.rgb.size = (TILE, TILE)
  config.backbone.adapters = True
  assert len(groups()) == 3
  config.backbone.adapters, config.backbone.stems = False, 'per_task'
  assert len(groups()) == 3


def tiny():
  """A tiny model of three tasks with parameters as they begin, and images."""
  config = tiny_config()
  for c in config.tasks.values():
    c.head.score_threshold = 0.0
  model = build(config)
  images = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
  return model, images


def test_several_heads_have_one_backbone():
  model, images = tiny()
  variables = jax.eval_shape(model.init, jax.random.key(0))
  calls = []

  def count(call, arguments, options, context):
    if isinstance(context.module, Backbone) and context.method_name == '__call__':
      calls.append(1)
    return call(*arguments, **options)

  with nn.intercept_methods(count):
    found = jax.eval_shape(lambda v, x: model.detect(v, x, ('sar', 'rgb')), variables, images)
  assert len(calls) == 1 and [f.boxes.shape[-1] for f in found] == [4, 5]


@pytest.mark.slow
def test_several_heads_find_what_each_finds():
  model, images = tiny()
  variables = jax.jit(model.init)(jax.random.key(0))
  detect = jax.jit(model.detect, static_argnames='task')
  both = detect(variables, images, task=('sar', 'rgb'))
  for one, name in zip(both, ('sar', 'rgb'), strict=True):
    alone = detect(variables, images, task=name)
    for a, b in zip(one, alone, strict=True):
      np.testing.assert_allclose(np.float64(a), np.float64(b), atol=1e-4)


def opened(tmp_path, bands, dtype='uint8', **options):
  path = tmp_path / 'image.tif'
  path.write_bytes(writers.by_rasterio(writers.pixels(bands, dtype), **options))
  return path


def test_the_task_that_an_image_decides(config, detector, tmp_path):
  found = lambda *arguments, **options: (
    detector.predict(opened(tmp_path, *arguments, **options), 'auto', 0).task
  )
  assert found(4, 'uint16', photometric='minisblack') == 'multi'
  for bands in (1, 3):
    with pytest.raises(UserError, match='image.tif: .* fit the tasks sar, rgb.* alike: name one'):
      found(bands)
  with pytest.raises(UserError, match='5 bands; the tasks have sar 3, rgb 3, multi 4'):
    found(5, photometric='minisblack')
  points = [
    GroundControlPoint(y, x, 12 + x / 1e4, 50 - y / 1e4) for x, y in ((0, 0), (9, 0), (0, 9))
  ]
  assert found(3, gcps=points, crs='EPSG:4326', transform=None) == 'sar'
  assert found(1, 'complex64') == 'sar'
  config.tasks.rgb.update(mean=(2000.0,) * 3, std=(900.0,) * 3)
  assert found(3) == 'sar'  # 8 bits are no values around 2,000
  config.tasks.sar.update(mean=(120.0,) * 3, std=(60.0,) * 3)
  assert found(3, 'uint16') == 'rgb'
  config.tasks.sar.update(bands=1, mean=(120.0,), std=(60.0,))
  assert found(1) == 'sar'


def test_files_of_several_tasks(detector, tmp_path, caplog):
  image = dotted(130, 70, 4)[0]
  cv2.imwrite(str(tmp_path / 'a.png'), image)
  write_chips(tmp_path / 'chips')
  out = tmp_path / 'out'
  with caplog.at_level(logging.INFO):
    assert run('--task=sar,rgb', '--out', out, tmp_path / 'a.png', tmp_path / 'chips') == 0
  names = ('a', 'chips/0', 'chips/1', 'chips/2')
  want = {f'{n}.{t}_detections.{s}' for n in names for t in ('sar', 'rgb') for s in ('json', 'png')}
  assert {p.relative_to(out).as_posix() for p in out.rglob('*.*')} == want
  assert json.loads((out / 'a.sar_detections.json').read_text())['task'] == 'sar'
  assert '4/4 images' in caplog.text and 'images/s, 14 found' in caplog.text


class Stop(KeyboardInterrupt):
  pass


@pytest.mark.parametrize('task', ['rgb', 'sar,rgb'])
def test_an_interrupted_command_goes_on(detector, computed, tmp_path, monkeypatch, capsys, task):
  write_chips(tmp_path / 'chips', 30)
  cv2.imwrite(str(tmp_path / 'chips/7.png'), dotted(300, 70, 9)[0])  # of several windows
  steps, out = detector._steps, tmp_path / 'out'
  command = (f'--task={task}', '--score_threshold=ship=0.4', '--out', out, tmp_path / 'chips')

  def interrupted(*arguments):
    if len(computed) == 10:  # of 29 windows and 14 of the large one
      raise Stop
    return steps(*arguments)

  monkeypatch.setattr(detector, '_steps', lambda task: lambda *a: interrupted(task)(*a))
  assert run(*command) == 130
  line = 'sm3det predict: interrupted; the same command with --resume goes on'
  assert last_line(capsys) == line
  each, landed = len(task.split(',')), (10 - batches.IN_FLIGHT) * batches.BATCH
  assert len(list(out.rglob('*.json'))) == 27 * each  # and 5 windows of the large one
  assert len(list(out.rglob('*.journal'))) == 1 + each
  computed.clear()
  monkeypatch.setattr(detector, '_steps', steps)
  written = {p: p.stat().st_mtime_ns for p in out.rglob('*.json')}
  assert run(*command, '--resume') == 0
  assert all(p.stat().st_mtime_ns == t for p, t in written.items())
  assert len(computed) == -(-(29 + 14 - landed) // batches.BATCH)
  assert len(list(out.rglob('*.json'))) == 30 * each and not list(out.rglob('*.journal'))


def test_bad_files_are_a_line_each_and_the_others_are_done(detector, tmp_path, caplog):
  write_chips(tmp_path / 'chips', 2)
  cog = writers.by_rasterio(writers.pixels(3, height=300, width=300), 'COG', blocksize=128)
  (tmp_path / 'cut.tif').write_bytes(cog[: len(cog) * 2 // 3])
  four = writers.by_rasterio(writers.pixels(4), photometric='minisblack')
  (tmp_path / 'four.tif').write_bytes(four)
  (tmp_path / 'none').mkdir()
  given = [tmp_path / n for n in ('chips', 'cut.tif', 'four.tif', 'none', 'no.png')]
  assert run('--task=rgb', '--out', tmp_path / 'out', '--save=geojson', *given) == 1
  lines = [r.message for r in caplog.records if r.levelname == 'ERROR']
  wanted = 'none: no image in it', 'cut.tif: truncated', 'four.tif has 4 bands', 'no.png: No such'
  for line, part in zip(lines, (*wanted, 'no GeoJSON without a georeference'), strict=True):
    assert part in line
  assert lines[-1].startswith(f'{tmp_path}/chips/0.png (and 1 more): ')
  assert len(list((tmp_path / 'out').rglob('*.json'))) == 2


def test_a_bad_source_among_others_is_a_line_and_the_others_are_done(detector, tmp_path, caplog):
  (path, _) = write_chips(tmp_path, 2)
  (tmp_path / 'empty.txt').write_text('\n')
  (tmp_path / 'bytes.txt').write_bytes(b'\xff')
  given = [tmp_path / name for name in ('nope*.png', 'no.txt', 'empty.txt', 'bytes.txt')]
  with caplog.at_level(logging.INFO):
    assert run('--task=rgb', '--out', tmp_path / 'out', *given, path) == 1
  lines = [r.message for r in caplog.records if r.levelname == 'ERROR']
  reasons = 'no image matches', 'No such file', 'no path in it', 'expected a text of paths'
  for line, source, reason in zip(lines, given, reasons, strict=True):
    assert line.startswith(f'{source}: {reason}')
  assert (tmp_path / 'out/0_detections.json').is_file()
  assert caplog.messages[-1] == f'{tmp_path}/out: 1 object in 1 image'  # even of one window


@pytest.mark.parametrize('names', [['no.png'], ['nope*.png'], ['no.png', 'cut.png', 'no.txt']])
def test_where_no_image_can_be_used_nothing_is_done(detector, tmp_path, monkeypatch, capsys, names):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'cut.png').write_bytes(b'no image')
  assert run('--task=rgb', '--out=out', *names) == 2
  assert last_line(capsys) == 'sm3det predict: no image could be used'


def test_an_empty_generator_is_an_empty_collection(detector):
  with pytest.raises(UserError, match='no image: the collection is empty'):
    detector.predict(iter(()), 'rgb')
  with pytest.raises(UserError, match='no image: the collection is empty'):
    next(detector.predict(iter(()), 'rgb', stream=True))


@pytest.mark.parametrize('task', [None, 3, [3], b'rgb'])
def test_a_task_that_is_no_name(detector, task):
  with pytest.raises(UserError, match='task=.*: expected a name, several of them, or .auto.'):
    detector.predict(chip(0)[0], task)


@pytest.mark.parametrize('task', ['rgb', 'auto'])
def test_a_georeference_is_read_once(detector, config, tmp_path, monkeypatch, task):
  seen, read = [], georeference.read
  monkeypatch.setattr(georeference, 'read', lambda path: seen.append(path) or read(path))
  del config.tasks.sar
  path = opened(tmp_path, 3, crs='EPSG:32632', transform=Affine(10, 0, 5e5, 0, -10, 5e6))
  assert detector.predict(path, task).georeference.crs.to_epsg() == 32632
  assert seen == [path]


def test_a_raster_without_data_says_so(tmp_path):
  image = np.full((8, 8), np.nan)
  with rasters.open_raster(image) as raster:
    assert raster.read(0, 0, 8, 8) is None
    assert raster.remarks == {rasters.EMPTY: 1, 'image of float64 (kept as float32)': 1}


WINDOW = {'window': [0, 0, 9, 9], 'sides': 4, 'boxes': [[0, 0, 1, 1]], 'scores': [1], 'labels': [0]}


@pytest.mark.parametrize(
  'kind, good, wrong',
  [
    (journal.Done, ['/a', 1, 2], [7, 'abc', ['/a', 1], [1, 2, 3], ['/a', [], 2], None]),
    (
      journal.Journal,
      WINDOW,
      [7, [], {'window': [1]}]
      + [
        WINDOW | change
        for change in (
          {'window': [0, 0, 'a', 9]},
          {'window': [0]},
          {'sides': 5},
          {'sides': '4'},
          {'boxes': None},
          {'scores': [1, 2]},
          {'labels': []},
          {'labels': [1e999]},
        )
      ],
    ),
  ],
)
def test_a_journal_of_another_form_is_done_anew(tmp_path, caplog, kind, good, wrong):
  path = tmp_path / 'j'
  known = lambda j: len(j.rows if kind is journal.Journal else j.old)
  for line in wrong:
    path.write_text(''.join(f'{json.dumps(x)}\n' for x in ({'key': 'k'}, good, line)))
    caplog.clear()
    with kind(path, 'k', True) as opened:
      assert not known(opened) and 'all is done anew' in caplog.text, line
    assert path.read_text() == '{"key": "k"}\n'
  path.write_text(f'{{"key": "k"}}\n{json.dumps(good)}\n')
  with kind(path, 'k', True) as opened:
    assert known(opened) == 1


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('--task=uv', '--out=out', 'chips'), "unknown task 'uv'; the model has sar, rgb, multi"),
    (('--task=', '--out=out', 'chips'), "unknown task ''"),
    (('--task=auto', '--out=out', 'chips'), 'fit the tasks sar, rgb alike'),
    (('--task=rgb', '--out=out', 'empty'), 'no image among empty'),
    (('--task=rgb', '--out=chips/0.png/out', 'chips'), '0.png/out: Not a directory; a file lies'),
    (('--task=rgb', '--out=out', '--score_threshold=shi=0.5', 'chips'), 'near it: ship'),
    (('--task=rgb', '--out=out', '--score_threshold=2', 'chips'), 'scores are between 0 and 1'),
    (('--task=rgb', '--out=out', '--save=shp', 'chips'), "format 'shp' of results"),
    (('--task=rgb', '--out=out', '--save=coco,, shp ', 'chips'), "format 'shp' of results"),
    (('--task=rgb', '--out=', 'chips'), '--out is empty: expected a folder'),
    (('--task=rgb', '--out=out', '--tta_merge=nms', 'chips'), '--tta_merge=nms needs --tta'),
  ],
)
def test_a_mistake_is_one_line(detector, tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(tmp_path)
  write_chips(tmp_path / 'chips', 1)
  (tmp_path / 'empty').mkdir()
  assert run(*arguments) == 2
  line = last_line(capsys)
  assert line.startswith('sm3det predict: ') and message in line


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
  detector, computed, tmp_path, monkeypatch, capsys
):
  write_chips(tmp_path / 'chips', 1)

  def refuse(**options):
    raise PermissionError(13, 'Permission denied', str(options['dir']))

  monkeypatch.setattr('tempfile.TemporaryFile', refuse)  # whoever runs this may write anywhere
  assert run('--task=rgb', '--out', tmp_path / 'out', tmp_path / 'chips') == 2
  line = last_line(capsys)
  assert 'out: no file can be made in this folder: Permission denied; check the rights' in line
  assert not computed


def test_a_picture_is_unpacked_when_it_is_read(tmp_path):
  (path,) = write_chips(tmp_path, 1)
  whole = path.read_bytes()
  path.write_bytes(whole[:60])
  with rasters.open_raster(path) as raster, pytest.raises(UserError, match='^[^:]*0.png: '):
    raster.read(0, 0, 9, 9)
