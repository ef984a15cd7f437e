"""A detector that knows every object by its pixels, and images for it."""

import jax.numpy as jnp
import numpy as np

from sm3det_jax.heads.common import Detections

SLOTS = 4


class Blobs:
  """Finds bright pixels (one each, of value 100 or more): a box of 10 x 6 px, as strong as bright.

  Of several tasks every one finds them, those of horizontal boxes as x1, y1, x2, y2.
  """

  def __init__(self, config):
    self.tasks = config.tasks

  def detect(self, variables, images, task, shapes):
    if not isinstance(task, str):
      return tuple(self.detect(variables, images, name, shapes) for name in task)
    flat = images[..., 0].reshape(len(images), -1)
    place = jnp.argsort(-flat, axis=1)[:, :SLOTS]
    value = jnp.take_along_axis(flat, place, 1)
    y, x = jnp.divmod(place, images.shape[2])
    sides = [jnp.full(x.shape, side) for side in (10.0, 6.0, 0.0)]
    boxes = jnp.stack([x.astype(float), y.astype(float), *sides], -1)
    if self.tasks[task].kind == 'hbb':
      half = boxes[..., 2:4] / 2
      boxes = jnp.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)
    labels = jnp.full(x.shape, variables['label'])
    return Detections(boxes, value / 256, labels, value >= 100)


def dotted(height, width, count=30, seed=0):
  """A dark image with bright dots, over 11 px from each other and from the edges; [n, 2] dots."""
  rng, dots = np.random.default_rng(seed), []
  image = np.full((height, width, 3), 7, np.uint8)
  while len(dots) < count:
    dot = rng.integers(12, (width - 12, height - 12))
    if all(np.abs(dot - other).max() > 11 for other in dots):
      image[dot[1], dot[0]] = 110 + len(dots)
      dots.append(dot)
  return image, np.array(dots)
