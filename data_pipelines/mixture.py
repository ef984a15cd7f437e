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
from ml_collections import ConfigDict

from data_pipelines import objects as objects_lib
from data_pipelines import transforms
from data_pipelines.errors import UserError
from data_pipelines.task import Task

ENDLESS = 2**48  # batches
BLOCK = 2**16  # batches whose mix is drawn at once

logger = logging.getLogger(__name__)


def open_tasks(config: ConfigDict) -> dict[str, Task]:
  """The training data of every task; whoever asks more than one thing of them opens them once.

  Raises:
    UserError: a task without images, or of other classes or boxes than its data set.
    FileNotFoundError: no such data set.
  """
  return {name: Task(config, name, 'train') for name in config.tasks}


def warn_of_missing_tests(config: ConfigDict) -> None:
  """Says in one line which test data are missing or do not fit: hours before `evaluate` does."""
  missing = []
  for name in config.tasks:
    try:
      Task(config, name, 'test')
    except (UserError, FileNotFoundError) as error:
      missing.append(f'{name}: {error}')
  if missing:
    logger.warning('training goes on, but `sm3det evaluate` would stop: %s', '; '.join(missing))


def train_batches(
  config: ConfigDict,
  step: int = 0,
  host: int = 0,
  hosts: int = 1,
  tasks: dict[str, Task] | None = None,
) -> Iterator:
  """Yields this host's part of global batches `step`, `step + 1`, ...

  Args:
    config: see sm3det_jax.config; `seed`, `batch_size`, `workers`, `data_root` and `tasks` count.
    step: the first batch; nothing before it is loaded.
    host: this process among the `hosts` that share a batch.
    hosts: their number; it must divide every task's images of a batch.
    tasks: from `open_tasks`, where they are open already.

  Yields:
    {task: arrays} (see `data_pipelines.batch`), of the tasks that `Mix` gives it. What was drawn
    anew, stayed empty or did not fit is logged as it adds up, and at the end.

  Raises:
    UserError: as `open_tasks`, or a batch that does not divide (at the call); an image that does
      not fit (at the batch that holds it).
  """
  groups = _groups(config, hosts)
  tasks = tasks or open_tasks(config)
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
    if not task.of_images:
      empty = sum(not objects_lib.valid(sample['objects']).any() for sample, _ in drawn)
      counts[name, 'left empty'] = empty
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
  data: Task | None = None,
) -> Iterator[dict]:
  """Yields this host's part of a split, in order, every window exactly once over all hosts.

  Args:
    config: as for `train_batches`.
    task: whose data.
    split: other than `config.tasks.<task>.test.split`.
    batch_size: images of a batch over all hosts; every host yields the same number of batches.
    host: this process among `hosts`.
    hosts: their number; it must divide `batch_size`.
    data: the split, where it is open already.

  Yields:
    `Task.stack`'s arrays of `batch_size / hosts` images, and for the real ones among them, which
    come first: 'ids' (list of str), 'truth' (list of dicts, see `Task.truth`); 'offsets' [n, 2] (x,
    y of the window), 'scales' [n], 'full_sizes' [n, 2]: full-image pixel = box / scale + offset.

  Raises:
    UserError: as `open_tasks` and `train_batches`.
  """
  if batch_size % hosts:
    raise UserError(f'{batch_size=} images do not divide among {hosts=}')
  data = data or Task(config, task, 'test', split)
  load = functools.partial(_load_eval, data, batch_size // hosts, host, hosts)
  batches = grain.MapDataset.range(-(-len(data.pool) // batch_size)).map(load)
  return _closing(_prefetched(batches, config.workers))


def _load_eval(task, local, host, hosts, step):
  first = (step * hosts + host) * local
  raw = [task.sample(i) for i in range(first, min(first + local, len(task.source)))]
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


def fingerprint(config: ConfigDict, tasks: dict[str, Task] | None = None) -> str:
  """Hash of what decides which samples global batch `i` holds; a checkpoint stores it.

  Args:
    config: as for `train_batches`.
    tasks: likewise.
  """
  prints = {
    name: (task.source.fingerprint, config.tasks[name].ratio, task.keeps_empty)
    for name, task in (tasks or open_tasks(config)).items()
  }
  key = config.seed, config.batch_size, prints, *(['random'] * (config.sampling == 'random'))
  text = json.dumps(key, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _groups(config, hosts):
  """Groups of sum(ratio) images of a global batch, which `hosts` must divide."""
  ratios = [c.ratio for c in config.tasks.values()]
  groups, rest = divmod(config.batch_size, sum(ratios))
  if rest or groups % hosts or not groups:
    raise UserError(
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
    raise UserError(f"config.workers={workers!r}: expected 'auto' or a number of processes")
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
