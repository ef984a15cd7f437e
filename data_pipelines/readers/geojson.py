"""GeoJSON over GeoTIFF: a file an image, polygons in the file's coordinate system.

The image is placed as predictions are (`georeference`): affine, by control points or by RPCs.

`crs` names the system where it is not longitude and latitude (RFC 7946 knows no other, but GDAL and
QGIS write it). The class is the property `class`, `label`, `name`, `type` or `category`.
"""

import itertools
import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import georeference
from data_pipelines.errors import UserError
from data_pipelines.readers import files, texts
from data_pipelines.readers.annotation import Annotation, oriented, quadrilateral
from data_pipelines.readers.skipped import BadEntry, Skipped

PROPERTIES = ('class', 'label', 'name', 'type', 'category', 'class_name')

UNPLACED = 'image without a georeference'
MISSING = (
  'it needs a coordinate system with an affine transform or ground control points, '
  'or RPCs (gdal_edit.py -a_srs EPSG:CODE -a_ullr .. writes the first two)'
)


def read(
  source: pathlib.Path, split: str, *, labels: str, images: str, skipped: Skipped
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a GeoJSON and a georeference.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels, images: folders below it, which may be one.
    skipped: where what is left out is counted.

  Raises:
    FileNotFoundError: a folder is not there.
  """
  read_one = lambda file, image: _rows(file, image, skipped)
  found = files.labelled(source, split, labels, images, '.geojson', read_one, skipped)
  for id, image, file, rows in found:
    yield oriented(id, image, rows, labels=file)


def _rows(path, image, skipped):
  try:
    content = texts.json_of(path, skipped)
    features = content['features']
    named = (content.get('crs') or {}).get('properties') or {}
    crs = named.get('name') or (f'EPSG:{named["code"]}' if 'code' in named else 'OGC:CRS84')
    features = list(features)
  except (KeyError, TypeError, AttributeError) as error:
    raise BadEntry('label file is not GeoJSON', path, f'not GeoJSON ({error})') from None
  to_pixels = _to_pixels(crs, image, path)

  def row(feature, place):
    name, rings = _polygons(feature, place)
    corners = lambda ring: quadrilateral(to_pixels(ring, place).ravel(), skipped, place)
    return [(name, corners(ring), 0) for ring in rings]

  entries = ((feature, f'{path}: features[{k}]') for k, feature in enumerate(features))
  return list(itertools.chain.from_iterable(skipped.usable(row, entries)))


def _polygons(feature, place):
  """(class, outer rings [k, 2] in the file's coordinates)."""
  try:
    properties, geometry = feature['properties'], feature['geometry']
    parts = {'Polygon': lambda c: [c], 'MultiPolygon': list}[geometry['type']]
    outer = [part[0] for part in parts(geometry['coordinates'])]
    rings = [np.array([point[:2] for point in ring], np.float64) for ring in outer]
    if not all(ring.ndim == 2 and len(ring) > 2 and ring.shape[1] == 2 for ring in rings):
      raise ValueError
  except (KeyError, TypeError, ValueError, IndexError):
    raise BadEntry('feature that is no polygon', place) from None
  properties = properties if isinstance(properties, dict) else {}
  name = next((properties[k] for k in PROPERTIES if properties.get(k) is not None), None)
  if name is None:
    raise BadEntry('feature without a class', place, f'none of {", ".join(PROPERTIES)}')
  return str(name), rings


def _to_pixels(crs, image, path):
  """The function of coordinates in `crs` [k, 2] -> pixels of the image [k, 2]."""
  import rasterio  # lazily, as below: a quarter of a second
  import rasterio.errors
  import rasterio.warp

  try:
    found = georeference.find(image)
  except (rasterio.errors.RasterioError, UnicodeEncodeError) as error:
    raise BadEntry('image does not decode', image, str(error)) from None
  except UserError as error:
    raise BadEntry(UNPLACED, image, str(error).removeprefix(f'{image}: ')) from None
  if found is None:
    raise BadEntry(UNPLACED, image, MISSING)
  try:
    theirs = rasterio.crs.CRS.from_user_input(crs)
  except rasterio.errors.CRSError:
    raise BadEntry('coordinate system that is not known', path, f'crs is {crs!r}') from None

  def pixels(points, place):
    try:
      x, y = rasterio.warp.transform(theirs, found.crs, *points.T)
    except Exception as error:  # GDAL's have no class in common
      why = f'{points[0].tolist()} does not lie in {crs}: {error}'
      raise BadEntry('coordinates that are not of their system', place, why) from None
    return found.to_pixels(np.stack([x, y], -1))

  return pixels
