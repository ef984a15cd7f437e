"""`sm3det pretrain`: drawn scenes of four sensors, the run, its report."""

import cv2
import numpy as np
import pytest

from data_pipelines import tiles
from data_pipelines.errors import UserError
from data_pipelines.scenes import sensors
from sm3det_jax import config, logs, pretrain
from sm3det_jax.config import ringmoe
from sm3det_jax.viz import reconstructions

SIDE = 64  # px, of tiles


def small(tmp_path, *modalities):
  """A small model of tiles of 64 px, and few scenes."""
  c = ringmoe.ringmoe('tiny', modalities=modalities)
  c.backbone.update(depths=(1, 1, 1, 1), channels=(8, 16, 32, 64), heads=(1, 1, 2, 2))
  c.moe.blocks = ((), (), (), (0,))
  c.backbone.specialised = 2
  ringmoe.keep_collaborative(c, 2)
  for task in c.tasks.values():
    task.size = (SIDE, SIDE)
  c.batch_size, c.workers, c.data_root = 2 * len(modalities), 0, str(tmp_path / 'none')
  c.optim.update(steps=2, warmup_steps=1)
  c.log_every, c.mesh.data = 1, 1
  return c


@pytest.fixture
def few_scenes(monkeypatch):
  monkeypatch.setattr(pretrain, 'SCENES', {'train': 1, 'test': 1})
  monkeypatch.setattr(pretrain, 'SIDE', 192)


@pytest.mark.parametrize('modality', sensors.DRAWN)
def test_a_scene_is_of_its_sensor_and_its_seed(modality):
  draw = lambda seed: sensors.draw(modality, np.random.default_rng(seed), 128)
  image = draw(3)
  np.testing.assert_array_equal(image, draw(3))
  assert np.any(image != draw(4)) and image.shape[:2] == (128, 128)
  if modality == 'sar_l1':
    assert image.dtype == np.complex64 and np.isfinite(image).all()
    hh, hv, vh, vv = np.moveaxis(image, -1, 0)
    power = lambda x: np.median(np.abs(x) ** 2)
    assert 0.3 < (np.abs(image) ** 2).sum(-1).mean() < 4
    assert power(hv) < 0.5 * power(hh)
    alike = lambda a, b: abs((a * b.conj()).mean()) / np.sqrt(power(a) * power(b))
    assert alike(hv, vh) > 0.6 and alike(hh, vv) > 0.2
  elif modality == 'ms':
    assert image.dtype == np.uint16 and image.shape[2] == 4 and 300 < image.max() < 2048
  else:
    assert image.dtype == np.uint8


def test_drawn_scenes_where_there_are_none(tmp_path, few_scenes, caplog):
  caplog.set_level('INFO')
  c = small(tmp_path, 'opt', 'ms')
  pretrain.ensure_data(c, tmp_path / 'run')
  assert c.data_root == str(tmp_path / 'run/data')
  assert any('training on drawn scenes' in r.message for r in caplog.records)
  c.data_root = str(tmp_path / 'none')
  root = tmp_path / 'none'
  tiles.prepare('opt', tmp_path / 'run/scenes/opt/train', root)
  with pytest.raises(UserError, match='has no tiles_ms: make it with'):
    pretrain.ensure_data(c, tmp_path / 'run')
  tiles.prepare('ms', tmp_path / 'run/scenes/ms/train', root)
  pretrain.ensure_data(c, tmp_path / 'run')
  assert c.data_root == str(root)
  with pytest.raises(UserError, match='no masked-image model'):
    pretrain.run(config.default(), tmp_path / 'other')


def test_a_picture_shows_four_columns_in_the_range_of_the_target(tmp_path):
  target = np.zeros((1, 32, 32, 1), np.float32)
  target[:, 16:] = 4
  mask = np.zeros((1, 8, 8), np.int32)
  mask[:, :, :4] = 1
  path = reconstructions.write(tmp_path / 'a/b.png', target, mask, target / 4, target)
  picture = cv2.imread(str(path))[reconstructions.BANNER :, :, 0]
  seen, hidden, found, wanted = (picture[:32, k * 38 : k * 38 + 32] for k in range(4))
  np.testing.assert_array_equal(seen, wanted)
  assert (seen[:16] == 0).all() and (seen[16:] == 255).all()
  assert (hidden[:, :16] == reconstructions.GREY).all()
  np.testing.assert_array_equal(hidden[:, 16:], seen[:, 16:])
  assert (found[16:] == 64).all()


@pytest.mark.slow
def test_pretraining_trains_goes_on_and_reports(tmp_path, few_scenes):
  """One run of four sensors: logs, checkpoint, report; a second call has nothing left to train."""
  c = small(tmp_path, *ringmoe.MODALITIES)
  page = pretrain.run(c, tmp_path / 'run')
  log = logs.read(tmp_path / 'run')
  assert [line['step'] for line in log] == [1, 2]
  for name in ringmoe.MODALITIES:
    assert np.isfinite(log[-1][f'loss/{name}/reconstruction'])
    assert f'reconstructions/{name}.png' in page.read_text()
    assert (tmp_path / f'run/reconstructions/{name}.png').stat().st_size > 1000
  c = small(tmp_path, *ringmoe.MODALITIES)
  pretrain.run(c, tmp_path / 'run')
  assert logs.read(tmp_path / 'run') == log
