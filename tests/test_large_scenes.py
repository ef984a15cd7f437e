"""Large drawn scenes: placed on the Earth, with labels that lie on their objects; their picture."""

import json

import cv2
import numpy as np
import pytest
import rasterio
from test_results import needs_pyproj, pyproj

from data_pipelines import scenes
from data_pipelines.errors import UserError
from data_pipelines.readers import Skipped, geojson
from data_pipelines.scenes import large
from sm3det_jax import cli
from sm3det_jax.viz import draw, maps

SIZE, SEED = 512, 3


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('scenes') / 'new'
  assert cli.main(['scenes', f'--geotiff={folder}', f'--size={SIZE}', f'--seed={SEED}']) == 0
  return folder


def features(path):
  return json.loads(path.read_text())['features']


def test_one_has_control_points_and_one_is_affine(folder):
  with rasterio.open(folder / 'sar.tif') as sar, rasterio.open(folder / 'optical.tif') as optical:
    gcps, crs = sar.gcps
    assert len(gcps) == large.GCPS**2 and crs == 'EPSG:4326' and sar.transform.is_identity
    places = np.array([(p.col, p.row, 1, p.x, p.y) for p in gcps])
    fit = np.linalg.lstsq(places[:, :3], places[:, 3:])[0]
    off = np.abs(places[:, :3] @ fit - places[:, 3:]).max() * 111e3 / large.METRES['sar']
    assert off > 1  # px: no affine transform places it
    assert optical.crs == large.UTM and optical.transform.a == large.METRES['optical']
    for raster, bands in ((sar, 1), (optical, 3)):
      assert (raster.count, raster.width, raster.height) == (bands, SIZE, SIZE)
      image = np.moveaxis(raster.read(), 0, -1)
      for i, (y, x) in enumerate(((0, 0), (0, 256), (256, 0), (256, 256))):
        modality = 'sar' if raster is sar else 'optical'
        tile = scenes.scene(SEED, 'large', modality, 256, i)[1]
        np.testing.assert_array_equal(image[y : y + 256, x : x + 256], tile.reshape(256, 256, -1))


@needs_pyproj
def test_labels_lie_on_their_objects(folder):
  """By pyproj and the affine transform written out."""
  _, polygons, names = large.mosaic('optical', SIZE, SEED)
  found = features(folder / 'optical.geojson')
  assert [f['properties']['class'] for f in found] == list(names)
  with rasterio.open(folder / 'optical.tif') as raster:
    a, _, c, _, e, f = raster.transform[:6]
  to_utm = pyproj.Transformer.from_crs(4326, 32631, always_xy=True)
  for feature, polygon in zip(found, polygons.reshape(-1, 4, 2), strict=True):
    (ring,) = feature['geometry']['coordinates']
    assert ring[0] == ring[-1]
    east, north = to_utm.transform(*np.array(ring[:4]).T)
    pixels = np.stack([(east - c) / a, (north - f) / e], -1)
    assert (
      min(np.abs(pixels[order] - polygon).max() for order in (slice(None), [3, 2, 1, 0])) < 0.01
    )
    x, y = (np.array(ring) - ring[0]).T
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # turns left


def test_labels_are_read_back(folder):
  skipped = Skipped()
  read = geojson.read(folder, 'test', labels='.', images='.', skipped=skipped)
  found = {a.id: a for a in read}
  for modality in ('sar', 'optical'):
    _, polygons, names = large.mosaic(modality, SIZE, SEED)
    a = found[modality]
    assert a.names == names
    want, got = (p.reshape(-1, 4, 2) for p in (polygons, np.asarray(a.polygons)))
    np.testing.assert_allclose(got.mean(1), want.mean(1), atol=0.05)
  assert not skipped.counts


def test_what_cannot_be_is_one_line(folder, tmp_path, capsys):
  for size in (100, 0, 300):
    with pytest.raises(UserError, match='expected a multiple of 256'):
      large.write(tmp_path / 'a', size)
  assert not list(tmp_path.iterdir())
  assert cli.main(['scenes', f'--geotiff={folder}', '--size=256']) == 2
  assert 'is not empty' in capsys.readouterr().err


def test_the_picture_shows_scene_and_map(folder, tmp_path):
  maps.write([(folder / 'optical.tif', folder / 'optical.geojson')], tmp_path / 'map.png')
  image = cv2.imread(str(tmp_path / 'map.png'))[..., ::-1]
  height, width = image.shape[:2]
  assert 0.4 < height / width < 0.6
  left, right = image[:, : width // 2], image[:, width // 2 :]
  assert (left.std(-1) < 1).mean() < 0.9 and (right == 255).all(-1).mean() > 0.4
  edges = [(np.array(draw.color(k)) * 0.7).astype(int) for k in range(4)]
  for edge in edges:  # a colour a class
    assert (np.abs(right.astype(int) - edge).max(-1) < 12).sum() > 20


def test_polygons_of_any_kind_are_drawn():
  ring = [[0, 0], [1, 0], [1, 1], [0, 0]]
  content = {
    'features': [
      {'geometry': g, 'properties': {'class': name}}
      for name, g in (
        ('a', {'type': 'Polygon', 'coordinates': [ring]}),
        ('b', {'type': 'MultiPolygon', 'coordinates': [[ring], [ring]]}),
        ('c', None),
      )
    ]
  }
  assert [name for name, _ in maps.rings(content)] == ['a', 'b', 'b']
