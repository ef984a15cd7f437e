"""The formats that label files come in: a reader each, and where such files usually lie."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from data_pipelines.readers import (
  coco,
  corner_xml,
  cvat,
  dota_txt,
  dronevehicle_xml,
  geojson,
  labelme,
  rolabelimg,
  soda,
  voc,
  yolo,
)


class Format(NamedTuple):
  """A row of `FORMATS`.

  Attributes:
    read: the reader, see `data_pipelines.readers`.
    box: 'hbb' or 'obb', the kind of its boxes.
    places: (labels, images) below a source to look for, in order; `{raw}` is the split.
    options: further arguments of the reader; `angle` where it takes the unit of angles.
    coordinates: 'pixels' or 'shares', what its numbers usually are.
    decide: [(source, labels)], options, skipped -> the options, for all splits together.
    lists: whether the reader honours a split's list of names (`texts.listed`).
  """

  read: Callable
  box: str
  places: tuple[tuple[str, str], ...]
  options: Mapping = {}
  coordinates: str = 'pixels'
  decide: Callable | None = None
  lists: bool = False


def folders(*names):
  """A folder of label files a split, or one for all."""
  places = [
    place
    for n in names
    for place in (('{raw}/' + n, '{raw}/images'), (n + '/{raw}', 'images/{raw}'))
  ]
  places += [(n, 'images/{raw}') for n in names] + [(n, 'images') for n in names]
  return tuple(places)


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
VOC = (('Annotations', 'JPEGImages'), *folders('Annotations', 'annotations'))
DRONEVEHICLE_XML = (('{raw}/{raw}labelr', '{raw}/{raw}imgr'), ('{raw}labelr', '{raw}imgr'))

CVAT = (
  ('{raw}.xml', 'images/{raw}'),
  ('annotations/{raw}.xml', 'images/{raw}'),
  ('annotations.xml', 'images'),
)
BESIDE = (('{raw}', '{raw}'), ('images/{raw}', 'images/{raw}'), ('images', 'images'))
ROTATED = {'rotated': True}

FORMATS = {
  'coco': Format(coco.read, 'hbb', COCO, {'angle': 'auto'}, decide=coco.decide),
  # degrees or radians, told by the largest angle
  'coco_rotated': Format(coco.read, 'obb', COCO, ROTATED | {'angle': 'auto'}, decide=coco.decide),
  'coco_degree': Format(coco.read, 'obb', COCO, ROTATED | {'angle': 'degree'}, decide=coco.decide),
  'coco_radian': Format(coco.read, 'obb', COCO, ROTATED | {'angle': 'radian'}, decide=coco.decide),
  'dota_txt': Format(dota_txt.read, 'obb', folders('labelTxt', 'annfiles', 'labels')),
  'dronevehicle_xml': Format(
    dronevehicle_xml.read, 'obb', DRONEVEHICLE_XML + folders('labels', 'Annotations')
  ),
  'yolo': Format(yolo.read, 'hbb', folders('labels'), {'rotated': False}, 'shares'),
  'yolo_obb': Format(yolo.read, 'obb', folders('labels'), coordinates='shares'),
  'rolabelimg': Format(
    rolabelimg.read,
    'obb',
    folders('Annotations', 'annotations', 'labels', 'xml'),
    {'angle': 'auto'},
    decide=rolabelimg.decide,
    lists=True,
  ),
  'cvat': Format(cvat.read, 'obb', CVAT),
  'dior_xml': Format(corner_xml.read, 'obb', folders('Annotations'), {'kind': 'dior'}, lists=True),
  'fair1m_xml': Format(corner_xml.read, 'obb', folders('labelXml'), {'kind': 'fair1m'}, lists=True),
  'geojson': Format(geojson.read, 'obb', BESIDE + folders('labels', 'geojson')),
  'hrsc_xml': Format(corner_xml.read, 'obb', folders('Annotations'), {'kind': 'hrsc'}, lists=True),
  'labelme': Format(labelme.read, 'obb', BESIDE + folders('labels', 'annotations', 'json')),
  'soda_json': Format(soda.read, 'obb', folders('Annotations')),
  'voc': Format(voc.read, 'hbb', VOC, lists=True),
  'voc_rotated': Format(voc.read, 'obb', VOC, ROTATED, lists=True),
}
