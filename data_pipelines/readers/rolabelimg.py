"""roLabelImg XML: `<robndbox>` cx, cy, w, h, angle in radians, positive clockwise on the screen.

A plain `<bndbox>` in such a file is a box of angle 0.
"""

import math
import pathlib
from collections.abc import Iterator

from data_pipelines.readers import coco, texts, voc, xml
from data_pipelines.readers.annotation import Annotation, rectangles
from data_pipelines.readers.skipped import BadEntry, Skipped

KEYS = ('cx', 'cy', 'w', 'h', 'angle')


def read(
  source: pathlib.Path,
  split: str,
  *,
  labels: str,
  images: str,
  skipped: Skipped,
  angle: str = 'radian',
  turn: str = 'clockwise',
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a readable XML file.

  Args:
    source: folder of the data set.
    split: its name; a list of names for it is honoured (`texts.listed`).
    labels, images: folders below it; the label folder may serve several splits.
    skipped: where what is left out is counted, angles beyond a turn among them.
    angle: 'radian', as the tool writes it, or 'degree'.
    turn: 'clockwise', as the tool writes it, or 'counterclockwise'.

  Raises:
    FileNotFoundError: a folder is not there.
  """
  unit = coco.UNITS[angle] * coco.TURNS[turn]

  def box(element, place):
    if (found := element.find('robndbox')) is None:
      if element.find('bndbox') is None:
        raise BadEntry('object without a robndbox or bndbox', place)
      x1, y1, x2, y2 = voc.edges(element, place, skipped)
      return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.0
    *sides, theta = xml.numbers(found, KEYS, place)
    if abs(theta * unit) > 2 * math.pi + 1e-3:
      raise BadEntry('angle beyond a turn: in degrees? (--angle=degree)', place)
    return *sides, theta * unit

  wanted = texts.listed(source, split, skipped)
  for fields, objects in xml.label_files(source, split, labels, images, skipped, wanted):
    yield rectangles(rows=xml.rows(objects, fields['labels'], skipped, box), **fields)
