"""What evaluation, prediction and routing share: the jitted pass, and windows to whole images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import UserError
from sm3det_jax import preprocess
from sm3det_jax.config import ConfigDict, label_space
from sm3det_jax.detector import M2Det


def on_files(run: Callable, config: ConfigDict, task: str) -> Callable:
  """Jitted (variables, images, shapes [n, 2]) -> run(variables, normalised images, shapes).

  Args:
    run: what is made of normalised images [n, H, W, bands].
    config: its task's `input`, mean and std count.
    task: whose images they are, in the files' own type.
  """
  c = config.tasks[task]
  normalised = lambda images, shapes: preprocess.model_input(images, c, shapes)
  return jax.jit(lambda variables, x, shapes: run(variables, normalised(x, shapes), shapes))


def detect_step(detector: M2Det, config: ConfigDict, task: str | tuple[str, ...]) -> Callable:
  """(variables, images [n, H, W, bands], shapes [n, 2]) -> Detections, of `on_files`.

  With several tasks, whose images are read and normalised alike, a tuple of their Detections.
  """
  run = lambda variables, images, shapes: detector.detect(variables, images, task, shapes)
  return on_files(run, config, task if isinstance(task, str) else task[0])


def reconstruct_step(model: Any, config: ConfigDict, task: str) -> Callable:
  """(variables, images, shapes), as `detect_step`, -> what the model makes of the images.

  `model.reconstruct(variables, {task: batch})` gives {task: [n, H, W, bands]} of normalised images;
  the step's result is in the units of the task's mean and std.
  """
  c = config.tasks[task]

  def run(variables, images, shapes):
    found = model.reconstruct(variables, {task: {'images': images, 'shapes': shapes}})[task]
    if found.shape != images.shape:
      raise UserError(f'task {task}: images of {images.shape}, reconstructed as {found.shape}')
    mean, std = (jnp.asarray(v, found.dtype)[None, None, None] for v in (c.mean, c.std))
    return found * std + mean

  return on_files(run, config, task)


def own_labels(config: ConfigDict, task: str) -> np.ndarray:
  """Label of the head -> the task's own label, -1 for other tasks' classes."""
  own = list(config.tasks[task].classes)
  return np.array([own.index(n) if n in own else -1 for n in label_space(config, task)])


def to_image(found, row: int, own: np.ndarray, scale: float = 1.0, offset=(0, 0)) -> dict:
  """One window's detections in the pixels of the whole image, with the task's own labels.

  Args:
    found: Detections as numpy arrays.
    row: which window of the batch.
    own: from `own_labels`; other tasks' classes are left out.
    scale: resized / original size of the window.
    offset: x, y of the window in the image.

  Returns:
    `boxes` [k, 4 | 5] float64, `scores` [k], `labels` [k], `full` (True if no row was left unused,
    so that the head's cap may have cost detections).
  """
  labels = own[found.labels[row]]
  keep = found.valid[row] & (labels >= 0)
  boxes = np.asarray(found.boxes[row][keep], np.float64)
  boxes[:, :4] /= scale
  corners = 4 if boxes.shape[-1] == 4 else 2  # x, y twice, or once
  boxes[:, :corners] += np.tile(np.asarray(offset, np.float64), corners // 2)
  return {
    'boxes': boxes,
    'scores': np.asarray(found.scores[row][keep], np.float64),
    'labels': labels[keep],
    'full': bool(found.valid[row].all()),
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
  """Heads that look at the same windows on one pass of the backbone.

  Attributes:
    tasks: their configs, which have one canvas, bands and windows.
    step: (images [n, H, W, bands], shapes [n, 2]) -> Detections of each task, in their order;
      called without waiting for what it gives.
    own: of each task, from `inference.own_labels`.
    thresholds: [classes] of each task; weaker detections are left out before others could yield to
      them.
    look: called with each raster and the first of its windows that has data.
  """

  tasks: Mapping[str, ConfigDict]
  step: Callable
  own: Mapping[str, np.ndarray]
  thresholds: Mapping[str, np.ndarray]
  look: Callable = lambda raster, pixels: None

  @property
  def config(self) -> ConfigDict:
    """Of the first task: what holds for the windows holds for all."""
    return next(iter(self.tasks.values()))

  def rows(self, found: Sequence, row: int, place: tuple, scale: float) -> dict:
    """{task: what it found in the image's pixels} of one window of a batch, on the host."""
    rows = {}
    for task, detections in zip(self.tasks, found, strict=True):
      one = to_image(detections, row, self.own[task], scale, place[:2])
      keep = one['scores'] >= self.thresholds[task][one['labels']]
      columns = {k: one[k][keep] for k in ('boxes', 'scores', 'labels')}
      rows[task] = {'window': place} | columns
    return rows

  def nothing(self, place: tuple) -> dict:
    """`rows` of a window without any data."""
    sides = {task: 4 if c.kind == 'hbb' else 5 for task, c in self.tasks.items()}
    none = {'scores': np.zeros(0), 'labels': np.zeros(0, int)}
    return {t: {'window': place, 'boxes': np.zeros((0, n))} | none for t, n in sides.items()}
