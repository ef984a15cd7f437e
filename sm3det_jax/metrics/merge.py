"""Detections of overlapping windows to detections of whole images, on the host in float64."""

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import tiling
from sm3det_jax.metrics import polygon

# IoU above which the weaker of two detections of a class goes: as in GFL's own NMS, and as where
# the DOTA devkit merges patches.
IOU = {'hbb': 0.6, 'obb': 0.3}
SAME = 0.9  # IoU from which two labels of overlapping patches are one object
EDGE = 2.0  # px: a box that comes so near to its window's edge is cut by it
INSIDE = 0.5  # share of a cut detection inside a whole one from which they are one object
CHUNK = 256  # rows of the envelope test at once


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
  better, worse = _overlapping(quads)
  far = polygon.iou_pairs(quads[better], quads[worse]) > iou
  return order[_greedy(len(order), better[far], worse[far])]


def _overlapping(quads):
  """Pairs i < j of quadrilaterals [n, 8] whose envelopes overlap, found along x."""
  points = quads.reshape(-1, 4, 2)
  along = np.argsort(points[..., 0].min(1), kind='stable')
  (x1, y1), (x2, y2) = points[along].min(1).T, points[along].max(1).T
  pairs = [np.zeros((2, 0), int)]
  for i in range(0, len(quads), CHUNK):
    row = slice(i, i + CHUNK)
    near = slice(i, np.searchsorted(x1, x2[row].max()))
    over = x1[near] < x2[row, None]  # that they start later, their order says
    over &= (y1[near] < y2[row, None]) & (y1[row, None] < y2[near])
    rows, columns = np.nonzero(over)
    later = columns > rows
    pairs.append(np.stack([rows[later], columns[later]]) + i)
  return np.sort(along[np.concatenate(pairs, 1)], 0)


def _greedy(n, better, worse):
  """Which of n stay, best first, if one that stays removes those that it is paired with; bool."""
  order = np.argsort(better, kind='stable')
  weaker = np.split(worse[order], np.cumsum(np.bincount(better, minlength=n))[:-1])
  alive = np.ones(n, bool)
  for i, gone in enumerate(weaker):
    if alive[i]:
      alive[gone] = False
  return alive


def merge_scene(windows: list[dict], iou: float, height: int, width: int) -> dict:
  """Detections of a scene out of those of its windows; the same ones in whatever order they come.

  Two detections of a class from different windows are one object if they overlap by more than
  `iou`: the stronger stays. What a window's own edge cuts comes after all that is whole, however
  strong it is, and goes if over `INSIDE` of it lies in a whole one of another window. Detections of
  one window are left to the head, so that a scene of tiles that do not overlap has what they have.

  Args:
    windows: dicts with the window's corners x1, y1, x2, y2 as `window`, `boxes` [k, 4 | 5] in the
      scene's pixels, `scores` [k], `labels` [k].
    iou: of polygons.
    height, width: of the scene, whose own edges cut nothing.

  Returns:
    `boxes`, `scores`, `labels`, best first.
  """
  columns = {k: np.concatenate([w[k] for w in windows]) for k in ('boxes', 'scores', 'labels')}
  cut = np.concatenate([_cut(w, height, width) for w in windows])
  origin = np.concatenate([np.tile(w['window'], (len(w['scores']), 1)) for w in windows])
  ties = (*columns['boxes'].T, columns['labels'], *origin.T)
  order = np.lexsort((*ties, -columns['scores'], cut))
  stays = np.zeros(len(order), bool)
  for label in np.unique(columns['labels']):
    some = order[columns['labels'][order] == label]
    stays[some] = _of_windows(columns['boxes'][some], origin[some], cut[some], iou)
  best = np.lexsort((*ties, -columns['scores']))
  return {k: values[best[stays[best]]] for k, values in columns.items()}


def _of_windows(boxes, origin, cut, iou):
  """Which stay of one class's boxes, in the order of their rank; `merge_scene` says why."""
  quads = box_lib.to_polygon(boxes)
  better, worse = _overlapping(quads)
  apart = (origin[better] != origin[worse]).any(1)
  better, worse = better[apart], worse[apart]
  shared = polygon.iou_pairs(quads[better], quads[worse])
  area = np.abs(polygon.area(quads.reshape(-1, 4, 2)))
  common = shared / (1 + shared) * (area[better] + area[worse])
  part = cut[worse] & ~cut[better] & (common > INSIDE * area[worse])
  same = (shared > iou) | part
  return _greedy(len(quads), better[same], worse[same])


def _cut(window, height, width):
  """Whether each box reaches an edge of its window that is none of the scene."""
  points = box_lib.to_polygon(window['boxes']).reshape(-1, 4, 2)
  x1, y1, x2, y2 = window['window']
  low = np.where(np.array([x1, y1]) > 0, np.array([x1, y1]) + EDGE, -np.inf)
  high = np.where(np.array([x2, y2]) < (width, height), np.array([x2, y2]) - EDGE, np.inf)
  return ((points < low) | (points > high)).any((1, 2))


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
