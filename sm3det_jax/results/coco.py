"""COCO json of one image: `bbox` x, y, w, h around each object, `segmentation` its four corners.

Both are what every reader of COCO knows; the corners keep the turn of oriented boxes.
"""

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.writers import number


def content(result) -> dict:
  """Annotations with their `score`; a category a class of the task, numbered from 1."""
  hbb = box_lib.polygon_to_hbb(result.polygons)
  sizes = result.boxes[:, 2:4] if result.oriented else hbb[:, 2:] - hbb[:, :2]
  rows = zip(result.labels, result.scores, hbb, sizes, result.polygons, strict=True)
  height, width = result.size
  return {
    'images': [{'id': 1, 'file_name': result.file_name, 'height': height, 'width': width}],
    'annotations': [
      {
        'id': i,
        'image_id': 1,
        'category_id': int(label) + 1,
        'bbox': _short([*box[:2], *box[2:] - box[:2]]),
        'area': float(np.prod(size, dtype=np.float64)),
        'segmentation': [_short(quad)],
        'iscrowd': 0,
        'score': round(float(score), 4),
      }
      for i, (label, score, box, size, quad) in enumerate(rows, 1)
    ],
    'categories': [{'id': k, 'name': name} for k, name in enumerate(result.classes, 1)],
  }


def _short(values):
  return [float(number(v)) for v in values]
