"""The files that `sm3det predict` writes, and a line for each that it could not."""

import collections
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable

from data_pipelines import errors, rasters
from data_pipelines.errors import UserError
from sm3det_jax import sources
from sm3det_jax.journal import Journal
from sm3det_jax.results import Result, formats, places

logger = logging.getLogger(__name__)


class Folder:
  """A folder of results, which mirrors the tree of their images.

  Args:
    out: folder, made if absent.
    images: paths, as `sources.of_paths` takes them.
    save: further formats than JSON, of `results.formats.FORMATS`.
    by_task: whether names carry the task.

  Attributes:
    paths: of the images.
    problems: one line for each file that could not be used or saved.

  Raises:
    UserError: unknown format; no image at all.
    OSError: the folder cannot be made, or not be written.
  """

  def __init__(
    self,
    out: str | os.PathLike,
    images: Iterable[str | os.PathLike],
    save: Iterable[str],
    by_task: bool,
  ):
    self._formats = formats.checked(dict.fromkeys(('json', *save)))
    self._out, self._by_task, self.problems = pathlib.Path(out), by_task, []
    given = sources.of_paths(images)
    self._names = dict(places.of_images(given))
    self.paths = list(self._names)
    self._journals, self._alike = [], collections.defaultdict(list)  # reason: names of images
    self._out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=self._out):  # told before the work, not after it
      pass
    for folder in filter(pathlib.Path.is_dir, given):
      if not any(path.is_relative_to(folder) for path in self.paths):
        self._tell(f'{folder}: no image in it')

  def refuse(self, path: pathlib.Path, error: Exception) -> None:
    """Notes why a file could not be used."""
    text = errors.line(error)
    self._tell(text if str(path) in text else f'{path}: {text}')

  def journals(
    self, key: Callable, resume: bool, raster: rasters.Raster, path: pathlib.Path, tasks: Iterable
  ) -> dict[str, Journal]:
    """The journal of each task that has one.

    Args:
      key: (raster, task) -> what the detections depend on, None for no journal.
      resume: take over what the journals have.
      raster, path, tasks: of an image.
    """
    keys = {task: key(raster, task) for task in tasks}
    found = {}
    for task, text in keys.items():
      if text is not None:
        place = self._place(path, task, '.journal')
        place.parent.mkdir(parents=True, exist_ok=True)
        found[task] = Journal(place, text, resume)
    return found

  def save(self, result: Result, picture: Callable) -> None:
    """Writes the detections of a file in one task.

    Args:
      result: of one of the `paths`.
      picture: called with the `path` of a PNG to write.
    """
    place = lambda suffix: self._place(result.image, result.task, suffix)
    try:
      place('').parent.mkdir(parents=True, exist_ok=True)
      picture(path=place('.png'))
      for name in self._formats:
        self._save(result, place(formats.FORMATS[name].suffix), name)
    except (OSError, UserError) as error:
      if getattr(error, 'errno', None) in errors.FULL:  # so it will be for the others
        raise
      self.refuse(result.image, error)
    else:
      self._journals.append(place('.journal'))

  def _save(self, result, path, name):
    try:
      result.save(path, name)
    except UserError as error:  # such as no georeference
      reason = str(error).removeprefix(f'{result.name}: ')
      self._alike[reason].append(result.name)

  def end(self) -> None:
    """All is done: no journal is needed any more; what many files lacked is told once."""
    for journal in self._journals:
      journal.unlink(missing_ok=True)
    for reason, names in self._alike.items():
      more = f' (and {len(names) - 1} more images)' * (len(names) > 1)
      self._tell(f'{names[0]}{more}: {reason}')

  def _place(self, path, task, suffix):
    end = f'.{task}_detections' if self._by_task else '_detections'
    return self._out / f'{self._names[path]}{end}{suffix}'

  def _tell(self, line):
    self.problems.append(line)
    logger.error('%s', line)
