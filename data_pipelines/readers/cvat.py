"""CVAT's XML "for images": one file, an `<image>` with `<box>`, perhaps turned, or `<polygon>`."""

import pathlib
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.readers import files, xml
from data_pipelines.readers.annotation import Annotation, declared_size, oriented, quadrilateral
from data_pipelines.readers.skipped import BadEntry, Skipped


def read(
  source: pathlib.Path, split: str, *, labels: str, images: str, skipped: Skipped
) -> Iterator[Annotation]:
  """Yields an annotation an image of the file.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels: the XML file.
    images: folder of the image files.
    skipped: where what is left out is counted.

  Raises:
    FileNotFoundError: the file or the folder is not there.
    BadEntry: it is not XML.
  """
  path = files.find(source, labels, f'{split} labels')
  files.note_link(path, source, skipped)
  entries = (
    (element.get('name') or '', place := f'{path}: image {number}', (element, place))
    for number, element in enumerate(xml.parse(path, skipped).iter('image'))
  )
  for id, image, (element, place) in files.named_by(source, split, images, entries, skipped):
    shapes = ((s, f'{place}, {s.tag} {k}', skipped) for k, s in enumerate(element))
    declared = declared_size(element.get('height'), element.get('width'))
    yield oriented(id, image, skipped.usable(_row, shapes), labels=path, declared=declared)


def _row(shape: Element, place, skipped):
  difficult = int(any(a.get('name') == 'difficult' and a.text == 'true' for a in shape))
  try:
    if shape.tag == 'box':
      x1, y1, x2, y2 = (float(shape.get(k)) for k in ('xtl', 'ytl', 'xbr', 'ybr'))
      turn = np.radians(float(shape.get('rotation') or 0))
      box = (x1 + x2) / 2, (y1 + y2) / 2, abs(x2 - x1), abs(y2 - y1), turn
      return shape.get('label', ''), box_lib.to_polygon(np.array([box]))[0], difficult
    if shape.tag == 'polygon':
      points = [float(c) for p in shape.get('points').split(';') for c in p.split(',')]
      return shape.get('label', ''), quadrilateral(points, skipped, place), difficult
  except (TypeError, ValueError, AttributeError):
    raise BadEntry(f'{shape.tag} without its numbers', place) from None
  raise BadEntry(f'shape that is no area ({shape.tag})', place)
