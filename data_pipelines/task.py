"""One task's samples as padded arrays, a pure function of seed and position."""

import functools
import logging
import zlib

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import batch as batch_lib
from data_pipelines import objects as objects_lib
from data_pipelines import radiometry, transforms
from data_pipelines.classes import label_space
from data_pipelines.errors import UserError
from data_pipelines.source import Source

ATTEMPTS = 10  # draws for a place in a batch, at most: an augmentation may leave no object
LOOKS = 4  # images whose range is compared with what the task expects

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
    self.name = name
    self.config = radiometry.resolved(config.data_root, name, config.tasks[name])
    self.seed = (config.seed, zlib.crc32(name.encode()))
    split = split or self.config[role].split
    where = f'config.tasks.{name}: data set {self.config.dataset!r}, split {split!r}'
    self.source = Source(config.data_root, self.config.dataset, split, tile=self.config[role].tile)
    self.extra = {}
    if not self.of_images:
      self._check_boxes(where)
      # the data set's label -> the task's own, the head's
      names = label_space(config, name)
      self.own = np.array([self.config.classes.index(c) for c in self.source.classes], np.int32)
      self.head = np.array([names.index(c) for c in self.source.classes], np.int32)
      self.extra = self.source.extra
    self.pool = np.arange(len(self.source))
    if role == 'train' and not self.keeps_empty:
      self.pool = np.flatnonzero(self.source.num_objects)
    if not len(self.pool):
      raise UserError(
        f'{where} has no image to show: {len(self.source)} windows, 0 of them with objects'
      )
    logger.debug('%s: %d of %d windows', where, len(self.pool), len(self.source))
    self.dtype = self._looked_at(where)

  @property
  def of_images(self) -> bool:
    """Whether the task has images alone: what objects its data set may have are none of its own."""
    return self.config.kind == 'image'

  @property
  def keeps_empty(self) -> bool:
    """Whether it trains on images without objects."""
    return self.of_images or self.config.train.keep_empty

  def _check_boxes(self, where):
    if self.source.box != self.config.kind:
      raise UserError(f'{where} has boxes of kind {self.source.box!r}, not {self.config.kind!r}')
    unknown = sorted(set(self.source.classes) - set(self.config.classes))
    if unknown:
      raise UserError(
        f'{where} has classes that config.tasks.{self.name}.classes={tuple(self.config.classes)} '
        f'does not know: {unknown}; name them there, or prepare the data set without them'
      )

  def _looked_at(self, where):
    """The type of the pixels; says so where the task expects another unit or range."""
    dtype = self.source[self.pool[0]]['image'].dtype
    if dtype != np.uint8 or self.config.input.range != 'as_is':
      for i in self.pool[:: -(-len(self.pool) // LOOKS)]:
        image = transforms.as_input(self.source[i]['image'], self.config, where)
        remark = radiometry.mismatch(image, self.name, self.config)
        if remark:
          logger.warning('%s: %s', where, remark)
          break
    return dtype

  def sample(self, index: int) -> dict:
    """An untransformed sample of the data set (see `Source`), with the objects that count here."""
    sample = self.source[index]
    return sample | {'objects': {}} if self.of_images else sample

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
      raw = self.sample(self.pool[k])
      sample = transforms.train_transform(raw, self.config, rng, self.source.classes)
      if objects_lib.valid(sample['objects']).any() or self.keeps_empty:
        break
    return sample, attempt

  def stack(self, samples: list[dict], size: int) -> tuple[dict, int]:
    """Pads samples to one canvas and `max_objects`, and the batch to `size` images.

    Returns:
      (the arrays of `data_pipelines.batch`, labels in the head's label space; objects that did not
      fit).
    """
    of_objects = batch_lib.of_objects(self.config, self.extra)
    table = batch_lib.of_images(self.config, self.dtype) | of_objects
    batch = {name: np.zeros((size, *array.shape), array.dtype) for name, array in table.items()}
    batch['shapes'][:] = self.config.size
    lost = 0
    for row, sample in enumerate(samples):
      image, found = sample['image'], sample['objects']
      self._check_image(sample)
      batch['images'][row, : image.shape[0], : image.shape[1]] = image
      batch['shapes'][row] = image.shape[:2]
      if of_objects:
        count = objects_lib.count(found)
        valid = objects_lib.valid(found)
        found = found | {'labels': self.head[found['labels']], 'valid': valid}
        found = objects_lib.take(found, np.argsort(~valid, kind='stable'))
        fit = min(count, self.config.max_objects)
        lost += count - fit
        for name in of_objects:
          batch[name][row, :fit] = found[name][:fit]
    return batch, lost

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
    return self._own_labels(
      {'id': sample['id']} | objects_lib.moved(sample['objects'], *sample['offset'])
    )

  def whole_truth(self) -> list[dict]:
    """`truth` of every whole image of the split, without its pixels."""
    return [self._own_labels(truth) for truth in self.source.truth()]

  def _own_labels(self, truth):
    return truth if self.of_images else truth | {'labels': self.own[truth['labels']]}
