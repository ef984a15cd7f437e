"""Objects that lie upon one another, image by image."""

from collections.abc import Iterator

import numpy as np

from data_pipelines import boxes as box_lib
from sm3det_jax.metrics import polygon

ROWS = 512  # of the objects of an image, compared with the others at once


def pairs(boxes: np.ndarray, image: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of objects of one image with an IoU of at least `least`.

  Args:
    boxes: [n, 4 | 5], finite and with an area, those of an image together.
    image: int [n].
    least: over 0.

  Returns:
    (pairs int [k, 2], first < second; IoU [k]).
  """
  found, ious = [np.zeros((0, 2), int)], [np.zeros(0)]
  quads = box_lib.to_polygon(boxes)
  envelopes = quads.reshape(-1, 4, 2)
  envelopes = np.concatenate([envelopes.min(1), envelopes.max(1)], -1)
  areas = np.abs(polygon.area(quads.reshape(-1, 4, 2)))
  starts = np.flatnonzero(np.diff(image, prepend=-1))
  for rows in np.split(np.arange(len(image)), starts[1:]):
    for near in _near(envelopes[rows], areas[rows], least):
      near = rows[near]
      iou = polygon.iou_pairs(quads[near[:, 0]], quads[near[:, 1]])
      found.append(near[iou >= least])
      ious.append(iou[iou >= least])
  return np.concatenate(found), np.concatenate(ious)


def _near(envelopes, areas, least) -> Iterator[np.ndarray]:
  """Pairs [k, 2] whose envelopes share enough for that IoU: at least its part of the larger one."""
  for start in range(0, len(envelopes), ROWS):
    a, b = envelopes[start : start + ROWS, None], envelopes[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.maximum(sides, 0), -1)
    larger = np.maximum(areas[start : start + ROWS, None], areas[None])
    i, j = np.nonzero((shared >= least * larger) & (larger > 0))
    i += start
    if (i < j).any():
      yield np.stack([i, j], -1)[i < j]
