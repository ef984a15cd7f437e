"""The formats that can be written, and what each of them can say."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from data_pipelines.errors import UserError
from data_pipelines.writers import (
  coco,
  dota_txt,
  dronevehicle_xml,
  labelme,
  rolabelimg,
  voc,
  yolo,
)


class Target(NamedTuple):
  """A row of `TARGETS`.

  Attributes:
    write: the writer, see `data_pipelines.writers`.
    boxes: the kinds of boxes it holds, by columns: 4 horizontal, 5 oriented.
    images: folder of the images; `{split}` is the split's name.
    quadrilateral: it keeps four corners that are no rectangle.
    difficult: what becomes of that flag: 'kept', 'as 0 or 1', 'lost', or 'private', in a key that
      other tools do not know.
    regions: it has a word for regions in which nothing counts.
    words: a class name may have white space.
    inside: other tools refuse a file with boxes beyond the image.
    angle: it has an angle, and so a convention for it.
    options: further arguments of the writer.
  """

  write: Callable
  boxes: tuple[int, ...]
  images: str = '{split}/images'
  quadrilateral: bool = False
  difficult: str = 'kept'
  regions: bool = False
  words: bool = True
  inside: bool = False
  angle: bool = False
  options: Mapping = {}


_COCO = Target(coco.write, (4,), 'images/{split}', difficult='private', regions=True)
_ROTATED = _COCO._replace(boxes=(5,), angle=True, options={'rotated': True})

TARGETS = {
  'coco': _COCO,
  'coco_rotated': _ROTATED,
  'coco_radian': _ROTATED,
  'coco_degree': _ROTATED._replace(options={'rotated': True, 'degrees': True}),
  'dota_txt': Target(dota_txt.write, (5,), quadrilateral=True, words=False),
  'dronevehicle_xml': Target(
    dronevehicle_xml.write, (5,), '{split}/{split}imgr', quadrilateral=True
  ),
  'labelme': Target(labelme.write, (4, 5), '{split}', quadrilateral=True, difficult='as 0 or 1'),
  'rolabelimg': Target(rolabelimg.write, (5,), angle=True),
  'voc': Target(voc.write, (4,), 'JPEGImages'),
  'voc_rotated': Target(voc.write, (5,), 'JPEGImages', angle=True, options={'rotated': True}),
  'yolo': Target(yolo.write, (4,), 'images/{split}', difficult='lost', inside=True),
  'yolo_obb': Target(
    yolo.write,
    (5,),
    'images/{split}',
    quadrilateral=True,
    difficult='lost',
    inside=True,
    options={'oriented': True},
  ),
}


def find(name: str) -> Target:
  """The row of a format.

  Raises:
    UserError: none of that name.
  """
  if name not in TARGETS:
    raise UserError(f'--to={name}: expected one of {", ".join(TARGETS)}')
  return TARGETS[name]
