"""GeoJSON by RFC 7946: longitude and latitude of WGS 84, outer rings counter-clockwise.

A polygon across the antimeridian is cut there into two. A place without longitude and latitude is
no geometry, nor is an object that holds a pole: in longitude and latitude it has no outline.
"""

import logging

import numpy as np

from sm3det_jax.results import columns

DIGITS = 9  # of a degree: 0.1 mm

logger = logging.getLogger(__name__)


def content(result) -> dict:
  """A feature a detection.

  Raises:
    UserError: the image has no georeference.
  """
  quads = result.located('GeoJSON').to_wgs84(result.polygons.reshape(-1, 4, 2))
  if poles := holds_pole(quads).sum():
    why = 'objects that hold a pole, without geometry in GeoJSON (other formats have it)'
    logger.warning('%s: %d %s', result.name, poles, why)
  return {
    'type': 'FeatureCollection',
    'features': [
      {'type': 'Feature', 'geometry': geometry, 'properties': properties}
      for geometry, properties in zip(
        geometries(quads), columns.rows(columns.table(result)), strict=True
      )
    ],
  }


def geometries(quads: np.ndarray) -> list[dict | None]:
  """Those of corners [n, k, 2] of longitude and latitude, in any order of turning."""
  if not len(quads):
    return []
  here = np.isfinite(quads).all((1, 2)) & ~holds_pole(quads)
  found, quads = [None] * len(quads), _in_one_piece(quads[here])
  across = (np.abs(quads[..., 0]) > 180).any(1)
  coordinates = iter(_closed(quads).tolist())
  for i, quad, cut in zip(np.flatnonzero(here), quads, across, strict=True):
    ring = next(coordinates)
    found[i] = _cut(quad) if cut else {'type': 'Polygon', 'coordinates': [ring]}
  return found


def holds_pole(quads: np.ndarray) -> np.ndarray:
  """Whether corners [.., k, 2] of longitude and latitude go round a pole, or a side leads over it.

  Returns:
    [..]; False where one of them is not finite.
  """
  quads = np.where(np.isfinite(quads), quads, np.nan)
  longitude = quads[..., 0]
  turns = (np.diff(longitude, append=longitude[..., :1]) + 180) % 360 - 180
  return (abs(turns.sum(-1)) > 180) | (np.abs(turns) > 180 - 1e-6).any(-1)


def _in_one_piece(quads):
  """Longitudes within half a turn of the first corner's, beyond 180 where need be."""
  longitude, first = quads[..., 0], quads[:, :1, 0]
  return np.stack([first + (longitude - first + 180) % 360 - 180, quads[..., 1]], -1)


def _cut(quad):
  """The geometry of corners [k, 2] in one piece on both sides of the antimeridian."""
  edge = 180 if quad[:, 0].max() > 180 else -180
  west, east = _left_of(quad, edge), _left_of(quad * [-1, 1], -edge) * [-1, 1]
  # on the far side of the edge, which is the other end of the map
  if edge > 0:
    east = east - [360, 0]
  else:
    west = west + [360, 0]
  parts = [part for part in (west, east) if len(part) > 2 and np.ptp(part[:, 0]) > 0]
  rings = [_closed(part[None])[0].tolist() for part in parts or [quad]]
  if len(rings) < 2:
    return {'type': 'Polygon', 'coordinates': rings}
  return {'type': 'MultiPolygon', 'coordinates': [[ring] for ring in rings]}


def _left_of(points, edge):
  """The part of a polygon with x <= edge."""
  kept = []
  for a, b in zip(points, np.roll(points, -1, 0), strict=True):
    if a[0] <= edge:
      kept.append(a)
    if (a[0] < edge) != (b[0] < edge) and a[0] != edge and b[0] != edge:
      kept.append(np.array([edge, a[1] + (b[1] - a[1]) * (edge - a[0]) / (b[0] - a[0])]))
  return np.array(kept).reshape(-1, 2)


def _closed(quads):
  """Rings [n, k + 1, 2], counter-clockwise, of corners [n, k, 2]."""
  x, y = np.moveaxis(quads - quads[:, :1], -1, 0)
  area = (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1)
  quads = np.where((area < 0)[:, None, None], quads[:, ::-1], quads)
  return np.round(np.concatenate([quads, quads[:, :1]], 1), DIGITS)
