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
  if poles := sum(map(holds_pole, quads)):
    why = 'objects that hold a pole, without geometry in GeoJSON (other formats have it)'
    logger.warning('%s: %d %s', result.name, poles, why)
  return {
    'type': 'FeatureCollection',
    'features': [
      {'type': 'Feature', 'geometry': geometry(quad), 'properties': properties}
      for quad, properties in zip(quads, columns.rows(columns.table(result)), strict=True)
    ],
  }


def geometry(quad: np.ndarray) -> dict | None:
  """That of corners [k, 2] of longitude and latitude, in any order of turning."""
  if not np.isfinite(quad).all() or holds_pole(quad):
    return None
  quad = quad.copy()
  quad[:, 0] = quad[0, 0] + (quad[:, 0] - quad[0, 0] + 180) % 360 - 180  # in one piece
  edge = 180 if quad[:, 0].max() > 180 else -180
  west, east = _left_of(quad, edge), _left_of(quad * [-1, 1], -edge) * [-1, 1]
  # on the far side of the edge, which is the other end of the map
  if edge > 0:
    east = east - [360, 0]
  else:
    west = west + [360, 0]
  rings = [_ring(part) for part in (west, east) if len(part) > 2 and np.ptp(part[:, 0]) > 0]
  if len(rings) < 2:
    return {'type': 'Polygon', 'coordinates': rings or [_ring(quad)]}
  return {'type': 'MultiPolygon', 'coordinates': [[ring] for ring in rings]}


def holds_pole(quad: np.ndarray) -> bool:
  """Whether corners [k, 2] of longitude and latitude go round a pole, or a side leads over it."""
  turns = (np.diff(quad[:, 0], append=quad[0, 0]) + 180) % 360 - 180
  return bool(abs(turns.sum()) > 180 or (np.abs(turns) > 180 - 1e-6).any())


def _left_of(points, edge):
  """The part of a polygon with x <= edge."""
  kept = []
  for a, b in zip(points, np.roll(points, -1, 0), strict=True):
    if a[0] <= edge:
      kept.append(a)
    if (a[0] < edge) != (b[0] < edge) and a[0] != edge and b[0] != edge:
      kept.append(np.array([edge, a[1] + (b[1] - a[1]) * (edge - a[0]) / (b[0] - a[0])]))
  return np.array(kept).reshape(-1, 2)


def _ring(points):
  """Closed, counter-clockwise."""
  x, y = (points - points[0]).T
  if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0:
    points = points[::-1]
  return np.round(np.concatenate([points, points[:1]]), DIGITS).tolist()
