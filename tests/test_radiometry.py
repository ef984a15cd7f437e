"""A task's `input`: its numbers, what the model sees of any type of file, and what is said."""

import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import mixture, radiometry, transforms
from data_pipelines.errors import UserError
from data_pipelines.images import statistics
from data_pipelines.prepare import prepare
from sm3det_jax import checkpoint, inference, predict, preprocess, train
from sm3det_jax import config as config_lib
from sm3det_jax import detector as detector_lib
from sm3det_jax.heads.common import Detections

SIDE = 64
OBJECT = '10 10 30 10 30 20 10 20 ship 0\n'  # corners, class, difficult
DB = dict(unit='power_to_db', range='percentiles', percentiles=(1.0, 99.0))


def exact(values, levels):
  """Percentiles by numpy, of values alone that occur."""
  return np.percentile(values, levels, method='inverted_cdf')


def pixels(dtype, bands=1, seed=0, side=SIDE):
  """Speckle over a few strong targets, as an image of this type; a hole where NaN can say so."""
  rng = np.random.default_rng(seed)
  power = rng.gamma(2.0, 40.0, (side, side, bands)) + 3000 * (rng.random((side, side, 1)) > 0.99)
  if dtype == 'complex64':
    return (np.sqrt(power) * np.exp(6j * rng.random(power.shape))).astype(dtype)
  if dtype == 'float32':
    power[:20, :40] = np.nan
    return (power / 1000).astype(dtype)
  return np.minimum(power, 250 if dtype == 'uint8' else 60000).astype(dtype)


def data_set(root, *images):
  """A prepared data set `set` of these images, an object each; its report."""
  raw = root / 'raw'
  for folder in ('images', 'labelTxt'):
    (raw / folder).mkdir(parents=True, exist_ok=True)
  for k, image in enumerate(images):
    np.save(raw / f'images/{k}.npy', image)
    (raw / f'labelTxt/{k}.txt').write_text(OBJECT)
  return prepare('dota_txt', raw, root, name='set')


def config_of(root, bands=1, **task):
  """The default config with its task `rgb` alone on the data set `set` below `root`."""
  config = config_lib.default()
  config.data_root, config.label_space, config.workers = str(root), 'per_task', '0'
  config.tasks = {'rgb': config.tasks.rgb}
  rgb = config.tasks.rgb
  config.batch_size = rgb.ratio
  rgb.update(dataset='set', classes=('ship',), bands=bands, size=(SIDE, SIDE))
  rgb.update(mean=(100.0,) * bands, std=(50.0,) * bands)
  rgb.train.update(flip=(0.0, 0.0, 0.0), rotate=0.0, right_angles=())
  for part in ('train', 'test'):
    rgb[part].update(split='train', tile=dict(size=SIDE, overlap=0))
  rgb.update(task)
  return config_lib.check(config)


# --- how values are distributed


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16'])
def test_whole_numbers_have_exact_percentiles(dtype, monkeypatch):
  monkeypatch.setattr(statistics, 'CHUNK', 700)  # several of an image
  images = [pixels('uint16', 2, seed) % 251 for seed in range(2)]
  images = [(a.astype(int) - 90 * (dtype == 'int16')).astype(dtype) for a in images]
  found = statistics.Statistics()
  for image in images:
    found.add(statistics.count(image))
  summary, both = found.summary(), np.stack(images)
  assert (summary['dtype'], summary['images']) == (dtype, 2)
  for k in range(2):
    band = both[..., k]
    assert summary['percentiles'][k] == exact(band, statistics.PERCENTILES).tolist()
    assert summary['positive'][k] == exact(band[band > 0], statistics.PERCENTILES).tolist()
    assert summary['mean'][k] == pytest.approx(band.mean())
    assert summary['std'][k] == pytest.approx(band.std())


def test_floats_of_any_range_have_percentiles_to_a_thousandth():
  rng = np.random.default_rng(0)
  image = np.float32(10 ** rng.uniform(-30, 30, (80, 90, 1)) * rng.choice([-1, 0, 1], (80, 90, 1)))
  missing = rng.random(image.shape) < 0.2
  found = statistics.Statistics()
  found.add(statistics.count(image, missing))
  summary, values = found.summary(), image[~missing]
  levels = statistics.PERCENTILES
  np.testing.assert_allclose(summary['percentiles'][0], exact(values, levels), rtol=1e-3)
  np.testing.assert_allclose(summary['positive'][0], exact(values[values > 0], levels), rtol=1e-3)


def test_the_most_frequent_kind_counts_and_bands_without_data_are_none():
  found, odd = statistics.Statistics(), np.full((4, 4, 1), 7, np.uint8)
  grey = np.zeros((4, 4, 3), np.uint16)
  for image in (odd, grey, grey + np.uint16(2)):
    found.add(statistics.count(image, np.arange(3) == 1 + np.zeros(image.shape, int)))
  summary = found.summary()
  assert (summary['dtype'], summary['images']) == ('uint16', 2)
  assert summary['mean'] == [1, None, 1] and summary['percentiles'][1] is None
  assert summary['positive'][0][0] == 2 and summary['positive'][1] is None
  assert statistics.Statistics().summary() == {}


def test_prepare_keeps_them_with_the_data_and_shows_them(tmp_path):
  images = [pixels('float32', 2, seed) for seed in range(2)]
  report = data_set(tmp_path, *images)
  (file,) = tmp_path.glob('set/*/metadata.json')
  assert json.loads(file.read_text())['pixels'] == report.pixels  # no NaN in it either
  values = np.stack(images)[..., 1]
  found = report.pixels['train']['percentiles'][1]
  want = exact(values[np.isfinite(values)], statistics.PERCENTILES)
  np.testing.assert_allclose(found, want, rtol=1e-3)
  line = next(line for line in report.table().splitlines() if line.startswith('  band 2'))
  assert np.float64(line.split()[2:]) == pytest.approx(
    [np.nanmean(values), np.nanstd(values), want[2], want[8], want[14]], rel=2e-3
  )


# --- from an `input` to numbers


def test_percentiles_become_the_data_set_s_own_in_the_task_s_unit_and_bands(tmp_path):
  images = [pixels('uint16', 3, seed) for seed in range(2)]
  images[0][:9] = 0  # has no decibels
  data_set(tmp_path, *images)
  task = config_of(tmp_path, 2, input=DB | dict(bands=(3, 1))).tasks.rgb
  got = radiometry.resolved(tmp_path, 'rgb', task)
  values = np.stack(images)[..., [2, 0]]
  for ends, level in ((got.input.low, 1), (got.input.high, 99)):
    want = [10 * np.log10(exact(values[..., k][values[..., k] > 0], level)) for k in range(2)]
    np.testing.assert_allclose(ends, want, rtol=1e-6)
  assert task.input.low == () and radiometry.resolved('nowhere', 'rgb', got) is got
  plain = config_of(tmp_path, 3, input=DB | dict(unit='as_is')).tasks.rgb
  got = radiometry.resolved(tmp_path, 'rgb', plain).input.high
  assert got == tuple(exact(np.stack(images)[..., k], 99) for k in range(3))


def test_a_run_keeps_the_numbers_that_it_trains_with(tmp_path, monkeypatch):
  data_set(tmp_path, pixels('uint16'))
  config, run = config_of(tmp_path, input=DB), tmp_path / 'run'
  config.batch_size, seen = 8, []  # of the tests' devices
  monkeypatch.setattr(train, '_run', lambda config, *_: seen.append(config.tasks.rgb.input))
  for _ in range(2):  # and goes on
    train.train(config, run)
  kept = checkpoint.load_config(run).tasks.rgb.input
  assert kept.low == seen[0].low == seen[1].low and len(kept.high) == 1
  data_set(tmp_path, 2 * pixels('uint16'))
  with pytest.raises(UserError, match='tasks.rgb.input.low is .* there, .* here'):
    train.train(config, run)


def test_what_has_no_percentiles_is_told_so(tmp_path):
  image = pixels('uint16', 2)
  image[..., 1] = 0
  data_set(tmp_path, image)
  wrong = {
    'has 2 bands, .*wants bands=.3,': dict(bands=(3,)),
    'a band of .* has no value that': dict(bands=(2,)),
    'are .0.0,. and .0.0,., no range': dict(bands=(2,), unit='as_is'),
    'for the 1 of the task': {},
  }
  for message, change in wrong.items():
    with pytest.raises(UserError, match=message):
      mixture.Task(config_of(tmp_path, input=DB | change), 'rgb', 'train')
  (file,) = tmp_path.glob('set/*/metadata.json')
  metadata = json.loads(file.read_text())
  del metadata['pixels']  # as it was written before values were counted
  file.write_text(json.dumps(metadata))
  with pytest.raises(UserError, match='never counted; prepare the data set anew'):
    mixture.Task(config_of(tmp_path, input=DB), 'rgb', 'train')
  mixture.Task(config_of(tmp_path, input=dict(bands=(1,))), 'rgb', 'train')


# --- what the model sees

INPUTS = {
  'uint8 as it is': ('uint8', 3, {}),
  'uint8 of its own range': ('uint8', 3, dict(range='fixed', low=(0.0,), high=(255.0,))),
  'uint16 by percentiles': ('uint16', 2, dict(range='percentiles', bands=(2, 1))),
  'power in decibels': ('float32', 2, DB),
  'complex numbers': (
    'complex64', 1, dict(unit='amplitude_to_db', range='fixed', low=(0.0,), high=(40.0,))
  ),
}  # fmt: skip


def by_hand(image, c):
  """What a model sees of an image without holes, in numpy; `c` of the task, with its numbers."""
  x = np.abs(image).astype(np.float64)[..., [k - 1 for k in c.input.bands] or slice(None)]
  if c.input.unit != 'as_is':
    x = {'power_to_db': 10, 'amplitude_to_db': 20}[c.input.unit] * np.log10(x)
  if c.input.range != 'as_is':
    low, high = np.array(c.input.low), np.array(c.input.high)
    x = 255 * (np.clip(x, low, high) - low) / (high - low)
  return (x - c.mean) / c.std


class Recorder:
  """Finds nothing, and keeps what it is shown."""

  def __init__(self):
    self.seen = []

  def detect(self, variables, images, task, shapes):
    jax.debug.callback(lambda x: self.seen.append(np.asarray(x)), images)
    n = len(images)
    none = jnp.zeros((n, 1)), jnp.zeros((n, 1), jnp.int32), jnp.zeros((n, 1), bool)
    return Detections(jnp.zeros((n, 1, 5)), *none)


@pytest.mark.parametrize('case', INPUTS)
def test_training_evaluation_and_prediction_see_the_same_pixels(tmp_path, case, monkeypatch):
  dtype, bands, c = INPUTS[case]
  images = [pixels(dtype, bands, seed) for seed in range(2)]
  data_set(tmp_path, *images)
  config = config_of(tmp_path, bands, input=c)
  config.tasks.rgb = radiometry.resolved(tmp_path, 'rgb', config.tasks.rgb)
  trained = {}
  prepared, batches = jax.jit(detector_lib.build(config).prepare), mixture.train_batches(config)
  for batch in (next(batches), next(batches)):
    seen = np.asarray(prepared({'rgb': batch['rgb']})['rgb']['images'][0])
    trained[batch['rgb']['images'].tobytes()] = seen
  assert len(trained) == 2
  evaluated = next(mixture.eval_batches(config, 'rgb', batch_size=2))
  run = inference.on_files(lambda variables, x, shapes: x, config, 'rgb')
  seen = np.asarray(run({}, evaluated['images'], evaluated['shapes']))
  for raw, image in zip(evaluated['images'], seen, strict=True):
    np.testing.assert_array_equal(image, trained[raw[None].tobytes()])
  recorder = Recorder()
  monkeypatch.setattr(predict, 'build', lambda config: recorder)
  detector = predict.Detector(config, {})
  np.save(tmp_path / 'scene.npy', np.concatenate(images, 1))  # a window each
  for source in (images[0], tmp_path / 'scene.npy'):
    detector.predict(source, 'rgb')
  jax.effects_barrier()
  np.testing.assert_array_equal(recorder.seen[0][0], seen[0])
  np.testing.assert_array_equal(recorder.seen[1][:2], seen)
  for image, got in zip(images, seen, strict=True):
    filled = np.where(np.isnan(image), np.nanmean(image, (0, 1)), image)
    np.testing.assert_allclose(got, by_hand(filled, config.tasks.rgb), rtol=1e-4, atol=1e-4)
  if dtype == 'uint8':  # the same bits as without any `input`
    c = config.tasks.rgb
    plain = jax.jit(lambda x: preprocess.normalise(x, c.mean, c.std))(evaluated['images'])
    np.testing.assert_array_equal(seen, plain)


def test_values_as_they_are_are_not_touched():
  c = config_lib.task('hbb', 'x').input
  images = jnp.ones((1, 2, 2, 3), jnp.uint16)
  assert preprocess.apply_input(images, c) is images
  with pytest.raises(UserError, match='come from the data set when a run starts'):
    preprocess.apply_input(images, config_lib.task('hbb', 'x', input=DB).input)


@pytest.mark.parametrize(
  'c, dtype',
  [
    (dict(range='fixed', low=(-25.0,), high=(0.0,)), 'float32'),  # a file that is in decibels
    (dict(range='fixed', low=(-25.5, -30.25), high=(0.0, 5.0)), 'int16'),
    (dict(unit='power_to_db', range='fixed', low=(5.0,), high=(30.0,)), 'uint16'),
  ],
)
def test_what_lies_outside_a_turned_image_is_the_model_s_least(c, dtype):
  task = config_lib.task('obb', 'x', bands=2, mean=(0.0,) * 2, std=(1.0,) * 2, size=(32, 32))
  task.update(input=c)
  image = np.full((32, 32, 2), 20, dtype)
  sample = {'image': image, 'objects': {'boxes': np.zeros((0, 5)), 'labels': np.zeros(0, int)}}
  turned = transforms.rotate(
    sample, 1.0, False, np.random.default_rng(2), radiometry.outside(task.input)
  )
  corners = np.asarray(preprocess.model_input(turned['image'][None], task))[0]
  assert (corners[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all() and corners[16, 16].min() > 50
  rng = np.random.default_rng(0)
  task.train.update(rotate=1.0, flip=(0.0, 0.0, 0.0))
  seen = [
    transforms.train_transform(sample | {'id': 'a'}, task, rng)['image'].min() for _ in range(3)
  ]
  assert min(seen) == turned['image'].min()


def test_what_has_no_decibels_is_the_least():
  c = config_lib.task('hbb', 'x').input
  c.update(unit='amplitude_to_db', range='fixed', low=(0.0,), high=(40.0,))
  got = preprocess.apply_input(jnp.float32([[-5, 0, 0.5, 10, 1e6]]), c)
  np.testing.assert_allclose(got, [[0, 0, 0, 127.5, 255]], rtol=1e-5)


def test_bands_are_chosen_before_one_is_repeated():
  task = config_lib.task('hbb', 'x')
  image = np.arange(2 * 2 * 4, dtype=np.uint16).reshape(2, 2, 4)
  task.input.bands = (4, 2, 2)
  np.testing.assert_array_equal(transforms.as_input(image, task), image[..., [3, 1, 1]])
  task.input.bands = (2,)
  np.testing.assert_array_equal(transforms.as_input(image, task), image[..., [1, 1, 1]])
  task.input.bands = (5,)
  with pytest.raises(UserError, match=r"P1 has 4 bands, the task's input.bands=\(5,\) are not"):
    transforms.as_input(image, task, 'P1')


def test_pictures_show_what_the_model_sees(tmp_path, monkeypatch):
  monkeypatch.setattr(predict, 'build', lambda config: Recorder())
  c = dict(unit='power_to_db', range='fixed', low=(0.0,), high=(30.0,))
  detector = predict.Detector(config_of(tmp_path, 3, input=c), {})
  image = np.full((640, 640, 1), 10.0, np.float32)
  picture = detector.plot(image, detector.predict(image, 'rgb'), 'rgb')
  assert (picture[:640] == 85).all()  # 10 dB of 30; stretched, a flat image is black


# --- what is said


@functools.cache
def decibels(**changes):
  c = dict(unit='power_to_db', range='fixed', low=(-25.0,), high=(0.0,)) | changes
  return config_lib.task('hbb', 'x', input=c)


@pytest.mark.parametrize(
  'low, high, message',
  [
    (1e-2, 1e-1, None),
    (-25, -1, '100% are outside of config.tasks.sar.input, 0.00316228 to 1'),  # in dB already
    (30, 900, '100% are outside of config.tasks.sar.input'),  # digital numbers
    (0.1, 0.1002, 'nearly the same for config.tasks.sar.input'),
  ],
)
def test_a_range_that_does_not_fit_is_said(low, high, message):
  image = np.float32(np.linspace(low, high, 3600)).reshape(60, 60, 1)
  found = radiometry.mismatch(image, 'sar', decibels())
  assert found is None if message is None else message in found
  assert radiometry.mismatch(np.where(image > 1e9, 1, image), 'sar', decibels()) == found


def test_it_is_said_once_by_training_and_by_prediction(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(predict, 'build', lambda config: Recorder())
  image = pixels('uint8')
  data_set(tmp_path, image, image)
  config = config_of(tmp_path, input=dict(range='fixed', low=(0.0,), high=(60000.0,)))
  with caplog.at_level(logging.WARNING):
    mixture.Task(config, 'rgb', 'train')
    assert caplog.text.count('nearly the same for config.tasks.rgb.input, 0 to 60000') == 1
    caplog.clear()
    detector = predict.Detector(config, {})
    for _ in range(2):
      detector.predict(image, 'rgb')
  assert caplog.text.count('nearly the same for config.tasks.rgb.input, 0 to 60000') == 1


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(unit='power_to_db'), "unit='power_to_db' needs an end below.*range='percentiles'"),
    (dict(low=(0.0,)), r"low=\(0.0,\) has no effect: set .*range='fixed'"),
    (dict(range='fixed'), r'low=\(\) and high=\(\): both of each of the 3 bands, or one for all'),
    (dict(range='fixed', low=(0.0, 1.0), high=(1.0, 2.0)), 'both of each of the 3 bands'),
    (dict(range='fixed', low=(1.0,), high=(1.0,)), 'is not below'),
    (dict(range='percentiles', high=(1.0,)), 'both of each'),
    (dict(range='percentiles', percentiles=(3.0, 99.0)), 'percentiles=.*two of 0, 0.1, 0.5'),
    (dict(range='percentiles', percentiles=(99.0, 1.0)), 'the lower first'),
    (dict(bands=(1, 2)), r'bands=\(1, 2\) are 2, the task has bands=3'),
    (dict(bands=(0,)), 'a whole number at least 1'),
    (dict(unit='decibel'), "expected 'as_is' or 'power_to_db'"),
  ],
)
def test_an_input_that_does_not_hold_is_named(change, message):
  c = config_lib.default()
  c.tasks.rgb.input.update(change)
  with pytest.raises(UserError, match=rf'config\.tasks\.rgb\.input.*{message}') as error:
    config_lib.check(c)
  assert '\n' not in str(error.value)


def test_the_command_line_sets_it():
  where = '--config.tasks.sar.input'
  changes = ['.unit=amplitude_to_db', '.range=fixed', '.low=(-25,)', '.high=(3.5,)', '.bands=(2,)']
  c = config_lib.override(config_lib.default(), [where + change for change in changes])
  assert (c.tasks.sar.input.low, c.tasks.sar.input.high) == ((-25,), (3.5,))


def test_a_config_of_before_is_taken_as_it_is():
  c = config_lib.default()
  for task in c.tasks.values():
    del task['input']
  assert config_lib.complete(c).to_dict() == config_lib.default().to_dict()
