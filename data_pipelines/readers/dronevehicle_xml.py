"""DroneVehicle XML: an `<object>` holds a `<name>` and a `<polygon>` x1..y4 or a `<bndbox>`.

The raw release has a white border of 100 px on every side of its 840x712 images, and labels in
the coordinates of the bordered image: such an image is read as its inner 640x512 px.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines import images as image_lib
from data_pipelines.readers import voc, xml
from data_pipelines.readers.annotation import Annotation, oriented
from data_pipelines.readers.skipped import BadEntry, Skipped

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
  """

  def corners(element, place):
    if (polygon := element.find('polygon')) is not None:
      return xml.numbers(polygon, xml.CORNERS, place)
    if element.find('bndbox') is None:
      raise BadEntry('object without a polygon or bndbox', place)
    x1, y1, x2, y2 = voc.edges(element, place, skipped)
    return [x1, y1, x2, y1, x2, y2, x1, y2]

  for fields, objects in xml.label_files(source, split, labels, images, skipped):
    try:
      bordered = image_lib.size(fields['image']) == BORDERED
    except image_lib.ImageError:
      skipped.bad('image does not decode', fields['image'])
      continue
    except OSError as error:
      skipped.bad('image unreadable', f'{fields["image"]} ({error.strerror})')
      continue
    rows = xml.rows(objects, fields['labels'], skipped, corners)
    if not bordered:
      yield oriented(rows=rows, **fields)
      continue
    height, width = BORDERED
    rows = [(name, np.subtract(polygon, BORDER), difficult) for name, polygon, difficult in rows]
    crop = (BORDER, BORDER, width - BORDER, height - BORDER)
    yield oriented(rows=rows, crop=crop, **fields)
