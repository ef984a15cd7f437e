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
  rows = []
  for number, line in enumerate(texts.read(path, skipped).splitlines(), 1):
    if line.strip():
      try:
        rows.append(_row(line.split(), classes, rotated, f'{path}:{number}', skipped))
      except BadEntry as error:
        skipped.take(error)
  return rows


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
  if len(box) < 6 or len(box) % 2:
    raise wrong
  if rotated:
    return name, quadrilateral(box, skipped, place), 0
  return name, (min(box[::2]), min(box[1::2]), max(box[::2]), max(box[1::2])), 0


def _yaml(source, skipped):
  found = sorted(
    p
    for p in pathlib.Path(source).iterdir()
    if p.suffix.lower() in ('.yaml', '.yml') and not files.hidden(p.name)
  )
  found = [p for p in found if 'names' in _content(p, skipped)]
  if len(found) != 1:
    names = ', '.join(p.name for p in found) or 'none'
    raise FileNotFoundError(
      f'{source}: one yaml file with the class names (`names:`) is needed, found {names}'
    )
  return found[0]


def _content(path, skipped):
  try:
    content = yaml.safe_load(texts.read(path, skipped))
  except yaml.YAMLError as error:
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
  good = isinstance(names, dict) and names
  if not good or not all(isinstance(k, int) for k in names):
    raise BadEntry('no class names', path, f'no class names below `names:`, but {found!r:.60}')
  return {k: str(v) for k, v in names.items()}
