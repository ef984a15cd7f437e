"""What may be wrong with objects: functions from a Dataset to rows, the worst first."""

from collections.abc import Iterator

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import tiling
from data_pipelines.builders.scan import MIN_SIDE
from sm3det_jax.analysis.doctor.dataset import LEAST_OVERLAP, Dataset
from sm3det_jax.analysis.doctor.rows import Row

INSIDE = 0.5  # share of a box that should lie in its image
CLASHING = LEAST_OVERLAP  # IoU of objects of two classes
TWICE = 0.8  # IoU of objects of one class
WHOLE = 0.9  # share of an image that one box covers
LONG = 25  # times its width
UNLIKE = 8  # times the median side of its class, or as much below it
ENOUGH = 20  # objects of a class to have a usual size


def unknown_class(d: Dataset) -> Iterator[Row]:
  for k, name in d.unknown.items():
    yield Row(_image(d, k), f'class {name!r}', k)


def not_finite(d: Dataset) -> Iterator[Row]:
  if d.objects:
    for k in np.flatnonzero(~d.finite).tolist():
      yield Row(_image(d, k), f'{_numbers(d, k)}', k)


def thin(d: Dataset) -> Iterator[Row]:
  if d.objects:
    sides = d.sides.min(1)
    for k in _worst(d.finite & (sides < MIN_SIDE[d.box]), sides):
      w, h = d.sides[k]
      yield Row(_image(d, k), f'{w:.3g} x {h:.3g} px, under {MIN_SIDE[d.box]:g} px', k)


def outside(d: Dataset) -> Iterator[Row]:
  if d.objects:
    for k in np.flatnonzero(d.sound & ~_touches(d)).tolist():
      yield Row(_image(d, k), f'{_numbers(d, k)} {_of_image(d, k)}', k)


def mostly_outside(d: Dataset) -> Iterator[Row]:
  if not d.objects:
    return
  x1, y1, x2, y2 = d.envelopes.T
  height, width = d.sizes()[d.objects['image']].T
  beyond = (x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height)
  found = []
  for k in np.flatnonzero(d.sound & beyond & (width > 0) & _touches(d)).tolist():
    quad = box_lib.to_polygon(d.objects['boxes'][k : k + 1])
    inside = tiling.kept_fraction(quad, np.array([[0, 0, width[k], height[k]]])).item()
    if inside < INSIDE:
      text = f'{100 * (1 - inside):.0f} % of the box lies {_of_image(d, k)}'
      found.append((inside, Row(_image(d, k), text.replace('in an', 'outside of its'), k)))
  yield from (row for _, row in sorted(found, key=lambda pair: pair[0]))


def two_classes(d: Dataset) -> Iterator[Row]:
  yield from _upon(d, CLASHING, lambda a, b: a != b)


def twice(d: Dataset) -> Iterator[Row]:
  yield from _upon(d, TWICE, lambda a, b: a == b)


def _upon(d, least, told):
  """Pairs that lie upon one another; regions to be ignored may lie anywhere."""
  if not d.objects:
    return
  (pairs, ious), label = d.overlaps, d.objects['label']
  for n in np.argsort(-ious, kind='stable').tolist():
    a, b = pairs[n].tolist()
    if ious[n] >= least and told(label[a], label[b]):
      names = f'{d.class_of(a)} and {d.class_of(b)}' if label[a] != label[b] else d.class_of(a)
      rows = f'{d.objects["row"][a]} and {d.objects["row"][b]}'
      yield Row(_image(d, a), f'{names} with an IoU of {ious[n]:.2f} (objects {rows})', a, b)


def crossing(d: Dataset) -> Iterator[Row]:
  if d.objects:
    for k in np.flatnonzero(d.finite & box_lib.self_crossing(d.objects['polygons'])).tolist():
      yield Row(_image(d, k), 'its corners are not in order', k)


def whole_image(d: Dataset) -> Iterator[Row]:
  if d.objects:
    area = d.sizes()[d.objects['image']].prod(1)
    share = np.divide(d.sides.prod(1), area, out=np.zeros(len(area)), where=area > 0)
    for k in _worst(d.sound & (share >= WHOLE), -share):
      yield Row(_image(d, k), f'{100 * share[k]:.0f} % of its image', k)


def elongated(d: Dataset) -> Iterator[Row]:
  if d.objects:
    ratio = d.sides.max(1) / np.maximum(d.sides.min(1), 1e-9)
    for k in _worst(d.sound & (ratio > LONG), -ratio):
      w, h = d.sides[k]
      yield Row(_image(d, k), f'{d.class_of(k)} of {w:.4g} x {h:.3g} px', k)


def odd_size(d: Dataset) -> Iterator[Row]:
  if not d.objects:
    return
  side, label = np.sqrt(d.sides.prod(1)), d.objects['label']
  usual = np.full(len(side), np.nan)
  for k in range(len(d.classes)):
    mine = d.sound & (label == k)
    if mine.sum() >= ENOUGH:
      usual[mine] = np.median(side[mine])
  off = np.abs(np.log(np.maximum(side, 1e-9) / usual))
  for k in _worst(d.sound & (off > np.log(UNLIKE)), -off):
    text = f'{d.class_of(k)} of {side[k]:.3g} px (root of its area); usual are {usual[k]:.3g} px'
    yield Row(_image(d, k), text, k)


def _worst(mask, order):
  """Indices of a mask, by rising order."""
  found = np.flatnonzero(mask)
  return found[np.argsort(order[found], kind='stable')].tolist()


def _touches(d):
  """Whether envelope and image share anything; true where the image's size is not known."""
  x1, y1, x2, y2 = d.envelopes.T
  height, width = d.sizes()[d.objects['image']].T
  return ((x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)) | (width == 0)


def _image(d, k):
  return int(d.objects['image'][k])


def _numbers(d, k):
  names = ('x1', 'y1', 'x2', 'y2') if d.box == 'hbb' else ('cx', 'cy', 'w', 'h', 'angle')
  return ', '.join(f'{n} {v:.4g}' for n, v in zip(names, d.objects['boxes'][k], strict=True))


def _of_image(d, k):
  height, width = d.sizes()[_image(d, k)]
  return f'in an image of {width} x {height} px'
