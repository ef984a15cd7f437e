"""Detection on images: the user's `Detector` over a checkpoint, and `predict` over files."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines import georeference, rasters, transforms
from data_pipelines import images as image_files
from data_pipelines.errors import UserError
from sm3det_jax import checkpoint, compilation_cache, scene, tta
from sm3det_jax import journal as journal_lib
from sm3det_jax.config import ConfigDict
from sm3det_jax.detector import build
from sm3det_jax.inference import own_labels
from sm3det_jax.results import Result, formats
from sm3det_jax.results.places import of_images as _files
from sm3det_jax.viz import draw

PICTURE = 4096  # px, longest side of a picture; larger images are shown smaller

logger = logging.getLogger(__name__)


class Detector:
  """A trained model, ready for images.

  Args:
    config: of its training run.
    variables: Flax dict.
    augmentation: of `tta.parse`: detects in views of every window too.

  Attributes:
    config, variables, augmentation: as given.
    tasks: names that `predict` takes.
  """

  def __init__(
    self, config: ConfigDict, variables: dict, augmentation: tta.Augmentation | None = None
  ):
    self.config, self.variables, self.augmentation = config, variables, augmentation
    self.tasks = tuple(config.tasks)
    self._detector = build(config)
    self._warned = set()  # tasks whose mean and std were said to be of another unit
    step = functools.partial(tta.detect_step, self._detector, config, augmentation=augmentation)
    self._steps = functools.cache(step)

  @classmethod
  def from_checkpoint(
    cls, workdir: str | os.PathLike, augmentation: tta.Augmentation | None = None
  ) -> 'Detector':
    """The newest checkpoint of a training run.

    What is compiled for it is kept for the next time (`compilation_cache`).

    Raises:
      FileNotFoundError: no run or no checkpoint in `workdir`.
    """
    compilation_cache.enable()
    return cls(*checkpoint.restore_for_inference(workdir), augmentation)

  def open(self, image, task: str) -> rasters.Raster:
    """The image, opened and found to have the task's bands; raises what `predict` says."""
    if task not in self.tasks:
      raise UserError(f'unknown task {task!r}; the model has {", ".join(self.tasks)}')
    raster = image if isinstance(image, rasters.Raster) else rasters.open_raster(image)
    one = np.empty((1, 1, raster.bands))
    transforms.to_bands(one, self.config.tasks[task].bands, raster.name)  # or what is wrong
    return raster

  def prepare(self, image, task: str) -> np.ndarray:
    """The image [H, W, bands] as the task's model takes it; raises what `predict` says."""
    with self.open(image, task) as raster:
      pixels = raster.read(0, 0, raster.width, raster.height)
      if pixels is None:
        pixels = np.zeros((raster.height, raster.width, raster.bands), raster.dtype)
      self._look(raster, task, pixels)
      _remark(raster)
      return transforms.to_bands(pixels, self.config.tasks[task].bands, raster.name)

  def predict(
    self,
    image,
    task: str,
    score_threshold: float = 0.3,
    journal: journal_lib.Journal | None = None,
    progress: bool = False,
  ) -> Result:
    """Detections in one image of any size.

    An image that is larger than what the task's model sees at once is cut into overlapping windows
    (`config.tasks.<task>.test.tile`), which are read as they are needed (`scene.detect`).

    Args:
      image: path, open raster, or array [H, W] or [H, W, bands] with RGB order. One band serves as
        all of the task's. Values are taken as they are, as in training; only `plot` stretches them.
      task: one of `tasks`.
      score_threshold: weaker detections are left out.
      journal: keeps what is found and has what was found before.
      progress: show how far an image of many windows is.

    Returns:
      `Result`: `boxes` [k, 4 | 5] in the image's pixels, best first; `scores` [k], `labels` [k]
      (the task's own), `names` [k]; where a file lies on the Earth; `plot` and `save`.

    Raises:
      UserError: an unknown task; a file that is no image; bands that the task cannot use; a
        threshold that is no score.
      FileNotFoundError: no such file.
    """
    _check_threshold(score_threshold)
    raster, c = self.open(image, task), self.config.tasks[task]
    try:
      step = functools.partial(self._steps(task), self.variables)
      look = functools.partial(self._look, raster, task)
      own = own_labels(self.config, task)
      result = scene.detect(raster, c, step, own, score_threshold, look, journal, progress)
      _remark(raster)
    finally:
      if raster is not image:
        raster.close()
    size = raster.height, raster.width
    found = (result[key] for key in ('boxes', 'scores', 'labels'))
    result = Result(*found, tuple(c.classes), task, image, size)
    return _of_file(result, image) if isinstance(image, (str, os.PathLike)) else result

  def journal(
    self,
    raster: rasters.Raster,
    task: str,
    score_threshold: float,
    place: pathlib.Path,
    resume: bool,
  ):
    """A context: the journal, beside the file `place`, of what `predict` finds in a raster's file.

    It is None for an image of one window. Raises OSError where it cannot be written.
    """
    windows = scene.windows(raster.height, raster.width, self.config.tasks[task])
    if len(windows) == 1:
      return contextlib.nullcontext()
    setting = json.dumps(self.config.to_dict(), sort_keys=True)
    setting = setting, task, score_threshold, self.augmentation
    key = journal_lib.key(raster.name, *setting, windows.tobytes(), self._fingerprint)
    return journal_lib.Journal(place.with_suffix('.journal'), key, resume)

  @functools.cached_property
  def _fingerprint(self):
    return journal_lib.fingerprint(self.variables)

  def _look(self, raster, task, pixels):
    """Says once where a task's mean and std are of another unit than pixels."""
    c = self.config.tasks[task]
    remark = image_files.mismatch(pixels, c.mean, c.std)
    if remark and task not in self._warned:
      self._warned.add(task)
      logger.warning('%s: %s', raster.name, remark)

  def plot(
    self, image, found: Result, task: str, path: str | os.PathLike | None = None, title: str = ''
  ) -> np.ndarray:
    """A picture (uint8 RGB) of `predict`'s result, written as PNG to `path` if that is given."""
    names = tuple(self.config.tasks[task].classes)
    raster = image if isinstance(image, rasters.Raster) else rasters.open_raster(image)
    pixels, scale = raster.overview(PICTURE)
    if raster is not image:
      raster.close()
    boxes = np.array(found['boxes'], np.float64)
    boxes[:, :4] *= scale
    picture = draw.draw(pixels, boxes, found['labels'], names, found['scores'], title or task)
    if path is not None:
      draw.save(pathlib.Path(path), picture)
    return picture


def _remark(raster):
  for remark, count in raster.remarks.items():
    logger.warning('%s: %s%s', raster.name, remark, f' ({count})' if count > 1 else '')
  if (turn := raster.header.orientation) != 1:
    logger.warning(
      '%s: EXIF orientation %d is not applied: boxes are of stored pixels', raster.name, turn
    )


def _of_file(result, path):
  return dataclasses.replace(result, image=path, georeference=georeference.read(path))


def _check_threshold(score):
  if not 0 <= score <= 1:
    raise UserError(f'score_threshold={score:g}: scores are between 0 and 1')


def predict(
  workdir: str | os.PathLike,
  task: str,
  images: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  score_threshold: float = 0.3,
  save: Sequence[str] = (),
  resume: bool = False,
  augmentation: tta.Augmentation | None = None,
) -> list[str]:
  """Writes `<name>_detections.png` and `<name>_detections.json` of every image into `out`.

  The names are the images' paths below the folder that they have in common, so that `out` mirrors
  their tree; of names that differ in their suffix only, the suffix is kept.

  Args:
    workdir: of a training run.
    task: whose head looks at the images.
    images: files, or folders whose image files are meant.
    out: folder, made if absent.
    score_threshold: weaker detections are left out.
    save: further formats, of `results.formats.FORMATS`: `<name>_detections.geojson` and so on.
    resume: go on where the same command was interrupted: what is in the journals of images of
      several windows, `<name>_detections.journal`, is not computed again. A command that comes to
      its end removes them.
    augmentation: as `Detector` takes it.

  Returns:
    One line for each file that could not be used, or not be saved so; the others are done all the
    same.

  Raises:
    UserError: unknown task or format; no image at all; a threshold that is no score.
    FileNotFoundError: no run or no checkpoint in `workdir`.
  """
  wanted = formats.checked(dict.fromkeys(('json', *save)))
  detector, out, errors = Detector.from_checkpoint(workdir, augmentation), pathlib.Path(out), []
  if task not in detector.tasks:
    raise UserError(f'unknown task {task!r}; {workdir} has {", ".join(detector.tasks)}')
  _check_threshold(score_threshold)
  out.mkdir(parents=True, exist_ok=True)  # one that cannot be is told before the work
  journals = []
  for path, name in _files(images):
    place = out / f'{name}_detections.json'
    try:
      raster = detector.open(path, task)
    except (OSError, ValueError) as error:
      errors.append(f'{path}: {error.strerror}' if isinstance(error, OSError) else str(error))
      logger.error('%s', errors[-1])
      continue
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
      with raster, detector.journal(raster, task, score_threshold, place, resume) as journal:
        found = detector.predict(raster, task, score_threshold, journal, progress=True)
        detector.plot(raster, found, task, place.with_suffix('.png'), title=path.name)
    except image_files.ImageError as error:  # found when it came to that part of the file
      errors.append(str(error))
      logger.error('%s', error)
      continue
    journals.append(place.with_suffix('.journal'))
    errors += _saved(_of_file(found, path), out / f'{name}_detections', wanted)
  for journal in journals:
    journal.unlink(missing_ok=True)
  return errors


def _saved(found, place, wanted):
  """Saves a result in some formats; what could not be, a line each."""
  errors = []
  for format in wanted:
    try:
      found.save(place.with_name(place.name + formats.FORMATS[format].suffix), format)
    except UserError as error:  # such as no georeference
      errors.append(str(error))
      logger.error('%s', error)
  return errors
