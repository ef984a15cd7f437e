"""Large scenes as GeoTIFF with their labels as GeoJSON: squares of drawn ones, laid side by side.

sm3det scenes --geotiff=maps --size=2048
"""

import argparse
import itertools
import json
import os
import pathlib

import numpy as np

from data_pipelines import georeference, scenes
from data_pipelines.dataset import files
from data_pipelines.errors import UserError

TILE = 256  # px
METRES = {'sar': 2.0, 'optical': 0.25}  # of a pixel
SOUTH_WEST = (4.05, 51.95)  # longitude and latitude that the scenes lie at: the sea off Rotterdam
UTM = 'EPSG:32631'
HEADING = np.radians(12)  # of the radar's path, off the meridian
BEND = 0.02  # by how much of its width the radar's swath is bent, so that no affine transform fits
GCPS = 8  # a side


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `sm3det scenes`, for `run`."""
  parser.add_argument(
    '--geotiff',
    metavar='FOLDER',
    required=True,
    help='new folder: sar.tif with ground control points, optical.tif with an affine transform, '
    'and the labels of each as GeoJSON',
  )
  parser.add_argument('--size', type=int, default=2048, help=f'px of a side, a multiple of {TILE}')
  parser.add_argument('--seed', type=int, default=0, help='that all of it is drawn from')


def run(args: argparse.Namespace) -> None:
  """Does what `sm3det scenes` was asked for, and prints it."""
  for path, objects in write(args.geotiff, args.size, args.seed).items():
    print(f'{path}: {objects} objects in {path.with_suffix(".geojson").name}')


def write(folder: str | os.PathLike, size: int = 2048, seed: int = 0) -> dict[pathlib.Path, int]:
  """Writes sar.tif, optical.tif, and beside each a .geojson of its labels.

  Args:
    folder: new or empty.
    size: px of a side, a multiple of 256.
    seed: of everything.

  Returns:
    {path of the GeoTIFF: its objects}.

  Raises:
    UserError: `folder` is not empty, another size.
  """
  if size < TILE or size % TILE:
    raise UserError(f'--size={size}: expected a multiple of {TILE}, the side of a drawn scene')
  written = {}
  with files.new_folder(folder) as new:
    for modality, placed in (('sar', _control_points(size)), ('optical', _affine())):
      image, polygons, names = mosaic(modality, size, seed)
      _write_raster(new / f'{modality}.tif', image, placed)
      features = _features(new / f'{modality}.tif', polygons, names)
      content = json.dumps({'type': 'FeatureCollection', 'features': features})
      (new / f'{modality}.geojson').write_text(content, encoding='utf-8')
      written[pathlib.Path(folder) / f'{modality}.tif'] = len(names)
  return written


def mosaic(modality: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """A scene of `size` px made of drawn ones: image, polygons, names, as `scenes.draw` has them.

  The polygons of all modalities count from the outer corner of the first pixel.
  """
  side = size // TILE
  image, polygons, names = None, [], []
  for i, (row, column) in enumerate(itertools.product(range(side), repeat=2)):
    _, tile, corners, kinds = scenes.scene(seed, 'large', modality, TILE, i)
    if image is None:
      image = np.empty((size, size, *tile.shape[2:]), tile.dtype)
    y, x = row * TILE, column * TILE
    image[y : y + TILE, x : x + TILE] = tile
    polygons.append(corners + np.tile([x, y], 4) + (0 if modality == 'sar' else 0.5))
    names += kinds
  return image, np.concatenate(polygons), tuple(names)


def _affine():
  import rasterio
  import rasterio.warp

  (east,), (north,) = rasterio.warp.transform(georeference.WGS84, UTM, *np.atleast_2d(SOUTH_WEST).T)
  metres = METRES['optical']
  return {'crs': UTM, 'transform': rasterio.Affine(metres, 0, east, 0, -metres, north)}


def _control_points(size):
  """A grid of points, as a radar's product in its own geometry has them."""
  from rasterio.control import GroundControlPoint

  points = []
  for row, column in itertools.product(np.linspace(0, size, GCPS), repeat=2):
    x, y = column, -row + BEND * size * (column / size - 0.5) ** 2
    east = METRES['sar'] * (x * np.cos(HEADING) + y * np.sin(HEADING))
    north = METRES['sar'] * (y * np.cos(HEADING) - x * np.sin(HEADING))
    degree = np.radians(1) * georeference.RADIUS
    longitude = SOUTH_WEST[0] + east / degree / np.cos(np.radians(SOUTH_WEST[1]))
    points.append(GroundControlPoint(row, column, longitude, SOUTH_WEST[1] + north / degree, 0))
  return {'crs': 'EPSG:4326', 'gcps': points}


def _write_raster(path, image, placed):
  import rasterio

  image = image.reshape(*image.shape[:2], -1)
  height, width, count = image.shape
  kind = dict(driver='GTiff', dtype=image.dtype.name, height=height, width=width, count=count)
  layout = dict(tiled=True, blockxsize=TILE, blockysize=TILE, compress='deflate')
  with rasterio.open(path, 'w', **kind, **layout, **placed) as file:
    file.write(np.moveaxis(image, -1, 0))


def _features(path, polygons, names):
  """The objects on the Earth, as RFC 7946 has them: turning left, closed."""
  quads = georeference.find(path).to_wgs84(polygons.reshape(-1, 4, 2))
  x, y = np.moveaxis(quads - quads[:, :1], -1, 0)
  turns_left = (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1) > 0
  quads[~turns_left] = quads[~turns_left, ::-1]
  rings = np.round(np.concatenate([quads, quads[:, :1]], 1), 9).tolist()
  return [
    {
      'type': 'Feature',
      'geometry': {'type': 'Polygon', 'coordinates': [ring]},
      'properties': {'class': name},
    }
    for ring, name in zip(rings, names, strict=True)
  ]
