"""Augmentation and resizing of one sample, as pure functions of (sample, numpy Generator).

A sample is what `data_pipelines.source.Source` yields. What comes out has two more facts, `scale`
(resized / original) and `shape` (height, width of the image, which nothing here pads), and an image
in the file's own dtype. Its objects have no `polygons` any more: they are for evaluation, which
takes them from the untouched sample. What a data set has per object beside its boxes stays with
them, unchanged; a task of images has no objects. The order and the details are those of SM3Det's
released configs (`configs/_base_/datasets/SOI_Det.py`: RResize, RRandomFlip, PolyRandomRotate;
Resize, RandomFlip).

Horizontal boxes are continuous coordinates: pixel j spans [j, j + 1), an image [0, W]. Oriented
ones have a pixel's centre at j, as OpenCV and the released flip `W - cx - 1` do, so that flips and
rotations move boxes exactly as they move pixels. (The released rotation turns boxes about W / 2 and
pixels about (W - 1) / 2; here both turn about the latter.)
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import objects as objects_lib
from data_pipelines import radiometry
from data_pipelines.errors import UserError

RIGHT_ANGLES = (90, 180, -90, -180)
DRAWS = 10  # of a part of an image that has to lie in it

cv2.setNumThreads(0)  # samples are loaded in parallel; threads inside of threads only cost


def resize_keep_ratio(sample: dict, size: tuple[int, int]) -> dict:
  """Scales the image bilinearly to the largest that fits into `size` (height, width).

  An oriented box's sides grow by sqrt(sx * sy), which differ by rounding only, its angle stays.
  Horizontal boxes are cut off at the image's edge.
  """
  image = sample['image']
  height, width = image.shape[:2]
  scale = min(size[0] / height, size[1] / width)
  new = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
  sy, sx = new[0] / height, new[1] / width
  mean = math.sqrt(sx * sy)
  if new != (height, width):
    image = _by_bands(
      image, lambda part: cv2.resize(part, new[::-1], interpolation=cv2.INTER_LINEAR)
    )

  def resized(boxes):
    if _horizontal(boxes):
      return np.clip(boxes * (sx, sy, sx, sy), 0, (new[1], new[0]) * 2)
    return boxes * (sx, sy, mean, mean, 1)

  return _changed(sample, image, resized) | {'scale': mean}


def random_crop(
  sample: dict,
  area: tuple[float, float],
  aspect: tuple[float, float],
  size: tuple[int, int],
  rng: np.random.Generator,
) -> dict:
  """A random part of an image without objects, enlarged bicubically to `size` (height, width).

  Args:
    sample: without objects.
    area: least and largest share of the image's area.
    aspect: least and largest width / height; its logarithm is drawn evenly.
    size: of what comes out.
    rng: draws. A part that sticks out is drawn anew, up to `DRAWS` times; then it is the whole.
  """
  image = sample['image']
  height, width = image.shape[:2]
  h, w = height, width
  for _ in range(DRAWS):
    share = rng.uniform(*area) * height * width
    ratio = math.exp(rng.uniform(*np.log(aspect)))
    found = max(1, round(math.sqrt(share / ratio))), max(1, round(math.sqrt(share * ratio)))
    if found[0] <= height and found[1] <= width:
      h, w = found
      break
  y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
  image = _by_bands(
    image[y : y + h, x : x + w],
    lambda part: cv2.resize(part, tuple(size)[::-1], interpolation=cv2.INTER_CUBIC),
  )
  scale = math.sqrt(size[0] / h * size[1] / w)
  return sample | {'image': image, 'shape': image.shape[:2], 'scale': scale}


def flip(sample: dict, probabilities: tuple[float, float, float], rng: np.random.Generator) -> dict:
  """Flips the image with the given probabilities horizontally, vertically or in both directions.

  Raises:
    UserError: probabilities that sum to more than 1.
  """
  if min(probabilities) < 0 or sum(probabilities) > 1 + 1e-6:
    raise UserError(f'flip={tuple(probabilities)}: three probabilities that sum to at most 1')
  kind = int(np.searchsorted(np.cumsum(probabilities), rng.random(), side='right'))
  across, down = kind in (0, 2), kind in (1, 2)
  image = sample['image']
  height, width = image.shape[:2]
  if across:
    image = image[:, ::-1]
  if down:
    image = image[::-1]

  def flipped(boxes):
    boxes = boxes.copy()
    if _horizontal(boxes):
      if across:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
      if down:
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
      return boxes
    if across:
      boxes[:, 0] = width - boxes[:, 0] - 1
    if down:
      boxes[:, 1] = height - boxes[:, 1] - 1
    if across != down:
      boxes[:, 4] = -boxes[:, 4]
      return box_lib.le90(boxes)
    return boxes

  return _changed(sample, np.ascontiguousarray(image), flipped)


def rotate(
  sample: dict,
  probability: float,
  right_angles: bool,
  rng: np.random.Generator,
  outside: float = 0.0,
) -> dict:
  """Turns image and oriented boxes about the middle, on the same canvas.

  Args:
    sample: with oriented boxes, or without objects.
    probability: of turning it at all.
    right_angles: draw from 90, 180, -90 and -180 degrees, not from all between -180 and 180: for
      samples with round objects, whose boxes do not turn with them.
    rng: draws.
    outside: what stands where the image does not reach, rounded down for whole numbers.
  """
  if rng.random() >= probability:
    return sample
  degrees = float(rng.choice(RIGHT_ANGLES) if right_angles else rng.uniform(-180, 180))
  image = sample['image']
  height, width = image.shape[:2]
  middle = (width - 1) / 2, (height - 1) / 2
  matrix = cv2.getRotationMatrix2D(middle, degrees, 1.0)  # counter-clockwise on the screen
  border = (math.floor(outside) if image.dtype.kind in 'ui' else outside,) * 4
  image = _by_bands(
    image,
    lambda part: cv2.warpAffine(
      part, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=border
    ),
  )

  def turned(boxes):
    boxes = np.float64(boxes)
    boxes[:, :2] = boxes[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    boxes[:, 4] -= math.radians(degrees)
    return box_lib.le90(boxes)

  return _changed(sample, image, turned)


def filter_small(sample: dict, min_side: float) -> dict:
  """Keeps objects with their centre strictly inside the image and both sides over `min_side`."""
  boxes = sample['objects']['boxes']
  height, width = sample['image'].shape[:2]
  if _horizontal(boxes):
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
  else:
    centre, sides = boxes[:, :2], boxes[:, 2:4]
  inside = ((centre > 0) & (centre < (width, height))).all(1)
  keep = inside & (sides > min_side).all(1)
  return sample | {'objects': objects_lib.take(sample['objects'], keep)}


def to_bands(image: np.ndarray, bands: int, name: str = 'image') -> np.ndarray:
  """The image with `bands` bands: one is repeated, any other number must be that already.

  Raises:
    UserError: another number of bands.
  """
  if image.shape[2] not in (1, bands):
    raise UserError(
      f'{name} has {image.shape[2]} bands, the task has bands={bands}; only one band is repeated: '
      f'set bands, mean and std of the task (input.bands chooses some), or convert the images'
    )
  return np.broadcast_to(image, (*image.shape[:2], bands))


def chosen_bands(image: np.ndarray, bands: Sequence[int], name: str = 'image') -> np.ndarray:
  """Those bands of the image, from 1 on, in this order; all of them for ().

  Raises:
    UserError: it has not so many.
  """
  if not bands:
    return image
  if max(bands) > image.shape[2]:
    raise UserError(
      f"{name} has {image.shape[2]} bands, the task's input.bands={tuple(bands)} are not all among "
      'them; name others, or convert the images'
    )
  return image[..., [k - 1 for k in bands]]


def as_input(image: np.ndarray, config, name: str = 'image') -> np.ndarray:
  """The image with the bands that the task's model takes, in the file's own type and unit.

  Args:
    image: [H, W, bands] of a file.
    config: of the task; `input` and `bands`.
    name: for messages.

  Raises:
    UserError: bands that are not there, or another number of them.
  """
  return to_bands(chosen_bands(image, config.input.bands, name), config.bands, name)


def train_transform(sample: dict, config, rng: np.random.Generator, classes=None) -> dict:
  """Resize or crop, flip, rotate (not horizontal boxes) and filter, as the task's config says.

  Args:
    sample: from a Source.
    config: of the task (`sm3det_jax.config.task`); `size`, `bands`, `kind`, its `input` and
      `train` parts.
    rng: the sample's own generator.
    classes: names of the sample's labels; the task's own if not given.

  Raises:
    UserError: horizontal boxes with a rotation, whose envelopes would not be tight; bands.
  """
  train, outside = config.train, radiometry.outside(config.input)
  sample = _chosen(sample, config)
  if config.kind == 'image' and train.crop.area:
    sample = random_crop(sample, train.crop.area, train.crop.aspect, config.size, rng)
  else:
    sample = resize_keep_ratio(sample, config.size)
  sample = flip(sample, train.flip, rng)
  if config.kind == 'obb':
    classes = config.classes if classes is None else classes
    round_ones = [k for k, name in enumerate(classes) if name in train.right_angles]
    right_angles = bool(np.isin(sample['objects']['labels'], round_ones).any())
    sample = rotate(sample, train.rotate, right_angles, rng, outside)
  elif config.kind == 'image':
    sample = rotate(sample, train.rotate, False, rng, outside)
  elif train.rotate:
    raise UserError(
      f'train.rotate={train.rotate} needs oriented boxes, the task has {config.kind!r}'
    )
  if config.kind != 'image':
    sample = filter_small(sample, train.min_side)
  return sample | {'image': to_bands(sample['image'], config.bands, sample['id'])}


def test_transform(sample: dict, config) -> dict:
  """Resizes only; every object stays."""
  sample = resize_keep_ratio(_chosen(sample, config), config.size)
  return sample | {'image': to_bands(sample['image'], config.bands, sample['id'])}


test_transform.__test__ = False  # its name is not a test's


def _chosen(sample, config):
  """The sample with the bands that count, before anything is done to the others."""
  return sample | {'image': chosen_bands(sample['image'], config.input.bands, sample['id'])}


def _horizontal(boxes):
  return boxes.shape[-1] == 4


def _changed(sample, image, change):
  """The sample with another image and `change`d boxes."""
  objects = {name: a for name, a in sample['objects'].items() if name != 'polygons'}
  if objects:
    objects['boxes'] = change(objects['boxes']).astype(np.float32)
  return sample | {'image': image, 'objects': objects, 'shape': image.shape[:2]}


def _by_bands(image, warp):
  """Applies an OpenCV function, which takes at most four bands, to any number of them."""
  bands = image.shape[2]
  parts = [warp(np.ascontiguousarray(image[..., k : k + 4])) for k in range(0, bands, 4)]
  parts = [part[..., None] if part.ndim == 2 else part for part in parts]
  return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
