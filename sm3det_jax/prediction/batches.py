"""Windows of many images -> batches -> the device -> what was found, to the image it is of."""

import collections
import itertools
from typing import Any

import jax
import numpy as np

from sm3det_jax.inference import Pass
from sm3det_jax.prediction.progress import Shown

BATCH = 4  # windows at once
IN_FLIGHT = 2  # batches on the device


class Flow:
  """Batches of one pass and one type of pixels each.

  Args:
    batch: windows at once.
    shown: is told what is done.
  """

  def __init__(self, batch: int, shown: Shown):
    self._batch, self._shown = batch, shown
    self._waiting, self._flight = collections.defaultdict(list), collections.deque()

  def put(self, scene: Any, p: Pass, canvases: list[tuple], late: Any = None) -> None:
    """Takes canvases of a scene for a pass: (window, image, resized / original size).

    Without any data the image is None. The scene `late` has been waited for too long: its batch is
    computed now.
    """
    for place, image, scale in canvases:
      if image is None:
        self._add(scene, p, [p.nothing(place)])
        continue
      scene.look(p, image)
      entries = self._waiting[p, image.dtype]
      entries.append((scene, place, image, scale))
      if len(entries) == self._batch:
        self._start(p, image.dtype)
    for p, dtype in [
      k for k, entries in self._waiting.items() if any(e[0] is late for e in entries)
    ]:
      self._start(p, dtype)
    while len(self._flight) > IN_FLIGHT:
      self._land()

  def end(self) -> None:
    """Computes what still waits."""
    for key in list(self._waiting):
      self._start(*key)
    while self._flight:
      self._land()

  def _start(self, p, dtype):
    c, entries = p.config, self._waiting.pop((p, dtype))
    images = np.zeros((self._batch, *c.size, c.bands), dtype)
    shapes = np.full((self._batch, 2), c.size, np.int32)
    for i, (_, _, image, _) in enumerate(entries):
      images[i, : image.shape[0], : image.shape[1]], shapes[i] = image, image.shape[:2]
    placed = [(scene, place, scale) for scene, place, _, scale in entries]
    self._flight.append((p, p.step(images, shapes), placed))

  def _land(self):
    p, found, placed = self._flight.popleft()
    found = jax.device_get(found)
    rows = [
      (scene, p.rows(found, i, place, scale)) for i, (scene, place, scale) in enumerate(placed)
    ]
    for scene, some in itertools.groupby(rows, key=lambda row: row[0]):
      self._add(scene, p, [row for _, row in some])

  def _add(self, scene, p, rows):
    scene.add(p, rows)
    self._shown.windows(len(rows), sum(len(r['scores']) for row in rows for r in row.values()))
