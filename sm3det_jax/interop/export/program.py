"""The function that is exported: images as files have them in, a task's detections out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sm3det_jax.config import check, copied
from sm3det_jax.detector import M2Det
from sm3det_jax.inference import detect_step, own_labels


def detection(config: ConfigDict, task: str, nms: bool = True) -> Callable:
  """(variables, images, shapes) -> {'boxes', 'scores', 'labels', 'valid'}, jitted.

  Images are float32 [B, H, W, bands] with the files' values (those of 8 and 16 bits are exact in
  float32); they are normalised inside. Labels are the task's own; what another task's class is, is
  not valid. It computes in float32 wherever it runs, unless `config.dtype` names a type.

  Args:
    config: of the model.
    task: one of its tasks.
    nms: whether the head's last NMS is part of it; else every candidate comes out, best first.
  """
  config = copied(config)
  if config.dtype == 'auto':  # goes by the platform that exports
    config.dtype = 'float32'
  config = check(config)
  if not nms:
    config.tasks[task].head.nms_iou = None  # which the config of a run cannot say
  step, own = detect_step(M2Det(config), config, task), own_labels(config, task)

  def detect(variables, images, shapes):
    found = step(variables, images, shapes)
    labels = jnp.asarray(own, jnp.int32)[found.labels]
    return {
      'boxes': found.boxes,
      'scores': found.scores,
      'labels': jnp.maximum(labels, 0),
      'valid': found.valid & (labels >= 0),
    }

  return jax.jit(detect)


def arguments(config: ConfigDict, task: str, batch) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Images and shapes of a batch of a task's canvases; `batch` is a number or a symbol."""
  c = config.tasks[task]
  images = jax.ShapeDtypeStruct((batch, *c.size, c.bands), np.float32)
  return images, jax.ShapeDtypeStruct((batch, 2), np.int32)
