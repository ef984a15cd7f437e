"""Results: what they hold, where they lie on the Earth, and the files that other tools take."""

import csv
import dataclasses
import io
import json
import logging
import math
import os
import pathlib
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import rasterio.errors
import shapely
import shapely.affinity
from blobs import Blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint

from data_pipelines import boxes as box_lib
from data_pipelines import georeference
from data_pipelines.errors import UserError
from data_pipelines.readers import Skipped, coco, dota_txt, geojson, yolo
from sm3det_jax import config as config_lib
from sm3det_jax import predict
from sm3det_jax.results import Result, formats, gpkg
from sm3det_jax.results import geojson as geojson_file
from sm3det_jax.viz import draw

try:
  import pyproj
except ModuleNotFoundError:
  pyproj = None

needs_pyproj = pytest.mark.skipif(pyproj is None, reason='pyproj is not installed')
CLASSES = ('ship', 'small vehicle', 'plane')
HEIGHT, WIDTH = 300, 400
OBB = np.array(
  [[100, 80, 60, 20, 0.3], [300, 200, 90, 30, -1.2], [50.5, 250.25, 40, 39, 1.5]], np.float32
)
HBB = np.array([[10, 20, 50, 90], [100.5, 30, 300, 60.25]], np.float32)
UTM = rasterio.Affine(10, 0, 4e5, 0, -10, 5.6e6)
TURNED = rasterio.Affine.translation(4e5, 5.6e6) @ rasterio.Affine.rotation(-30)
TURNED = TURNED @ rasterio.Affine.scale(10, -10)


def result(boxes=OBB, image='a/picture.png', place=None):
  labels = np.arange(len(boxes)) % len(CLASSES)
  scores = np.linspace(0.9, 0.35, len(boxes), dtype=np.float32)
  return Result(boxes, scores, labels, CLASSES, 'rgb', image, (HEIGHT, WIDTH), place)


def raster(path, **georeferenced):
  """A GeoTIFF, and a result of it as `predict` gives it."""
  kind = dict(driver='GTiff', dtype='uint8', count=1, height=HEIGHT, width=WIDTH)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
    with rasterio.open(path, 'w', **kind, **georeferenced) as file:
      file.write(np.zeros((1, HEIGHT, WIDTH), np.uint8))
  return result(image=path, place=georeference.read(path))


def points_of(place, crs='EPSG:4326', columns=7, rows=6):
  """Ground control points of a grid, at `place(col, row)`."""
  grid = [
    (row, col) for row in np.linspace(0, HEIGHT, rows) for col in np.linspace(0, WIDTH, columns)
  ]
  gcps = [GroundControlPoint(row, col, *place(col, row), 0) for row, col in grid]
  return dict(gcps=gcps, crs=crs)


def slanted(col, row):
  """A place of a radar's swath: uneven, north to the left."""
  return 10 + 1e-4 * row + 2e-5 * col + 2e-5 * np.sin(col / 90), 50 - 1e-4 * col + 2e-5 * row


def same_boxes(found, boxes):
  """Rectangles that cover each other, however they are spelled."""
  assert len(found) == len(boxes)
  for a, b in zip(box_lib.to_polygon(found), box_lib.to_polygon(boxes), strict=True):
    a, b = shapely.Polygon(a.reshape(4, 2)), shapely.Polygon(b.reshape(4, 2))
    assert a.intersection(b).area / a.union(b).area > 0.999


def test_it_passes_for_the_dict_that_it_was():
  r = result()
  assert len(r) == 3 and r['names'] == r.names == list(CLASSES)
  assert dict(r).keys() == {'boxes', 'scores', 'labels', 'names', 'polygons'}
  assert r['boxes'] is r.boxes and 'scores' in r and 'nothing' not in r
  with pytest.raises(KeyError):
    r['nothing']
  assert repr(r) == 'Result(a/picture.png, rgb: 1 ship, 1 small vehicle, 1 plane)'


def test_some_of_its_detections():
  r = result()
  assert r[r.scores > 0.5].names == ['ship', 'small vehicle'] and r[-1].names == ['plane']
  assert r[1:].boxes.tolist() == OBB[1:].tolist() and [x.names[0] for x in r] == r.names
  none = r[r.scores > 1]
  assert len(none) == 0 and none.polygons.shape == (0, 8) and 'nothing' in repr(none)


@given(st.floats(-1.57, 1.57), st.floats(5, 90), st.floats(5, 90))
def test_corners_are_those_of_shapely(theta, w, h):
  box = box_lib.le90([[200, 150, w, h, theta]])
  cx, cy, w, h, theta = box[0].astype(float)
  level = shapely.box(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
  turned = shapely.affinity.rotate(level, theta, use_radians=True)  # y down: clockwise on screen
  quad = result(box).polygons[0].reshape(4, 2)
  assert shapely.Polygon(quad).symmetric_difference(turned).area < 1e-3


def test_json_is_what_it_was(tmp_path):
  content = result().to_json()
  assert list(content) == ['image', 'task', 'height', 'width', 'box', 'detections']
  assert content['box'].startswith('obb') and result(HBB).to_json()['box'].startswith('hbb')
  assert list(content['detections'][0]) == ['name', 'score', 'box', 'polygon']
  place = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=UTM)
  content = place.to_json()
  assert content['crs'] == 'EPSG:32633' and content['detections'][0]['length_m'] > 500


@needs_pyproj
@pytest.mark.parametrize('transform', [UTM, TURNED])
def test_affine_georeference(tmp_path, transform):
  r = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=transform)
  a, b, c, d, e, f = transform[:6]
  x, y = r.polygons.reshape(-1, 2).T
  to_wgs84 = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
  want = np.stack(to_wgs84.transform(a * x + b * y + c, d * x + e * y + f), -1)
  np.testing.assert_allclose(r.georeference.to_wgs84(r.polygons.reshape(-1, 2)), want, atol=1e-9)
  check_ground(r)


@needs_pyproj
def test_ground_control_points(tmp_path):
  r = raster(tmp_path / 'a.tif', **points_of(slanted))
  points = r.polygons.reshape(-1, 2)
  want = np.stack(slanted(*points.T), -1)
  np.testing.assert_allclose(r.georeference.to_wgs84(points), want, atol=2e-6)  # 0.2 m
  check_ground(r)
  assert r.to_json()['crs'] == 'EPSG:4326'


def check_ground(r):
  """Centre, bearing, length and width against pyproj's geodesics."""
  geod = pyproj.Geod(ellps='WGS84')
  table = json.loads(json.dumps(r.to_geojson()))['features']
  middle = lambda quad, i, j: (quad[i] + quad[j]) / 2
  for feature, quad in zip(table, r.polygons.reshape(-1, 4, 2), strict=True):
    ends = [middle(quad, 3, 0), middle(quad, 1, 2), middle(quad, 0, 1), middle(quad, 2, 3)]
    ends = r.georeference.to_wgs84(np.array(ends))
    axes = [geod.inv(*ends[0], *ends[1]), geod.inv(*ends[2], *ends[3])]
    (azimuth, _, length), (_, _, width) = sorted(axes, key=lambda axis: -axis[2])
    found = feature['properties']
    assert math.isclose(found['length_m'], length, rel_tol=1e-4)
    assert math.isclose(found['width_m'], width, rel_tol=1e-4)
    assert abs((found['bearing'] - azimuth + 90) % 180 - 90) < 0.05
    centre = r.georeference.to_wgs84(quad.mean(0))
    np.testing.assert_allclose([found['longitude'], found['latitude']], centre, atol=1e-8)


@needs_pyproj
@settings(deadline=None)
@given(st.floats(-179, 179), st.floats(-90, 90), st.floats(0, 179), st.floats(10, 50_000))
def test_metres_are_right_to_a_thousandth(longitude, latitude, azimuth, length):
  geod = pyproj.Geod(ellps='WGS84')
  back, ahead = azimuth + 180, azimuth
  a = geod.fwd(longitude, latitude, back, length / 2)[:2]
  b = geod.fwd(longitude, latitude, ahead, length / 2)[:2]
  centre = np.array([[longitude, latitude]])
  east, north = georeference._metres(np.array([a]), np.array([b]), centre)[0]
  assert math.isclose(math.hypot(east, north), length, rel_tol=1e-3)
  off = math.degrees(math.atan2(east, north)) - azimuth
  assert abs((off + 180) % 360 - 180) < 0.05


def test_no_georeference(tmp_path, caplog):
  assert raster(tmp_path / 'none.tif').georeference is None
  assert raster(tmp_path / 'no_crs.tif', transform=UTM).georeference is None
  assert raster(tmp_path / 'no_place.tif', crs='EPSG:4326').georeference is None
  np.save(tmp_path / 'a.npy', np.zeros((4, 4)))
  assert georeference.read(tmp_path / 'a.npy') is None and not caplog.text
  local = rasterio.crs.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
  assert raster(tmp_path / 'local.tif', crs=local, transform=UTM).georeference is None
  line = points_of(lambda col, row: (col, col), columns=5, rows=1)
  assert raster(tmp_path / 'line.tif', **line).georeference is None
  far = raster(tmp_path / 'far.tif', crs='EPSG:4326', transform=UTM)
  assert far.georeference is None and len(caplog.records) == 3
  assert all('left out' in record.getMessage() for record in caplog.records)
  with pytest.raises(UserError, match='none.tif: no GeoJSON without a georeference'):
    raster(tmp_path / 'none.tif').save(tmp_path / 'a.geojson')
  with pytest.raises(UserError, match='no GeoPackage without'):
    gpkg.write(result(), tmp_path / 'a.gpkg')
  assert not list(tmp_path.glob('a.g*'))


def test_geojson_back_to_pixels(tmp_path):
  for name, transform in (('level', UTM), ('turned', TURNED)):
    r = raster(tmp_path / f'{name}.tif', crs='EPSG:32633', transform=transform)
    r.save(tmp_path / f'{name}.geojson')
    for feature in json.loads((tmp_path / f'{name}.geojson').read_text())['features']:
      ring = shapely.Polygon(feature['geometry']['coordinates'][0]).exterior
      assert ring.is_ccw and ring.is_closed
  skipped = Skipped()
  for a in geojson.read(tmp_path, 'test', labels='.', images='.', skipped=skipped):
    same_boxes(a.boxes, OBB)
    assert a.names == CLASSES
  assert not skipped.counts


@given(st.floats(-0.02, 0.02), st.floats(-1.5, 1.5))
def test_the_antimeridian_cuts(shift, theta):
  quad = box_lib.to_polygon(np.array([[180 + shift, 10, 0.03, 0.01, theta]])).reshape(4, 2)
  whole = shapely.Polygon(quad)
  wrapped = np.stack([(quad[:, 0] + 180) % 360 - 180, quad[:, 1]], -1)
  # beside one that has no place and one in the middle of the map
  others = np.stack([np.full((4, 2), np.inf), wrapped, quad - [170, 0]])
  nowhere, found, plain = geojson_file.geometries(others)
  assert nowhere is None and len(geojson_file.geometries(others[:0])) == 0
  away = shapely.Polygon(quad - [170, 0])
  assert shapely.geometry.shape(plain).symmetric_difference(away).area < 1e-6 * away.area
  assert (found['type'] == 'MultiPolygon') == (quad[:, 0].min() < 180 < quad[:, 0].max())
  shape = shapely.geometry.shape(found)
  assert math.isclose(shape.area, whole.area, rel_tol=1e-4)
  for part in getattr(shape, 'geoms', [shape]):
    assert part.exterior.is_ccw and -180 <= part.bounds[0] and part.bounds[2] <= 180
    here = shapely.affinity.translate(part, 360 * (part.bounds[0] < 0))
    assert here.difference(whole.buffer(1e-6)).is_empty


@needs_pyproj
def test_a_scene_across_the_antimeridian(tmp_path):
  over = lambda col, row: ((179.99 + 1e-4 * col + 180) % 360 - 180, 10 - 1e-4 * row)
  r = raster(tmp_path / 'a.tif', **points_of(over))
  assert [f['geometry']['type'] for f in r.to_geojson()['features']].count('MultiPolygon') == 1
  check_ground(r)


def test_json_is_text_with_an_item_a_line():
  content = {'name': 'a "b" \u00e4', 'rows': [{'x': [1, 2.5], 'y': None}, {}], 'none': [], 'n': 1}
  text = ''.join(formats.lines(content))
  assert json.loads(text) == content
  assert text.count('\n') == 9
  with pytest.raises(ValueError):
    ''.join(formats.lines({'rows': [{'x': math.nan}]}))


def test_horizontal_boxes_have_no_bearing(tmp_path):
  place = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=UTM).georeference
  r = result(HBB, place=place)
  for feature in r.to_geojson()['features']:
    found = feature['properties']
    assert found['angle'] is None and found['bearing'] is None and found['length_m'] > 500
  assert list(csv.DictReader(io.StringIO(r.to_csv())))[0]['bearing'] == ''


def test_geopackage(tmp_path, caplog):
  pyogrio = pytest.importorskip('pyogrio')
  r = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=TURNED)
  with caplog.at_level(logging.INFO):
    for _ in range(2):  # again over its own
      r.to_gpkg(tmp_path / 'a.gpkg')
  assert not caplog.messages
  meta, _, geometry, fields = pyogrio.raw.read(tmp_path / 'a.gpkg')
  assert meta['crs'] == 'EPSG:32633' and meta['geometry_type'] == 'Polygon'
  corners = np.array([shapely.from_wkb(g).exterior.coords[:4] for g in geometry])
  pixels = np.stack(~TURNED @ tuple(np.moveaxis(corners, -1, 0)), -1)
  np.testing.assert_allclose(pixels.reshape(-1, 8), r.polygons, atol=1e-6)
  found = dict(zip(meta['fields'], fields, strict=True))
  assert found['class'].tolist() == list(CLASSES) and found['task'].tolist() == ['rgb'] * 3
  np.testing.assert_allclose(found['angle'], np.degrees(OBB[:, 4]), atol=1e-4)
  np.testing.assert_allclose(found['length_m'], OBB[:, 2] * 10, rtol=2e-3)  # UTM's own scale
  r[:0].to_gpkg(tmp_path / 'none.gpkg')
  assert not len(pyogrio.raw.read(tmp_path / 'none.gpkg')[2])
  with pytest.raises(UserError, match='x.gpkg: no GeoPackage can be written here'):
    r.to_gpkg(tmp_path / f'{"x" * 300}.gpkg')


def test_a_style_colours_every_class(tmp_path):
  r = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=UTM)
  r.save(tmp_path / 'new' / 'a.geojson')
  root = ElementTree.parse(tmp_path / 'new' / 'a.qml').getroot()
  assert [c.get('value') for c in root.iter('category')] == list(CLASSES)
  colours = [o.get('value') for o in root.iter('Option') if o.get('name') == 'line_color']
  assert len(set(colours)) == 3 and root.find('renderer-v2').get('attr') == 'class'


def test_a_style_that_the_user_changed_stays(tmp_path, caplog):
  r, style = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=UTM), tmp_path / 'a.qml'
  r.save(tmp_path / 'a.geojson')
  ours = style.read_bytes()
  dataclasses.replace(r, classes=(*CLASSES, 'tank')).save(tmp_path / 'a.geojson')
  assert b'tank' in style.read_bytes() and not caplog.messages  # one of ours is replaced
  for theirs in (ours.replace(b'0.5', b'0.9', 1), b'<qgis/>\n', b''):
    style.write_bytes(theirs)
    for _ in range(2):
      r.save(tmp_path / 'a.geojson')
    assert style.read_bytes() == theirs
  assert [m for m in caplog.messages if 'stays as it is' in m] == caplog.messages
  assert len(caplog.messages) == 1


def test_a_file_that_is_no_geopackage_stays(tmp_path):
  pytest.importorskip('pyogrio')
  r = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=UTM)
  for content in (b'my notes', b'SQLite format 3\0' + bytes(100)):
    (tmp_path / 'a.gpkg').write_bytes(content)
    with pytest.raises(UserError, match='a.gpkg is there and is no GeoPackage'):
      r.save(tmp_path / 'a.gpkg')
    assert (tmp_path / 'a.gpkg').read_bytes() == content
  with pytest.raises(UserError, match='a.x: a GeoPackage is a file ending in .gpkg'):
    r.to_gpkg(tmp_path / 'a.x')
  assert not (tmp_path / 'a.x').exists() and not (tmp_path / 'a.qml').exists()


def read_back(reader, folder, **options):
  skipped = Skipped()
  (found,) = reader.read(folder, 'test', skipped=skipped, **options)
  return found


def test_label_files_back_to_boxes(tmp_path):
  r = raster(tmp_path / 'a.tif')
  r.save(tmp_path / 'a.coco.json')
  found = read_back(coco, tmp_path, labels='a.coco.json', rotated=True)
  same_boxes(found.boxes, OBB)
  assert found.names == CLASSES and found.declared == (HEIGHT, WIDTH)
  level = read_back(coco, tmp_path, labels='a.coco.json')
  np.testing.assert_allclose(level.boxes, box_lib.obb_to_hbb(OBB), atol=1e-3)
  for annotation, box in zip(r.to_coco()['annotations'], OBB, strict=True):
    assert math.isclose(annotation['area'], box[2] * box[3], rel_tol=1e-6)
  r.save(tmp_path / 'dota' / 'a.txt', format='dota')
  found = read_back(dota_txt, tmp_path, labels='dota', images='.')
  np.testing.assert_allclose(found.polygons, r.polygons, atol=1e-4)
  assert found.names == ('ship', 'small-vehicle', 'plane')
  r.save(tmp_path / 'yolo' / 'a.txt', format='yolo_obb')
  (tmp_path / 'data.yaml').write_text(f'names: {list(CLASSES)}')
  found = read_back(yolo, tmp_path, labels='yolo', images='.')  # in shares
  np.testing.assert_allclose(found.polygons * ([WIDTH, HEIGHT] * 4), r.polygons, atol=1e-4)
  assert found.names == CLASSES


def test_horizontal_boxes_in_coco(tmp_path):
  r = dataclasses.replace(raster(tmp_path / 'a.tif')[:2], boxes=HBB)
  r.save(tmp_path / 'a.coco.json')
  found = read_back(coco, tmp_path, labels='a.coco.json')
  np.testing.assert_allclose(found.boxes, HBB, atol=1e-4)


def test_csv(tmp_path):
  r = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=UTM)
  r.save(tmp_path / 'a.csv')
  rows = list(csv.DictReader(io.StringIO((tmp_path / 'a.csv').read_text())))
  quads = [[float(row[f'{k}{i}']) for i in range(1, 5) for k in 'xy'] for row in rows]
  np.testing.assert_allclose(quads, r.polygons, atol=1e-4)
  assert [row['class'] for row in rows] == list(CLASSES) and float(rows[0]['latitude']) > 50
  assert 'latitude' not in result().to_csv()


def test_supervision():
  pytest.importorskip('supervision')
  found = result().to_supervision()
  np.testing.assert_allclose(found.data['xyxyxyxy'], result().polygons.reshape(-1, 4, 2), rtol=1e-6)
  assert found[found.confidence > 0.5].data['class_name'].tolist() == ['ship', 'small vehicle']
  assert found.xyxy.shape == (3, 4) and found.class_id.tolist() == [0, 1, 2]
  level = result(HBB).to_supervision()
  assert 'xyxyxyxy' not in level.data
  np.testing.assert_allclose(level.xyxy, HBB)
  assert len(result(OBB[:0]).to_supervision()) == 0


@pytest.mark.parametrize('module', ['supervision', 'pyogrio'])
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, module):
  r = raster(tmp_path / 'a.tif', crs='EPSG:32633', transform=UTM)
  monkeypatch.setitem(sys.modules, module, None)
  save = r.to_supervision if module == 'supervision' else lambda: r.save(tmp_path / 'a.gpkg')
  with pytest.raises(UserError, match=f'needs {module}: pip install'):
    save()


def test_formats_by_suffix(tmp_path):
  for name, row in formats.FORMATS.items():
    assert formats.of_suffix(pathlib.Path(f'x/a.b{row.suffix}'.upper())) == name
  with pytest.raises(UserError, match='a.shp: no format has this suffix; expected .json'):
    result().save(tmp_path / 'a.shp')
  with pytest.raises(UserError, match="format 'shp' of results: expected one of json"):
    formats.checked(['json', 'shp'])
  r = result(image=np.zeros((HEIGHT, WIDTH, 3), np.uint8))
  r.save(tmp_path / 'a.png')
  assert (tmp_path / 'a.png').stat().st_size > 1000 and r.plot().shape[2] == 3
  for name in set(formats.FORMATS) - {'gpkg', 'geojson'}:
    r[:0].save(tmp_path / f'none{formats.FORMATS[name].suffix}')


def test_predict_saves_further_formats(tmp_path, monkeypatch, caplog):
  raster(tmp_path / 'placed.tif', crs='EPSG:32633', transform=UTM)
  raster(tmp_path / 'placeless.tif')
  config = config_lib.default()
  size = dict(size=(HEIGHT, WIDTH), mean=(0.0,) * 3, std=(1.0,) * 3)
  config.tasks = {'rgb': config_lib.task('obb', 'x', CLASSES, **size)}
  monkeypatch.setattr(predict, 'build', Blobs)
  detector = predict.Detector(config, {'label': np.int32(0)})
  monkeypatch.setattr(predict.Detector, 'from_checkpoint', lambda *_: detector)
  out = tmp_path / 'out'
  files = [tmp_path / 'placeless.tif', tmp_path / 'placed.tif']
  (error,) = predict.predict('run', 'rgb', files, out, save=('geojson', 'csv'))
  assert 'placeless.tif: no GeoJSON without a georeference' in error and error in caplog.text
  names = ('placed', 'geojson'), ('placed', 'qml'), ('placed', 'csv'), ('placeless', 'csv')
  want = {f'{name}_detections.{suffix}' for name, suffix in names}
  want |= {f'{f.stem}_detections.{suffix}' for f in files for suffix in ('json', 'png')}
  assert {p.name for p in out.iterdir()} == want
  content = json.loads((out / 'placed_detections.json').read_text())
  assert content['image'].endswith('placed.tif') and content['crs'] == 'EPSG:32633'
  for name in ('more', 'most'):
    raster(tmp_path / f'{name}.tif')
  (error,) = predict.predict('run', 'rgb', [tmp_path], out, save=('geojson',))
  assert error.startswith(f'{tmp_path}/more.tif (and 2 more): no GeoJSON')
  with pytest.raises(UserError, match="format 'shp' of results"):
    predict.predict('run', 'rgb', files, out, save=('shp',))


def test_a_name_that_is_no_utf8_has_no_georeference(tmp_path, caplog):
  raster(tmp_path / 'placed.tif', crs='EPSG:32633', transform=UTM)
  odd = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xb8.tif'))
  (tmp_path / 'placed.tif').rename(odd)
  assert georeference.read(odd) is None and '\\xb8.tif' in caplog.text


def test_the_picture_of_a_large_file_is_small(tmp_path, monkeypatch):
  r, drawn = raster(tmp_path / 'a.tif'), []
  monkeypatch.setattr(draw, 'LARGEST', max(HEIGHT, WIDTH) // 2)
  monkeypatch.setattr(draw, 'draw', lambda image, boxes, *_: drawn.append((image, boxes)))
  r.plot()
  ((image, boxes),) = drawn
  assert max(image.shape) == draw.LARGEST
  np.testing.assert_allclose(boxes[:, :4] / r.boxes[:, :4], draw.LARGEST / max(HEIGHT, WIDTH))
  np.testing.assert_array_equal(boxes[:, 4], r.boxes[:, 4])
