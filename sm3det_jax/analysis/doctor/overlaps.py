"""Objects that lie upon one another."""

import numpy as np

from data_pipelines import boxes as box_lib
from sm3det_jax.analysis.doctor import neighbours
from sm3det_jax.metrics import polygon


def pairs(boxes: np.ndarray, image: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of objects of one image with an IoU of at least `least`.

  Args:
    boxes: [n, 4 | 5], finite and with an area.
    image: int [n].
    least: over 0.

  Returns:
    (pairs int [k, 2], in the order of the boxes, first < second; IoU [k]).
  """
  quads = box_lib.to_polygon(boxes)
  corners = quads.reshape(-1, 4, 2)
  low, high = corners.min(1), corners.max(1)
  areas = np.abs(polygon.area(corners))
  order = np.lexsort((low[:, 0], image))
  low_, high_, image_ = low[order], high[order], image[order]

  def together(i, j):  # on the x axis
    return (image_[i] == image_[j]) & (low_[j, 0] < high_[i, 0])

  found, ious = [np.zeros((0, 2), int)], [np.zeros(0)]
  for i, j in neighbours.pairs(len(order), together):
    i, j = order[i], order[j]
    shared = np.maximum(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0).prod(1)
    near = shared >= least * np.maximum(areas[i], areas[j])  # that IoU takes so much
    i, j = i[near], j[near]
    iou = polygon.iou_pairs(quads[i], quads[j])
    found.append(np.sort(np.stack([i, j], -1)[iou >= least], 1))
    ious.append(iou[iou >= least])
  found, ious = np.concatenate(found), np.concatenate(ious)
  order = np.lexsort(found.T[::-1])
  return found[order], ious[order]
