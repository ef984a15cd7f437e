"""labelme json: a file an image, with `shapes`: polygons, rectangles, turned ones, circles."""

import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines.readers import files, texts
from data_pipelines.readers.annotation import (
  Annotation,
  declared_size,
  difficulty,
  oriented,
  quadrilateral,
)
from data_pipelines.readers.skipped import BadEntry, Skipped

AREAS = ('polygon', 'rectangle', 'circle', 'rotation', 'quadrilateral', 'mask')


def read(
  source: pathlib.Path, split: str, *, labels: str, images: str, skipped: Skipped
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a readable json file.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels, images: folders below it, which may be one.
    skipped: where what is left out is counted: points and lines among them.

  Raises:
    FileNotFoundError: a folder is not there.
  """
  read_one = lambda file, image: load(file, skipped)
  found = files.labelled(source, split, labels, images, '.json', read_one, skipped)
  for id, image, file, content in found:
    shapes = enumerate(content['shapes'])
    entries = ((shape, f'{file}: shapes[{k}]', skipped) for k, shape in shapes)
    rows = skipped.usable(_row, entries)
    declared = declared_size(content.get('imageHeight'), content.get('imageWidth'))
    yield oriented(id, image, rows, labels=file, declared=declared)


def load(path: pathlib.Path, skipped: Skipped) -> dict:
  """A labelme file; BadEntry if it is none."""
  content = texts.json_of(path, skipped)
  if not isinstance(content, dict) or not isinstance(content.get('shapes'), list):
    raise BadEntry('label file is not labelme json', path, 'no list of `shapes`')
  return content


def _row(shape, place, skipped):
  if not isinstance(shape, dict) or not isinstance(shape.get('label'), str):
    raise BadEntry('shape without a label', place)
  kind = shape.get('shape_type') or 'polygon'
  try:
    points = np.array(shape.get('points'), np.float64).reshape(-1, 2)
  except (TypeError, ValueError):
    raise BadEntry('shape without points', place) from None
  if kind == 'circle' and len(points) == 2:
    radius = np.linalg.norm(points[1] - points[0])
    points = np.stack([points[0] - radius, points[0] + radius])
  if kind in ('rectangle', 'circle') and len(points) == 2:
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
  if kind not in AREAS or len(points) < 3:
    raise BadEntry(f'shape that is no area ({kind})', place)
  flags = shape.get('flags') if isinstance(shape.get('flags'), dict) else {}
  flag = shape.get('difficult') or flags.get('difficult')
  try:
    difficult = difficulty(None if flag is None else str(flag))
  except ValueError:
    raise BadEntry('difficult that is no flag', place, f'difficult is {flag!r:.40}') from None
  return shape['label'], quadrilateral(points, skipped, place), difficult
