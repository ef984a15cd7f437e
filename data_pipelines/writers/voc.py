"""Pascal VOC: `Annotations`, `JPEGImages`, `ImageSets/Main/<split>.txt`.

`rotated` adds SSDD's `<rotated_bndbox>`: corners, and cx, cy, w, h, theta in degrees, positive
clockwise on the screen. Coordinates count from 0, and are not rounded.
"""

import math

from data_pipelines import boxes as box_lib
from data_pipelines.angles import spelled
from data_pipelines.errors import UserError
from data_pipelines.readers.voc import EDGES, ROTATED
from data_pipelines.readers.xml import CORNERS
from data_pipelines.writers import each, number, xml


def write(folder, split, images, classes, rotated=False, convention='le90'):
  """Writes `Annotations/<id>.xml`; `convention` is one of `data_pipelines.angles`.

  Raises:
    UserError: a name that cannot stand in a list of names.
  """

  def text(image):
    if [line.strip() for line in image.id.splitlines()] != [image.id]:
      raise UserError(
        f'image {image.id!r}: VOC lists images by name, a line each, without white space around '
        'it; rename the image, or take another --to'
      )
    hbb = box_lib.polygon_to_hbb(box_lib.to_polygon(image.boxes))
    places = [{'bndbox': dict(zip(EDGES, map(number, b), strict=True))} for b in hbb]
    if rotated:
      rows = spelled(image.boxes, convention)
      for place, row, corners in zip(places, rows, box_lib.to_polygon(rows), strict=True):
        values = [*map(number, row[:4]), repr(math.degrees(row[4]))]
        values = dict(zip(ROTATED, values, strict=True))
        corners = dict(zip(CORNERS, map(number, corners), strict=True))
        place['rotated_bndbox'] = values | corners
    return xml(image, places)

  done = each(folder / 'Annotations', '.xml', images, text)
  lists = folder / 'ImageSets' / 'Main'
  lists.mkdir(parents=True, exist_ok=True)
  text = ''.join(f'{id}\n' for id in done)
  (lists / f'{split}.txt').write_text(text, encoding='utf-8')
