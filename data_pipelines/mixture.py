"""Batches of any number of tasks in a fixed ratio, the same ones on any number of hosts.

Global batch `i` is a pure function of `i`, the seed and the data: task `t` brings
`n_t = batch_size * ratio_t / sum(ratios)` images, the positions `i * n_t ... (i + 1) * n_t - 1` of
its endless sequence of reshuffled epochs, and host `h` of `H` loads the `h`-th part of each task's
images. So every host and every device has the ratio, and a run that starts again at step `i`, on
whatever hosts and workers, needs to know nothing but `i`. Grain gives random access by batch, the
prefetching threads and the worker processes, which never touch a JAX backend.
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
    {task: {'images', 'boxes', 'labels', 'valid', 'shapes'}} (see `Task.stack`), `n_t / hosts`
    images a task. What was drawn anew, stayed empty or did not fit is logged as it adds up, and at
    the end.

  Raises:
    ValueError: a task without images, of other classes or boxes than its data set, or a batch that
      does not divide (at the call); an image that does not fit (at the batch that holds it).
  """
  local = {name: n // hosts for name, n in _images_of_each_task(config, hosts).items()}
  tasks = {name: Task(config, name, 'train') for name in local}
  load = functools.partial(_load_train, tasks, local, host, hosts)
  batches = _prefetched(grain.MapDataset.range(step, ENDLESS).map(load), config.workers)
  return _reported(batches, tasks, local, step, hosts)


def _load_train(tasks, local, host, hosts, step):
  """One host's part of global batch `step`, with what befell its samples."""
  batch, counts = {}, collections.Counter()
  for name, task in tasks.items():
    first = (step * hosts + host) * local[name]
    drawn = [task.draw(position) for position in range(first, first + local[name])]
    batch[name], overflow = task.stack([sample for sample, _ in drawn], local[name])
    counts[name, 'drawn anew'] = sum(attempts for _, attempts in drawn)
    counts[name, 'left empty'] = sum(not len(sample['boxes']) for sample, _ in drawn)
    counts[name, 'objects over max_objects'] = overflow
  return batch, counts


def _reported(batches, tasks, local, step, hosts):
  """Hands the batches on; logs a task's counts after its epochs 1, 2, 4, 8, ... and at the end."""
  totals = collections.Counter()

  def report(name):
    kinds = {kind: n for (task, kind), n in totals.items() if task == name and n}
    if kinds:
      text = ', '.join(f'{n} {kind}' for kind, n in kinds.items())
      logger.warning('task %s, epoch %d, counted on this host: %s', name, epochs(name, step), text)

  def epochs(name, step):
    return step * hosts * local[name] // len(tasks[name].pool)

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
  text = json.dumps((config.seed, config.batch_size, tasks), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _images_of_each_task(config, hosts):
  """{task: images of a global batch}, which `hosts` must divide."""
  ratios = {name: c.ratio for name, c in config.tasks.items()}
  groups, rest = divmod(config.batch_size, sum(ratios.values()))
  if rest or groups % hosts or not groups:
    raise ValueError(
      f'config.batch_size={config.batch_size} does not divide into whole groups of '
      f'{" + ".join(map(str, ratios.values()))} images on each of {hosts} hosts; the nearest that '
      f'does is {max(1, groups // hosts) * hosts * sum(ratios.values())}'
    )
  return {name: groups * ratio for name, ratio in ratios.items()}


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
