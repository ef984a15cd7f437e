"""COCO json: horizontal boxes, and the rotated variants that public data sets have made of it.

Rotated: `bbox` has five numbers, cx, cy, w, h, angle, the angle positive clockwise on the screen;
or four, and the degrees of the turn in `attributes.rotation`, as labelling tools export it; or four
and a `segmentation`, around which the rectangle of least area is taken.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.readers import coco_evidence, coco_file, files
from data_pipelines.readers.annotation import Annotation, horizontal, rectangles
from data_pipelines.readers.coco_file import Object
from data_pipelines.readers.skipped import Skipped

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
  corners: bool | str = 'auto',
  turned: bool | str = 'auto',
  contents: Mapping[pathlib.Path, coco_file.Content] | None = None,
) -> Iterator[Annotation]:
  """Yields one annotation an image of the json, those without objects included.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels: the json file.
    images: folder of the image files.
    skipped: where what is left out or mended is counted.
    rotated: give oriented boxes, where any object says how it is turned.
    angle: 'degree', 'radian' or 'auto' of five-number boxes.
    turn: 'clockwise' or 'counterclockwise', the way angles grow on the screen.
    corners: whether boxes of four numbers are x1, y1, x2, y2, by mistake.
    turned: whether any object of the data set says how it is turned.
    contents: what the files have, as `decide` has read them; without it this one is read, and what
      is 'auto' is decided by it alone.

  Raises:
    FileNotFoundError: the json or the folder is not there.
    UserError: not COCO json, or two images of one id.
  """
  path = files.find(source, labels, f'{split} labels')
  files.find(source, images, f'{split} images')  # told before the json is read
  files.note_link(path, source, skipped)
  given = dict(rotated=rotated, angle=angle, corners=corners, turned=turned, contents=contents)
  if contents is None:
    given = decide([(source, labels)], given, skipped)
  unit, way, content = UNITS[given['angle']], TURNS[turn], given['contents'][path]
  images_of = ((entry.file_name, entry.place, entry) for entry in content.images)
  objects = {entry.id: [] for entry in content.images}
  for o in _trusted(content, path, given['corners'], skipped):
    objects[o.image].append(o)
  make, shape = (rectangles, _obb) if given['turned'] else (horizontal, _hbb)
  crowds = any(o.ignored for o in content.objects)
  for id, image, entry in files.named_by(source, split, images, images_of, skipped):
    found = objects[entry.id]
    fields = dict(labels=path, declared=entry.size)
    if crowds:
      fields['extra'] = {'ignored': np.array([o.ignored for o in found], bool)}
    rows = [(o.name, shape(o, unit, way, rotated), o.difficult) for o in found]
    yield make(id, image, rows, **fields)


def decide(places: Sequence[tuple[pathlib.Path, str]], options: Mapping, skipped: Skipped) -> dict:
  """The options that are 'auto', decided for all files of a data set together.

  Args:
    places: (source, labels) of every split.
    options: of `read`.
    skipped: counts the entries that are bad, and gets the evidence as notes.

  Returns:
    the options with `angle`, `corners`, `turned` (whether the boxes are oriented) and `contents`,
    so that `read` need not read the files again.
  """
  paths = dict.fromkeys(files.find(source, labels, 'labels') for source, labels in places)
  read = {path: coco_file.load(path, skipped) for path in paths}
  contents = [(str(path), content) for path, content in read.items()]
  found = dict(options) | {'contents': read}
  if found.get('angle', 'auto') == 'auto':
    found['angle'] = coco_evidence.angle_unit(contents, skipped)
  if found.get('corners', 'auto') == 'auto':
    found['corners'] = coco_evidence.are_corners(contents, skipped)
  of_all = [o for _, content in contents for o in content.objects]
  turned = lambda o: o.turn or o.points is not None
  if found.get('turned', 'auto') == 'auto':
    found['turned'] = any(len(o.box) == 5 for o in of_all) or bool(
      found.get('rotated') and any(map(turned, of_all))
    )
  return found


def _trusted(content, path, corners, skipped):
  """The objects with corners for their four numbers, less those that contradict themselves."""
  four = [o for o in content.objects if len(o.box) == 4]
  if corners:
    skipped.add('bbox is x1, y1, x2, y2, not x, y, width, height (mended)', path, len(four))
  wrong = set() if corners else coco_evidence.too_large(content)
  for o in content.objects:
    if o.place in wrong:
      detail = f'area {o.area:g}, but the box is {o.box[2]:g} x {o.box[3]:g}'
      skipped.bad('area larger than the box', o.place, detail)
    elif len(o.box) == 5 or corners:
      yield o
    else:
      x, y, w, h = o.box
      yield o._replace(box=(x, y, x + w, y + h))


def _obb(o: Object, unit: float, way: int, outlines: bool = True) -> tuple:
  """cx, cy, w, h, radians of an object."""
  if len(o.box) == 5:
    return *o.box[:4], way * unit * o.box[4]
  x1, y1, x2, y2 = o.box
  level = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
  if o.turn:
    return *level, way * math.radians(o.turn)
  if outlines and o.points is not None:
    return tuple(box_lib.around(o.points))
  return *level, 0.0


def _hbb(o: Object, unit: float, way: int, rotated: bool) -> Sequence[float]:
  """x1, y1, x2, y2 around an object."""
  return box_lib.obb_to_hbb(np.array([_obb(o, unit, way, False)]))[0] if o.turn else o.box
