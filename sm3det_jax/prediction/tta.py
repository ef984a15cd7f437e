"""Test-time augmentation: a detector looks at views of an image, and one answer is made of all.

Views are the image itself, flipped, turned by quarter turns and resized, in all combinations. Boxes
go back to the image's pixels exactly as the view's pixels came from there, each kind by its own
convention (`data_pipelines.transforms`): an image of width W spans [0, W] for horizontal boxes and
[-0.5, W - 0.5] for oriented ones.
"""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from data_pipelines.errors import UserError
from sm3det_jax import inference, preprocess
from sm3det_jax.config import ConfigDict
from sm3det_jax.detector import PYRAMID_STRIDE, M2Det
from sm3det_jax.geometry import fusion, hbb, nms, obb
from sm3det_jax.heads.common import Detections, map_images

FUSION_IOU = 0.55  # of weighted box fusion, as in its paper
KINDS = ('flips', 'turns', 'scales')
SCALES = (0.25, 4.0)  # bounds of the factors of `scales`


class View(NamedTuple):
  """What is done to an image, in this order; the first three make the eight symmetries of a square.

  A quarter turn is a transposition and one flip.
  """

  transposed: bool  # rows become columns
  down: bool  # flipped upside down
  across: bool  # flipped left to right
  scale: float  # resized / original size


class Augmentation(NamedTuple):
  """Test-time augmentation as `parse` reads it."""

  text: str
  views: tuple[View, ...]  # the image itself first
  merge: str  # one of MERGES


def parse(text: str = '', merge: str | None = None) -> Augmentation | None:
  """Test-time augmentation as the options `--tta` and `--tta_merge` spell it.

  Args:
    text: some of these, by commas: `flips` (4 views: as it is, across, down, both), `turns` (4: by
      0, 90, 180, 270 degrees; 8 with flips), `scales:A:B..` (those at 1, A, B, .. times the size).
      Empty: none.
    merge: 'nms', the head's own suppression once more over all views, or 'wbf' (default), weighted
      box fusion.

  Raises:
    UserError: anything else; `merge` of no views.
  """
  if not text and not merge:
    return None
  merge = merge or 'wbf'
  if merge not in MERGES:
    raise UserError(f'--tta_merge={merge}: expected {" or ".join(MERGES)}')
  if not text:
    raise UserError(f'--tta_merge={merge} needs --tta, such as --tta=flips')
  kinds, scales = set(), (1.0,)
  for part in text.split(','):
    kind, *factors = part.split(':')
    if kind in kinds or kind not in KINDS or bool(factors) != (kind == 'scales'):
      raise _unknown(text, part)
    kinds.add(kind)
    scales += tuple(_factor(text, factor) for factor in factors)
  if len(set(scales)) < len(scales):
    raise UserError(f'--tta={text}: each scale once, and 1 is always there')
  return Augmentation(text, _views('flips' in kinds, 'turns' in kinds, scales), merge)


def detect_step(
  detector: M2Det,
  config: ConfigDict,
  task: str | tuple[str, ...],
  augmentation: Augmentation | None = None,
) -> Callable:
  """Jitted (variables, images [n, H, W, bands], shapes [n, 2]) -> Detections, of all views.

  As `inference.detect_step`, whose very result it is without an augmentation; as many detections at
  most. Views of one size are looked at one after the other by one compiled detector, so that memory
  grows by their detections only.

  Args:
    detector: whose `detect` looks.
    config: of its task; its head's `nms_iou` is that of 'nms'.
    task: whose images they are, in the files' own type; several that share a pass as for `detect`.
    augmentation: from `parse`.
  """
  if augmentation is None:
    return inference.detect_step(detector, config, task)
  look = looks(detector, task, augmentation.views)
  tasks = (task,) if isinstance(task, str) else task

  def run(variables, images, shapes):
    found = tuple(
      merged(x, augmentation.merge, config.tasks[name].head.nms_iou)
      for x, name in zip(look(variables, images, shapes), tasks, strict=True)
    )
    return found[0] if isinstance(task, str) else found

  return inference.on_files(run, config, tasks[0])


def looks(detector: M2Det, task: str | tuple[str, ...], views: Sequence[View]) -> Callable:
  """(variables, normalised images [n, H, W, C], shapes [n, 2]) -> what each view shows.

  That is a tuple of each task's Detections [V, n, D, ..], in the pixels of the images.
  """

  def look(variables, images, shapes):
    found = detector.detect(variables, images, task, shapes)
    return (found,) if isinstance(task, str) else found

  def run(variables, images, shapes):
    groups, found = collections.defaultdict(list), {}
    for view in views:
      groups[_canvas(images.shape[1:3], view)].append(view)
    for group in groups.values():  # of one size: one compiled detector
      shown = [functools.partial(to_view, view=view) for view in group]
      one = lambda k, shown=shown: look(variables, *jax.lax.switch(k, shown, images, shapes))
      of_group = jax.lax.map(one, jnp.arange(len(group)))
      for k, view in enumerate(group):
        seen = jax.tree.map(lambda x, k=k: x[k], of_group)
        found[view] = [x._replace(boxes=from_view(x.boxes, shapes, view)) for x in seen]
    return tuple(jax.tree.map(lambda *x: jnp.stack(x), *(found[view] for view in views)))

  return run


def merged(found: Detections, how: str, iou: float) -> Detections:
  """Detections [n, D, ..] out of those of all views, best first.

  Args:
    found: [V, n, D, ..] of one task, in the pixels of the images.
    how: one of MERGES.
    iou: from which 'nms' suppresses.
  """
  views, images, most = found.scores.shape
  of_image = lambda x: jnp.moveaxis(x, 0, 1).reshape(images, views * most, *x.shape[3:])
  return map_images(lambda x: MERGES[how](x, most, views, iou), Detections(*map(of_image, found)))


def to_view(images: jax.Array, shapes: jax.Array, view: View) -> tuple[jax.Array, jax.Array]:
  """Images as a view shows them: what is not padding is moved, and is at the top left again.

  Args:
    images: normalised [n, H, W, C].
    shapes: int [n, 2] (height, width) of what is not padding.
    view: what is done to them; resized ones are smoothed where they shrink.

  Returns:
    (images [n, H', W', C], with zeros in their padding, and their shapes). H', W' are H, W or,
    transposed, W, H; of resized ones, the next multiple of 32.
  """
  canvas = _canvas(images.shape[1:3], view)
  if view.transposed:
    images, shapes = images.swapaxes(1, 2), shapes[:, ::-1]

  def placed(image, shape):
    for axis, flipped in enumerate((view.down, view.across)):
      # the last row or column goes on, lest resizing blends it with the padding
      index = jnp.minimum(jnp.arange(image.shape[axis]), shape[axis] - 1)
      index = shape[axis] - 1 - index if flipped else index
      image = jnp.take(image, index, axis, mode='clip')
    return image

  images = jax.vmap(placed)(images, shapes)
  if view.scale != 1:
    size, scale = (len(images), *canvas, images.shape[3]), jnp.full(2, view.scale, images.dtype)
    images = jax.image.scale_and_translate(images, size, (1, 2), scale, scale * 0, 'linear')
    shapes = jnp.floor(shapes.astype(float) * view.scale + 0.5).astype(shapes.dtype)
    shapes = jnp.maximum(shapes, 1)
  return preprocess.zero_padding(images, shapes), shapes


def from_view(boxes: jax.Array, shapes: jax.Array, view: View) -> jax.Array:
  """Boxes found in a view, in the pixels of the images that it is of.

  Args:
    boxes: HBB [n, D, 4] or OBB [n, D, 5] (le90).
    shapes: int [n, 2] (height, width) of what is not padding in the images, not in the view.
    view: of `to_view`.

  Returns:
    Boxes as they came; horizontal ones cut off at the image's edge, which resizing may move by half
    a pixel.
  """
  height, width = shapes[:, None, 0].astype(boxes.dtype), shapes[:, None, 1].astype(boxes.dtype)
  edges = (width, height) if view.transposed else (height, width)  # before it was transposed back
  oriented = boxes.shape[-1] == 5
  middle = 0.5 if oriented else 0.0  # of the first pixel

  def moved(values, flipped, size):
    values = (values + middle) / view.scale
    return (size - values if flipped else values) - middle

  if oriented:
    x, y, w, h, theta = (boxes[..., i] for i in range(5))
    x, y = moved(x, view.across, edges[1]), moved(y, view.down, edges[0])
    theta = -theta if view.across != view.down else theta
    if view.transposed:
      x, y, theta = y, x, math.pi / 2 - theta
    return jnp.stack([x, y, w / view.scale, h / view.scale, obb.wrap_angle(theta)], -1)
  x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
  x1, x2 = (moved(x, view.across, edges[1]) for x in ((x2, x1) if view.across else (x1, x2)))
  y1, y2 = (moved(y, view.down, edges[0]) for y in ((y2, y1) if view.down else (y1, y2)))
  corners = [y1, x1, y2, x2] if view.transposed else [x1, y1, x2, y2]
  return hbb.clip(jnp.stack(corners, -1), (height, width))


def _by_nms(found, most, views, iou):
  """What stays of an image's detections where the head's own suppression is done once more."""
  index, valid = nms.nms(found.boxes, found.scores, iou, most, found.labels, found.valid)
  return Detections(found.boxes[index], found.scores[index], found.labels[index], valid)


def _by_fusion(found, most, views, iou):
  """The averages of an image's detections, by an IoU of their own."""
  del iou
  boxes, scores, labels, valid = found
  return Detections(
    *fusion.weighted_box_fusion(boxes, scores, FUSION_IOU, most, views, labels, valid)
  )


MERGES = {'nms': _by_nms, 'wbf': _by_fusion}


def _canvas(size, view):
  """Static (height, width) of a view of images of a static (height, width)."""
  size = size[::-1] if view.transposed else size
  if view.scale == 1:
    return tuple(size)
  return tuple(-(-int(side * view.scale + 0.5) // PYRAMID_STRIDE) * PYRAMID_STRIDE for side in size)


def _views(flips, turns, scales):
  """All combinations; the image itself first."""
  symmetries = [
    (transposed, down, across)
    for transposed, down, across in itertools.product((False, True), repeat=3)
    if (turns or not transposed) and (flips or transposed == (down != across))
  ]
  symmetries = symmetries if flips or turns else symmetries[:1]
  return tuple(View(*symmetry, scale) for scale in scales for symmetry in symmetries)


def _factor(text, factor):
  try:
    value = float(factor)
  except ValueError:
    raise _unknown(text, factor) from None
  if not SCALES[0] <= value <= SCALES[1]:
    raise UserError(f'--tta={text}: scales from {SCALES[0]:g} to {SCALES[1]:g}, not {factor}')
  return value


def _unknown(text, part):
  choices = 'some of flips, turns and scales:0.8:1.25 (any factors) by commas'
  return UserError(f'--tta={text}: expected {choices}, not {part!r}')
