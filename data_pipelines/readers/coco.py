"""COCO json: horizontal boxes, and the rotated variants that public data sets have made of it.

Rotated: `bbox` has five numbers, cx, cy, w, h, angle, the angle positive clockwise on the screen.
"""

import json
import logging
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.errors import UserError
from data_pipelines.readers import SUFFIXES, Annotation, Skipped, find

logger = logging.getLogger(__name__)


def read(
  source: pathlib.Path,
  split: str,
  *,
  labels: str,
  images: str = '',
  skipped: Skipped,
  angle: str = 'auto',
) -> Iterator[Annotation]:
  """Yields one annotation an image of the json, those without objects included.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels: the json file.
    images: folder of the image files.
    skipped: where what is left out is counted.
    angle: 'degree', 'radian' or 'auto' of five-number boxes; auto takes degrees if any angle of the
      file is beyond 2 pi.

  Raises:
    FileNotFoundError: the json or the folder is not there.
    UserError: not COCO json, or a box of neither four nor five numbers.
  """
  path, folder = find(source, labels, f'{split} labels'), find(source, images, f'{split} images')
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    entries, annotations = content['images'], content['annotations']
    names = {c['id']: str(c['name']) for c in content['categories']}
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as e:
    raise UserError(f'{path}: not COCO json ({type(e).__name__}: {e})') from e
  columns = _columns(annotations, path)
  scale = _angle_unit(annotations, angle, path) if columns == 5 else 1.0
  objects = {entry['id']: [] for entry in entries}
  for a in annotations:
    if a['image_id'] not in objects:
      skipped.add('object of an image that the file does not list', path)
    elif a['category_id'] not in names:
      raise UserError(
        f'{path}: category_id {a["category_id"]} is not among its categories {sorted(names)}'
      )
    else:
      objects[a['image_id']].append(a)
  for entry in entries:
    image = _image(folder / _file_name(entry, path))
    if not image.is_file():
      skipped.add('image file missing', image)
      continue
    found = objects[entry['id']]
    boxes, polygons = _boxes([a['bbox'] for a in found], columns, scale)
    yield Annotation(
      id=image.stem,
      image=image,
      names=tuple(names[a['category_id']] for a in found),
      boxes=boxes,
      polygons=polygons,
      difficult=np.array([_difficult(a) for a in found], np.int8),
      labels=path,
    )


def _file_name(entry, path):
  name = entry.get('file_name', entry.get('filename'))
  if not name:
    raise UserError(f'{path}: image {entry.get("id")} has neither file_name nor filename')
  return name


def _image(path):
  """The file, or one that differs only in its suffix: copies of data sets are often converted."""
  others = (path.with_suffix(s) for s in SUFFIXES)
  return path if path.is_file() else next((p for p in others if p.is_file()), path)


def _difficult(annotation):
  return int(any(annotation.get(key) for key in ('iscrowd', 'ignore', 'difficult')))


def _columns(annotations, path):
  """4 or 5 numbers a box, the same in the whole file."""
  lengths = {len(a.get('bbox') or ()) for a in annotations} or {4}
  if lengths not in ({4}, {5}):
    raise UserError(f'{path}: boxes of {sorted(lengths)} numbers; expected all 4 or all 5')
  return lengths.pop()


def _angle_unit(annotations, angle, path):
  """Radians in one unit of the file's angles."""
  if angle not in ('auto', 'degree', 'radian'):
    raise UserError(f"angle={angle!r}: expected 'auto', 'degree' or 'radian'")
  if angle == 'auto':
    largest = max(abs(a['bbox'][4]) for a in annotations)
    angle = 'degree' if largest > 2 * math.pi + 1e-3 else 'radian'
    logger.info('%s: the largest angle is %.4g, so angles are read as %ss', path, largest, angle)
  return math.pi / 180 if angle == 'degree' else 1.0


def _boxes(rows, columns, scale):
  """Rows of the file -> (boxes, polygons)."""
  rows = np.array(rows, np.float64).reshape(-1, columns)
  if columns == 5:
    obb = rows * (1, 1, 1, 1, scale)
    return box_lib.le90(obb), box_lib.to_polygon(obb).astype(np.float32)
  hbb = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], -1).astype(np.float32)
  return hbb, box_lib.to_polygon(hbb).astype(np.float32)
