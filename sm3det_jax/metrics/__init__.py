"""Scores of detections against ground truth, in numpy on the host.

Predictions are a list of dicts, one an image: `id` (any hashable), `boxes` [k, 4|5], `scores` [k],
`labels` [k]; truths likewise: `id`, `boxes` [n, 4|5], `labels` [n], `difficult` [n], `ignored` [n]
(both optional) and, for oriented boxes, `polygons` [n, 8]. Labels index the task's own classes.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.errors import UserError


class Result(NamedTuple):
  """Scores of one task under one protocol.

  Attributes:
    summary: JSON-able: `protocol`, `map` (mean over IoU 0.50, 0.55, .. 0.95), `map50`, `map75`,
      `images`, `classes` {name: {`ap`, `ap50`, `ap75`, `objects`, `detections`}}. The AP of a class
      without ground truth is None and takes no part in a mean.
    curves: class name -> [points, 2] recall and precision at IoU 0.5.
  """

  summary: dict
  curves: dict[str, np.ndarray]


def summarise(protocol: str, images: int, classes: dict, **extra) -> dict:
  """`Result.summary` from the per-class scores: means over the classes that have ground truth."""

  def mean(key):
    values = [c[key] for c in classes.values() if c[key] is not None]
    return float(np.mean(values)) if values else None

  means = {'map': mean('ap'), 'map50': mean('ap50'), 'map75': mean('ap75')}
  return {'protocol': protocol, **means, 'images': images, **extra, 'classes': classes}


def class_summary(aps, objects: int, detections: int) -> dict:
  """One class's entry from its AP at the ten IoU thresholds [10]; None without objects."""
  values = [float(v) for v in (np.mean(aps), aps[0], aps[5])] if objects else [None] * 3
  return dict(zip(('ap', 'ap50', 'ap75'), values, strict=True)) | {
    'objects': int(objects),
    'detections': int(detections),
  }


def match_images(predictions: list[dict], truths: list[dict]) -> list[tuple[dict, dict]]:
  """(truth, prediction) of every image, in the order of `truths`.

  Raises:
    UserError: an image that is there twice, or is in one list only.
  """
  found, known = {p['id']: p for p in predictions}, {t['id'] for t in truths}
  for name, ids, items in (('predictions', found, predictions), ('truths', known, truths)):
    if len(ids) != len(items):
      raise UserError(f'{name} hold {len(items)} images but only {len(ids)} different ids')
  if found.keys() != known:
    example = max(found.keys() ^ known, key=str)  # the same one on every run
    raise UserError(
      f'{len(found)} predicted and {len(known)} labelled images differ, e.g. in {example!r}'
    )
  return [(t, found[t['id']]) for t in truths]
