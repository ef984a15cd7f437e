"""Detection on a scene of any size: reading, computing and putting together overlap.

    threads   windows of the raster -> canvases, a few batches ahead
    device    one batch is computed while the next one waits for it
    here      detections -> the scene's pixels -> journal; merged when all are there

Memory is bounded by the batches ahead (`AHEAD`) and the detections, not by the scene.
"""

import collections
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines import rasters, tiling, transforms
from sm3det_jax import logs
from sm3det_jax.config import ConfigDict
from sm3det_jax.inference import to_image
from sm3det_jax.journal import Journal
from sm3det_jax.metrics import merge

BATCH = 4  # windows at once
LARGE = 2  # an image beyond so many canvases is cut into windows, even for a task of whole images
THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2**27  # bytes of windows that are read ahead, at most (but one batch a thread)
IN_FLIGHT = 2  # batches on the device
EVERY = 10.0  # s between two lines of progress where there is no terminal

logger = logging.getLogger(__name__)


def windows(height: int, width: int, c: ConfigDict) -> np.ndarray:
  """Corners of the windows that a task's config cuts an image into; int32 [n, 4]."""
  size, overlap = c.test.tile.size, c.test.tile.overlap
  if not size and (height > LARGE * c.size[0] or width > LARGE * c.size[1]):
    size = min(c.size)
    overlap = size // 4
  return tiling.windows(height, width, size, overlap)


def detect(
  raster: rasters.Raster,
  c: ConfigDict,
  step: Callable,
  own: np.ndarray,
  score_threshold: float | np.ndarray,
  look: Callable = lambda pixels: None,
  journal: Journal | None = None,
  progress: bool = False,
) -> dict:
  """Detections of a whole scene; windows without any data are skipped.

  Args:
    raster: open.
    c: of the task.
    step: (images [n, H, W, bands], shapes [n, 2]) -> Detections, as `inference.detect_step` with
      its variables; called without waiting for what it gives.
    own: from `inference.own_labels`.
    score_threshold: one, or one a class of the task; weaker detections are left out before others
      could yield to them.
    look: called with the pixels of the first window that has data.
    journal: keeps what is found, and has what was found before.
    progress: show how far it is, if there are more windows than one batch.

  Returns:
    `boxes` [k, 4 | 5] in the scene's pixels, `scores` [k], `labels` [k], best first.

  Raises:
    ImageError: a part of the file does not decode.
  """
  places = [tuple(w) for w in windows(raster.height, raster.width, c).tolist()]
  done = dict(journal.rows) if journal else {}
  todo = [place for place in places if place not in done]
  batch = 1 if len(places) == 1 else BATCH
  thresholds = np.broadcast_to(score_threshold, len(c.classes))

  def found_of(found, placed):
    found = jax.device_get(found)
    for row, (place, scale) in enumerate(placed):
      one = to_image(found, row, own, scale, place[:2])
      keep = one['scores'] >= thresholds[one['labels']]
      yield {'window': place} | {k: one[k][keep] for k in ('boxes', 'scores', 'labels')}

  with _shown(len(places), progress and len(places) > batch) as shown:
    shown.add(done.values())
    for rows in _computed(raster, c, step, todo, batch, look, found_of):
      done |= {row['window']: row for row in rows}
      if journal:
        journal.add(rows)
      shown.add(rows)
  return merge.merge_scene(
    [done[place] for place in places], merge.IOU[c.kind], raster.height, raster.width
  )


def _computed(raster, c, step, todo, batch, look, found_of) -> Iterator[list[dict]]:
  """The rows of some windows after the other, while others are read and computed."""
  size = batch * np.prod(c.size) * c.bands * raster.dtype.itemsize
  ahead = int(np.clip(AHEAD // size, THREADS, 4 * THREADS))
  groups = (todo[i : i + batch] for i in range(0, len(todo), batch))
  read = lambda group: [(place, *_canvas(raster, c, place)) for place in group]
  flight, waiting, seen = collections.deque(), [], False
  empty = {'boxes': np.zeros((0, 4 if c.kind == 'hbb' else 5))}
  empty |= {'scores': np.zeros(0), 'labels': np.zeros(0, int)}

  def start(some):
    images = np.zeros((batch, *c.size, c.bands), raster.dtype)
    shapes = np.full((batch, 2), c.size, np.int32)
    for i, (_, image, _) in enumerate(some):
      images[i, : image.shape[0], : image.shape[1]], shapes[i] = image, image.shape[:2]
    flight.append((step(images, shapes), [(place, scale) for place, _, scale in some]))

  for group in _ahead(read, groups, THREADS, ahead):
    if skipped := [{'window': place} | empty for place, image, _ in group if image is None]:
      yield skipped
    waiting += [entry for entry in group if entry[1] is not None]
    if waiting and not seen:
      seen = True
      look(waiting[0][1])
    if len(waiting) >= batch:
      start(waiting[:batch])
      waiting = waiting[batch:]
    if len(flight) > IN_FLIGHT:
      yield list(found_of(*flight.popleft()))
  if waiting:
    start(waiting)
  for entry in flight:
    yield list(found_of(*entry))


def _canvas(raster, c, place):
  """(image as the task's model takes it, resized / original size); None, 1 without any data."""
  pixels = raster.read(*place)
  if pixels is None:
    return None, 1.0
  sample = transforms.test_transform({'image': pixels, 'objects': {}, 'id': raster.name}, c)
  return sample['image'], sample['scale']


def _ahead(function: Callable, items: Iterable, threads: int, most: int) -> Iterator:
  """function(item) of each in order, computed by threads, at most `most` of them ahead."""
  pending = collections.deque()
  with ThreadPoolExecutor(threads) as pool:
    try:
      for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= most:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      for future in pending:
        future.cancel()


@dataclasses.dataclass
class _Shown:
  """How many windows are done, how fast, and how much was found: a bar, or now and then a line."""

  total: int
  bar: Progress | None
  active: bool
  done: int = 0
  count: int = 0
  before: int = -1  # windows done when it started

  def __enter__(self):
    self._start = self._said = time.monotonic()
    if self.bar:
      self._task = self.bar.add_task('windows', total=self.total, text='')
      self.bar.start()
    return self

  def __exit__(self, *_):
    if self.bar:
      self.bar.stop()

  def add(self, rows):
    rows = list(rows)
    self.done, self.count = self.done + len(rows), self.count + sum(len(r['scores']) for r in rows)
    self.before = self.done if self.before < 0 else self.before
    now = time.monotonic()
    speed = (self.done - self.before) / max(now - self._start, 1e-9)
    text = f'{speed:.1f} windows/s, {self.count:,} found before merging'
    if self.bar:
      self.bar.update(self._task, completed=self.done, text=text)
    elif self.active and (now - self._said > EVERY or self.done == self.total):
      self._said = now
      logger.info('%d/%d windows, %s', self.done, self.total, text)


def _shown(total, active):
  if not (active and logs.on_terminal()):
    return _Shown(total, None, active)
  text = TextColumn('{task.fields[text]}')
  columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text
  return _Shown(total, Progress(*columns, console=Console(stderr=True)), active)
