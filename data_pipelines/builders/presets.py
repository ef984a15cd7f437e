"""What is known of formats and of public data sets: readers, class lists, where files lie."""

import dataclasses

from data_pipelines.builders.formats import COCO, DRONEVEHICLE_XML, FORMATS, VOC, folders
from data_pipelines.classes import (
  DIOR_CLASSES,
  DOTA_CLASSES,
  DOTA_V10,
  DOTA_V15,
  DOTA_V20,
  DRONEVEHICLE_CLASSES,
  FAIR1M_CLASSES,
  HITUAV_CLASSES,
  SAR_AIRCRAFT_CLASSES,
  SAR_CLASSES,
  SODA_CLASSES,
  STAR_CLASSES,
)
from data_pipelines.errors import UserError

SPLITS = (
  ('train', 'train'), ('val', 'val'), ('val', 'valid'), ('val', 'validation'), ('test', 'test'),
  ('trainval', 'trainval'),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Preset:
  """A data set, or a bare format.

  Attributes:
    layouts: (format, labels, images) to look for, in order; `{raw}` is the split's name in
      the release, `{part}` any folder: all that are there are taken.
    classes: in label order; () takes the names found in the data, sorted.
    splits: (split, name in the release); of one split the first that is there counts, and of
      'trainval' and its parts those that are there first.
    ignore: class names to leave out, counted.
    aliases: {spelling in the files: class}.
  """

  layouts: tuple[tuple[str, str, str], ...]
  classes: tuple[str, ...] = ()
  splits: tuple[tuple[str, str], ...] = SPLITS
  ignore: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()


def _layouts(form, places):
  return tuple((form, *place) for place in places)


TRAIN_TEST = (('train', 'train'), ('test', 'test'))
WHOLE = (('trainval', 'trainval'), ('test', 'test'))  # papers train on both parts at once


def _dota(version):
  names = ['labelTxt', 'annfiles', f'labelTxt-v{version}/labelTxt', f'labelTxt-v{version}']
  places = ((f'{{raw}}/labelTxt-v{version}/DOTA-v{version}_{{raw}}', '{raw}/images'),)
  return _layouts('dota_txt', places + folders(*names))


def _dior(form, boxes):
  places = (f'Annotations/{boxes} Bounding Boxes', f'Annotations/{boxes}_Bounding_Boxes')
  return _layouts(form, ((labels, 'JPEGImages-{raw}') for labels in places))


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
  'rsar': Preset(_layouts('dota_txt', folders('annfiles', 'labelTxt')), SAR_CLASSES),
  'sar_aircraft': Preset(_layouts('voc', VOC), SAR_AIRCRAFT_CLASSES),
  'dior': Preset(_dior('voc', 'Horizontal'), DIOR_CLASSES, WHOLE),
  'dior_r': Preset(_dior('dior_xml', 'Oriented'), DIOR_CLASSES, WHOLE),
  'fair1m': Preset(
    (
      ('fair1m_xml', '{raw}/{part}/labelXml', '{raw}/{part}/images'),
      *_layouts('fair1m_xml', (('{raw}/labelXml', '{raw}/images'), ('labelXml', 'images'))),
      ('fair1m_xml', '{raw}/labelXmls', '{raw}/images'),
      ('fair1m_xml', '{raw}/labelXmls/labelXmls', '{raw}/images/images'),
    ),
    FAIR1M_CLASSES,
    (('train', 'train'), ('val', 'validation'), ('test', 'test')),
  ),
  'hrsc2016': Preset(
    _layouts(
      'hrsc_xml',
      (
        ('{raw}/Annotations', '{raw}/AllImages'),
        ('FullDataSet/Annotations', 'FullDataSet/AllImages'),
      ),
    ),
    ('ship',),
    (('trainval', 'Trainval'), ('train', 'Train'), ('val', 'Val'), ('test', 'Test')),
  ),
  'soda_a': Preset(
    _layouts(
      'soda_json', (('Annotations/{raw}', 'Images/{raw}'), ('Annotations/{raw}', 'Images'))
    ),
    SODA_CLASSES,
    ignore=('ignore',),
  ),
  'star': Preset(_layouts('dota_txt', folders('labelTxt', 'annfiles', 'labels')), STAR_CLASSES),
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
