"""Where images lie: RPCs against their polynomials, the way back to pixels, labels placed by it."""

import dataclasses
import logging

import numpy as np
import pytest
import rasterio
from rasterio.rpc import RPC
from test_results import (
  CLASSES,
  HEIGHT,
  OBB,
  TURNED,
  UTM,
  WIDTH,
  check_ground,
  needs_pyproj,
  points_of,
  pyproj,
  raster,
  same_boxes,
  slanted,
)

from data_pipelines import georeference
from data_pipelines.readers import Skipped, geojson

POINTS = np.array([[0, 0], [WIDTH, HEIGHT], [WIDTH, 0], [123.25, 77.5], [200, 150]], np.float64)
OVER = (lambda col, row: ((179.99 + 1e-4 * col + 180) % 360 - 180, 10 - 1e-4 * row),)


def coefficients(seed, first):
  """20 of a polynomial: the `first` ones are given, the others small."""
  small = np.random.default_rng(seed).normal(scale=2e-3, size=20)
  small[: len(first)] = first
  return small.tolist()


RPCS = RPC(
  height_off=310.0, height_scale=500.0, lat_off=47.2, lat_scale=0.01, long_off=8.5,
  long_scale=0.02, line_off=150.0, line_scale=150.0, samp_off=200.0, samp_scale=200.0,
  line_num_coeff=coefficients(0, [0.003, 0.05, -1.1, 0.04]),
  line_den_coeff=coefficients(1, [1.0]),
  samp_num_coeff=coefficients(2, [-0.002, 1.05, 0.06, -0.03]),
  samp_den_coeff=coefficients(3, [1.0]),
)  # fmt: skip


def projected(rpc, longitude, latitude, height):
  """Column and row of places, by the definition of RPC00B, whose pixels have their centres at whole numbers."""  # noqa: E501
  x = (longitude - rpc.long_off) / rpc.long_scale
  y = (latitude - rpc.lat_off) / rpc.lat_scale
  z = (height - rpc.height_off) / rpc.height_scale + 0 * x
  terms = np.stack([
    x**0, x, y, z, x * y, x * z, y * z, x * x, y * y, z * z, x * y * z, x**3, x * y * y, x * z * z,
    x * x * y, y**3, y * z * z, x * x * z, y * y * z, z**3,
  ])  # fmt: skip
  ratio = lambda above, below: (np.array(above) @ terms) / (np.array(below) @ terms)
  column = ratio(rpc.samp_num_coeff, rpc.samp_den_coeff) * rpc.samp_scale + rpc.samp_off
  row = ratio(rpc.line_num_coeff, rpc.line_den_coeff) * rpc.line_scale + rpc.line_off
  return np.stack([column, row], -1)


def test_rpcs_are_solved_at_their_own_height(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  place = raster(tmp_path / 'a.tif', rpcs=RPCS).georeference
  longitude, latitude = place.to_wgs84(POINTS).T
  found = projected(RPCS, longitude, latitude, RPCS.height_off)
  np.testing.assert_allclose(found + 0.5, POINTS, atol=2e-3)
  at_sea = projected(RPCS, longitude, latitude, 0.0)
  assert np.abs(at_sea - found).min(1).max() > 1  # the height does matter
  np.testing.assert_allclose(place.to_pixels(place.to_map(POINTS)), POINTS, atol=2e-3)
  assert 'a.tif: placed by its RPCs, all of it at their own height of 310 m' in caplog.text


@needs_pyproj
@pytest.mark.parametrize('crs', ['EPSG:3413', 'EPSG:3031'])
def test_a_scene_at_a_pole(crs, tmp_path, caplog):
  middle = rasterio.Affine.translation(-10 * WIDTH / 2, 10 * HEIGHT / 2)
  r = raster(tmp_path / 'a.tif', crs=crs, transform=middle @ rasterio.Affine.scale(10, -10))
  round_it = np.array([[200, 150, 60, 20, 0.3], [205, 152, 40, 20, 0.0], [200, 155, 40, 10, 0.0]])
  beside = [[201, 160, 60, 8, 0.2], [150, 90, 90, 30, -1.2]]
  r = dataclasses.replace(
    r, boxes=np.array([*round_it, *beside], np.float32), scores=np.full(5, 0.5, np.float32),
    labels=np.zeros(5, int),
  )  # fmt: skip
  features = r.to_geojson()['features']
  assert [f['geometry'] is None for f in features] == [True, True, True, False, False]
  assert [m for m in caplog.messages if '3 objects that hold a pole' in m] == caplog.messages
  geod = pyproj.Geod(ellps='WGS84')
  for feature, quad in zip(features, r.polygons.reshape(-1, 4, 2), strict=True):
    ends = r.georeference.to_wgs84((quad + np.roll(quad, -1, 0)) / 2)
    centre = r.georeference.to_wgs84(quad.mean(0))
    axes = [(geod.inv(*ends[i], *ends[i + 2])[2], ends[i]) for i in (0, 1)]
    (width, _), (length, end) = sorted(axes, key=lambda axis: axis[0])
    found = feature['properties']
    np.testing.assert_allclose([found['length_m'], found['width_m']], [length, width], rtol=1e-5)
    if centre[1] ** 2 < 89.999**2:  # at the pole every way is south
      azimuth = geod.inv(*centre, *end)[0]
      assert abs((found['bearing'] - azimuth + 90) % 180 - 90) < 0.05


@needs_pyproj
def test_a_scene_with_rpcs_has_metres_and_bearings(tmp_path):
  r = raster(tmp_path / 'a.tif', rpcs=RPCS)
  check_ground(r)
  assert r.to_json()['crs'] == 'EPSG:4326'


def test_affine_goes_before_points_and_points_before_rpcs(tmp_path):
  placed = dict(crs='EPSG:32633', transform=UTM, rpcs=RPCS)
  assert raster(tmp_path / 'a.tif', **placed).georeference.transform == UTM
  assert raster(tmp_path / 'b.tif', rpcs=RPCS, **points_of(slanted)).georeference.gcps


KINDS = {
  'affine': dict(crs='EPSG:32633', transform=UTM),
  'turned': dict(crs='EPSG:32633', transform=TURNED),
  'points': points_of(slanted),
  'rpcs': dict(rpcs=RPCS),
  'antimeridian': points_of(*OVER),
  'antimeridian_affine': dict(
    crs='EPSG:4326', transform=rasterio.Affine(1e-4, 0, 179.99, 0, -1e-4, 10)
  ),
}


@pytest.mark.parametrize('kind', KINDS)
def test_back_to_pixels(tmp_path, kind):
  place = raster(tmp_path / 'a.tif', **KINDS[kind]).georeference
  inside = POINTS * 0.9 + 10
  places = place.to_map(inside)
  if 'antimeridian' in kind:
    assert np.ptp(places[:, 0]) < 1 and places[:, 0].max() > 180
    places[:, 0] = (places[:, 0] + 180) % 360 - 180  # as files have them
  np.testing.assert_allclose(place.to_pixels(places), inside, atol=5e-3)
  assert place.to_pixels(np.zeros((0, 2))).shape == (0, 2)


def test_labels_are_placed_as_predictions_are(tmp_path):
  """What a result of each kind of scene writes is read as the labels of that scene."""
  for kind, placed in KINDS.items():
    if kind != 'antimeridian_affine':
      raster(tmp_path / f'{kind}.tif', **placed).save(tmp_path / f'{kind}.geojson')
  skipped, found = Skipped(), {}
  for a in geojson.read(tmp_path, 'test', labels='.', images='.', skipped=skipped):
    found[a.id] = a
  assert not skipped.counts and len(found) == 5
  for kind, a in found.items():
    if kind != 'antimeridian':  # which cuts a polygon in two
      same_boxes(a.boxes, OBB)
      assert a.names == CLASSES


def test_what_places_nothing_is_one_line(tmp_path, caplog):
  local = rasterio.crs.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
  r = raster(tmp_path / 'good.tif', crs='EPSG:32633', transform=UTM)
  raster(tmp_path / 'no_crs.tif', transform=UTM)
  raster(tmp_path / 'local.tif', crs=local, transform=UTM)
  raster(tmp_path / 'rpcs.tif')
  (tmp_path / 'rpcs.tif.aux.xml').write_text(
    '<PAMDataset><Metadata domain="RPC"><MDI key="LINE_OFF">much</MDI></Metadata></PAMDataset>'
  )
  (tmp_path / 'cut.tif').write_bytes((tmp_path / 'good.tif').read_bytes()[:60])
  for name in ('no_crs', 'local', 'rpcs', 'cut', 'good'):
    r.save(tmp_path / f'{name}.geojson')
  text = (tmp_path / 'good.geojson').read_text()
  (tmp_path / 'good.geojson').write_text(
    text.replace('{', '{"crs": {"properties": {"name": "EPSG:999999"}}, ', 1)
  )
  caplog.clear()
  skipped = Skipped()
  assert not list(geojson.read(tmp_path, 'test', labels='.', images='.', skipped=skipped))
  assert skipped.counts == {
    'image without a georeference': 3, 'image does not decode': 1,
    'coordinate system that is not known': 1,
  }  # fmt: skip
  for name, why in (
    ('no_crs', 'needs a coordinate system'),
    ('local', "'site' leads to no longitude and latitude"),
    ('rpcs', 'cannot be read'),
    ('good', "crs is 'EPSG:999999'"),
  ):
    assert [m for m in caplog.messages if name in m and why in m and '\n' not in m], caplog.text
  assert georeference.read(tmp_path / 'rpcs.tif') is None
