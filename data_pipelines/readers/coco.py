"""COCO json: horizontal boxes, and the rotated variants that public data sets have made of it.

Rotated: `bbox` has five numbers, cx, cy, w, h, angle, the angle positive clockwise on the screen;
or four, and the degrees of the turn in `attributes.rotation`, as labelling tools export it; or four
and a `segmentation`, around which the rectangle of least area is taken.
"""

import math
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.errors import UserError
from data_pipelines.readers import coco_file, files
from data_pipelines.readers.annotation import Annotation, horizontal, rectangles
from data_pipelines.readers.coco_file import Object
from data_pipelines.readers.skipped import BadEntry, Skipped

UNITS = {'degree': math.radians(1), 'radian': 1.0}
TURNS = {'clockwise': 1, 'counterclockwise': -1}


def read(
  source: pathlib.Path,
  split: str,
  *,
  labels: str,
  images: str = '',
  skipped: Skipped,
  rotated: bool = False,
  angle: str = 'auto',
  turn: str = 'clockwise',
) -> Iterator[Annotation]:
  """Yields one annotation an image of the json, those without objects included.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels: the json file.
    images: folder of the image files.
    skipped: where what is left out or mended is counted.
    rotated: give oriented boxes, where any object says how it is turned; otherwise only five
      numbers do, and a turned box of four is the horizontal one around it.
    angle: 'degree', 'radian' or 'auto' of five-number boxes; see `angle_unit`.
    turn: 'clockwise' or 'counterclockwise', the way they grow on the screen.

  Raises:
    FileNotFoundError: the json or the folder is not there.
    UserError: not COCO json, or two images of one id.
  """
  path = files.find(source, labels, f'{split} labels')
  folder = files.find(source, images, f'{split} images')
  content = coco_file.load(path, skipped)
  unit = UNITS[angle_unit([(source, labels)], angle, skipped)] * TURNS[turn]
  resolved = _resolved(content.images, folder, source, skipped)
  ids = {p: id for id, p in files.named((name, p) for _, name, p in resolved).items()}
  objects = {entry.id: [] for entry in content.images}
  for o in content.objects:
    objects[o.image].append(o)
  turned = any(len(o.box) == 5 or (rotated and _obb(o, unit)) for o in content.objects)
  crowds = any(o.ignored for o in content.objects)
  for entry, _, image in resolved:
    found = objects[entry.id]
    fields = dict(labels=path, declared=entry.size)
    if crowds:
      fields['extra'] = {'ignored': np.array([o.ignored for o in found], bool)}
    if turned:
      rows = [(o.name, _obb(o, unit) or _level(o), o.difficult) for o in found]
      yield rectangles(ids[image], image, rows, **fields)
    else:
      rows = [(o.name, _hbb(o, unit), o.difficult) for o in found]
      yield horizontal(ids[image], image, rows, **fields)


def angle_unit(places: Sequence[tuple[pathlib.Path, str]], angle: str, skipped: Skipped) -> str:
  """'degree' or 'radian', for all files of a data set together.

  Args:
    places: (source, labels) of every split.
    angle: the answer, or 'auto': degrees if any angle is beyond 2 pi, else radians.
    skipped: gets the evidence as a note.
  """
  if angle not in (*UNITS, 'auto'):
    raise UserError(f"angle={angle!r}: expected 'auto', 'degree' or 'radian'")
  if angle != 'auto':
    return angle
  largest, where = 0.0, None
  for source, labels in places:
    path = files.find(source, labels, 'labels')
    found = max(coco_file.angles(path, skipped), default=0.0)
    if found > largest:
      largest, where = found, path
  unit = 'degree' if largest > 2 * math.pi + 1e-3 else 'radian'
  if where:
    sure = unit == 'degree' or largest <= math.pi / 2 + 1e-3
    doubt = '' if sure else '; a guess: --angle=degree or --angle=radian says it'
    skipped.note(f'angles are read as {unit}s: the largest is {largest:.4g}, in {where}{doubt}')
  return unit


def _obb(o: Object, unit: float) -> tuple | None:
  """cx, cy, w, h, radians of an object that says how it is turned."""
  if len(o.box) == 5:
    return *o.box[:4], o.box[4] * unit
  if o.turn:
    return *_level(o)[:4], math.radians(o.turn)
  return tuple(box_lib.around(o.points)) if o.points is not None else None


def _level(o):
  x1, y1, x2, y2 = o.box
  return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.0


def _hbb(o: Object, unit: float) -> Sequence[float]:
  """x1, y1, x2, y2 around an object."""
  if len(o.box) == 4 and not o.turn:
    return o.box
  return box_lib.obb_to_hbb(np.array([_obb(o, unit)]))[0]


def _resolved(entries, folder, root, skipped):
  """(entry, name below the folder, file) of the images that are there."""
  index, found, taken = files.Listing(folder, root, skipped), [], {}
  for entry in entries:
    try:
      name, path = index.find(entry.file_name, entry.place)
    except BadEntry as error:
      skipped.take(error)
      continue
    if path in taken:
      raise UserError(f'{entry.place}: two images have the name {name}; the other: {taken[path]}')
    taken[path] = entry.place
    found.append((entry, name, path))
  return found
