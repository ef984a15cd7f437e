"""COCO AP of horizontal boxes: pycocotools on arrays in memory."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sm3det_jax import metrics

MAX_DETECTIONS = 100  # of a class in an image, the best ones; COCO's own cap


def evaluate(
  predictions: list[dict], truths: list[dict], classes: tuple[str, ...]
) -> metrics.Result:
  """Scores horizontal boxes as COCO does.

  Categories without ground truth are left out of the means. Objects marked difficult are COCO's
  `iscrowd`: neither found nor missed.

  Args:
    predictions: per image `id`, `boxes` [k, 4] (x1, y1, x2, y2 px), `scores`, `labels`.
    truths: per image `id`, `boxes` [n, 4], `labels`, `difficult` (optional).
    classes: names in label order.

  Returns:
    metrics.Result; its summary also has `capped`, the detections beyond COCO's 100 per class
    and image, which do not count.

  Raises:
    ValueError: an image that is there twice, or is in one list only.
  """
  pairs = metrics.match_images(predictions, truths)
  truth, found = [], []
  for image, (t, p) in enumerate(pairs, 1):
    crowd = np.asarray(t.get('difficult', np.zeros(len(t['labels']))), bool)
    truth += _annotations(image, t['boxes'], t['labels'], iscrowd=crowd.astype(int))
    found += _annotations(image, p['boxes'], p['labels'], score=p['scores'])
  with contextlib.redirect_stdout(io.StringIO()):
    coco = [_coco(len(pairs), len(classes), annotations) for annotations in (truth, found)]
    run = COCOeval(*coco, 'bbox')
    run.evaluate()
    run.accumulate()
  # [IoU, recall, class]; all sizes, 100 detections; -1 where a class has no objects
  precision = run.eval['precision'][:, :, :, 0, -1]
  per_class, curves = {}, {}
  for k, name in enumerate(classes):
    objects = sum(a['category_id'] == k + 1 and not a['iscrowd'] for a in truth)
    detections = sum(a['category_id'] == k + 1 for a in found)
    per_class[name] = metrics.class_summary(precision[:, :, k].mean(1), objects, detections)
    if objects:
      curves[name] = np.stack([run.params.recThrs, precision[0, :, k]], -1)
  capped = sum(
    int(np.maximum(np.unique(p['labels'], return_counts=True)[1] - MAX_DETECTIONS, 0).sum())
    for _, p in pairs
  )
  return metrics.Result(metrics.summarise('coco', len(pairs), per_class, capped=capped), curves)


def _annotations(image, boxes, labels, **columns):
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
  xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
  columns = {key: np.asarray(values).tolist() for key, values in columns.items()}
  return [
    {
      'image_id': image,
      'category_id': int(label) + 1,
      'bbox': box,
      'area': box[2] * box[3],
      'iscrowd': 0,
      **{key: values[i] for key, values in columns.items()},
    }
    for i, (box, label) in enumerate(zip(xywh, labels, strict=True))
  ]


def _coco(images, classes, annotations):
  coco = COCO()
  coco.dataset = {
    'images': [{'id': i + 1} for i in range(images)],
    'categories': [{'id': k + 1, 'name': str(k)} for k in range(classes)],
    # ids start at 1: pycocotools takes a matched id of 0 for "not matched"
    'annotations': [{'id': i, **a} for i, a in enumerate(annotations, 1)],
  }
  coco.createIndex()
  return coco
