"""AP of oriented boxes under the two protocols in use, and the DOTA server's result files."""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.errors import UserError
from sm3det_jax import metrics
from sm3det_jax.metrics import polygon

IOU_THRESHOLDS = np.round(np.arange(10) * 0.05 + 0.5, 2)


class Protocol(NamedTuple):
  """How detections count.

  Attributes:
    method: 'area' (all points under the precision envelope) or 'voc07' (eleven recalls).
    strict: match when IoU > threshold, not >=.
    ignore_difficult: a difficult object is neither found nor missed, not an object like others.
    skip_empty: images without any ground truth, false alarms in them included, are left out.
    polygons: ground truth is the labelled quadrilateral, not the rectangle around it.
  """

  method: str
  strict: bool
  ignore_difficult: bool
  skip_empty: bool
  polygons: bool


PROTOCOLS = {
  # The published SM3Det numbers: patches, as mmrotate's eval_rbbox_map with use_07_metric=False.
  'paper_patches': Protocol('area', False, False, True, False),
  # The DOTA server, task 1: full images, patches merged by NMS before.
  'devkit': Protocol('voc07', True, True, False, True),
}


def evaluate(
  predictions: list[dict], truths: list[dict], classes: tuple[str, ...], protocol: str
) -> metrics.Result:
  """Scores oriented boxes.

  A detection may match only the object of its class and image with which its IoU is largest; if a
  better detection has it already, it is a false alarm. Equal scores keep the order of the images.
  In a region to ignore of its class, the share of the detection inside of it taking the place of
  the IoU, a detection that finds no object is no false alarm either (COCO's rule for crowds).

  Args:
    predictions: per image `id`, `boxes` [k, 5] (or `polygons` [k, 8], which goes first), `scores`,
      `labels`.
    truths: per image `id`, `boxes` [n, 5], `polygons` [n, 8], `labels`, `difficult` and `ignored`
      (both optional; the latter are regions to ignore, no objects).
    classes: names in label order.
    protocol: a key of `PROTOCOLS`.

  Returns:
    metrics.Result.

  Raises:
    UserError: an unknown protocol; an image that is there twice, or is in one list only.
  """
  if protocol not in PROTOCOLS:
    raise UserError(f'protocol={protocol!r}: expected one of {sorted(PROTOCOLS)}')
  rules = PROTOCOLS[protocol]
  pairs = metrics.match_images(predictions, truths)
  if rules.skip_empty:
    pairs = [(t, p) for t, p in pairs if len(t['labels'])]
  images = [_image(t, p, rules) for t, p in pairs]
  per_class, curves = {}, {}
  for label, name in enumerate(classes):
    scores, ious, objects, inside, difficult = _match(images, label)
    count = int((~difficult).sum())
    outcome = [_outcomes(ious, objects, inside, difficult, t, rules.strict) for t in IOU_THRESHOLDS]
    aps = [average_precision(*curve(tp, fp, count), rules.method) for tp, fp in outcome]
    per_class[name] = metrics.class_summary(aps, count, len(scores))
    if count:
      curves[name] = np.stack(curve(*outcome[0], count), -1)
  return metrics.Result(metrics.summarise(protocol, len(pairs), per_class), curves)


def curve(tp: np.ndarray, fp: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
  """Recall and precision [d] after each detection, from outcomes [d] in score order."""
  tp, fp = np.cumsum(tp, dtype=np.float64), np.cumsum(fp, dtype=np.float64)
  eps = np.finfo(np.float64).eps
  return tp / max(objects, 1), tp / np.maximum(tp + fp, eps)


def average_precision(recall: np.ndarray, precision: np.ndarray, method: str) -> float:
  """AP of a precision-recall curve [d] in score order (PASCAL VOC).

  Args:
    recall: not decreasing.
    precision: at those recalls.
    method: 'area': the area under the precision's envelope (VOC 2010 on); 'voc07': the mean of the
      best precision at recall >= 0, 0.1, .. 1.
  """
  envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]  # best from here on
  if method == 'voc07':
    first = np.searchsorted(
      recall, np.arange(0.0, 1.1, 0.1)
    )  # 0.30000000000000004 as in the devkit
    return float(envelope[first].mean())
  if method != 'area':
    raise UserError(f"method={method!r}: expected 'area' or 'voc07'")
  return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())


def _image(truth, found, rules):
  """One image in float64: labels, scores and quadrilaterals of both sides."""
  n = len(truth['labels'])
  flags = lambda name: np.asarray(truth.get(name, np.zeros(n)), bool).reshape(n)
  return {
    'truth': box_lib.to_polygon(truth['polygons' if rules.polygons else 'boxes']),
    'truth_labels': np.asarray(truth['labels']),
    'difficult': flags('difficult') & rules.ignore_difficult,
    'ignored': flags('ignored'),
    'found': box_lib.to_polygon(found['polygons' if 'polygons' in found else 'boxes']),
    'labels': np.asarray(found['labels']),
    'scores': np.asarray(found['scores'], np.float64),
  }


def _match(images, label):
  """What a class's detections meet.

  Returns:
    In score order [d] scores, largest IoU and its object, largest share in a region to ignore; of
    the objects which are difficult.
  """
  scores, ious, objects, difficult = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, int)], []
  shares, count = [np.zeros(0)], 0
  for image in images:
    mine, theirs = image['labels'] == label, image['truth_labels'] == label
    theirs, regions = theirs & ~image['ignored'], theirs & image['ignored']
    if mine.any():
      share = polygon.iof_matrix(image['found'][mine], image['truth'][regions])
      shares.append(share.max(1, initial=0))
      iou = polygon.iou_matrix(image['found'][mine], image['truth'][theirs])
      nothing = np.zeros(len(iou))
      scores.append(image['scores'][mine])
      ious.append(iou.max(1) if iou.size else nothing)
      objects.append((iou.argmax(1) if iou.size else nothing.astype(int)) + count)
    difficult.append(image['difficult'][theirs])
    count += int(theirs.sum())
  scores, ious, objects, shares = map(np.concatenate, (scores, ious, objects, shares))
  order = np.argsort(-scores, kind='stable')
  difficult = np.concatenate(difficult) if difficult else np.zeros(0, bool)
  return scores[order], ious[order], objects[order], shares[order], difficult


def _outcomes(ious, objects, inside, difficult, threshold, strict):
  """True and false positives [d] at a threshold.

  A match with a difficult object is neither, nor is in a region to ignore what matches nothing.
  """
  above = np.greater if strict else np.greater_equal
  hits = np.flatnonzero(above(ious, threshold))
  _, first = np.unique(objects[hits], return_index=True)
  tp = np.zeros(len(ious), bool)
  tp[hits[first]] = True
  ignored = np.zeros(len(ious), bool)
  ignored[hits] = difficult[objects[hits]]
  return tp & ~ignored, ~(tp | ignored | above(inside, threshold))


def write_task1(folder: str | os.PathLike, predictions: list[dict], classes: tuple[str, ...]):
  """Writes `Task1_<class>.txt` for the DOTA server: `image score x1 y1 .. x4 y4`, best first.

  Args:
    folder: made if absent.
    predictions: of full images, as for `evaluate`; `id` is the image's name.
    classes: names in label order; each gets a file, empty or not.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for label, name in enumerate(classes):
    rows = []
    for p in predictions:
      mine = np.asarray(p['labels']) == label
      quads = p['polygons'] if 'polygons' in p else box_lib.to_polygon(p['boxes'])
      for score, quad in zip(np.asarray(p['scores'])[mine], np.asarray(quads)[mine], strict=True):
        rows.append((-score, f'{p["id"]} {score:.9g} ' + ' '.join(f'{v:.9g}' for v in quad)))
    rows.sort(key=lambda row: row[0])
    (folder / f'Task1_{name}.txt').write_text(''.join(text + '\n' for _, text in rows))


def read_task1(folder: str | os.PathLike, classes: tuple[str, ...]) -> list[dict]:
  """Predictions (`id`, `polygons` [k, 8], `scores`, `labels`) from `Task1_<class>.txt` files.

  A class without a file has no detections. Images without a detection do not appear.

  Raises:
    UserError: a line that is not `image score` and eight numbers; it names the file and line.
  """
  images = {}
  for label, name in enumerate(classes):
    path = pathlib.Path(folder) / f'Task1_{name}.txt'
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
      try:
        image, *values = line.split()
        score, *quad = (float(v) for v in values)
        if len(quad) != 8:
          raise ValueError
      except ValueError:
        raise UserError(
          f'{path}:{number}: expected "image score x1 y1 .. x4 y4", got {line!r}'
        ) from None
      images.setdefault(image, []).append((score, label, quad))
  return [
    {
      'id': image,
      'scores': np.array([row[0] for row in rows]),
      'labels': np.array([row[1] for row in rows]),
      'polygons': np.array([row[2] for row in rows]),
    }
    for image, rows in images.items()
  ]
