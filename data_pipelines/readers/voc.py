"""Pascal VOC XML: `<bndbox>`, or with `rotated` the `<rotated_bndbox>` that SSDD adds.

Coordinates are taken as they are: SSDD and most sets made since count pixels from 0.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.readers import texts, xml
from data_pipelines.readers.annotation import Annotation, horizontal, ordered, oriented
from data_pipelines.readers.skipped import BadEntry, Skipped

ROUNDED = 3  # px that corners may differ from what the angle says
EDGES = ('xmin', 'ymin', 'xmax', 'ymax')
ROTATED = tuple(f'rotated_bbox_{k}' for k in ('cx', 'cy', 'w', 'h', 'theta'))


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
    split: its name; a list of names for it is honoured (`texts.listed`).
    labels, images: folders below it; the label folder may serve several splits.
    skipped: where what is left out is counted.
    rotated: read `<rotated_bndbox>` (degrees, positive clockwise on the screen) in place of
      `<bndbox>`.

  Raises:
    FileNotFoundError: a folder is not there.
    BadEntry: a list of names in another encoding.
  """
  wanted = texts.listed(source, split, skipped)
  for fields, objects in xml.label_files(source, split, labels, images, skipped, wanted):
    if rotated:
      yield _rotated(fields, objects, skipped)
    else:
      box = lambda element, place: edges(element, place, skipped)
      yield horizontal(rows=xml.rows(objects, fields['labels'], skipped, box), **fields)


def edges(element, place, skipped) -> tuple[float, ...]:
  """x1, y1, x2, y2 of an object's `<bndbox>`.

  Raises:
    BadEntry: it has none.
  """
  box = element.find('bndbox')
  if box is None:
    raise BadEntry('object without a bndbox', place)
  return ordered(xml.numbers(box, EDGES, place), skipped, place)


def _rotated(fields, objects, skipped):
  def both(element, place):
    box = element.find('rotated_bndbox')
    if box is None:
      raise BadEntry('object without a rotated_bndbox', place)
    return xml.numbers(box, ROTATED, place), xml.numbers(box, xml.CORNERS, place)

  rows = xml.rows(objects, fields['labels'], skipped, both)
  obb = np.array([box for _, (box, _), _ in rows], np.float64).reshape(-1, 5)
  obb[:, 4] = np.radians(obb[:, 4])
  rows = [(name, corners, difficult) for name, (_, corners), difficult in rows]
  found = oriented(rows=rows, **fields)
  # the corners are rounded to pixels, the angle is not; but where they contradict it, it is of
  # another unit, or of another object
  far = np.abs(box_lib.obb_to_hbb(obb) - box_lib.polygon_to_hbb(found.polygons)).max(1, initial=0)
  wrong = far > ROUNDED + 0.1 * obb[:, 2:4].max(1, initial=0)
  skipped.add('angle that contradicts the corners (mended)', fields['labels'], wrong.sum())
  boxes = np.where(wrong[:, None], found.boxes, box_lib.le90(obb))
  return dataclasses.replace(found, boxes=boxes)
