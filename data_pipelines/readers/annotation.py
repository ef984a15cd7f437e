"""What every reader makes of a label file: one image and its objects."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.readers.skipped import Skipped


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
  """One image and its objects, in pixels of that image.

  Attributes:
    id: unique in its split; see `readers.files`.
    image: the image's file.
    names: class name of each object, as the file spells it.
    boxes: float32 [n, 4] x1, y1, x2, y2 or [n, 5] cx, cy, w, h, theta (radians, le90).
    polygons: float32 [n, 8]; the file's quadrilateral, or the corners of the box.
    difficult: int8 [n]; 0, or whatever the file says (COCO's `iscrowd` and `ignore` are 1).
    labels: the file that the objects come from, for messages.
    crop: x1, y1, x2, y2 of the part of the image file that is the image (DroneVehicle's border).
    declared: (height, width) of the image file as the labels have it, None where they say nothing.
    extra: {name: [n, ...]} of whatever else the files say of each object; it goes with the object
      into the prepared data set and into batches. Every image has the same names, the same types
      and the same shapes but for n.
  """

  id: str
  image: pathlib.Path
  names: tuple[str, ...]
  boxes: np.ndarray
  polygons: np.ndarray
  difficult: np.ndarray
  labels: pathlib.Path | None = None
  crop: tuple[int, int, int, int] | None = None
  declared: tuple[int, int] | None = None
  extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def oriented(id: str, image: pathlib.Path, rows: Sequence[tuple], **fields) -> Annotation:
  """The annotation of quadrilaterals: rows of (class name, eight coordinates, difficult)."""
  names, polygons, difficult = zip(*rows, strict=True) if rows else ((), (), ())
  polygons = np.array(polygons, np.float32).reshape(-1, 8)
  return Annotation(
    id=id,
    image=image,
    names=tuple(names),
    boxes=box_lib.polygon_to_obb(polygons),
    polygons=polygons,
    difficult=np.array(difficult, np.int8),
    **fields,
  )


def rectangles(id: str, image: pathlib.Path, rows: Sequence[tuple], **fields) -> Annotation:
  """That of rotated rectangles: rows of (class name, (cx, cy, w, h, radians), difficult)."""
  obb = np.array([row[1] for row in rows], np.float64).reshape(-1, 5)
  quads = box_lib.to_polygon(obb)
  rows = [(row[0], quad, row[2]) for row, quad in zip(rows, quads, strict=True)]
  # the file's own numbers, not the rectangle around the rounded corners
  return dataclasses.replace(oriented(id, image, rows, **fields), boxes=box_lib.le90(obb))


def horizontal(id: str, image: pathlib.Path, rows: Sequence[tuple], **fields) -> Annotation:
  """That of horizontal boxes: rows of (class name, (x1, y1, x2, y2), difficult)."""
  names, boxes, difficult = zip(*rows, strict=True) if rows else ((), (), ())
  boxes = np.array(boxes, np.float32).reshape(-1, 4)
  return Annotation(
    id=id,
    image=image,
    names=tuple(names),
    boxes=boxes,
    polygons=box_lib.to_polygon(boxes).astype(np.float32),
    difficult=np.array(difficult, np.int8),
    **fields,
  )


def ordered(box: Sequence[float], skipped: Skipped, place) -> tuple[float, ...]:
  """x1, y1, x2, y2 of any two opposite corners; counts those that come the other way round."""
  x1, y1, x2, y2 = box
  if x1 > x2 or y1 > y2:
    skipped.add('corners swapped (mended)', place)
  return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def quadrilateral(points: Sequence[float], skipped: Skipped, place) -> np.ndarray:
  """Eight coordinates of a polygon of any number of points, x1 y1 x2 y2 ..: of more than four the
  rectangle of least area around them, counted; a closing point that repeats the first is none."""
  points = np.asarray(points, np.float64).reshape(-1, 2)
  if len(points) > 4 and (points[0] == points[-1]).all():
    points = points[:-1]
  if len(points) == 4:
    return points.ravel()
  skipped.add(f'polygon of {len(points)} points (its rectangle of least area is taken)', place)
  return box_lib.to_polygon(box_lib.around(points)[None])[0]


def declared_size(height: object, width: object) -> tuple[int, int] | None:
  """(height, width) as a label file gives them, in numbers or words; None where that is no size."""
  try:
    size = int(float(height)), int(float(width))
  except (TypeError, ValueError, OverflowError):
    return None
  return size if min(size) > 0 else None


def difficulty(text: str | None) -> int:
  """A flag as label files write it: 0, 1 or what a set means by another digit; without a word 0.

  Raises:
    ValueError: anything else.
  """
  text = (text or '0').strip().lower()
  number = {'false': 0, 'true': 1}.get(text)
  number = float(text) if number is None else number
  if number % 1 or not 0 <= number <= 9:
    raise ValueError(text)
  return int(number)
