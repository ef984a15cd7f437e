"""Where an image lies on the Earth: pixels -> its coordinate system -> longitude and latitude.

Pixels count from the outer corner of the first one, as boxes do. An affine transform goes before
ground control points, between which a thin-plate spline passes through every one.
"""

import contextlib
import dataclasses
import logging
import os
import warnings
from typing import NamedTuple

import numpy as np

WGS84 = 'OGC:CRS84'  # longitude first
RADIUS, ECCENTRICITY2 = 6378137.0, 0.0066943799901413165  # metres and e^2 of its ellipsoid

logger = logging.getLogger(__name__)


class Ground(NamedTuple):
  """What quadrilaterals are on the ground; each [n], NaN where a place has no coordinates.

  Attributes:
    longitude, latitude: of the centre, degrees.
    bearing: of the longer axis, degrees clockwise from true north in [0, 180).
    length, width: of the longer and the shorter axis, metres.
  """

  longitude: np.ndarray
  latitude: np.ndarray
  bearing: np.ndarray
  length: np.ndarray
  width: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Georeference:
  """Of one image.

  Attributes:
    crs: its coordinate system, of rasterio.
    transform: the affine transform of pixels, or None.
    gcps: its ground control points, where there is no transform.
  """

  crs: object
  transform: object = None
  gcps: tuple = ()

  def to_map(self, points: np.ndarray) -> np.ndarray:
    """Pixels [..., 2] -> x, y in `crs`, float64 [..., 2]."""
    x, y = np.asarray(points, np.float64).reshape(-1, 2).T
    if self.transform is not None:
      found = self.transform @ (x, y)
    else:
      found = self._between_points(x, y)
    return np.stack(found, -1).reshape(np.shape(points))

  def to_wgs84(self, points: np.ndarray) -> np.ndarray:
    """Pixels [..., 2] -> longitude in [-180, 180), latitude in degrees, float64 [..., 2].

    NaN where the map has no such place.
    """
    places = self.to_map(points).reshape(-1, 2)
    try:
      found = _warped(self.crs, places)
    except _gdal_error():  # of one place, for all
      found = np.full(places.shape, np.nan)
      for i in range(len(places)):
        with contextlib.suppress(_gdal_error()):
          found[i] = _warped(self.crs, places[i : i + 1])[0]
    found[~np.isfinite(found).all(-1) | (np.abs(found[:, 1]) > 90)] = np.nan
    found[:, 0] = (found[:, 0] + 180) % 360 - 180
    return found.reshape(np.shape(points))

  def measure(self, polygons: np.ndarray) -> Ground:
    """What quadrilaterals [n, 8] in pixels are on the ground.

    An axis joins the middles of two opposite sides. It is short beside the Earth, so that the
    ellipsoid's radii at its middle give its length: to 1e-5 of it for 10 km below 80 degrees.
    """
    quads = np.asarray(polygons, np.float64).reshape(-1, 4, 2)
    middles = (quads + np.roll(quads, -1, 1)) / 2  # of the sides 01, 12, 23, 30
    points = np.concatenate([quads.mean(1, keepdims=True), middles], 1)
    centre, *ends = np.moveaxis(self.to_wgs84(points), 1, 0)
    east, north = np.moveaxis(
      np.stack([_metres(ends[3], ends[1]), _metres(ends[0], ends[2])]), -1, 0
    )  # each [2, n]
    sizes = np.hypot(east, north)
    longer = (sizes[1] > sizes[0]).astype(int)
    along = np.arctan2(east, north)[longer, np.arange(len(quads))]
    bearing = np.mod(np.degrees(along), 180)
    bearing = np.where(bearing >= 180, 0.0, bearing)  # of -1e-15
    return Ground(*centre.T, bearing, sizes.max(0), sizes.min(0))

  def _between_points(self, x, y):
    from rasterio.transform import GCPTransformer

    with GCPTransformer(_unwrapped(self.gcps, self.crs), tps=True) as transformer:
      return transformer.xy(y, x, offset='ul') if len(x) else (x, y)


def read(path: str | os.PathLike) -> Georeference | None:
  """The georeference of an image file, from itself or what lies beside it (world file, .aux.xml).

  None where there is none; one that leads to no longitude and latitude is said, and is none.
  """
  import rasterio
  import rasterio.errors

  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
      with rasterio.open(path) as raster:
        size, (gcps, of_gcps) = (raster.width, raster.height), raster.gcps
        found = Georeference(raster.crs, raster.transform)
  except (rasterio.errors.RasterioError, rasterio.errors.CRSError):  # of a .npy, say
    return None
  except UnicodeEncodeError:
    name = os.fsencode(path).decode('utf-8', 'backslashreplace')
    logger.warning('%s: no georeference is read of a file whose name is no UTF-8: rename it', name)
    return None
  if not found.crs or found.transform.is_identity:
    if not gcps or not of_gcps:
      return None
    found = Georeference(of_gcps, gcps=tuple(gcps))
  reason = _fault(found, np.array(size) / 2)
  if reason:
    logger.warning('%s: its georeference is left out: %s', path, reason)
  return None if reason else found


def _fault(found, middle):
  """Why a georeference says nothing of the image's middle; None for a good one."""
  if found.transform is None:
    places = np.array([(p.col, p.row) for p in found.gcps])
    if np.linalg.matrix_rank(places - places[0]) < 2:
      return f'{len(places)} ground control points on one line'
  if np.isfinite(found.to_wgs84(middle)).all():
    return None
  name = found.crs.to_wkt().split('"')[1]
  return f'{name!r:.80} leads to no longitude and latitude'


def _warped(crs, places):
  """Longitude and latitude [n, 2] of places [n, 2]."""
  import rasterio.warp

  return np.array(rasterio.warp.transform(crs, WGS84, *places.T) if len(places) else places.T).T


def _gdal_error():
  """What GDAL's errors are, those of PROJ among them; rasterio has no public name for them."""
  from rasterio._err import CPLE_BaseError

  return CPLE_BaseError


def _unwrapped(gcps, crs):
  """Points on both sides of the antimeridian, on one."""
  from rasterio.control import GroundControlPoint

  x = np.array([p.x for p in gcps])
  if crs.is_geographic and np.ptp(x) > 180:
    x = np.mod(x, 360)
  return [GroundControlPoint(p.row, p.col, x, p.y) for p, x in zip(gcps, x.tolist(), strict=True)]


def _metres(a, b):
  """East and north [n, 2] from a to b, of longitude and latitude [n, 2]."""
  east = (b[:, 0] - a[:, 0] + 180) % 360 - 180
  latitude = np.radians(a[:, 1] + b[:, 1]) / 2
  curve = 1 - ECCENTRICITY2 * np.sin(latitude) ** 2
  across = RADIUS / np.sqrt(curve) * np.cos(latitude)
  along = RADIUS * (1 - ECCENTRICITY2) / curve**1.5
  return np.stack([across * np.radians(east), along * np.radians(b[:, 1] - a[:, 1])], -1)
