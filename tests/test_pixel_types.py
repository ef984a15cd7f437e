"""Images of every type from files to batches, and what is said where types or units differ."""

import logging

import numpy as np
import pytest
import tifffile

from data_pipelines import images, mixture, radiometry
from data_pipelines.prepare import prepare
from data_pipelines.source import Source
from sm3det_jax import config as config_lib
from sm3det_jax import predict
from sm3det_jax.preprocess import normalise

OBJECT = '10 10 30 10 30 20 10 20 ship 0\n'  # corners, class, difficult


def pixels(dtype, bands, height=64, width=64):
  rng = np.random.default_rng(bands)
  top = 250 if dtype == 'uint8' else 9000
  return (rng.integers(1, top, (height, width, bands)) - (dtype == 'int16') * 5000).astype(dtype)


def write(root, files):
  """A data set in DOTA's format of one object an image: {name: array, or bytes of a file}."""
  for folder in ('images', 'labelTxt'):
    (root / folder).mkdir(parents=True, exist_ok=True)
  for name, image in files.items():
    path = root / 'images' / name
    (root / 'labelTxt' / path.name).with_suffix('.txt').write_text(OBJECT)
    if path.suffix == '.npy':
      np.save(path, image)
    else:
      planes = np.moveaxis(image, -1, 0) if image.shape[2] > 1 else image[..., 0]
      tifffile.imwrite(path, planes, photometric='minisblack', metadata=None)
  return root


def config_of(root, bands=3, size=(64, 64), **task):
  """The default config with its task `rgb` alone on the data set 'set' below `root`."""
  config = config_lib.default()
  config.data_root, config.label_space, config.workers = str(root), 'per_task', '0'
  config.tasks = {'rgb': config.tasks.rgb}
  config.batch_size = config.tasks.rgb.ratio
  config.tasks.rgb.update(dataset='set', classes=('ship',), bands=bands, size=size)
  config.tasks.rgb.update(mean=(0.0,) * bands, std=(300.0,) * bands)
  config.tasks.rgb.train.update(flip=(0.0, 0.0, 0.0), rotate=0.0, right_angles=())
  config.tasks.rgb.update(task)
  return config


@pytest.mark.parametrize('bands', [1, 3, 5])
@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'float32'])
def test_pixels_reach_the_batch_as_they_are(tmp_path, dtype, bands):
  image = pixels(dtype, bands)
  prepare('dota_txt', write(tmp_path / 'raw', {'a.tif': image}), tmp_path, name='set')
  np.testing.assert_array_equal(Source(tmp_path, 'set', 'train')[0]['image'], image)
  config = config_of(tmp_path, bands)  # of the image's size: nothing is resized
  batch = next(mixture.train_batches(config))['rgb']
  assert batch['images'].dtype == image.dtype
  np.testing.assert_array_equal(batch['images'][0], image)
  evaluated = next(mixture.eval_batches(config, 'rgb', 'train', batch_size=1))
  np.testing.assert_array_equal(evaluated['images'][0], image)
  np.testing.assert_array_equal(predict.Detector(config, {}).prepare(image, 'rgb'), image)
  normal = normalise(batch['images'], config.tasks.rgb.mean, config.tasks.rgb.std)
  np.testing.assert_allclose(normal[0], image.astype(np.float32) / 300, rtol=1e-6)


@pytest.mark.parametrize('dtype', ['int16', 'float32'])
def test_blocks_of_a_large_image(tmp_path, dtype):
  image = pixels(dtype, 2, 40, images.WHOLE + 100)
  prepare('dota_txt', write(tmp_path / 'raw', {'a.tif': image}), tmp_path, name='set')
  np.testing.assert_array_equal(Source(tmp_path, 'set', 'train')[0]['image'], image)


def test_holes_are_counted_when_a_set_is_prepared(tmp_path):
  image = pixels('float32', 1)
  image[:2, :3] = np.nan
  files = write(tmp_path / 'raw', {'a.tif': image, 'b.tif': pixels('float32', 1)})
  report = prepare('dota_txt', files, tmp_path, name='set')
  assert report.skipped == {images.NO_DATA: 6}
  found = Source(tmp_path, 'set', 'train')[0]['image']
  np.testing.assert_allclose(found[:2, :3], np.nanmean(image, dtype=np.float64), rtol=1e-6)


def test_a_mixed_set_is_named(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  files = {'a.tif': pixels('uint8', 3), 'b.tif': pixels('uint8', 3), 'c.tif': pixels('uint8', 1)}
  odd = {'d.tif': pixels('uint16', 3), 'e.tif': pixels('uint8', 4)}
  report = prepare('dota_txt', write(tmp_path / 'raw', files | odd), tmp_path, name='set')
  assert report.skipped == {
    'image of uint16 in a set of uint8: training takes one type': 1,
    'image of 4 bands in a set of 3: training takes one number': 1,
  }
  assert any('images are uint8 in 3 band(s) (2), uint8 in 1' in note for note in report.notes)
  assert 'd.tif: image of uint16' in caplog.text and 'e.tif: image of 4 bands' in caplog.text


def test_a_mean_of_another_unit_is_said_once_and_nothing_is_stretched(tmp_path, caplog):
  image = pixels('uint16', 3)
  prepare(
    'dota_txt', write(tmp_path / 'raw', {'a.tif': image, 'b.tif': image}), tmp_path, name='set'
  )
  config = config_of(tmp_path, mean=(120.0,) * 3, std=(60.0,) * 3)
  said = 'uint16 values up to 8999, config.tasks.rgb.mean/std are of 8 bits: set them'
  task = mixture.Task(config, 'rgb', 'train')
  assert caplog.text.count(said) == 1 and "'set', split 'train'" in caplog.text
  caplog.clear()
  detector = predict.Detector(config, {})
  for _ in range(2):
    found = detector.prepare(tmp_path / 'raw/images/a.tif', 'rgb')
    np.testing.assert_array_equal(found, task.sample(0)['image'])
  assert caplog.text.count(said) == 1 and 'a.tif' in caplog.text
  caplog.clear()
  mixture.Task(config_of(tmp_path, mean=(4000.0,) * 3, std=(900.0,) * 3), 'rgb', 'train')
  assert not caplog.text


@pytest.mark.parametrize(
  'image, mean, std, message',
  [
    (np.float32([0, 0.7]), 120, 60, 'float32 values from 0 to 0.7, mean 120: set config.tasks.a.m'),
    (np.int16([-30, -2]), 120, 60, 'int16 values from -30 to -2'),
    (np.uint16([3, 4095]), 120, 60, 'uint16 values up to 4095'),
    (np.uint16([3, 4095]), 200, 600, None),  # few bright pixels, and a std that says so
    (np.uint16([3, 255]), 120, 60, None),
    (np.float32([-30, -2]), -12, 4, None),
    (np.uint8([0, 255]), 120, 60, None),
  ],
)
def test_which_mean_is_of_another_unit(image, mean, std, message):
  task = config_lib.task('obb', 'set', mean=(mean,) * 3, std=(std,) * 3)
  found = radiometry.mismatch(image, 'a', task)
  assert found is None if message is None else found.startswith(message)


def test_what_a_file_has_to_say_is_said_by_predict(tmp_path, caplog):
  image = pixels('float64', 3)
  image[5, 5] = np.inf
  np.save(tmp_path / 'a.npy', image)
  detector = predict.Detector(config_of(tmp_path), {})
  with caplog.at_level(logging.WARNING):
    found = detector.prepare(tmp_path / 'a.npy', 'rgb')
  assert found.dtype == np.float32 and np.isfinite(found).all()
  assert f'a.npy: {images.NO_DATA}' in caplog.text and 'image of float64' in caplog.text
  for wrong in (np.zeros((4, 4, 3), np.int64), np.zeros((2, 3, 4, 5)), np.zeros((0, 4))):
    with pytest.raises(images.ImageError, match='the image: an array of'):
      detector.prepare(wrong, 'rgb')
