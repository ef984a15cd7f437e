"""Detection on images: the user's `Detector` over a checkpoint, and `predict` over files."""

import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines import errors, radiometry, rasters, transforms
from sm3det_jax import compilation_cache, preprocess, sharding
from sm3det_jax.config import ConfigDict, copied
from sm3det_jax.inference import Pass, own_labels
from sm3det_jax.interop.export import reader
from sm3det_jax.prediction import journal, selection, series, sources
from sm3det_jax.prediction.result_files import Folder
from sm3det_jax.results import Result
from sm3det_jax.viz import draw

logger = logging.getLogger(__name__)


class Detector:
  """A trained model, ready for images.

  Args:
    config: of its training run.
    variables: Flax dict.
    device: where to compute, as for `predict`; by default where the variables are.
    augmentation: of `tta.parse`: detects in views of every window too.
    steps: task -> what `inference.detect_step` gives; by default made of the config.

  Attributes:
    config, variables: as given.
    tasks: names that `predict` takes.
  """

  def __init__(
    self,
    config: ConfigDict,
    variables: dict,
    device: str | int | None = None,
    augmentation: Any = None,
    steps: Callable | None = None,
  ):
    self.config, self.variables, self.augmentation = config, variables, augmentation
    self.tasks = tuple(config.tasks)
    model = config
    if device is not None:
      place = selection.device(device)
      self.variables, model = jax.device_put(variables, place), copied(config)
      if steps is None and model.dtype == 'auto':  # goes by what computes by default
        model.dtype = 'float32' if place.platform == 'cpu' else 'bfloat16'
    self._warned = set()  # tasks that were said to expect another unit or range
    self._elsewhere = {}  # device -> this detector there
    # of a task, or a tuple of those of one pass, what `inference.detect_step` gives
    self._made = steps
    self._steps = functools.cache(steps or _steps_of(model, config, augmentation))

  @classmethod
  def from_checkpoint(
    cls,
    workdir: str | os.PathLike,
    device: str | int | None = None,
    augmentation: Any = None,
  ) -> 'Detector':
    """The newest checkpoint of a training run.

    What is compiled for it is kept for the next time (`compilation_cache`).

    Raises:
      FileNotFoundError: no run or no checkpoint in `workdir`.
      UserError: no such device.
    """
    from sm3det_jax import checkpoint  # lazily: an exported model does without

    compilation_cache.enable()
    if device is None:
      return cls(*checkpoint.restore_for_inference(workdir), augmentation=augmentation)
    mesh = sharding.make_mesh({'data': 1, 'expert': 1}, [selection.device(device)])
    return cls(*checkpoint.restore_for_inference(workdir, mesh), device, augmentation)

  @classmethod
  def from_export(cls, file: str | os.PathLike, device: str | int | None = None) -> 'Detector':
    """The model of one task that `sm3det export --format=stablehlo` wrote.

    It runs with jax and numpy alone: neither Flax nor the code of the model is loaded.

    Raises:
      FileNotFoundError: no such file.
      UserError: it or the JSON beside it is damaged or of a newer version; it was made for other
        platforms, or by a jax that this one does not read; no such device.
    """
    compilation_cache.enable()
    config, variables, steps = reader.load(file)
    return cls(config, variables, device, steps=steps)

  def prepare(self, image, task: str) -> np.ndarray:
    """The image [H, W, bands] as the task's model takes it; raises what `predict` says."""
    with rasters.open_raster(image) as raster:
      selection.check_bands(raster, selection.names(task, self.config), self.config)
      pixels = raster.read(0, 0, raster.width, raster.height)
      if pixels is None:
        pixels = np.zeros((raster.height, raster.width, raster.bands), raster.dtype)
      pixels = transforms.as_input(pixels, self.config.tasks[task], raster.name)
      self._look(task, raster, pixels)
      series.remark(raster)
      return pixels

  def predict(
    self,
    source: Any,
    task: str | Sequence[str],
    score_threshold: float | Mapping[str, float] = selection.SCORE,
    stream: bool = False,
    device: str | int | None = None,
    progress: bool = False,
  ) -> Result | dict[str, Result] | list | Iterator:
    """Detections in images of any size and number.

    An image that is larger than what the task's model sees at once is cut into overlapping windows
    (`config.tasks.<task>.test.tile`), which are read as they are needed (`scene.detect`); images of
    one window share batches.

    Args:
      source: one image: path, open raster, or array [H, W] or [H, W, bands] with RGB order; or
        several: a folder, a glob, a text file of paths, a list, a generator. One band serves as all
        of the task's. Values are those of the training's files; the task's `input` is applied.
      task: one of `tasks`; several ('sar,rgb', or a sequence), which share a pass of the backbone
        where they read images alike; or 'auto', the one that an image's bands, type of pixels and
        georeference decide (`selection.decide`).
      score_threshold: weaker detections are left out; one number, or {class: number}.
      stream: give an iterator, that reads and computes a few images ahead and keeps none.
      device: where to compute: 'cpu', 'gpu', 'tpu', with ':1' the second of them, or an index.
      progress: show how far it is.

    Returns:
      Of one image a `Result`: `boxes` [k, 4 | 5] in the image's pixels, best first; `scores` [k],
      `labels` [k] (the task's own), `names` [k]; where a file lies on the Earth; `plot` and `save`.
      Of several images a list, with `stream` an iterator. Of several tasks each is {task: Result}.
      What cannot be used of several images is left out, with a line in the log each.

    Raises:
      UserError: an unknown task, class or device; a threshold that is no score; an image that
        several tasks fit ('auto'); one image, or all, that cannot be used: no image, of bands that
        the task cannot use.
      FileNotFoundError: no such file.
    """
    if device is not None:
      return self._on(device).predict(source, task, score_threshold, stream, None, progress)
    alone, total, images = sources.images(source)
    refused = []

    def refuse(image, error):
      if alone:
        raise error
      refused.append(errors.line(error))
      logger.error('%s', refused[-1])

    asked = selection.Asked(self.config, task, score_threshold)

    def results():
      found, done = series.results(images, asked, self.passes, refuse, total, progress), False
      for _, by_task in found:
        done = True
        yield by_task if asked.several else next(iter(by_task.values()))
      if not done:
        raise sources.nothing(refused)

    if stream:
      return results()
    found = list(results())
    return found[0] if alone else found

  def passes(self, tasks: tuple[str, ...], asked: selection.Asked) -> list[Pass]:
    """The passes of the backbone that give the detections of some tasks."""
    passes = []
    for group in selection.of_one_pass(tasks, self.config):
      step = self._steps(group if len(group) > 1 else group[0])
      run = lambda images, shapes, step=step: step(self.variables, images, shapes)
      passes.append(
        Pass(
          {name: self.config.tasks[name] for name in group},
          run if len(group) > 1 else lambda images, shapes, run=run: (run(images, shapes),),
          {name: own_labels(self.config, name) for name in group},
          {name: asked.thresholds[name] for name in group},
          functools.partial(self._look, group[0]),
        )
      )
    return passes

  def _on(self, device):
    if device not in self._elsewhere:
      again = self.augmentation, self._made
      self._elsewhere[device] = Detector(self.config, self.variables, device, *again)
    return self._elsewhere[device]

  def key(self, *asked) -> str:
    """What detections depend on: the model and what is asked for, as for `journal.key`."""
    setting = json.dumps(self.config.to_dict(), sort_keys=True)
    return journal.key(self._fingerprint, setting, self.augmentation, *asked)

  @functools.cached_property
  def _fingerprint(self):
    return journal.fingerprint(self.variables)

  def _look(self, task, raster, pixels):
    """Says once where a task expects another unit or range than that of pixels."""
    remark = radiometry.mismatch(pixels, task, self.config.tasks[task])
    if remark and task not in self._warned:
      self._warned.add(task)
      logger.warning('%s: %s', raster.name, remark)

  def plot(
    self, image, found: Result, task: str, path: str | os.PathLike | None = None, title: str = ''
  ) -> np.ndarray:
    """A picture (uint8 RGB) of `predict`'s result, written as PNG to `path` if that is given."""
    c = self.config.tasks[task]
    raster = image if isinstance(image, rasters.Raster) else rasters.open_raster(image)
    pixels, boxes = draw.overview(raster, found['boxes'])
    if raster is not image:
      raster.close()
    pixels = preprocess.shown(transforms.as_input(pixels, c, raster.name), c)
    names, title = tuple(c.classes), title or task
    picture = draw.draw(pixels, boxes, found['labels'], names, found['scores'], title)
    if path is not None:
      draw.save(pathlib.Path(path), picture)
    return picture


def build(config: ConfigDict) -> Any:
  """As `detector.build`."""
  from sm3det_jax import detector  # lazily, as tta: an exported model does without

  return detector.build(config)


def _steps_of(model, config, augmentation):
  from sm3det_jax.prediction import tta

  return functools.partial(tta.detect_step, build(model), config, augmentation=augmentation)


def predict(
  workdir: str | os.PathLike,
  task: str | Sequence[str],
  images: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  score_threshold: float | Mapping[str, float] = selection.SCORE,
  save: Sequence[str] = (),
  resume: bool = False,
  device: str | int | None = None,
  augmentation: Any = None,
) -> list[str]:
  """Writes `<name>_detections.png` and `<name>_detections.json` of every image into `out`.

  The names are the images' paths below the folder that they have in common, so that `out` mirrors
  their tree; of names that differ in their suffix only, the suffix is kept. Of several tasks there
  are `<name>.<task>_detections.json` and so on.

  Args:
    workdir: of a training run.
    task, score_threshold, device: as `Detector.predict` takes them.
    augmentation: as `Detector` takes it.
    images: files, folders whose image files are meant, globs, text files of paths.
    out: folder, made if absent.
    save: further formats, of `results.formats.FORMATS`: `<name>_detections.geojson` and so on.
    resume: go on where the same command was interrupted: images that `predict.journal` says are
      done, and windows that are in the journal of a large image, `<name>_detections.journal`, are
      not computed again. A command that comes to its end leaves neither.

  Returns:
    One line for each file that could not be used, or not be saved so; the others are done all the
    same.

  Raises:
    UserError: as `Detector.predict`; an unknown format; no image that could be used.
    FileNotFoundError: no run or no checkpoint in `workdir`.
  """
  detector = Detector.from_checkpoint(workdir, device, augmentation)
  asked = selection.Asked(detector.config, task, score_threshold)
  key = functools.partial(detector.key, task, score_threshold)
  with Folder(out, images, save, asked.several, key, resume) as folder:
    paths = folder.paths
    found = series.results(
      paths, asked, detector.passes, folder.refuse, len(paths), True, folder.journals
    )
    for one, results in found:
      folder.save(one, results, functools.partial(detector.plot, title=one.source.name))
    return folder.end()
