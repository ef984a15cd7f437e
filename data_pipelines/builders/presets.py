"""What is known of each public data set: format, class list, where its files lie."""

import dataclasses

from data_pipelines.classes import (
  DOTA_CLASSES,
  DOTA_V10,
  DOTA_V15,
  DOTA_V20,
  DRONEVEHICLE_CLASSES,
  HITUAV_CLASSES,
  SAR_CLASSES,
)
from data_pipelines.readers import coco, dota_txt, dronevehicle_xml, rolabelimg, voc, yolo_obb

# name of a format: (reader, kind of its boxes, fixed options of the reader)
FORMATS = {
  'coco': (coco.read, 'hbb', {}),
  'coco_rotated': (coco.read, 'obb', {}),  # degrees or radians, told by the largest angle
  'coco_degree': (coco.read, 'obb', {'angle': 'degree'}),
  'coco_radian': (coco.read, 'obb', {'angle': 'radian'}),
  'dota_txt': (dota_txt.read, 'obb', {}),
  'dronevehicle_xml': (dronevehicle_xml.read, 'obb', {}),
  'yolo_obb': (yolo_obb.read, 'obb', {}),
  'rolabelimg': (rolabelimg.read, 'obb', {}),
  'voc': (voc.read, 'hbb', {}),
  'voc_rotated': (voc.read, 'obb', {'rotated': True}),
}

TRAIN_TEST = (('train', 'train'), ('test', 'test'))


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


def _coco(format):
  places = [
    ('Annotations/{raw}.json', 'JPEGImages/{raw}'),
    ('Annotations/{raw}.json', 'JPEGImages'),
    ('annotations/{raw}.json', 'images/{raw}'),
    ('annotations/{raw}.json', '{raw}'),
    ('annotations/{raw}.json', 'images'),
    ('annotations/instances_{raw}.json', '{raw}'),
    ('annotations/instances_{raw}2017.json', '{raw}2017'),
    ('annotations/{raw}2017.json', 'JPEGImages'),
    ('{raw}/_annotations.coco.json', '{raw}'),
  ]
  return tuple((format, *place) for place in places)


def _by_folder(format, names):
  """A folder of label files a split, or one for all."""
  places = [
    place
    for n in names
    for place in (('{raw}/' + n, '{raw}/images'), (n + '/{raw}', 'images/{raw}'))
  ]
  places += [(n, 'images/{raw}') for n in names] + [(n, 'images') for n in names]
  return tuple((format, *place) for place in places)


def _dota(version):
  names = ['labelTxt', 'annfiles', f'labelTxt-v{version}/labelTxt', f'labelTxt-v{version}']
  places = [('dota_txt', f'{{raw}}/labelTxt-v{version}/DOTA-v{version}_{{raw}}', '{raw}/images')]
  return tuple(places) + _by_folder('dota_txt', names)


DRONEVEHICLE = Preset(
  layouts=(
    ('dronevehicle_xml', '{raw}/{raw}labelr', '{raw}/{raw}imgr'),
    ('dronevehicle_xml', '{raw}labelr', '{raw}imgr'),
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
  'sardet100k': Preset(_SOI_DET_SAR + _coco('coco'), SAR_CLASSES),
  'dota': Preset(_dota('1.0'), DOTA_V10),
  'dota_v15': Preset(_dota('1.5'), DOTA_V15),
  'dota_v20': Preset(_dota('2.0'), DOTA_V20),
  'dronevehicle': DRONEVEHICLE,
  'hituav': Preset(
    _coco('coco_rotated')
    + (('coco_rotated', 'rotate_json/{raw}.json', 'images/{raw}'),)
    + (('rolabelimg', 'rotate_xml', '{raw}'), ('rolabelimg', 'rotate_xml', 'images/{raw}')),
    HITUAV_CLASSES,
    ignore=('DontCare',),
  ),
  # SOI-Det has no validation split: it tests on DOTA's, and on the test splits of the others
  'soi_det_sar': Preset(_SOI_DET_SAR + _coco('coco'), SAR_CLASSES, TRAIN_TEST),
  'soi_det_rgb': Preset(_dota('1.0'), DOTA_CLASSES, (('train', 'train'), ('test', 'val'))),
  'soi_det_ifr': dataclasses.replace(DRONEVEHICLE, splits=TRAIN_TEST),
  'ssdd': Preset(
    _coco('coco')
    + (
      ('coco', 'BBox_SSDD/coco_style/annotations/{raw}.json', 'BBox_SSDD/coco_style/images/{raw}'),
      ('voc', 'voc_xml', 'JPEGImages/{raw}'),
    ),
    ('ship',),
  ),
  'hrsid': Preset(
    _coco('coco') + (('coco', 'Annotations/{raw}2017.json', 'JPEGImages'),),
    ('ship',),
  ),
  'coco': Preset(_coco('coco')),
  'coco_rotated': Preset(_coco('coco_rotated')),
  'coco_degree': Preset(_coco('coco_degree')),
  'coco_radian': Preset(_coco('coco_radian')),
  'dota_txt': Preset(_by_folder('dota_txt', ['labelTxt', 'annfiles', 'labels'])),
  'dronevehicle_xml': Preset(
    DRONEVEHICLE.layouts[:2] + _by_folder('dronevehicle_xml', ['labels', 'Annotations'])
  ),
  'yolo_obb': Preset(_by_folder('yolo_obb', ['labels'])),
  'rolabelimg': Preset(_by_folder('rolabelimg', ['Annotations', 'annotations', 'labels', 'xml'])),
  'voc': Preset(
    (('voc', 'Annotations', 'JPEGImages'),) + _by_folder('voc', ['Annotations', 'annotations'])
  ),
}  # fmt: skip
PRESETS['voc_rotated'] = Preset(tuple(('voc_rotated', *p[1:]) for p in PRESETS['voc'].layouts))
