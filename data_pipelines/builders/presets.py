"""What is known of formats and of public data sets: readers, class lists, where files lie."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from data_pipelines.classes import (
  DOTA_CLASSES,
  DOTA_V10,
  DOTA_V15,
  DOTA_V20,
  DRONEVEHICLE_CLASSES,
  HITUAV_CLASSES,
  SAR_CLASSES,
)
from data_pipelines.errors import UserError
from data_pipelines.readers import coco, dota_txt, dronevehicle_xml, rolabelimg, voc, yolo


class Format(NamedTuple):
  """A row of `FORMATS`.

  Attributes:
    read: the reader, see `data_pipelines.readers`.
    box: 'hbb' or 'obb', the kind of its boxes.
    places: (labels, images) below a source to look for, in order; `{raw}` is the split.
    options: further arguments of the reader; `angle` where it takes the unit of angles.
    coordinates: 'pixels' or 'shares', what its numbers usually are.
    angle_unit: [(source, labels)], angle, skipped -> the unit, of all splits together.
  """

  read: Callable
  box: str
  places: tuple[tuple[str, str], ...]
  options: Mapping = {}
  coordinates: str = 'pixels'
  angle_unit: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Preset:
  """A data set, or a bare format.

  Attributes:
    layouts: (format, labels, images) to look for, in order; `{split}` is the split's name, `{raw}`
      its name in the release.
    classes: in label order; () takes the names found in the data, sorted.
    splits: {split: name in the release}.
    ignore: class names to leave out, counted.
    aliases: {spelling in the files: class}.
  """

  layouts: tuple[tuple[str, str, str], ...]
  classes: tuple[str, ...] = ()
  splits: tuple[tuple[str, str], ...] = (('train', 'train'), ('val', 'val'), ('test', 'test'))
  ignore: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()


def _folders(*names):
  """A folder of label files a split, or one for all."""
  places = [
    place
    for n in names
    for place in (('{raw}/' + n, '{raw}/images'), (n + '/{raw}', 'images/{raw}'))
  ]
  places += [(n, 'images/{raw}') for n in names] + [(n, 'images') for n in names]
  return tuple(places)


def _layouts(form, places):
  return tuple((form, *place) for place in places)


COCO = (
  ('Annotations/{raw}.json', 'JPEGImages/{raw}'),
  ('Annotations/{raw}.json', 'JPEGImages'),
  ('annotations/{raw}.json', 'images/{raw}'),
  ('annotations/{raw}.json', '{raw}'),
  ('annotations/{raw}.json', 'images'),
  ('annotations/instances_{raw}.json', '{raw}'),
  ('annotations/instances_{raw}2017.json', '{raw}2017'),
  ('annotations/{raw}2017.json', 'JPEGImages'),
  ('{raw}/_annotations.coco.json', '{raw}'),
)
VOC = (('Annotations', 'JPEGImages'), *_folders('Annotations', 'annotations'))
DRONEVEHICLE_XML = (('{raw}/{raw}labelr', '{raw}/{raw}imgr'), ('{raw}labelr', '{raw}imgr'))

ROTATED = {'rotated': True}

FORMATS = {
  'coco': Format(coco.read, 'hbb', COCO, {'angle': 'auto'}, angle_unit=coco.angle_unit),
  # degrees or radians, told by the largest angle
  'coco_rotated': Format(
    coco.read, 'obb', COCO, ROTATED | {'angle': 'auto'}, angle_unit=coco.angle_unit
  ),
  'coco_degree': Format(coco.read, 'obb', COCO, ROTATED | {'angle': 'degree'}),
  'coco_radian': Format(coco.read, 'obb', COCO, ROTATED | {'angle': 'radian'}),
  'dota_txt': Format(dota_txt.read, 'obb', _folders('labelTxt', 'annfiles', 'labels')),
  'dronevehicle_xml': Format(
    dronevehicle_xml.read, 'obb', DRONEVEHICLE_XML + _folders('labels', 'Annotations')
  ),
  'yolo': Format(yolo.read, 'hbb', _folders('labels'), {'rotated': False}, 'shares'),
  'yolo_obb': Format(yolo.read, 'obb', _folders('labels'), coordinates='shares'),
  'rolabelimg': Format(
    rolabelimg.read,
    'obb',
    _folders('Annotations', 'annotations', 'labels', 'xml'),
    {'angle': 'radian'},
  ),
  'voc': Format(voc.read, 'hbb', VOC),
  'voc_rotated': Format(voc.read, 'obb', VOC, ROTATED),
}
TRAIN_TEST = (('train', 'train'), ('test', 'test'))


def _dota(version):
  names = ['labelTxt', 'annfiles', f'labelTxt-v{version}/labelTxt', f'labelTxt-v{version}']
  places = ((f'{{raw}}/labelTxt-v{version}/DOTA-v{version}_{{raw}}', '{raw}/images'),)
  return _layouts('dota_txt', places + _folders(*names))


DRONEVEHICLE = Preset(
  layouts=(
    *_layouts('dronevehicle_xml', DRONEVEHICLE_XML),
    ('dota_txt', 'dota_{raw}/annfiles', 'dota_{raw}/png_images'),
    ('dota_txt', 'dota_{raw}/annfiles', 'dota_{raw}/images'),
  ),
  classes=DRONEVEHICLE_CLASSES,
  ignore=('*', ''),
  aliases=(
    ('feright', 'FERIGHT_CAR'),
    ('freight car', 'FERIGHT_CAR'),
    ('freight_car', 'FERIGHT_CAR'),
    ('truvk', 'TRUCK'),
  ),
)

_SOI_DET_SAR = (  # the authors' own extract of SARDet-100K
  ('coco', 'Annotations/after_merge_{raw}.json', 'JPEGImages/{raw}'),
  ('coco', 'Annotations/after_merge_{raw}.json', 'JPEGImages'),
)

PRESETS = {
  'sardet100k': Preset(_SOI_DET_SAR + _layouts('coco', COCO), SAR_CLASSES),
  'dota': Preset(_dota('1.0'), DOTA_V10),
  'dota_v15': Preset(_dota('1.5'), DOTA_V15),
  'dota_v20': Preset(_dota('2.0'), DOTA_V20),
  'dronevehicle': DRONEVEHICLE,
  'hituav': Preset(
    _layouts('coco_rotated', COCO)
    + (('coco_rotated', 'rotate_json/{raw}.json', 'images/{raw}'),)
    + (('rolabelimg', 'rotate_xml', '{raw}'), ('rolabelimg', 'rotate_xml', 'images/{raw}')),
    HITUAV_CLASSES,
    ignore=('DontCare',),
  ),
  # SOI-Det has no validation split: it tests on DOTA's, and on the test splits of the others
  'soi_det_sar': Preset(_SOI_DET_SAR + _layouts('coco', COCO), SAR_CLASSES, TRAIN_TEST),
  'soi_det_rgb': Preset(_dota('1.0'), DOTA_CLASSES, (('train', 'train'), ('test', 'val'))),
  'soi_det_ifr': dataclasses.replace(DRONEVEHICLE, splits=TRAIN_TEST),
  'ssdd': Preset(
    _layouts('coco', COCO)
    + (
      ('coco', 'BBox_SSDD/coco_style/annotations/{raw}.json', 'BBox_SSDD/coco_style/images/{raw}'),
      ('voc', 'voc_xml', 'JPEGImages/{raw}'),
    ),
    ('ship',),
  ),
  'hrsid': Preset(
    _layouts('coco', COCO) + (('coco', 'Annotations/{raw}2017.json', 'JPEGImages'),),
    ('ship',),
  ),
}  # fmt: skip


def known() -> list[str]:
  """Names of data sets and formats."""
  return [*PRESETS, *FORMATS]


def find(name: str) -> Preset:
  """A data set, or a format with the places that its files usually have.

  Raises:
    UserError: neither of that name.
  """
  if name in PRESETS:
    return PRESETS[name]
  if name in FORMATS:
    return Preset(_layouts(name, FORMATS[name].places))
  raise UserError(f'dataset {name!r} is not known; known: soi_det, {", ".join(known())}')
