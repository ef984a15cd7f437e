"""Detection on images: the user's `Detector` over a checkpoint, and `predict` over files."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from data_pipelines import georeference, tiling, transforms
from data_pipelines import images as image_files
from data_pipelines.errors import UserError
from data_pipelines.readers import files
from sm3det_jax import checkpoint, compilation_cache
from sm3det_jax.config import ConfigDict
from sm3det_jax.detector import build
from sm3det_jax.inference import detect_step, own_labels, to_image
from sm3det_jax.metrics import merge
from sm3det_jax.results import Result, formats
from sm3det_jax.viz import draw

BATCH = 4  # windows of a large image at once
LARGE = 2  # an image beyond so many canvases is cut into windows, even for a task of whole images

logger = logging.getLogger(__name__)


class Detector:
  """A trained model, ready for images.

  Args:
    config: of its training run.
    variables: Flax dict.

  Attributes:
    config, variables: as given.
    tasks: names that `predict` takes.
  """

  def __init__(self, config: ConfigDict, variables: dict):
    self.config, self.variables = config, variables
    self.tasks = tuple(config.tasks)
    self._detector = build(config)
    self._warned = set()  # tasks whose mean and std were said to be of another unit
    self._steps = functools.cache(functools.partial(detect_step, self._detector, config))

  @classmethod
  def from_checkpoint(cls, workdir: str | os.PathLike) -> 'Detector':
    """The newest checkpoint of a training run.

    What is compiled for it is kept for the next time (`compilation_cache`).

    Raises:
      FileNotFoundError: no run or no checkpoint in `workdir`.
    """
    compilation_cache.enable()
    return cls(*checkpoint.restore_for_inference(workdir))

  def prepare(self, image, task: str) -> np.ndarray:
    """The image [H, W, bands] as the task's model takes it; raises what `predict` says."""
    if task not in self.tasks:
      raise UserError(f'unknown task {task!r}; the model has {", ".join(self.tasks)}')
    c = self.config.tasks[task]
    name = str(image) if isinstance(image, (str, os.PathLike)) else 'the image'
    loaded = _loaded(image)
    for remark, count in loaded.remarks.items():
      logger.warning('%s: %s%s', name, remark, f' ({count})' if count > 1 else '')
    if (turn := loaded.header.orientation) != 1:
      logger.warning(
        '%s: EXIF orientation %d is not applied: boxes are of stored pixels', name, turn
      )
    image = transforms.to_bands(loaded.pixels, c.bands, name)
    remark = image_files.mismatch(image, c.mean, c.std)
    if remark and task not in self._warned:
      self._warned.add(task)
      logger.warning('%s: %s', name, remark)
    return image

  def predict(self, image, task: str, score_threshold: float = 0.3) -> Result:
    """Detections in one image of any size.

    An image that is larger than what the task's model sees at once is cut into overlapping windows
    (`config.tasks.<task>.test.tile`), whose detections are merged by NMS.

    Args:
      image: path, or array [H, W] or [H, W, bands] with RGB order. One band serves as all of the
        task's. Values are taken as they are, as in training; only `plot` stretches them.
      task: one of `tasks`.
      score_threshold: weaker detections are left out.

    Returns:
      `Result`: `boxes` [k, 4 | 5] in the image's pixels, best first; `scores` [k], `labels` [k]
      (the task's own), `names` [k]; where a file lies on the Earth; `plot` and `save`.

    Raises:
      UserError: an unknown task; a file that is no image; bands that the task cannot use; a
        threshold that is no score.
      FileNotFoundError: no such file.
    """
    _check_threshold(score_threshold)
    source, image = image, self.prepare(image, task)
    c = self.config.tasks[task]
    windows = self._windows(image, c)
    batch = 1 if len(windows) == 1 else BATCH
    own, found = own_labels(self.config, task), []
    for i in range(0, len(windows), batch):
      found += self._detect(image, windows[i : i + batch], batch, task, own)
    found = merge.merge([f | {'id': 0} for f in found], merge.IOU[c.kind])[0]
    keep = np.flatnonzero(found['scores'] >= score_threshold)
    found = [found[k][keep] for k in ('boxes', 'scores', 'labels')]
    result = Result(*found, tuple(c.classes), task, image, image.shape[:2])
    return _of_file(result, source) if isinstance(source, (str, os.PathLike)) else result

  def plot(
    self, image, found: Result, task: str, path: str | os.PathLike | None = None, title: str = ''
  ) -> np.ndarray:
    """A picture (uint8 RGB) of `predict`'s result, written as PNG to `path` if that is given."""
    names = tuple(self.config.tasks[task].classes)
    picture = draw.draw(
      _loaded(image).pixels, found['boxes'], found['labels'], names, found['scores'], title or task
    )
    if path is not None:
      draw.save(pathlib.Path(path), picture)
    return picture

  @staticmethod
  def _windows(image, c):
    height, width = image.shape[:2]
    size, overlap = c.test.tile.size, c.test.tile.overlap
    if not size and (height > LARGE * c.size[0] or width > LARGE * c.size[1]):
      size = min(c.size)
      overlap = size // 4
    return tiling.windows(height, width, size, overlap)

  def _detect(self, image, windows, batch, task, own):
    c = self.config.tasks[task]
    images = np.zeros((batch, *c.size, c.bands), image.dtype)
    shapes = np.full((batch, 2), c.size, np.int32)
    scales = []
    for i, (x1, y1, x2, y2) in enumerate(windows):
      sample = {'image': image[y1:y2, x1:x2], 'objects': {}, 'id': 'image'}
      sample = transforms.test_transform(sample, c)
      height, width = sample['image'].shape[:2]
      images[i, :height, :width], shapes[i] = sample['image'], (height, width)
      scales.append(sample['scale'])
    found = jax.device_get(self._steps(task)(self.variables, images, shapes))
    return [
      to_image(found, i, own, scales[i], window[:2]) for i, window in enumerate(windows.tolist())
    ]


def _loaded(image):
  if isinstance(image, (str, os.PathLike)):
    return image_files.load(pathlib.Path(image))
  return image_files.from_array(image)


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

  Returns:
    One line for each file that could not be used, or not be saved so; the others are done all the
    same.

  Raises:
    UserError: unknown task or format; no image at all; a threshold that is no score.
    FileNotFoundError: no run or no checkpoint in `workdir`.
  """
  wanted = formats.checked(dict.fromkeys(('json', *save)))
  detector, out, errors = Detector.from_checkpoint(workdir), pathlib.Path(out), []
  if task not in detector.tasks:
    raise UserError(f'unknown task {task!r}; {workdir} has {", ".join(detector.tasks)}')
  _check_threshold(score_threshold)
  for path, name in _files(images):
    try:
      image = detector.prepare(path, task)
    except (OSError, ValueError) as error:
      errors.append(f'{path}: {error.strerror}' if isinstance(error, OSError) else str(error))
      logger.error('%s', errors[-1])
      continue
    found = _of_file(detector.predict(image, task, score_threshold), path)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    detector.plot(image, found, task, out / f'{name}_detections.png', title=path.name)
    for format in wanted:
      try:
        found.save(out / f'{name}_detections{formats.FORMATS[format].suffix}', format)
      except UserError as error:  # such as no georeference
        errors.append(str(error))
        logger.error('%s', error)
  return errors


def _files(images):
  """(path, name of its results) of every file: its path below the folder that all have in common.

  Pictures that `predict` has made are no images.
  """
  paths, folders = {}, []
  for path in map(pathlib.Path, images):
    inside = path.is_dir()
    found = files.image_files(path).values() if inside else [path]
    folders.append(_whole(path if inside else path.parent))
    paths |= {_whole(p): p for p in found if not (inside and _is_result(p))}
  if not paths:
    raise UserError(f'no image among {", ".join(map(str, images))}')
  common = os.path.commonpath(folders)
  names = files.named((whole.relative_to(common).as_posix(), path) for whole, path in paths.items())
  return [(path, name) for name, path in names.items()]


def _whole(path):
  """The absolute path without `..`, which would lead out of the folder of results."""
  return pathlib.Path(os.path.abspath(path))


def _is_result(path):
  other = path.with_suffix('.json')
  return path.name.endswith('_detections.png') and other.is_file()
