"""DOTA text: a file an image, a line an object, `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`.

`imagesource:` and `gsd:` lines are skipped; without its last token a line is not difficult.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import images as image_lib
from data_pipelines import tiling
from data_pipelines.errors import UserError
from data_pipelines.readers import Annotation, Skipped, find, oriented, pairs


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
    UserError: a line that is none of the above; names file and line.
  """
  folder, images = find(source, labels, f'{split} labels'), find(source, images, f'{split} images')
  for image, file in pairs(folder, images, '.txt', skipped, _full_image):
    if not file:
      skipped.add('image without a label file', image)
    elif file.stem == image.stem:
      yield oriented(image, file, _rows(file))
    else:
      yield oriented(image, file, _cut(_rows(file), image, keep))


def _full_image(stem):
  patch = tiling.parse_patch(stem)
  return patch[0] if patch else stem


def _rows(path):
  """[(class, coordinates, difficult)] of a file."""
  rows = []
  for number, line in enumerate(path.read_text(encoding='utf-8-sig').splitlines(), 1):
    tokens = line.split()
    if not tokens or tokens[0].lower().startswith(('imagesource', 'gsd')):
      continue
    try:
      polygon, rest = [float(t) for t in tokens[:8]], tokens[8:]
      difficult = int(rest.pop()) if len(rest) > 1 else 0
      if not rest:
        raise ValueError
    except ValueError:
      raise UserError(
        f'{path}:{number}: expected eight coordinates, a class and 0, 1 or 2, not {line.strip()!r}'
      ) from None
    rows.append((' '.join(rest), polygon, difficult))
  return rows


def _cut(rows, image, keep):
  """Objects of a full image that lie in one of its patches, in the patch's pixels."""
  if not rows:
    return []
  _, rate, x, y = tiling.parse_patch(image.stem)
  height, width = image_lib.size(image)
  polygons = np.array([p for _, p, _ in rows]) * rate - np.tile([x, y], 4)
  kept = tiling.kept_fraction(polygons, np.array([[0, 0, width, height]]))[0] >= keep
  return [(r[0], p, r[2]) for r, p, k in zip(rows, polygons, kept, strict=True) if k]
