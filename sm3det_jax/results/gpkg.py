"""GeoPackage in the scene's own coordinate system: a layer `detections` of polygons.

Written by GDAL through pyogrio, of the extra `geo`.
"""

import logging
import os
import pathlib
import struct

import numpy as np

from data_pipelines.errors import UserError
from sm3det_jax.results import columns

LAYER = 'detections'
SQLITE = b'SQLite format 3\0'  # a file's beginning
APPLICATIONS = (b'GPKG', b'GP10', b'GP11')  # 68 bytes on


def write(result, path: pathlib.Path) -> None:
  """Writes the layer; a file that is there keeps its others.

  Raises:
    UserError: the image has no georeference; another suffix; a file of another kind is there; the
      file cannot be written.
  """
  place = result.located('GeoPackage')
  if path.suffix.lower() != '.gpkg':
    raise UserError(f'{path}: a GeoPackage is a file ending in .gpkg')
  if os.path.isfile(path) and not _is_geopackage(path):
    raise UserError(f'{path} is there and is no GeoPackage; remove it, or name another file')
  import pyogrio  # `formats.checked` has seen that it is there

  logging.getLogger('pyogrio').setLevel(logging.WARNING)  # else a line about each file

  quads = place.to_map(result.polygons.reshape(-1, 4, 2))
  found = columns.table(result)
  try:
    pyogrio.raw.write(
      path,
      np.array([_wkb(quad) for quad in quads], object),
      list(found.values()),
      list(found),
      layer=LAYER,
      driver='GPKG',
      geometry_type='Polygon',
      crs=place.crs.to_wkt(),
    )
  except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
    raise UserError(f'{path}: no GeoPackage can be written here ({error})') from None


def _is_geopackage(path):
  with path.open('rb') as file:
    head = file.read(72)
  return not head or (head.startswith(SQLITE) and head[68:] in APPLICATIONS)


def _wkb(quad):
  """Well-known binary of a polygon of corners [4, 2], little-endian."""
  ring = np.concatenate([quad, quad[:1]]).astype('<f8')
  return struct.pack('<BIII', 1, 3, 1, len(ring)) + ring.tobytes()
