"""Detection in images of any size: reading, computing and putting together overlap.

    threads   windows of the images -> canvases, a few batches ahead
    device    one batch is computed while the next one waits for it
    here      detections -> pixels of their image -> journal; merged when all of an image are there

A batch has windows of whichever images come one after the other, so that small images, of one
window each, fill it together. Memory is bounded by the batches ahead (`AHEAD`), the images that
wait for a batch (`PATIENCE`) and their detections, not by the size of an image or their number.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from data_pipelines import rasters, tiling, transforms
from data_pipelines.errors import UserError
from sm3det_jax.config import ConfigDict
from sm3det_jax.inference import Pass
from sm3det_jax.metrics import merge
from sm3det_jax.prediction.batches import BATCH, Flow
from sm3det_jax.prediction.journal import Journal
from sm3det_jax.prediction.progress import Shown

LARGE = 2  # an image beyond so many canvases is cut into windows, even for a task of whole images
THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2**27  # bytes of windows that are read ahead, at most (but one batch a thread)
PATIENCE = 64  # images, behind the oldest, that may come before its batch is computed unfilled


def windows(height: int, width: int, c: ConfigDict) -> np.ndarray:
  """Corners of the windows that a task's config cuts an image into; int32 [n, 4]."""
  size, overlap = c.test.tile.size, c.test.tile.overlap
  if not size and (height > LARGE * c.size[0] or width > LARGE * c.size[1]):
    size = min(c.size)
    overlap = size // 4
  return tiling.windows(height, width, size, overlap)


class Scene:
  """An image and what its windows have shown so far.

  Args:
    raster: open.
    passes: over it.
    source: what the raster was opened from.
    journals: by task; they keep what is found, and have what was found before.
    owned: whether `close` ends the reading of the raster.

  Attributes:
    raster, passes, source: as given.
    tasks: the configs of all that look.
    todo: {pass: windows that no journal has}.
    error: why a part of the file could not be read, once that is known.
    reading: groups of its windows that are being read.
  """

  def __init__(
    self,
    raster: rasters.Raster,
    passes: Sequence[Pass],
    source: Any = None,
    journals: Mapping[str, Journal] | None = None,
    owned: bool = False,
  ):
    self.raster, self.passes, self.source, self.error = raster, passes, source, None
    self._journals, self._owned = journals or {}, owned
    self.tasks = {task: c for p in passes for task, c in p.tasks.items()}
    size = raster.height, raster.width
    self._places = {p: [tuple(w) for w in windows(*size, p.config).tolist()] for p in passes}
    old = {t: self._journals[t].rows if t in self._journals else {} for t in self.tasks}
    self._rows = {t: dict(rows) for t, rows in old.items()}
    self.todo = {
      p: [place for place in places if not all(place in old[t] for t in p.tasks)]
      for p, places in self._places.items()
    }
    self._left, self._seen, self.reading = sum(map(len, self.todo.values())), set(), 0

  @property
  def count(self) -> int:
    """How many windows there are, over all passes."""
    return sum(map(len, self._places.values()))

  @property
  def done(self) -> int:
    """How many of them are done."""
    return self.count - self._left

  @property
  def finished(self) -> bool:
    """Whether nothing more will come, and nobody reads."""
    return not self.reading and (not self._left or self.error is not None)

  @property
  def objects(self) -> int:
    """How many objects they have shown, before merging."""
    return sum(len(row['scores']) for rows in self._rows.values() for row in rows.values())

  def look(self, p: Pass, pixels: np.ndarray) -> None:
    """Shows a pass the first pixels."""
    if p not in self._seen:
      self._seen.add(p)
      p.look(self.raster, pixels)

  def add(self, p: Pass, rows: list[dict]) -> None:
    """Takes `Pass.rows` of some windows."""
    if self.error is not None:  # it may be closed
      return
    self._left -= len(rows)
    for task in p.tasks:
      new = [row[task] for row in rows if row[task]['window'] not in self._rows[task]]
      self._rows[task] |= {row['window']: row for row in new}
      if new and task in self._journals:
        self._journals[task].add(new)

  def found(self, task: str) -> dict:
    """`boxes` [k, 4 | 5] in the image's pixels, `scores` [k], `labels` [k], best first."""
    places = next(places for p, places in self._places.items() if task in p.tasks)
    iou = merge.IOU[self.tasks[task].kind]
    rows = [self._rows[task][place] for place in places]
    return merge.merge_scene(rows, iou, self.raster.height, self.raster.width)

  def close(self) -> None:
    """Ends reading and writing."""
    for journal in self._journals.values():
      journal.close()
    if self._owned:
      self.raster.close()


@dataclasses.dataclass
class Refused:
  """Stands among scenes for an image that could not be opened, so that it is told in its turn."""

  source: Any
  error: Exception
  passes = ()
  todo = types.MappingProxyType({})
  count = done = objects = 0
  reading: int = 0

  @property
  def finished(self) -> bool:
    """As of a scene."""
    return not self.reading

  def close(self) -> None:
    """There is nothing to end."""


def detect(
  scenes: Iterable[Scene | Refused], shown: Shown | None = None
) -> Iterator[Scene | Refused]:
  """Yields the scenes in their order, each when it is finished; closes it after that.

  Windows without any data are skipped. What has an `error` has no detections.

  Args:
    scenes: taken a few ahead of what is yielded.
    shown: is told what is done.
  """
  shown, scenes = shown or Shown(active=False), iter(scenes)
  first = list(itertools.islice(scenes, 2))
  if not first:
    return
  alone = len(first) == 1 and first[0].count == len(first[0].passes)
  batch = 1 if alone else BATCH  # one window would be computed BATCH times
  order, flow = collections.deque(), Flow(batch, shown)

  def groups():
    for scene in itertools.chain(first, scenes):
      order.append(scene)
      shown.opened(scene.count, scene.done, scene.objects)
      if scene.finished:
        scene.reading += 1
        yield scene, None, []  # it counts among those ahead
      for p, places in scene.todo.items():
        for i in range(0, len(places), batch):
          if scene.error is None:
            scene.reading += 1
            yield scene, p, places[i : i + batch]

  def finished():
    while order and order[0].finished:
      try:
        yield order[0]
      finally:
        order.popleft().close()

  bytes_of = lambda scene, c: math.prod(c.size) * c.bands * scene.raster.dtype.itemsize
  largest = max((bytes_of(s, p.config) for s in first for p in s.passes), default=AHEAD)
  ahead = min(max(AHEAD // (BATCH * largest), THREADS), 4 * THREADS)
  try:
    with contextlib.closing(_ahead(_read, groups(), THREADS, ahead)) as reading:
      for scene, p, canvases in reading:
        scene.reading -= 1
        flow.put(scene, p, canvases, late=order[0] if len(order) > PATIENCE else None)
        yield from finished()
    flow.end()
    yield from finished()
  finally:
    for scene in order:
      scene.close()


def _read(group):
  """(scene, pass, [(window, image as the pass takes it, resized / original size)]) of windows.

  The image is None without any data.
  """
  scene, p, places = group
  canvases = []
  try:
    for place in places:
      pixels, image, scale = scene.raster.read(*place), None, 1.0
      if pixels is not None:
        sample = {'image': pixels, 'objects': {}, 'id': scene.raster.name}
        sample = transforms.test_transform(sample, p.config)
        image, scale = sample['image'], sample['scale']
      canvases.append((place, image, scale))
  except (OSError, UserError) as error:
    scene.error = error
  return scene, p, canvases


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
