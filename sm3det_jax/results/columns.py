"""What the formats say of each detection, in one spelling."""

import math

import numpy as np


def ground(result) -> dict[str, np.ndarray]:
  """Columns [n] of the place on the ground; none of an image without a georeference.

  A horizontal box says nothing of how its object is turned: its bearing is NaN.
  """
  if result.georeference is None:
    return {}
  found = result.georeference.measure(result.polygons)
  return {
    'longitude': found.longitude,
    'latitude': found.latitude,
    'bearing': found.bearing if result.oriented else np.full(len(result), np.nan),
    'length_m': found.length,
    'width_m': found.width,
  }


def table(result) -> dict[str, np.ndarray]:
  """All columns [n]: class, score, task, angle (degrees clockwise in the image), the ground."""
  angle = np.degrees(result.boxes[:, 4]) if result.oriented else np.full(len(result), np.nan)
  return {
    'class': np.array(result.names, object),
    'score': np.round(np.asarray(result.scores, np.float64), 4),
    'task': np.full(len(result), result.task, object),
    'angle': np.round(angle.astype(np.float64), 4),
  } | {key: _rounded(key, values) for key, values in ground(result).items()}


def rows(columns: dict[str, np.ndarray]) -> list[dict]:
  """A dict a detection; what is not known is None."""
  lists = [[_known(v) for v in values.tolist()] for values in columns.values()]
  return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _rounded(key, values):
  return np.round(values, 9 if key in ('longitude', 'latitude') else 3)


def _known(value):
  return None if isinstance(value, float) and not math.isfinite(value) else value
