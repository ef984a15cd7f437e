"""What a COCO json says, entry by entry, each checked before it is believed."""

import functools
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.readers import texts
from data_pipelines.readers.skipped import BadEntry, Skipped

SCALARS = (int, str)


class Image(NamedTuple):
  """An entry of `images`; `size` (height, width) as declared, or None."""

  id: Any
  file_name: str
  size: tuple[int, int] | None
  place: str


class Object(NamedTuple):
  """An entry of `annotations`.

  Attributes:
    image: id of its image.
    name: of its class.
    box: x1, y1, x2, y2, or cx, cy, w, h, angle in the file's unit.
    turn: degrees by which `box` is turned about its middle, clockwise on the screen.
    points: float64 [k, 2] of its outline, where there is one.
    difficult: 1 for `iscrowd`, `ignore` or `difficult`.
    ignored: a region that is no object (`iscrowd`, `ignore`).
  """

  image: Any
  name: str
  box: tuple[float, ...]
  turn: float
  points: np.ndarray | None
  difficult: int
  ignored: bool


class Content(NamedTuple):
  """What a file has."""

  images: list[Image]
  objects: list[Object]


def load(path: pathlib.Path, skipped: Skipped) -> Content:
  """A COCO json; entries that are bad are left out through `skipped`.

  Raises:
    UserError: not COCO json; an id of two images, or of two categories of different names.
  """
  content = _json(path, skipped)
  if isinstance(content, list) and content and isinstance(content[0], dict):
    raise UserError(f'{path}: a list of {", ".join(content[0])}: results, where labels should be')
  if not isinstance(content, dict):
    raise UserError(f'{path}: not COCO json: a {type(content).__name__}, not an object')
  for key in ('images', 'annotations', 'categories'):
    if not isinstance(content.get(key), list):
      found = type(content[key]).__name__ if key in content else 'missing'
      raise UserError(f'{path}: not COCO json: {key!r} has to be a list, but is {found}')
  names = _once(_checked(content, 'categories', _category, path, skipped), path, 'categories')
  images = _checked(content, 'images', _image, path, skipped)
  _once(((i.id, i.file_name, i.place) for i in images), path, 'images', same_is_fine=False)
  known = {i.id for i in images}
  entry = functools.partial(_object, names=names, images=known, skipped=skipped)
  rows = _checked(content, 'annotations', entry, path, skipped)
  sizes = {i.id: i.size for i in images}
  return Content(images, _as_corners(rows, sizes, path, skipped))


def angles(path: pathlib.Path, skipped: Skipped) -> Iterator[float]:
  """The angles without their signs of boxes of five numbers; nothing else is looked at."""
  content = _json(path, skipped)
  entries = content.get('annotations') if isinstance(content, dict) else None
  for entry in entries if isinstance(entries, list) else ():
    box = entry.get('bbox') if isinstance(entry, dict) else None
    if isinstance(box, list) and len(box) == 5 and _is_number(box[4]):
      yield abs(box[4])


def _json(path, skipped):
  try:
    return texts.json_of(path, skipped)
  except BadEntry as error:
    raise UserError(f'{path}: not COCO json: {error.detail}') from None


def _checked(content, key, check, path, skipped):
  """`check` of every entry of a list that passes it."""
  found = []
  for number, entry in enumerate(content[key]):
    place = f'{path}: {key}[{number}]'
    if isinstance(entry, dict) and isinstance(entry.get('id'), SCALARS):
      place += f' (id {entry["id"]})'
    try:
      if not isinstance(entry, dict):
        raise BadEntry(f'entry of {key} that is no object', place, f'{entry!r:.40} is no object')
      found.append(check(entry, place))
    except BadEntry as error:
      skipped.take(error)
  return found


def _scalar(entry, key, place):
  value = entry.get(key)
  if not isinstance(value, SCALARS) or isinstance(value, bool):
    raise BadEntry(f'entry without a proper {key}', place, f'{key} is {value!r:.40}')
  return value


def _category(entry, place):
  name = entry.get('name')
  if not isinstance(name, SCALARS):
    raise BadEntry('category without a name', place, f'name is {name!r:.40}')
  return _scalar(entry, 'id', place), str(name), place


def _image(entry, place):
  name = entry.get('file_name', entry.get('filename'))
  if not isinstance(name, str) or not name.strip():
    raise BadEntry('image without a file_name', place, f'file_name is {name!r:.40}')
  size = entry.get('height'), entry.get('width')
  good = all(isinstance(s, (int, float)) and s >= 1 for s in size)
  return Image(_scalar(entry, 'id', place), name, tuple(map(int, size)) if good else None, place)


def _once(rows, path, what, same_is_fine=True):
  """{id: name}; an id of two entries, unless of one name, means that files were merged."""
  found = {}
  for id, name, place in rows:
    if id in found and not (same_is_fine and found[id] == name):
      raise UserError(
        f'{path}: two {what} have the id {id}: {found[id]!r} and {name!r} ({place}); '
        'number them anew, or give the files as two sources'
      )
    found[id] = name
  return found


def _object(entry, place, names, images, skipped):
  image, category = _scalar(entry, 'image_id', place), _scalar(entry, 'category_id', place)
  if image not in images:
    raise BadEntry('object of an image that the file does not list', place, f'image {image!r:.40}')
  if category not in names:
    known = ', '.join(map(repr, names))
    why = f'category_id {category!r:.40} is not among its categories {known:.200}'
    raise BadEntry('object of a category that the file does not list', place, why)
  points = _points(entry, place)
  box = entry.get('bbox')
  if box is None and points is not None:
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    box = [x1, y1, x2 - x1, y2 - y1]
  if not isinstance(box, list) or len(box) not in (4, 5) or not all(map(_is_number, box)):
    raise BadEntry('bbox that is not four or five numbers', place, f'bbox is {box!r:.60}')
  if len(box) == 4:
    box = _positive(box, place, skipped)
  attributes = entry.get('attributes')
  turn = attributes.get('rotation', 0) if isinstance(attributes, dict) else 0
  if not _is_number(turn):
    raise BadEntry('rotation that is no number', place, f'attributes.rotation is {turn!r:.40}')
  ignored = bool(entry.get('iscrowd') or entry.get('ignore'))
  area = entry.get('area')
  return dict(
    image=image, name=names[category], box=box, turn=float(turn) % 360, points=points,
    difficult=int(ignored or bool(entry.get('difficult'))), ignored=ignored,
  ), area if _is_number(area) and area > 0 else None, place  # fmt: skip


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(box, place, skipped):
  x, y, w, h = map(float, box)
  if w < 0 or h < 0:
    skipped.add('negative width or height (corners swapped, mended)', place)
  return [min(x, x + w), min(y, y + h), abs(w), abs(h)]


def _points(entry, place):
  """Outline of a `segmentation`: polygons, or run lengths; None without one."""
  found = entry.get('segmentation')
  if not found:
    return None
  try:
    if isinstance(found, dict):
      from pycocotools import mask  # lazily: few files have run lengths

      runs = found if isinstance(found['counts'], str) else mask.frPyObjects(found, *found['size'])
      x, y, w, h = mask.toBbox(runs)
      return np.array([[x, y], [x + w, y + h]])
    flat = found if _is_number(found[0]) else [c for part in found for c in part]
    points = np.array(flat, np.float64).reshape(-1, 2)
  except (TypeError, ValueError, KeyError, IndexError):
    if entry.get('bbox') is not None:  # many files have something there that means nothing
      return None
    raise BadEntry('segmentation that is neither polygons nor run lengths', place) from None
  return points if len(points) > 2 and np.isfinite(points).all() else None


def _as_corners(rows, sizes, path, skipped):
  """The objects with their boxes as corners; `bbox` that are x1, y1, x2, y2 by mistake are told.

  They are if every area says so, or, where none is given, if all of many boxes would be proper
  corners, and only as corners lie inside of their images. An area beyond its box is a
  contradiction, unless most of the file's are (then they are in another unit).
  """
  four = [(o, area) for o, area, _ in rows if len(o['box']) == 4]
  mistaken = bool(four) and _are_corners(four, sizes)
  if mistaken:
    skipped.add('bbox is x1, y1, x2, y2, not x, y, width, height (mended)', path, len(four))
  beyond = [
    bool(a) and not mistaken and len(o['box']) == 4
    and a > 1.05 * (o['box'][2] + 2) * (o['box'][3] + 2)
    for o, a, _ in rows
  ]  # fmt: skip
  told = sum(a is not None for _, a, _ in rows)
  objects = []
  for (o, area, place), wrong in zip(rows, beyond, strict=True):
    if wrong and 2 * sum(beyond) < told:
      box = ' x '.join(f'{s:g}' for s in o['box'][2:4])
      skipped.bad('area larger than the box', place, f'area {area:g}, but the box is {box}')
      continue
    if len(o['box']) == 4 and not mistaken:
      x, y, w, h = o['box']
      o['box'] = x, y, x + w, y + h
    objects.append(Object(**o | {'box': tuple(map(float, o['box']))}))
  return objects


MANY = 10  # boxes, from which on their places alone are evidence


def _are_corners(rows, sizes):
  proper = all(o['box'][2] > o['box'][0] and o['box'][3] > o['box'][1] for o, _ in rows)
  if not proper:
    return False
  areas = [(area, o['box']) for o, area in rows if area]
  if areas:
    of_corners = [_near(a, (b[2] - b[0]) * (b[3] - b[1])) for a, b in areas]
    of_sides = [_near(a, b[2] * b[3]) for a, b in areas]
    return all(of_corners) and not any(of_sides)
  known = [(o['box'], sizes[o['image']]) for o, _ in rows if sizes.get(o['image'])]
  inside = [x2 <= w + 1 and y2 <= h + 1 for (_, _, x2, y2), (h, w) in known]
  beyond = [x + bw > w + 1 or y + bh > h + 1 for (x, y, bw, bh), (h, w) in known]
  return len(known) >= MANY and all(inside) and statistics.mean(beyond) > 0.2


def _near(a, b):
  return abs(a - b) <= 0.02 * max(a, b)
