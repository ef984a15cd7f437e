"""YOLO-OBB text: a file an image, a line an object, `class x1 y1 x2 y2 x3 y3 x4 y4`.

The coordinates are shares of the image's width and height and may leave 0..1. The names of the
class numbers come from the data set's yaml file.
"""

import pathlib
import re
from collections.abc import Iterator

import numpy as np

from data_pipelines import images as image_lib
from data_pipelines.errors import UserError
from data_pipelines.readers import Annotation, Skipped, find, oriented, pairs


def read(
  source: pathlib.Path,
  split: str,
  *,
  labels: str,
  images: str,
  skipped: Skipped,
) -> Iterator[Annotation]:
  """Yields an annotation an image; one without a label file has no objects, as YOLO means it.

  Args:
    source: folder of the data set, with one yaml that has a `names:` entry.
    split: only names the split in messages.
    labels, images: folders below it.
    skipped: where what is left out is counted.

  Raises:
    FileNotFoundError: a folder or the yaml is not there.
    UserError: a line that is not the above; names file and line.
  """
  classes = class_names(_yaml(source))
  folder = find(source, labels, f'{split} labels')
  for image, file in pairs(folder, find(source, images, f'{split} images'), '.txt', skipped):
    try:
      height, width = image_lib.size(image)
    except image_lib.ImageError:
      skipped.add('image does not decode', image)
      continue
    yield oriented(image, file, _rows(file, classes, np.tile([width, height], 4)) if file else [])


def _rows(path, classes, scale):
  rows = []
  for number, line in enumerate(path.read_text(encoding='utf-8-sig').splitlines(), 1):
    tokens = line.split()
    if not tokens:
      continue
    try:
      name, polygon = classes[int(tokens[0])], [float(t) for t in tokens[1:]]
      if len(polygon) != 8:
        raise ValueError
    except (ValueError, KeyError):
      raise UserError(
        f'{path}:{number}: expected a class number of {sorted(classes)} and eight coordinates, '
        f'not {line.strip()!r}'
      ) from None
    rows.append((name, polygon * scale, 0))
  return rows


def _yaml(source):
  files = sorted(p for s in ('*.yaml', '*.yml') for p in pathlib.Path(source).glob(s))
  files = [p for p in files if re.search(r'^names\s*:', p.read_text(encoding='utf-8'), re.M)]
  if len(files) != 1:
    found = ', '.join(p.name for p in files) or 'none'
    raise FileNotFoundError(
      f'{source}: one yaml file with the class names (`names:`) is needed, found {found}'
    )
  return files[0]


def class_names(path: pathlib.Path) -> dict[int, str]:
  """{class number: name} from `names:` of a data set's yaml, in any of the usual spellings.

  `0: a` or `- a` a line below it, `[a, b]`, `{0: a, 1: b}`.

  Raises:
    UserError: no names are found.
  """
  lines = [
    re.sub(r'(^|\s)#.*', '', l).rstrip() for l in path.read_text(encoding='utf-8').splitlines()
  ]
  start = next((i for i, l in enumerate(lines) if re.match(r'names\s*:', l)), len(lines))
  text = lines[start].split(':', 1)[1].strip() if start < len(lines) else ''
  if text:  # on one line, or in brackets over several
    while text[0] in '[{' and text[-1] not in ']}' and start + 1 < len(lines):
      start += 1
      text += ' ' + lines[start].strip()
    items = [t.strip() for t in text.strip('[]{}').split(',')]
  else:
    items = []
    for line in lines[start + 1 :]:
      if line and not re.match(r'\s|-', line):
        break
      items.append(line.strip())
  found = {}
  for item in filter(None, items):
    key, colon, value = item.partition(':')
    number = int(key) if colon and key.strip().isdigit() else len(found)
    found[number] = (value if colon else item).strip().removeprefix('- ').strip('\'" ')
  if not found:
    raise UserError(f'{path}: no class names below `names:`')
  return found
