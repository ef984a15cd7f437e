"""roLabelImg XML: `<robndbox>` cx, cy, w, h, angle in radians, positive clockwise on the screen.

A plain `<bndbox>` in such a file is a box of angle 0.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.readers import Annotation, Skipped, flag, numbers, oriented, xml_files


def read(
  source: pathlib.Path, split: str, *, labels: str, images: str, skipped: Skipped
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a readable XML file.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels, images: folders below it; the label folder may serve several splits.
    skipped: where what is left out is counted.

  Raises:
    FileNotFoundError: a folder is not there.
    ValueError: a box whose values are no numbers.
  """
  for image, file, objects in xml_files(source, split, labels, images, skipped):
    rows = [row for row in (_row(o, file, skipped) for o in objects) if row]
    obb = np.array([r[1] for r in rows], np.float64).reshape(-1, 5)
    rows = [(r[0], p, r[2]) for r, p in zip(rows, box_lib.to_polygon(obb), strict=True)]
    # the file's own numbers, not the rectangle around the rounded corners
    yield dataclasses.replace(oriented(image, file, rows), boxes=box_lib.le90(obb))


def _row(element, path, skipped):
  """(class, cx cy w h theta, difficult), or None, counted, without a box."""
  name = (element.findtext('name') or '').strip()
  if (box := element.find('robndbox')) is not None:
    return name, numbers(box, ('cx', 'cy', 'w', 'h', 'angle'), path), flag(element, 'difficult')
  if (box := element.find('bndbox')) is not None:
    x1, y1, x2, y2 = numbers(box, ('xmin', 'ymin', 'xmax', 'ymax'), path)
    obb = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.0
    return name, obb, flag(element, 'difficult')
  skipped.add('object without a robndbox or bndbox', path)
  return None
