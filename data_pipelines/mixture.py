"""Batches of any number of tasks in a ratio, the same ones on any number of hosts.

Global batch `i` is a pure function of `i`, the seed and the data: task `t` brings the next `n_t`
images of its endless sequence of reshuffled epochs, and host `h` of `H` loads the `h`-th part of
each task's images. `n_t` is `batch_size * ratio_t / sum(ratios)`, or random (see `Mix`). So every
host and every device has the same mix, and a run that starts again at step `i`, on whatever hosts
and workers, needs to know nothing but `i`. Grain gives random access by batch, the prefetching
threads and the worker processes, which never touch a JAX backend.
"""

import collections
import functools
import hashlib
import json
import logging
import os
import sys
import zlib
from collections.abc import Iterator

import grain
import numpy as np

from data_pipelines import transforms
from data_pipelines.source import Source
from sm3det_jax.config import ConfigDict, label_space

ATTEMPTS = 10  # draws for a place in a batch, at most: an augmentation may leave no object
ENDLESS = 2**48  # batches
BLOCK = 2**16  # batches whose mix is drawn at once

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
    ValueError: the data set has other boxes or classes than the task, or no image to show.
  """

  def __init__(self, config: ConfigDict, name: str, role: str, split: str | None = None):
    self.name, self.config = name, config.tasks[name]
    self.seed = (config.seed, zlib.crc32(name.encode()))
    split = split or self.config[role].split
    where = f'config.tasks.{name}: data set {self.config.dataset!r}, split {split!r}'
    self.source = Source(config.data_root, self.config.dataset, split, tile=self.config[role].tile)
    if self.source.box != self.config.box:
      raise ValueError(f'{where} has boxes of kind {self.source.box!r}, not {self.config.box!r}')
    unknown = sorted(set(self.source.classes) - set(self.config.classes))
    if unknown:
      raise ValueError(
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
      raise ValueError(
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
      'boxes': np.zeros((size, most, 4 if self.config.box == 'hbb' else 5), np.float32),
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
      raise ValueError(f'{where} is {image.dtype}, the first of the data set is {self.dtype}')
    if image.shape[0] > self.config.size[0] or image.shape[1] > self.config.size[1]:
      raise ValueError(
        f'{where} is {image.shape[:2]} (height, width) after its transform, which exceeds '
        f'config.tasks.{self.name}.size={tuple(self.config.size)}'
      )

  def truth(self, sample: dict) -> dict:
    """Ground truth of an untransformed sample: full-image pixels, the task's own labels."""
    x, y = sample['offset']
    shift = (x, y, x, y) if self.config.box == 'hbb' else (x, y, 0, 0, 0)
    return {
      'id': sample['id'],
      'boxes': sample['boxes'] + np.array(shift, np.float32),
      'polygons': sample['polygons'] + np.array((x, y) * 4, np.float32),
      'labels': self.own[sample['labels']],
      'difficult': sample['difficult'],
    }


def train_batches(config: ConfigDict, step: int = 0, host: int = 0, hosts: int = 1) -> Iterator:
  """Yields this host's part of global batches `step`, `step + 1`, ...

  Args:
    config: see sm3det_jax.config; `seed`, `batch_size`, `workers`, `data_root` and `tasks` count.
    step: the first batch; nothing before it is loaded.
    host: this process among the `hosts` that share a batch.
    hosts: their number; it must divide every task's images of a batch.

  Yields:
    {task: {'images', 'boxes', 'labels', 'valid', 'shapes'}} (see `Task.stack`), of the tasks that
    `Mix` gives it. What was drawn anew, stayed empty or did not fit is logged as it adds up, and at
    the end.

  Raises:
    ValueError: a task without images, of other classes or boxes than its data set, or a batch that
      does not divide (at the call); an image that does not fit (at the batch that holds it).
  """
  groups = _groups(config, hosts)
  tasks = {name: Task(config, name, 'train') for name in config.tasks}
  mix = Mix(config, groups, {name: len(task.pool) for name, task in tasks.items()})
  load = functools.partial(_load_train, tasks, mix, host, hosts)
  batches = _prefetched(grain.MapDataset.range(step, ENDLESS).map(load), config.workers)
  return _reported(batches, tasks, mix, step)


class Mix:
  """How many images of each task a global batch has, and how many came before it.

  With `config.sampling` 'ratio' these are the task's ratio times the groups. With 'random' each of
  the sum(ratio) parts of a batch, a part being as many images as there are groups, is of a task
  drawn by the sizes of the data sets, so that a batch may lack a task; the few mixes there are, 15
  for four parts of three tasks, are as many programs of static shapes.

  Args:
    config: uses seed, sampling and the tasks' ratios.
    groups: of a batch.
    sizes: {task: images of its data set}.
  """

  def __init__(self, config: ConfigDict, groups: int, sizes: dict[str, int]):
    ratios = [task.ratio for task in config.tasks.values()]
    self.names, self.groups, self.parts = tuple(config.tasks), groups, np.array(ratios)
    self.random = config.sampling == 'random'
    total = sum(sizes.values())
    self.draw = (config.seed, sum(ratios), tuple(sizes[name] / total for name in self.names))

  def of(self, step: int) -> dict[str, tuple[int, int]]:
    """{task: (images before batch `step`, images of it)}."""
    before, parts = step * self.parts, self.parts
    if self.random:
      counts, before = _random_parts(*self.draw, step // BLOCK)
      before, parts = before + counts[: step % BLOCK].sum(0), counts[step % BLOCK]
    pairs = zip(before * self.groups, parts * self.groups, strict=True)
    return {name: (int(a), int(b)) for name, (a, b) in zip(self.names, pairs, strict=True)}


@functools.cache
def _random_parts(seed, parts, shares, block):
  """Parts of each task in the batches of a block [BLOCK, tasks], and in all blocks before it."""
  rng = np.random.default_rng([seed, zlib.crc32(b'mix'), block])
  counts = rng.multinomial(parts, shares, BLOCK)
  if not block:
    return counts, np.zeros(len(shares), int)
  last, before = _random_parts(seed, parts, shares, block - 1)
  return counts, before + last.sum(0)


def _load_train(tasks, mix, host, hosts, step):
  """One host's part of global batch `step`, with what befell its samples."""
  batch, counts = {}, collections.Counter()
  for name, (first, count) in mix.of(step).items():
    task, local = tasks[name], count // hosts
    if not count:
      continue
    first += host * local
    drawn = [task.draw(position) for position in range(first, first + local)]
    batch[name], overflow = task.stack([sample for sample, _ in drawn], local)
    counts[name, 'drawn anew'] = sum(attempts for _, attempts in drawn)
    counts[name, 'left empty'] = sum(not len(sample['boxes']) for sample, _ in drawn)
    counts[name, 'objects over max_objects'] = overflow
  return batch, counts


def _reported(batches, tasks, mix, step):
  """Hands the batches on; logs a task's counts after its epochs 1, 2, 4, 8, ... and at the end."""
  totals = collections.Counter()

  def report(name):
    kinds = {kind: n for (task, kind), n in totals.items() if task == name and n}
    if kinds:
      text = ', '.join(f'{n} {kind}' for kind, n in kinds.items())
      logger.warning('task %s, epoch %d, counted on this host: %s', name, epochs(name, step), text)

  def epochs(name, step):
    return mix.of(step)[name][0] // len(tasks[name].pool)

  try:
    for batch, counts in batches:
      totals.update(counts)
      step += 1
      for name in tasks:
        if epochs(name, step).bit_length() > epochs(name, step - 1).bit_length():
          report(name)
      yield batch
  finally:
    batches.close()
    for name in tasks:
      report(name)


def eval_batches(
  config: ConfigDict,
  task: str,
  split: str | None = None,
  batch_size: int = 8,
  host: int = 0,
  hosts: int = 1,
) -> Iterator[dict]:
  """Yields this host's part of a split, in order, every window exactly once over all hosts.

  Args:
    config: as for `train_batches`.
    task: whose data.
    split: other than `config.tasks.<task>.test.split`.
    batch_size: images of a batch over all hosts; every host yields the same number of batches.
    host: this process among `hosts`.
    hosts: their number; it must divide `batch_size`.

  Yields:
    `Task.stack`'s arrays of `batch_size / hosts` images, and for the real ones among them, which
    come first: 'ids' (list of str), 'truth' (list of dicts, see `Task.truth`); 'offsets' [n, 2] (x,
    y of the window), 'scales' [n], 'full_sizes' [n, 2]: full-image pixel = box / scale + offset.

  Raises:
    ValueError: as `train_batches`.
  """
  if batch_size % hosts:
    raise ValueError(f'{batch_size=} images do not divide among {hosts=}')
  data = Task(config, task, 'test', split)
  load = functools.partial(_load_eval, data, batch_size // hosts, host, hosts)
  batches = grain.MapDataset.range(-(-len(data.pool) // batch_size)).map(load)
  return _closing(_prefetched(batches, config.workers))


def _load_eval(task, local, host, hosts, step):
  first = (step * hosts + host) * local
  raw = [task.source[i] for i in range(first, min(first + local, len(task.source)))]
  samples = [transforms.test_transform(sample, task.config) for sample in raw]
  batch, overflow = task.stack(samples, local)
  if overflow:  # the truth, which is what counts here, has them all
    logger.info('task %s: %d objects over max_objects in an evaluated batch', task.name, overflow)
  batch['ids'] = [sample['id'] for sample in raw]
  batch['truth'] = [task.truth(sample) for sample in raw]
  pad = [{'offset': (0, 0), 'scale': 1.0, 'full_size': task.config.size}] * (local - len(raw))
  for key, dtype in (('offset', np.float32), ('scale', np.float32), ('full_size', np.int32)):
    batch[f'{key}s'] = np.array([sample[key] for sample in samples + pad], dtype)
  return batch


def _closing(batches):
  try:
    yield from batches
  finally:
    batches.close()


def fingerprint(config: ConfigDict) -> str:
  """Hash of what decides which samples global batch `i` holds; a checkpoint stores it."""
  tasks = {}
  for name, c in config.tasks.items():
    source = Source(config.data_root, c.dataset, c.train.split, tile=c.train.tile)
    tasks[name] = (source.fingerprint, c.ratio, c.train.keep_empty)
  key = config.seed, config.batch_size, tasks, *(['random'] * (config.sampling == 'random'))
  text = json.dumps(key, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _groups(config, hosts):
  """Groups of sum(ratio) images of a global batch, which `hosts` must divide."""
  ratios = [c.ratio for c in config.tasks.values()]
  groups, rest = divmod(config.batch_size, sum(ratios))
  if rest or groups % hosts or not groups:
    raise ValueError(
      f'config.batch_size={config.batch_size} does not divide into whole groups of '
      f'{" + ".join(map(str, ratios))} images on each of {hosts} hosts; the nearest that '
      f'does is {max(1, groups // hosts) * hosts * sum(ratios)}'
    )
  return groups


def _prefetched(batches: grain.MapDataset, workers) -> grain.DatasetIterator:
  """An iterator whose elements are loaded ahead, by threads of this or of worker processes."""
  cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  if workers == 'auto':  # a notebook's cells cannot be imported by another process
    workers = 0 if cpus <= 2 or 'ipykernel' in sys.modules else min(8, cpus // 2)
  elif not str(workers).isdecimal():
    raise ValueError(f"config.workers={workers!r}: expected 'auto' or a number of processes")
  workers = int(workers)
  threads = max(1, min(4, cpus // max(1, workers)))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  batches = batches.to_iter_dataset(options)
  if workers:
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain hands absl flags on to its workers
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return iter(batches)
