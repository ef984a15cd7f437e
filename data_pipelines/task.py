"""One task's samples as padded arrays, a pure function of seed and position."""

import functools
import logging
import zlib

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import transforms
from data_pipelines.classes import label_space
from data_pipelines.errors import UserError
from data_pipelines.source import Source

ATTEMPTS = 10  # draws for a place in a batch, at most: an augmentation may leave no object

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=32)
def _permutation(seed, task, epoch, size):
  # not Grain's, which takes milliseconds for an index of a small set
  return np.random.default_rng([seed, task, 0, epoch]).permutation(size)


class Task:
  """One task's samples as padded arrays; picklable, so that worker processes can have it.

  Args:
    config: the whole config.
    name: which of its tasks.
    role: 'train' or 'test', the part of the task's config that names split and tiling.
    split: another split than that part's.

  Raises:
    UserError: the data set has other boxes or classes than the task, or no image to show.
  """

  def __init__(self, config: ConfigDict, name: str, role: str, split: str | None = None):
    self.name, self.config = name, config.tasks[name]
    self.seed = (config.seed, zlib.crc32(name.encode()))
    split = split or self.config[role].split
    where = f'config.tasks.{name}: data set {self.config.dataset!r}, split {split!r}'
    self.source = Source(config.data_root, self.config.dataset, split, tile=self.config[role].tile)
    if self.source.box != self.config.kind:
      raise UserError(f'{where} has boxes of kind {self.source.box!r}, not {self.config.kind!r}')
    unknown = sorted(set(self.source.classes) - set(self.config.classes))
    if unknown:
      raise UserError(
        f'{where} has classes that config.tasks.{name}.classes={tuple(self.config.classes)} does '
        f'not know: {unknown}; name them there, or prepare the data set without them'
      )
    # the data set's label -> the task's own, the head's
    self.own = np.array([self.config.classes.index(c) for c in self.source.classes], np.int32)
    self.head = np.array(
      [label_space(config, name).index(c) for c in self.source.classes], np.int32
    )
    drop_empty = role == 'train' and not self.config.train.keep_empty
    self.pool = (
      np.flatnonzero(self.source.num_objects) if drop_empty else np.arange(len(self.source))
    )
    if not len(self.pool):
      raise UserError(
        f'{where} has no image to show: {len(self.source)} windows, 0 of them with objects'
      )
    logger.debug('%s: %d of %d windows', where, len(self.pool), len(self.source))
    self.dtype = self.source[self.pool[0]]['image'].dtype

  def draw(self, position: int) -> tuple[dict, int]:
    """Returns the augmented sample of a position and how often it was drawn anew.

    A sample without objects after its augmentation gives way to another one. Attempt `n` is random
    by (seed, task, position, n) alone, and the last one stays whatever it holds.
    """
    epoch, k = divmod(position, len(self.pool))
    k = _permutation(*self.seed, epoch, len(self.pool))[k]
    for attempt in range(ATTEMPTS):
      rng = np.random.default_rng([*self.seed, 1 + attempt, position])
      k = rng.integers(len(self.pool)) if attempt else k
      raw = self.source[self.pool[k]]
      sample = transforms.train_transform(raw, self.config, rng, self.source.classes)
      if len(sample['boxes']) or self.config.train.keep_empty:
        break
    return sample, attempt

  def stack(self, samples: list[dict], size: int) -> tuple[dict, int]:
    """Pads samples to one canvas and `max_objects`, and the batch to `size` images.

    Returns:
      (batch, objects that did not fit): 'images' [n, H, W, C] in the files' dtype, zero outside
      'shapes' [n, 2] (height, width); 'boxes' [n, M, 4|5], 'labels' [n, M] in the head's label
      space, 'valid' [n, M].
    """
    (height, width), most = self.config.size, self.config.max_objects
    batch = {
      'images': np.zeros((size, height, width, self.config.bands), self.dtype),
      'boxes': np.zeros((size, most, 4 if self.config.kind == 'hbb' else 5), np.float32),
      'labels': np.zeros((size, most), np.int32),
      'valid': np.zeros((size, most), bool),
      'shapes': np.full((size, 2), self.config.size, np.int32),
    }
    for row, sample in enumerate(samples):
      image, n = sample['image'], min(len(sample['boxes']), most)
      self._check_image(sample)
      batch['images'][row, : image.shape[0], : image.shape[1]] = image
      batch['boxes'][row, :n] = sample['boxes'][:n]
      batch['labels'][row, :n] = self.head[sample['labels'][:n]]
      batch['valid'][row, :n] = True
      batch['shapes'][row] = image.shape[:2]
    return batch, sum(max(0, len(s['boxes']) - most) for s in samples)

  def _check_image(self, sample):
    image, where = sample['image'], f'config.tasks.{self.name}: image {sample["id"]!r}'
    if image.dtype != self.dtype:
      raise UserError(f'{where} is {image.dtype}, the first of the data set is {self.dtype}')
    if image.shape[0] > self.config.size[0] or image.shape[1] > self.config.size[1]:
      raise UserError(
        f'{where} is {image.shape[:2]} (height, width) after its transform, which exceeds '
        f'config.tasks.{self.name}.size={tuple(self.config.size)}'
      )

  def truth(self, sample: dict) -> dict:
    """Ground truth of an untransformed sample: full-image pixels, the task's own labels."""
    x, y = sample['offset']
    shift = (x, y, x, y) if self.config.kind == 'hbb' else (x, y, 0, 0, 0)
    return {
      'id': sample['id'],
      'boxes': sample['boxes'] + np.array(shift, np.float32),
      'polygons': sample['polygons'] + np.array((x, y) * 4, np.float32),
      'labels': self.own[sample['labels']],
      'difficult': sample['difficult'],
    }
