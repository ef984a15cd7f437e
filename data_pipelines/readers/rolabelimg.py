"""roLabelImg XML: `<robndbox>` cx, cy, w, h, angle in radians, positive clockwise on the screen.

A plain `<bndbox>` in such a file is a box of angle 0.
"""

import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from data_pipelines.readers import coco, coco_evidence, files, texts, voc, xml
from data_pipelines.readers.annotation import Annotation, rectangles
from data_pipelines.readers.skipped import BadEntry, Skipped, Unheard

ANGLE = re.compile(rb'<angle>([^<]*)</angle>')
KEYS = ('cx', 'cy', 'w', 'h', 'angle')


def read(
  source: pathlib.Path,
  split: str,
  *,
  labels: str,
  images: str,
  skipped: Skipped,
  angle: str = 'auto',
  turn: str = 'clockwise',
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a readable XML file.

  Args:
    source: folder of the data set.
    split: its name; a list of names for it is honoured (`texts.listed`).
    labels, images: folders below it; the label folder may serve several splits.
    skipped: where what is left out is counted.
    angle: 'radian', as the tool writes it, 'degree', or 'auto': see `decide`.
    turn: 'clockwise', as the tool writes it, or 'counterclockwise'.

  Raises:
    FileNotFoundError: a folder is not there.
  """
  if angle == 'auto':
    angle = decide([(source, labels)], {'angle': angle}, skipped)['angle']
  unit = coco.UNITS[angle] * coco.TURNS[turn]

  def box(element, place):
    if (found := element.find('robndbox')) is None:
      if element.find('bndbox') is None:
        raise BadEntry('object without a robndbox or bndbox', place)
      x1, y1, x2, y2 = voc.edges(element, place, skipped)
      return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.0
    cx, cy, w, h, theta = xml.numbers(found, KEYS, place)
    if w < 0 or h < 0:
      skipped.add('negative width or height (mended)', place)
    return cx, cy, abs(w), abs(h), theta * unit

  wanted = texts.listed(source, split, skipped)
  for fields, objects in xml.label_files(source, split, labels, images, skipped, wanted):
    yield rectangles(rows=xml.rows(objects, fields['labels'], skipped, box), **fields)


def decide(places: Sequence[tuple[pathlib.Path, str]], options: Mapping, skipped: Skipped) -> dict:
  """The options with a unit of angles for 'auto': degrees if any of all files is beyond 2 pi."""
  if options.get('angle', 'auto') != 'auto':
    return dict(options)
  folders = dict.fromkeys(files.find(source, labels, 'labels') for source, labels in places)
  angles = [found for folder in folders if (found := _largest(folder, places[0][0]))]
  return dict(options) | {'angle': coco_evidence.unit_of(angles, skipped, usual=math.pi)}


def _largest(folder, source):
  """(largest angle, its file) of the label files in a folder; None without any."""
  found = {}
  for _, path in files.walk(folder, Unheard(), source):
    if path.suffix.lower() == '.xml':
      try:
        texts_of = ANGLE.findall(texts.content(path))
      except BadEntry:  # counted when the file is read for its boxes
        continue
      found[path] = max(map(_finite, texts_of), default=0.0)
  return max(((v, p) for p, v in found.items()), key=lambda pair: pair[0], default=None)


def _finite(text):
  try:
    value = abs(float(text))
  except ValueError:
    return 0.0
  return value if math.isfinite(value) else 0.0
