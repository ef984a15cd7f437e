"""What a COCO json says, entry by entry, each checked before it is believed."""

import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.readers import texts
from data_pipelines.readers.annotation import declared_size, difficulty
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
    box: the file's four numbers, or cx, cy, w, h, angle in the file's unit.
    turn: degrees by which `box` is turned about its middle.
    points: float64 [k, 2] of its outline, where there is one.
    area: as declared, None where the file says nothing.
    difficult: 1 for `iscrowd`, `ignore` or `difficult`.
    ignored: a region that is no object (`iscrowd`, `ignore`).
  """

  image: Any
  name: str
  box: tuple[float, ...]
  turn: float
  points: np.ndarray | None
  area: float | None
  difficult: int
  ignored: bool
  place: str


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
  return Content(images, _checked(content, 'annotations', entry, path, skipped))


def _json(path, skipped):
  try:
    return texts.json_of(path, skipped)
  except BadEntry as error:
    raise UserError(f'{path}: not COCO json: {error.detail}') from None


def _checked(content, key, check, path, skipped):
  """`check` of every entry of a list that passes it."""

  def checked(number, entry):
    place = f'{path}: {key}[{number}]'
    if not isinstance(entry, dict):
      raise BadEntry(f'entry of {key} that is no object', place, f'{entry!r:.40} is no object')
    if isinstance(entry.get('id'), SCALARS):
      place += f' (id {entry["id"]})'
    return check(entry, place)

  return skipped.usable(checked, enumerate(content[key]))


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
  size = declared_size(entry.get('height'), entry.get('width'))
  return Image(_scalar(entry, 'id', place), name, size, place)


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
  box = _positive(box, place, skipped)
  attributes = entry.get('attributes')
  turn = attributes.get('rotation', 0) if isinstance(attributes, dict) else 0
  if not _is_number(turn):
    raise BadEntry('rotation that is no number', place, f'attributes.rotation is {turn!r:.40}')
  ignored = _flag(entry, 'iscrowd', place) or _flag(entry, 'ignore', place)
  area = entry.get('area')
  return Object(
    image=image,
    name=names[category],
    box=box,
    turn=float(turn) % 360,
    points=points,
    area=float(area) if _is_number(area) and area > 0 else None,
    difficult=int(ignored or _flag(entry, 'difficult', place)),
    ignored=ignored,
    place=place,
  )


def _flag(entry, key, place):
  value = entry.get(key)
  try:
    return bool(difficulty(None if value is None else str(value)))
  except ValueError:
    raise BadEntry(f'{key} that is no flag', place, f'{key} is {value!r:.40}') from None


def _is_number(value):
  """Whether a value is a number that a float can hold."""
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    return False
  return isinstance(value, float) or abs(value) < 1e300


def _positive(box, place, skipped):
  x, y, w, h, *angle = map(float, box)
  if w < 0 or h < 0:
    skipped.add('negative width or height (corners swapped, mended)', place)
  if angle:  # x, y are the middle
    return x, y, abs(w), abs(h), *angle
  return min(x, x + w), min(y, y + h), abs(w), abs(h)


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
  except Exception:  # pycocotools raises what it likes
    if entry.get('bbox') is not None:  # many files have something there that means nothing
      return None
    raise BadEntry('segmentation that is neither polygons nor run lengths', place) from None
  return points if len(points) > 2 and np.isfinite(points).all() else None
