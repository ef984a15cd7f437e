"""DOTA text: a file an image, a line an object, `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`.

`imagesource:` and `gsd:` lines are skipped; without its last token a line is not difficult.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import images as image_lib
from data_pipelines import tiling
from data_pipelines.readers import files, texts
from data_pipelines.readers.annotation import Annotation, difficulty, oriented, quadrilateral
from data_pipelines.readers.skipped import BadEntry, Skipped

LINE = 'line that is not eight coordinates, a class and 0, 1 or 2'


def read(
  source: pathlib.Path,
  split: str,
  *,
  labels: str,
  images: str,
  skipped: Skipped,
  keep: float = 0.7,
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a label file, be it empty.

  A patch `<image>__<rate>__<x>___<y>` without a label file of its own takes from `<image>.txt` the
  objects of which at least `keep` of the area lies in it.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels, images: folders below it.
    skipped: where what is left out is counted.
    keep: see above.

  Raises:
    FileNotFoundError: a folder is not there.
  """

  def read_one(file, image):
    rows = _rows(file, skipped)
    if files.key(f'{file.stem}.png') == files.key(image.name):
      return rows
    return _cut(rows, image, keep)  # of the full image

  found = files.labelled(
    source, split, labels, images, '.txt', read_one, skipped, instead=_full_image
  )
  for id, image, file, rows in found:
    yield oriented(id, image, rows, labels=file)


def _full_image(name):
  patch = tiling.parse_patch(name)
  return patch[0] if patch else name


def _rows(path, skipped):
  """[(class, coordinates, difficult)] of a file."""
  lines = enumerate(texts.read(path, skipped).splitlines(), 1)
  entries = (
    (line, f'{path}:{number}', skipped)
    for number, line in lines
    if line.strip() and not line.strip().lower().startswith(('imagesource', 'gsd'))
  )
  return skipped.usable(_row, entries)


def _row(line, place, skipped):
  tokens = line.split()
  wrong = BadEntry(LINE, place, f'expected eight coordinates, a class and 0, 1 or 2: {line!r}')
  count = next((k for k, token in enumerate(tokens) if not _number(token)), len(tokens))
  if count == len(tokens):  # a class that is a number
    count = 8
  if count < 8 or count % 2 or count >= len(tokens):
    raise wrong
  rest = tokens[count:]
  try:
    difficult = difficulty(rest.pop()) if len(rest) > 1 else 0
  except ValueError:
    raise wrong from None
  if all(map(_number, rest)) and '.' in rest[0]:
    raise BadEntry('score where the class should be, as detections have', place)
  polygon = quadrilateral([float(t) for t in tokens[:count]], skipped, place)
  return ' '.join(rest), polygon, difficult


def _number(token):
  try:
    float(token)
  except ValueError:
    return False
  return True


def _cut(rows, image, keep):
  """Objects of a full image that lie in one of its patches, in the patch's pixels."""
  if not rows:
    return []
  _, rate, x, y = tiling.parse_patch(files.bare(image.name))
  try:
    height, width = image_lib.size(image)
  except (image_lib.ImageError, OSError):
    raise BadEntry('image does not decode', image) from None
  polygons = np.array([p for _, p, _ in rows]) * rate - np.tile([x, y], 4)
  kept = tiling.kept_fraction(polygons, np.array([[0, 0, width, height]]))[0] >= keep
  return [(r[0], p, r[2]) for r, p, k in zip(rows, polygons, kept, strict=True) if k]
