"""Where an image lies on the Earth: pixels <-> its coordinate system -> longitude and latitude.

Pixels count from the outer corner of the first one, as boxes do. An affine transform goes before
ground control points, between which a thin-plate spline passes through every one, and those before
rational polynomial coefficients (RPCs), which place the ground at one height: their own offset.
"""

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import UserError

WGS84 = 'OGC:CRS84'  # longitude first
# px, of the polynomials' inverse, which GDAL finds step by step (else to 0.1 px, in 10 steps)
SOLVED = dict(RPC_PIXEL_ERROR_THRESHOLD=1e-4, RPC_MAX_ITERATIONS=50)
ROUNDS = 4  # of the spline's inverse; it is one within a fraction of a pixel to begin with
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
    rpcs: its rational polynomial coefficients, of rasterio, where there is neither.
    middle: its middle, px; longitudes in `crs` count on that place's side of the antimeridian.
  """

  crs: object
  transform: object = None
  gcps: tuple = ()
  rpcs: object = None
  middle: tuple[float, float] = (0.0, 0.0)

  def to_map(self, points: np.ndarray) -> np.ndarray:
    """Pixels [..., 2] -> x, y in `crs`, float64 [..., 2]."""
    x, y = np.asarray(points, np.float64).reshape(-1, 2).T
    if self.transform is not None:
      found = self.transform @ (x, y)
    else:
      with self._transformer() as transformer:
        found = transformer.xy(y, x, offset='ul') if len(x) else (x, y)
    return np.stack(found, -1).reshape(np.shape(points))

  def to_pixels(self, places: np.ndarray) -> np.ndarray:
    """x, y in `crs` [..., 2] -> pixels, float64 [..., 2]: the inverse of `to_map`."""
    found = np.array(places, np.float64).reshape(-1, 2)
    if self.crs.is_geographic:
      centre = self.to_map(np.array(self.middle))[0]
      found[:, 0] = centre + (found[:, 0] - centre + 180) % 360 - 180
    if self.transform is not None:
      found = np.stack(~self.transform @ tuple(found.T), -1)
    elif len(found):
      with self._transformer() as transformer:
        back = lambda xy: np.stack(transformer.rowcol(*xy.T, op=_as_they_are)[::-1], -1)
        start = pixels = back(found)
        for _ in range(ROUNDS if self.gcps else 0):  # a spline's way back is another spline
          there = np.stack(transformer.xy(*pixels.T[::-1], offset='ul'), -1)
          pixels = pixels + start - back(there)
      found = pixels
    return found.reshape(np.shape(places))

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

    An axis joins the middles of two opposite sides, straight in space and seen on the plane that
    touches the ellipsoid at the centre. That holds at poles too, where the centre's own meridian
    is north; the length is right to 1e-6 for 10 km, to 1e-3 for 900 km.
    """
    quads = np.asarray(polygons, np.float64).reshape(-1, 4, 2)
    middles = (quads + np.roll(quads, -1, 1)) / 2  # of the sides 01, 12, 23, 30
    points = np.concatenate([quads.mean(1, keepdims=True), middles], 1)
    centre, *ends = np.moveaxis(self.to_wgs84(points), 1, 0)
    axes = [_metres(ends[3], ends[1], centre), _metres(ends[0], ends[2], centre)]
    east, north = np.moveaxis(np.stack(axes), -1, 0)  # each [2, n]
    sizes = np.hypot(east, north)
    longer = (sizes[1] > sizes[0]).astype(int)
    along = np.arctan2(east, north)[longer, np.arange(len(quads))]
    bearing = np.mod(np.degrees(along), 180)
    bearing = np.where(bearing >= 180, 0.0, bearing)  # of -1e-15
    return Ground(*centre.T, bearing, sizes.max(0), sizes.min(0))

  def _transformer(self):
    from rasterio.transform import GCPTransformer, RPCTransformer

    if self.gcps:
      return GCPTransformer(_unwrapped(self.gcps, self.crs), tps=True)
    return RPCTransformer(self.rpcs, RPC_HEIGHT=self.rpcs.height_off, **SOLVED)


def find(path: str | os.PathLike) -> Georeference | None:
  """The georeference of an image file, from itself or what lies beside it.

  That is a world file, .aux.xml, RPB or _RPC.TXT. None where there is none.

  Raises:
    UserError: it has one that leads to no longitude and latitude.
    rasterio.errors.RasterioError: not an image that GDAL reads.
  """
  import rasterio
  import rasterio.errors

  with warnings.catch_warnings():
    warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
    with rasterio.open(path) as raster:
      found = next(_of_raster(raster, path), None)
  if found and (reason := _fault(found)):
    raise UserError(f'{path}: its georeference is left out: {reason}')
  if found and found.rpcs:
    height = found.rpcs.height_off
    logger.info('%s: placed by its RPCs, all of it at their own height of %g m', path, height)
  return found


def read(path: str | os.PathLike) -> Georeference | None:
  """As `find`; a georeference that leads to no longitude and latitude is said, and is none."""
  import rasterio.errors

  try:
    return find(path)
  except rasterio.errors.RasterioError:  # of a .npy, say
    return None
  except UserError as error:
    logger.warning('%s', error)
  except UnicodeEncodeError:
    name = os.fsencode(path).decode('utf-8', 'backslashreplace')
    logger.warning('%s: no georeference is read of a file whose name is no UTF-8: rename it', name)
  return None


def _of_raster(raster, path) -> Iterator[Georeference]:
  """The georeferences that a raster has, the first of them the one to take.

  Raises:
    UserError: what is said of it cannot be read.
  """
  import rasterio.crs
  import rasterio.errors

  middle = (raster.width / 2, raster.height / 2)
  try:
    crs, (gcps, of_gcps) = raster.crs, raster.gcps
    if crs and not raster.transform.is_identity:
      yield Georeference(crs, raster.transform, middle=middle)
    if gcps and of_gcps:
      yield Georeference(of_gcps, gcps=tuple(gcps), middle=middle)
    if raster.tags(ns='RPC'):
      wgs84 = rasterio.crs.CRS.from_epsg(4326)
      yield Georeference(wgs84, rpcs=raster.rpcs, middle=middle)
  except (rasterio.errors.CRSError, KeyError, ValueError, IndexError) as error:
    raise UserError(f'{path}: its georeference is left out: it cannot be read ({error})') from None


def _as_they_are(values):
  """Rows or columns as fractions, which rasterio would round."""
  return values


def _fault(found):
  """Why a georeference says nothing of the image's middle; None for a good one."""
  if found.gcps:
    places = np.array([(p.col, p.row) for p in found.gcps])
    if np.linalg.matrix_rank(places - places[0]) < 2:
      return f'{len(places)} ground control points on one line'
  if np.isfinite(found.to_wgs84(np.array(found.middle))).all():
    return None
  if found.rpcs:
    return 'its RPCs lead to no longitude and latitude'
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


def _metres(a, b, centre):
  """East and north [n, 2] from a to b as seen at their centre, of longitude and latitude [n, 2]."""
  longitude, latitude = np.radians(centre).T
  sin, cos = np.sin(longitude), np.cos(longitude)
  east = np.stack([-sin, cos, np.zeros_like(sin)], -1)
  towards_axis = np.sin(latitude)
  north = np.stack([-towards_axis * cos, -towards_axis * sin, np.cos(latitude)], -1)
  way = _in_space(b) - _in_space(a)
  return np.stack([(way * east).sum(-1), (way * north).sum(-1)], -1)


def _in_space(places):
  """Metres from the Earth's centre [n, 3] of longitude and latitude [n, 2], on the ellipsoid."""
  longitude, latitude = np.radians(places).T
  radius = RADIUS / np.sqrt(1 - ECCENTRICITY2 * np.sin(latitude) ** 2)  # of curvature, to the east
  across = radius * np.cos(latitude)
  up = radius * (1 - ECCENTRICITY2) * np.sin(latitude)
  return np.stack([across * np.cos(longitude), across * np.sin(longitude), up], -1)
