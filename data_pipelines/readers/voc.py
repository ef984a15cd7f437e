"""Pascal VOC XML: `<bndbox>`, or with `rotated` the `<rotated_bndbox>` that SSDD adds.

Coordinates are taken as they are: SSDD and most sets made since count pixels from 0.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.readers import CORNERS, Annotation, Skipped, flag, numbers, oriented, xml_files


def read(
  source: pathlib.Path,
  split: str,
  *,
  labels: str,
  images: str,
  skipped: Skipped,
  rotated: bool = False,
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a readable XML file.

  Args:
    source: folder of the data set.
    split: its name; `ImageSets/Main/<split>.txt` below `source`, where there is one, lists the
      images of the split.
    labels, images: folders below it; the label folder may serve several splits.
    skipped: where what is left out is counted.
    rotated: read `<rotated_bndbox>` (degrees, positive clockwise on the screen) in place of
      `<bndbox>`.

  Raises:
    FileNotFoundError: a folder is not there.
    ValueError: a box whose values are no numbers.
  """
  listed = pathlib.Path(source) / 'ImageSets' / 'Main' / f'{split}.txt'
  stems = set(listed.read_text().split()) if listed.is_file() else None
  wanted = lambda stem: stems is None or stem in stems
  for image, file, objects in xml_files(source, split, labels, images, skipped, wanted):
    yield (_rotated if rotated else _horizontal)(image, file, objects, skipped)


def _with(key, objects, path, skipped):
  """[(class, element `key`, difficult)]; objects without one are counted."""
  rows = [((o.findtext('name') or '').strip(), o.find(key), flag(o, 'difficult')) for o in objects]
  skipped.add(f'object without a {key}', path, sum(row[1] is None for row in rows))
  return [row for row in rows if row[1] is not None]


def _horizontal(image, path, objects, skipped):
  rows = _with('bndbox', objects, path, skipped)
  hbb = [numbers(box, ('xmin', 'ymin', 'xmax', 'ymax'), path) for _, box, _ in rows]
  hbb = np.array(hbb, np.float32).reshape(-1, 4)
  return Annotation(
    id=image.stem,
    image=image,
    names=tuple(name for name, _, _ in rows),
    boxes=hbb,
    polygons=box_lib.to_polygon(hbb).astype(np.float32),
    difficult=np.array([difficult for _, _, difficult in rows], np.int8),
    labels=path,
  )


def _rotated(image, path, objects, skipped):
  rows = _with('rotated_bndbox', objects, path, skipped)
  keys = [f'rotated_bbox_{k}' for k in ('cx', 'cy', 'w', 'h', 'theta')]
  obb = np.array([numbers(box, keys, path) for _, box, _ in rows], np.float64).reshape(-1, 5)
  obb[:, 4] = np.radians(obb[:, 4])
  rows = [(name, numbers(box, CORNERS, path), difficult) for name, box, difficult in rows]
  # the corners are rounded to pixels, the angle is not
  return dataclasses.replace(oriented(image, path, rows), boxes=box_lib.le90(obb))
