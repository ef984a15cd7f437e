"""Detections of overlapping windows to detections of whole images, on the host in float64."""

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import tiling
from sm3det_jax.metrics import polygon

# IoU above which the weaker of two detections of a class goes: as in GFL's own NMS, and as where
# the DOTA devkit merges patches.
IOU = {'hbb': 0.6, 'obb': 0.3}
SAME = 0.9  # IoU from which two labels of overlapping patches are one object
CHUNK = 512  # rows of the envelope test at once


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float) -> np.ndarray:
  """Greedy suppression within each class, with exact IoU.

  For any number of boxes, unlike the static-shape one of the model (sm3det_jax.geometry.nms); a
  detection goes if a better one that stays overlaps it by more than `iou`.

  Args:
    boxes: [n, 4 | 5 | 8] px.
    scores: [n]; equal ones keep their order.
    labels: [n].
    iou: threshold.

  Returns:
    Indices that stay, best first.
  """
  order = np.argsort(-np.asarray(scores), kind='stable')
  labels = np.asarray(labels)
  stays = np.zeros(len(order), bool)
  for label in np.unique(labels):
    stays[_nms_sorted(boxes, order[labels[order] == label], iou)] = True
  return order[stays[order]]


def _nms_sorted(boxes, order, iou):
  quads = box_lib.to_polygon(boxes)[order]
  low, high = quads.reshape(-1, 4, 2).min(1), quads.reshape(-1, 4, 2).max(1)
  rivals = []  # for each box the worse ones that overlap it too much
  for i in range(0, len(quads), CHUNK):
    low_i, high_i = low[i : i + CHUNK, None], high[i : i + CHUNK, None]
    rows, columns = np.nonzero(((low_i < high) & (low < high_i)).all(-1))
    rows, columns = (x[columns > rows + i] for x in (rows, columns))
    far = polygon.iou_pairs(quads[rows + i], quads[columns]) > iou
    counts = np.bincount(rows[far], minlength=len(low_i))
    rivals += np.split(columns[far], np.cumsum(counts)[:-1])
  alive = np.ones(len(quads), bool)
  for i, weaker in enumerate(rivals):
    if alive[i]:
      alive[weaker] = False
  return order[alive]


def merge(windows: list[dict], iou: float) -> list[dict]:
  """One prediction an image out of those of its windows.

  Args:
    windows: dicts with the image's `id`, `boxes` [k, 4 | 5] in the whole image's pixels, `scores`,
      `labels`.
    iou: of `nms`, which only images of several windows go through.

  Returns:
    `id`, `boxes`, `scores`, `labels` of every image, in the order of first appearance.
  """
  parts = {}
  for window in windows:
    parts.setdefault(window['id'], []).append(window)
  merged = []
  for name, found in parts.items():
    columns = {k: np.concatenate([w[k] for w in found]) for k in ('boxes', 'scores', 'labels')}
    if len(found) > 1:
      keep = nms(**columns, iou=iou)
      columns = {k: values[keep] for k, values in columns.items()}
    merged.append({'id': name, **columns})
  return merged


def uncut(windows: list[dict], truths: list[dict]) -> tuple[list[dict], list[dict]]:
  """Puts patch files back where they were cut out of their images.

  Args:
    windows: as `merge` takes them.
    truths: of the same images: `id`, `boxes` [n, 4 | 5], `polygons` [n, 8], `labels`, `difficult`
      and, where there are regions to ignore, `ignored`.

  Returns:
    Both, in the pixels of the images that the patches named `<image>__<rate>__<x>___<y>` come from,
    with an object that several patches show counted once. As they were if no id is such a name.
  """
  if not any(tiling.parse_patch(w['id']) for w in windows):
    return windows, truths
  images = {}
  for truth in map(_uncut_one, truths):
    images.setdefault(truth['id'], []).append(truth)
  whole = []
  names = [n for n in ('boxes', 'polygons', 'labels', 'difficult', 'ignored') if n in truths[0]]
  for name, parts in images.items():
    columns = {k: np.concatenate([p[k] for p in parts]) for k in names}
    once = nms(columns['polygons'], np.ones(len(columns['labels'])), columns['labels'], SAME)
    whole.append({'id': name, **{k: values[once] for k, values in columns.items()}})
  return [_uncut_one(w) for w in windows], whole


def _uncut_one(window):
  """Boxes and polygons of one patch in its image's pixels; `id` is the image's."""
  found = tiling.parse_patch(window['id'])
  if not found:
    return window
  name, rate, x, y = found
  boxes = np.array(window['boxes'], np.float64)
  sides = 4 if boxes.shape[-1] == 4 else 2
  boxes[:, :sides] += np.tile([x, y], sides // 2)
  boxes[:, :4] /= rate
  result = window | {'id': name, 'boxes': boxes}
  if 'polygons' in window:
    result['polygons'] = (np.asarray(window['polygons'], np.float64) + np.tile([x, y], 4)) / rate
  return result
