"""The arrays of a task's batch, by the task's kind: the one table of names, shapes and types.

| kinds | array | | |
|---|---|---|---|
| all | images | [B, H, W, C] | the files' type, zero outside the image |
| all | shapes | [B, 2] | height, width of what is not padding |
| hbb, obb | boxes | [B, M, 4 or 5] | of the image after its transform |
| hbb, obb | labels | [B, M] | in the label space of the head |
| hbb, obb | valid | [B, M] | which of the M rows are objects; they come first |
| hbb, obb | ignored | [B, M] | which are regions to ignore, only of data sets that have such |
| hbb, obb | any other | [B, M, ...] | what the data set has per object beside its boxes |

H, W, C and M are the task's `size`, `bands` and `max_objects`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.boxes import COLUMNS

KINDS = (*COLUMNS, 'image')
TAKEN = ('images', 'shapes', 'valid')  # names that nothing of an object's own may have


class Array(NamedTuple):
  """An array of a batch, without its axis of images."""

  shape: tuple[int, ...]
  dtype: Any


def of_images(task: ConfigDict, dtype: Any = np.uint8) -> dict[str, Array]:
  """What a batch of any kind has.

  Args:
    task: its config.
    dtype: of the files.
  """
  return {
    'images': Array((*task.size, task.bands), np.dtype(dtype)),
    'shapes': Array((2,), np.dtype(np.int32)),
  }


def of_objects(task: ConfigDict, extra: Mapping[str, Array] | None = None) -> dict[str, Array]:
  """What a batch has per object; {} for a task of images.

  Args:
    task: its config.
    extra: what the data set has per object beside its boxes, without the axis of objects.
  """
  if task.kind not in COLUMNS:
    return {}
  rows = dict(extra or {})  # of one object each
  rows['boxes'] = Array((COLUMNS[task.kind],), np.float32)
  rows['labels'], rows['valid'] = Array((), np.int32), Array((), np.bool)
  most = task.max_objects
  return {name: Array((most, *a.shape), np.dtype(a.dtype)) for name, a in rows.items()}


def arrays(task: ConfigDict) -> dict[str, Array]:
  """The whole table for a task of 8-bit images, as its config alone tells it."""
  return of_images(task) | of_objects(task)
