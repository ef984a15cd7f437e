"""Images one after the other, through the heads that are asked for, to their results."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from data_pipelines import georeference, rasters
from data_pipelines.errors import UserError
from sm3det_jax.prediction import batches, scene, sources
from sm3det_jax.prediction.progress import Shown
from sm3det_jax.prediction.selection import Asked, UndecidedError
from sm3det_jax.results import Result

logger = logging.getLogger(__name__)


def results(
  images: Iterable,
  asked: Asked,
  passes: Callable,
  refuse: Callable,
  total: int | None = None,
  progress: bool = False,
  journals: Callable = lambda raster, image, tasks: {},
) -> Iterator[tuple[scene.Scene, dict[str, Result]]]:
  """Yields each image, still open, and its results by task.

  Args:
    images: paths, arrays or open rasters, taken a few ahead of what is yielded.
    asked: which tasks look, and what of it counts.
    passes: (tasks, asked) -> the passes of the backbone that they need.
    refuse: called with an image that cannot be used, and the error.
    total: how many there are, None for who knows.
    progress: show how far it is.
    journals: (raster, image, {task: config}) -> `scene.Scene.journals`.
  """
  passes = functools.cache(functools.partial(passes, asked=asked))

  def scenes():
    for image in images:
      try:
        yield _opened(image, asked, passes, journals)
      except UndecidedError:
        raise
      except (OSError, UserError) as error:
        yield scene.Refused(image, error)

  with Shown(total, batches.BATCH + 1, progress) as shown:
    for one in scene.detect(scenes(), shown):
      if one.error is not None:
        shown.image(0)
        refuse(one.source, one.error)
        continue
      found = _found(one)
      shown.image(sum(map(len, found.values())))
      remark(one.raster)
      yield one, found


def _opened(image, asked, passes, journals):
  with contextlib.ExitStack() as stack:
    own = not isinstance(image, rasters.Raster)
    raster = sources.opened(image)
    if own:
      stack.enter_context(raster)
    over = passes(asked.tasks_of(raster, _place(image)))
    tasks = {name: c for p in over for name, c in p.tasks.items()}
    one = scene.Scene(raster, over, image, journals(raster, image, tasks), own)
    stack.pop_all()  # the scene closes it
  return one


def _place(image: Any):
  return georeference.read(image) if isinstance(image, (str, os.PathLike)) else None


def _found(one):
  """{task: Result} of a finished scene."""
  size, place, results = (one.raster.height, one.raster.width), _place(one.source), {}
  image = np.asarray(one.source) if hasattr(one.source, '__array__') else one.source
  for task, c in one.tasks.items():
    found = one.found(task)
    columns = found['boxes'], found['scores'], found['labels']
    results[task] = Result(*columns, tuple(c.classes), task, image, size, place)
  return results


def remark(raster: rasters.Raster) -> None:
  """Says what is to be said of a raster that was read."""
  for text, count in raster.remarks.items():
    logger.warning('%s: %s%s', raster.name, text, f' ({count})' if count > 1 else '')
  if (turn := raster.header.orientation) != 1:
    logger.warning(
      '%s: EXIF orientation %d is not applied: boxes are of stored pixels', raster.name, turn
    )
