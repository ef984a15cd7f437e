"""The files that `sm3det predict` writes, and a line for each that it could not."""

import collections
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

from data_pipelines import atomic, errors, rasters
from data_pipelines.errors import UserError
from sm3det_jax.config import ConfigDict
from sm3det_jax.prediction import scene, sources
from sm3det_jax.prediction.journal import Done, Journal, beginning
from sm3det_jax.results import Result, formats, places

NONE = 'no image could be used'
DONE = 'predict.journal'  # in the folder of results, while there is something to do

logger = logging.getLogger(__name__)


class Folder:
  """A folder of results, which mirrors the tree of their images; a context manager.

  Args:
    out: folder, made if absent.
    images: paths, as `sources.of_paths` takes them.
    save: further formats than JSON, of `results.formats.FORMATS`.
    by_task: whether names carry the task.
    key: (parts) -> what results depend on, as `journal.key`.
    resume: take over what the journals have of an interrupted command.

  Attributes:
    paths: of the images that are still to do.

  Raises:
    UserError: unknown format; no name of a folder; no image at all; no file can be made in the
      folder.
    OSError: the folder cannot be made.
  """

  def __init__(
    self,
    out: str | os.PathLike,
    images: Iterable[str | os.PathLike],
    save: Iterable[str],
    by_task: bool,
    key: Callable,
    resume: bool,
  ):
    self._formats = formats.checked(dict.fromkeys(('json', *save)))
    if not os.fspath(out):
      raise UserError('--out is empty: expected a folder for the results')
    self._out, self._by_task, self._key, self._resume = pathlib.Path(out), by_task, key, resume
    self._problems, self._alike = [], collections.defaultdict(list)  # reason: names of images
    self._journals, self._images, self._objects = set(), 0, 0
    given = sources.of_paths(images, self.refuse)
    if not given:
      raise UserError(NONE)
    self._names = dict(places.of_images(given))
    atomic.probe(self._out)
    for folder in filter(pathlib.Path.is_dir, given):
      if not any(path.is_relative_to(folder) for path in self._names):
        self._tell(f'{folder}: no image in it')
    several = len(self._names) > 1
    self._done = Done(self._out / DONE, key(*self._formats), resume) if several else None
    self.paths = [path for path in self._names if not self._is_done(path)]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._done is not None:
      self._done.close()

  def _is_done(self, path):
    try:
      return self._done is not None and path in self._done
    except OSError:  # it is told when it is its turn
      return False

  def refuse(self, path: pathlib.Path, error: Exception) -> None:
    """Notes why a file could not be used."""
    text = errors.line(error)
    self._tell(text if str(path) in text else f'{path}: {text}')

  def journals(
    self, raster: rasters.Raster, path: pathlib.Path, tasks: Mapping[str, ConfigDict]
  ) -> dict[str, Journal]:
    """The journal of each of the tasks that look at an image of several windows."""
    found = {}
    for task, c in tasks.items():
      windows = scene.windows(raster.height, raster.width, c)
      if len(windows) > 1:
        place = self._place(path, task, '.journal')
        place.parent.mkdir(parents=True, exist_ok=True)
        key = self._key(task, windows.tobytes(), beginning(path))
        found[task] = Journal(place, key, self._resume)
        self._journals.add(place)
    return found

  def save(self, one: scene.Scene, results: Mapping[str, Result], plot: Callable) -> None:
    """Writes the results of an image, by task; `plot` as `Detector.plot`."""
    path, whole = one.source, True
    try:
      for task, result in results.items():
        self._place(path, task, '').parent.mkdir(parents=True, exist_ok=True)
        plot(one.raster, result, task, self._place(path, task, '.png'))
        for name in self._formats:
          suffix = formats.FORMATS[name].suffix
          whole &= self._saved(result, self._place(path, task, suffix), name)
    except (OSError, UserError) as error:
      if getattr(error, 'errno', None) in errors.FULL:  # so it will be for the others
        raise
      self.refuse(path, error)
      return
    self._images, self._objects = self._images + 1, self._objects + sum(map(len, results.values()))
    if self._done is not None and whole:  # what lacks something is to be told again
      self._done.add(path)
      for task in results:
        self._place(path, task, '.journal').unlink(missing_ok=True)

  def _saved(self, result, path, name):
    try:
      result.save(path, name)
      return True
    except UserError as error:  # such as no georeference
      reason = str(error).removeprefix(f'{result.name}: ')
      self._alike[reason].append(result.name)
      return False

  def end(self) -> list[str]:
    """All is done: says how much was found, and once what many files lacked.

    Returns:
      One line for each file that could not be used or saved.

    Raises:
      UserError: that were all of them.
    """
    if self._done is not None:
      self._done.path.unlink(missing_ok=True)
    for place in self._journals:
      place.unlink(missing_ok=True)
    for reason, names in self._alike.items():
      more = f' (and {len(names) - 1} more)' * (len(names) > 1)
      self._tell(f'{names[0]}{more}: {reason}')
    before = len(self._names) - len(self.paths)
    if not self._images + before:
      raise UserError(NONE)
    count = lambda n, what: f'{n:,} {what}' + 's' * (n != 1)
    found = f'{count(self._objects, "object")} in {count(self._images, "image")}'
    logger.info('%s: %s%s', self._out, found, f' ({before:,} done before)' * (before > 0))
    return self._problems

  def _place(self, path, task, suffix):
    end = f'.{task}_detections' if self._by_task else '_detections'
    return self._out / f'{self._names[path]}{end}{suffix}'

  def _tell(self, line):
    self._problems.append(line)
    logger.error('%s', line)
