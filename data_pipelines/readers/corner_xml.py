"""XML whose objects give four corners: DIOR-R, FAIR1M, and HRSC2016's turned rectangles."""

import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.readers import texts, xml
from data_pipelines.readers.annotation import Annotation, oriented, quadrilateral
from data_pipelines.readers.skipped import BadEntry, Skipped

DIOR = tuple(
  f'{axis}_{corner}'
  for corner in ('left_top', 'right_top', 'right_bottom', 'left_bottom')
  for axis in 'xy'
)
HRSC = ('mbox_cx', 'mbox_cy', 'mbox_w', 'mbox_h', 'mbox_ang')  # radians


def read(
  source: pathlib.Path, split: str, *, labels: str, images: str, skipped: Skipped, kind: str
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a readable XML file.

  Args:
    source: folder of the data set; a list of names for the split is honoured (`texts.listed`).
    split: its name.
    labels, images: folders below it; the label folder may serve several splits.
    skipped: where what is left out is counted.
    kind: 'dior', 'fair1m' or 'hrsc'.

  Raises:
    FileNotFoundError: a folder is not there.
  """
  tag, name, box = KINDS[kind]
  wanted = texts.listed(source, split, skipped)
  for fields, objects in xml.label_files(source, split, labels, images, skipped, wanted, tag):
    corners = lambda element, place: box(element, place, skipped)
    yield oriented(rows=xml.rows(objects, fields['labels'], skipped, corners, name), **fields)


def _dior(element, place, skipped):
  if (box := element.find('robndbox')) is None:
    raise BadEntry('object without a robndbox', place)
  return xml.numbers(box, DIOR, place)


def _fair1m(element, place, skipped):
  texts = [p.text or '' for p in element.iter('point')]
  try:
    points = [float(c) for text in texts for c in text.split(',')]
    return quadrilateral(points, skipped, place)
  except (ValueError, IndexError):
    raise BadEntry('object without its points', place, f'points are {texts}') from None


def _hrsc(element, place, skipped):
  return box_lib.to_polygon(np.array([xml.numbers(element, HRSC, place)]))[0]


# tag of the objects, where they have their class (None: all are ships), their corners
KINDS = {
  'dior': ('object', 'name', _dior),
  'fair1m': ('object', 'possibleresult/name', _fair1m),
  'hrsc': ('HRSC_Object', None, _hrsc),
}
