"""Tiles of pre-training: 8-bit stretch, listing, blocks, random access."""

import itertools

import cv2
import numpy as np
import pytest
import rasterio

from data_pipelines import images, mixture, tiles, transforms
from data_pipelines.errors import UserError
from data_pipelines.readers import Skipped
from data_pipelines.source import Source
from sm3det_jax import cli, config
from sm3det_jax.config import ringmoe


def test_stretch8_is_two_stretches():
  """Against a plain reading of the rule, pixel by pixel."""
  rng = np.random.default_rng(0)
  image = np.stack([rng.gamma(2, 300, (40, 50)), rng.normal(900, 50, (40, 50))], -1)
  image = image.astype(np.uint16)
  low, high = int(image.min()), int(image.max())
  for k in range(2):
    levels = [round((int(v) - low) / (high - low) * 255) for v in image[..., k].ravel()]
    counts = [sum(v <= level for v in levels) for level in range(256)]
    first = next(level for level in range(256) if counts[level] > 2)  # 0.1 % of 2000
    last = next(level for level in range(256) if counts[level] > 1998)
    expected = [int((min(max(v, first), last) - first) * 255 / (last - first)) for v in levels]
    np.testing.assert_array_equal(images.stretch8(image)[..., k].ravel(), expected)


def test_stretch8_of_one_level():
  image = np.stack([np.full((8, 8), 5.0), np.arange(64.0).reshape(8, 8)], -1)
  assert not images.stretch8(image)[..., 0].any()
  with pytest.raises(UserError, match='constant tile'):
    images.stretch8(np.full((4, 4, 2), 7, np.int16))
  with pytest.raises(UserError, match='not finite'):
    images.stretch8(np.full((4, 4, 2), np.nan))


def written(folder, **arrays):
  """A folder of images: .npy, or PNG for names that end so."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, array in arrays.items():
    if array.dtype == np.uint8:
      cv2.imwrite(str(folder / f'{name}.png'), array[..., ::-1])
    else:
      np.save(folder / f'{name}.npy', array)
  return folder


def prepared(tmp_path, modality, **arrays):
  skipped = Skipped()
  cut = tiles.Cut(16, 8)
  folder = written(tmp_path / 'raw', **arrays)
  tiles.prepare(modality, folder, tmp_path / 'data', cut=cut, skipped=skipped)
  return Source(tmp_path / 'data', f'tiles_{modality}', 'train'), skipped


def test_tiles_are_the_windows_of_images_stored_once(tmp_path):
  rng = np.random.default_rng(1)
  a, b = (rng.integers(1, 256, (*size, 3), np.uint8) for size in ((45, 40), (16, 70)))
  a[:, :11] = 0  # 11 of the first 16 columns are black, 3 of the second
  source, skipped = prepared(tmp_path, 'opt', a=a, b=b)
  assert skipped.counts == {'tile with over 30% black': 5}
  assert len(source) == 5 * 3 + 8  # rows and columns of `a` without the first, of `b`
  for sample in source:
    (x, y), whole = sample['offset'], {'a': a, 'b': b}[sample['id']]
    np.testing.assert_array_equal(sample['image'], whole[y : y + 16, x : x + 16])
  assert len(source._blocks) == 3 * 3 + 5  # of 16 px: no pixel twice


def test_tiles_of_16_bits_are_stretched_one_by_one(tmp_path):
  rng = np.random.default_rng(2)
  image = rng.gamma(2, 400, (40, 24, 4)).astype(np.uint16) + 1
  source, _ = prepared(tmp_path, 'ms', a=image)
  for sample in source:
    x, y = sample['offset']
    wanted = images.stretch8(image[y : y + 16, x : x + 16])
    np.testing.assert_array_equal(sample['image'], wanted)


@pytest.mark.parametrize('form', ['complex64', 'int16', 'tiff'])
def test_complex_tiles_keep_their_precision(tmp_path, form):
  rng = np.random.default_rng(3)
  channels = rng.integers(-900, 900, (30, 33, 8)).astype(np.int16)
  image = channels.astype(np.float32).view(np.complex64)
  if form == 'tiff':
    folder = tmp_path / 'raw'
    folder.mkdir()
    shape = dict(height=30, width=33, count=4, dtype='complex_int16')
    shape['transform'] = rasterio.Affine(1, 0, 9, 0, -1, 9)
    with rasterio.open(folder / 'a.tif', 'w', driver='GTiff', **shape) as file:
      file.write(np.moveaxis(image, -1, 0))
    source, _ = prepared(tmp_path, 'sar_l1')
  else:
    source, skipped = prepared(tmp_path, 'sar_l1', a=channels if form == 'int16' else image)
    assert 'std=' in skipped.notes[-1] and 'mean power of all channels' in skipped.notes[-1]
  for sample in source:
    x, y = sample['offset']
    assert sample['image'].dtype == (np.float32 if form == 'complex64' else np.int16)
    np.testing.assert_array_equal(sample['image'], channels[y : y + 16, x : x + 16])


def test_what_is_no_tile_is_counted(tmp_path):
  rng = np.random.default_rng(4)
  good = rng.normal(size=(16, 40, 8)).astype(np.float32)
  broken = good.copy()
  broken[3, 30] = np.nan
  flat = np.ones((16, 16, 8), np.float32)
  few, small = good[..., :6].copy(), good[:8].copy()
  arrays = dict(good=good, broken=broken, flat=flat, few=few, small=small)
  source, skipped = prepared(tmp_path, 'sar_l1', **arrays)
  assert skipped.counts == {
    'tile of sar_l1 with values that are not finite': 2,
    'constant tile': 1,
    'image of another number of bands': 1,
    'image smaller than a tile': 1,
  }
  assert [(s['id'], s['offset'][0]) for s in source] == [
    ('broken', 0), ('broken', 8), ('good', 0), ('good', 8), ('good', 16), ('good', 24),
  ]  # fmt: skip


@pytest.mark.parametrize(
  'options, message',
  [
    (['--modality=radar'], 'invalid choice'),
    ([], '--modality is missing'),
    (['--modality=opt', '--stride=0'], '--stride=0'),
    (['--modality=opt', '--black=2'], '--black=2'),
    (['--modality=opt', '--classes=a'], '--classes: --dataset=tiles does not take it'),
    (['--modality=ms'], "'ms' has no tile in split 'train'; image of another number of bands"),
    (['--modality=opt', '--splits=train=none'], 'does not exist'),
  ],
)
def test_bad_requests_are_one_line(tmp_path, capsys, options, message):
  written(tmp_path / 'raw', a=np.full((200, 200, 3), 9, np.uint8))
  arguments = [
    'prepare',
    '--dataset=tiles',
    f'--source={tmp_path}/raw',
    f'--data_root={tmp_path}/d',
  ]
  try:
    assert cli.main([*arguments, *options]) == 2
  except SystemExit as error:
    assert error.code == 2
  said = capsys.readouterr().err.strip().splitlines()
  assert message in said[-1] and not (tmp_path / 'd').exists()


def test_a_random_crop_is_within_its_limits_and_by_its_seed():
  y, x = np.mgrid[0:60, 0:80].astype(np.float32)
  sample = {'image': np.stack([x, y] * 4, -1), 'objects': {}}
  crop = lambda seed, area: transforms.random_crop(
    sample, area, (3 / 4, 4 / 3), (48, 48), np.random.default_rng(seed)
  )
  shares = []
  for seed in range(100):
    image = crop(seed, (0.2, 0.5))['image']
    assert image.shape == (48, 48, 8) and image.dtype == np.float32
    # a ramp, enlarged, tells where it was cut: its slope is the side of the part over 48
    w, h = (47 * np.ptp(image[24, 12:36, 0]) / 23, 47 * np.ptp(image[12:36, 24, 1]) / 23)
    assert 0.72 < w / h < 1.4
    shares.append(w * h / 60 / 80)
    assert -1 < image[..., 0].min() and image[..., 0].max() < 80
  assert 0.18 < min(shares) < 0.24 and 0.44 < max(shares) < 0.52
  np.testing.assert_array_equal(crop(7, (0.2, 1.0))['image'], crop(7, (0.2, 1.0))['image'])
  assert np.any(crop(7, (0.2, 1.0))['image'] != crop(8, (0.2, 1.0))['image'])


def four_sets(tmp_path, **sides):
  """A config of tiles of 32 px, whose sets have as many tiles as said."""
  rng, c = np.random.default_rng(5), ringmoe.ringmoe('tiny', modalities=tuple(sides))
  for name, count in sides.items():
    bands, tile = tiles.BANDS[name], (32, 32 * count)
    image = rng.normal(size=(*tile, bands)).astype(np.float32)
    if name != 'sar_l1':
      image = (300 + 99 * image).astype(np.uint16)
    folder = written(tmp_path / name, a=image)
    tiles.prepare(name, folder, tmp_path / 'data', cut=tiles.Cut(32, 32))
    c.tasks[name].size = (32, 32)
  c.data_root, c.batch_size, c.workers = str(tmp_path / 'data'), 2 * len(sides), 0
  return config.check(c)


def test_sets_of_any_length_bring_as_many_tiles_a_step(tmp_path):
  c = four_sets(tmp_path, opt=7, sar_l1=3, ms=1)
  batches = list(itertools.islice(mixture.train_batches(c), 6))
  for batch in batches:
    shapes = {name: b['images'].shape for name, b in batch.items()}
    assert shapes == {n: (2, 32, 32, tiles.BANDS[n]) for n in ('opt', 'sar_l1', 'ms')}
    assert {n: b['images'].dtype.name for n, b in batch.items()} == {
      'opt': 'uint8', 'sar_l1': 'float32', 'ms': 'uint8',
    }  # fmt: skip
  again = next(mixture.train_batches(c, step=4))  # exact resume, and on two hosts
  halves = [next(mixture.train_batches(c, step=4, host=h, hosts=2)) for h in range(2)]
  for name, b in batches[4].items():
    np.testing.assert_array_equal(b['images'], again[name]['images'])
    both = np.concatenate([half[name]['images'] for half in halves])
    np.testing.assert_array_equal(b['images'], both)
  # an epoch of a set has each of its tiles once, whatever the others have
  task = mixture.open_tasks(c)['sar_l1']
  task.config.train.crop.area, task.config.train.flip = (), (0.0, 0.0, 0.0)
  seen = [task.draw(position)[0]['image'].tobytes() for position in range(6)]
  assert len(set(seen[:3])) == len(set(seen[3:])) == 3


def test_a_set_of_tiles_is_not_cut_again(tmp_path):
  prepared(tmp_path, 'opt', a=np.random.default_rng(0).integers(1, 99, (20, 20, 3), np.uint8))
  with pytest.raises(UserError, match='cuts none, set 0'):
    Source(tmp_path / 'data', 'tiles_opt', 'train', tile={'size': 8})
