"""DroneVehicle XML: an `<object>` holds a `<name>` and a `<polygon>` x1..y4 or a `<bndbox>`.

The raw release has a white border of 100 px on every side of its 840x712 images, and labels in
the coordinates of the bordered image: such an image is read as its inner 640x512 px.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import images as image_lib
from data_pipelines.readers import CORNERS, Annotation, Skipped, flag, numbers, oriented, xml_files

BORDERED, BORDER = (712, 840), 100


def read(
  source: pathlib.Path, split: str, *, labels: str, images: str, skipped: Skipped
) -> Iterator[Annotation]:
  """Yields an annotation an image that has a readable XML file.

  Counted and left out: XML without image, image without XML, what is not XML, an object with
  neither polygon nor bndbox, an image whose header does not read.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels, images: folders below it.
    skipped: where what is left out is counted.

  Raises:
    FileNotFoundError: a folder is not there.
    ValueError: a box whose coordinates are no numbers.
  """
  for image, file, objects in xml_files(source, split, labels, images, skipped):
    try:
      bordered = image_lib.size(image) == BORDERED
    except image_lib.ImageError:
      skipped.add('image does not decode', image)
      continue
    rows = [row for row in (_row(o, file, skipped) for o in objects) if row]
    if not bordered:
      yield oriented(image, file, rows)
      continue
    height, width = BORDERED
    rows = [(name, np.subtract(polygon, BORDER), difficult) for name, polygon, difficult in rows]
    yield oriented(image, file, rows, crop=(BORDER, BORDER, width - BORDER, height - BORDER))


def _row(element, path, skipped):
  """(class, coordinates, difficult), or None, counted, without a box."""
  name = (element.findtext('name') or '').strip()
  if (polygon := element.find('polygon')) is not None:
    return name, numbers(polygon, CORNERS, path), flag(element, 'difficult')
  if (box := element.find('bndbox')) is not None:
    x1, y1, x2, y2 = numbers(box, ('xmin', 'ymin', 'xmax', 'ymax'), path)
    return name, [x1, y1, x2, y1, x2, y2, x1, y2], flag(element, 'difficult')
  skipped.add('object without a polygon or bndbox', path)
  return None
