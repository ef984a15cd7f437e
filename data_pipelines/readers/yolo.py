"""YOLO text: a file an image, a line an object, its class number and shares of width and height.

OBB: `class x1 y1 x2 y2 x3 y3 x4 y4`; detection: `class cx cy w h`; more points are an outline. The
coordinates may leave 0..1. The names of the class numbers come from the data set's yaml file.
"""

import pathlib
from collections.abc import Iterator

import yaml

from data_pipelines.readers import files, texts
from data_pipelines.readers.annotation import Annotation, horizontal, oriented, quadrilateral
from data_pipelines.readers.skipped import BadEntry, Skipped


def read(
  source: pathlib.Path,
  split: str,
  *,
  labels: str,
  images: str,
  skipped: Skipped,
  rotated: bool = True,
) -> Iterator[Annotation]:
  """Yields an annotation an image, in shares; one without a label file has no objects, as YOLO
  means it.

  Args:
    source: folder of the data set, with one yaml that has a `names:` entry.
    split: only names the split in messages.
    labels, images: folders below it.
    skipped: where what is left out is counted.
    rotated: oriented boxes; otherwise horizontal ones, around outlines too.

  Raises:
    FileNotFoundError: a folder or the yaml is not there.
    UserError: the yaml has no names.
  """
  classes = class_names(_yaml(source, skipped), skipped)
  folder = files.find(source, labels, f'{split} labels')
  pictures = files.find(source, images, f'{split} images')
  make = oriented if rotated else horizontal
  for id, image, file in files.pairs(folder, pictures, '.txt', skipped, root=source):
    try:
      rows = _rows(file, classes, rotated, skipped) if file else []
    except BadEntry as error:
      skipped.take(error)
    else:
      yield make(id, image, rows, labels=file)


def _rows(path, classes, rotated, skipped):
  lines = enumerate(texts.read(path, skipped).splitlines(), 1)
  entries = (
    (line.split(), classes, rotated, f'{path}:{number}', skipped)
    for number, line in lines
    if line.strip()
  )
  return skipped.usable(_row, entries)


def _row(tokens, classes, rotated, place, skipped):
  what = 'eight coordinates' if rotated else 'cx cy w h'
  wrong = BadEntry(
    f'line that is not a class number and {what}', place,
    f'expected a class number of {sorted(classes)} and {what}, not {" ".join(tokens)!r:.100}',
  )  # fmt: skip
  try:
    number, *box = map(float, tokens)
    name = classes[int(number)]
  except (ValueError, KeyError, OverflowError):
    raise wrong from None
  if number % 1:
    raise BadEntry('score where the class number should be', place)
  if len(box) in (5, 9) and 0 <= box[-1] <= 1:
    raise BadEntry('line with a score at its end, as detections have', place)
  if len(box) == 4 and not rotated:
    cx, cy, w, h = box
    return name, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), 0
  if len(box) < 6 or len(box) % 2 or (len(box) != 8 and _are_keypoints(box)):
    raise wrong
  if rotated:
    return name, quadrilateral(box, skipped, place), 0
  return name, (min(box[::2]), min(box[1::2]), max(box[::2]), max(box[1::2])), 0


def _are_keypoints(box):
  """Whether what follows a box are keypoints with their visibility, or a score and an id."""
  first, rest = box[:4], box[4:]
  mixed = max(map(abs, first)) <= 1.5 < max(map(abs, rest))  # shares, then something else
  return mixed or (len(rest) % 3 == 0 and all(flag in (0, 1, 2) for flag in rest[2::3]))


def _yaml(source, skipped):
  there = sorted(
    p
    for p in pathlib.Path(source).iterdir()
    if p.suffix.lower() in ('.yaml', '.yml') and not files.hidden(p.name)
  )
  found = []
  for path in there:
    try:
      found += [path] if 'names' in _content(path, skipped) else []
    except BadEntry as error:  # it may be no concern of the data set's
      skipped.add(error.reason, f'{path}: {error.detail}')
  if len(found) != 1:
    names = ', '.join(p.name for p in found) or 'none'
    why = f'; {skipped.summary()}' if skipped.counts else ''
    raise FileNotFoundError(
      f'{source}: one yaml file with the class names (`names:`) is needed, found {names}{why}'
    )
  return found[0]


class _Loader(yaml.SafeLoader):
  """YAML in which a key stands once."""

  def construct_mapping(self, node, deep=False):
    keys = [self.construct_object(key, deep=True) for key, _ in node.value]
    if twice := [key for k, key in enumerate(keys) if key in keys[:k]]:
      raise yaml.YAMLError(f'{twice[0]!r} stands twice')
    return super().construct_mapping(node, deep)


def _content(path, skipped):
  try:
    content = yaml.load(texts.read(path, skipped), _Loader)
  except (yaml.YAMLError, ValueError, TypeError) as error:
    if isinstance(error, BadEntry):
      raise
    at = getattr(error, 'problem_mark', None)
    line = f' in line {at.line + 1}' if at else ''
    reason = getattr(error, 'problem', None) or error
    raise BadEntry('file that is not YAML', path, f'not YAML{line}: {reason}') from None
  return content if isinstance(content, dict) else {}


def class_names(path: pathlib.Path, skipped: Skipped | None = None) -> dict[int, str]:
  """{class number: name} from `names:` of a data set's yaml: a list, or numbers with their names.

  Raises:
    UserError: no names are found, or what is there is none.
  """
  found = _content(path, skipped or Skipped()).get('names')
  names = dict(enumerate(found)) if isinstance(found, list) else found
  if not isinstance(names, dict) or not names:
    raise BadEntry('no class names', path, f'no class names below `names:`, but {found!r:.60}')
  for number, name in names.items():
    if not str(number).isdecimal() or isinstance(name, bool | dict | list | None):
      why = f'class {number!r:.40} is {name!r:.40}: a number and a text are needed; quote the text'
      raise BadEntry('class name that is no text', path, why)
  return {int(k): str(v) for k, v in names.items()}
