"""COCO json: `bbox` x, y, w, h, or with `rotated` cx, cy, w, h, angle (positive clockwise).

`area` is that of the box, `segmentation` the object's quadrilateral, and a key `difficult` keeps
what COCO has no word for.
"""

import json
import math

import numpy as np

from data_pipelines.angles import spelled
from data_pipelines.writers import number


def write(folder, split, images, classes, rotated=False, degrees=False, convention='le90'):
  """Writes `annotations/<split>.json`.

  Args:
    folder, split, images, classes: as every writer's.
    rotated: boxes of five numbers.
    degrees: their angle in degrees, else in radians.
    convention: one of `data_pipelines.angles`.
  """
  category = {name: k for k, name in enumerate(classes, 1)}
  entries, annotations = [], []
  for number_, image in enumerate(images, 1):
    size = dict(height=image.height, width=image.width)
    entries.append(dict(id=number_, file_name=image.file) | size)
    boxes = spelled(image.boxes, convention) if rotated else image.boxes
    for name, box, polygon, difficult, ignored in zip(
      image.names, boxes, image.polygons, image.difficult, image.ignored, strict=True
    ):
      bbox = _rotated(box, degrees) if rotated else _horizontal(box)
      annotations.append(
        dict(
          id=len(annotations) + 1,
          image_id=number_,
          category_id=category[name],
          bbox=bbox,
          area=float(np.prod(bbox[2:4])),
          segmentation=[_short(polygon)],
          iscrowd=int(ignored),
        )
        | ({'difficult': int(difficult)} if difficult and not ignored else {})
      )
  info = {}
  if rotated:
    info['description'] = f'bbox: cx, cy, w, h, angle in {"degrees" if degrees else "radians"}'
    info['description'] += f', positive clockwise on the screen, {convention}'
  categories = [dict(id=k, name=name) for name, k in category.items()]
  content = dict(info=info, images=entries, annotations=annotations, categories=categories)
  path = folder / 'annotations' / f'{split}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content), encoding='utf-8')


def _short(values):
  return [float(number(v)) for v in values]


def _horizontal(box):
  x1, y1, x2, y2 = _short(box)
  return [x1, y1, round(x2 - x1, 9), round(y2 - y1, 9)]


def _rotated(box, degrees):
  theta = float(box[4])
  return [*_short(box[:4]), math.degrees(theta) if degrees else theta]
