"""What a prediction is asked for: tasks, thresholds and a device, by the names that people give."""

import difflib
import json
import numbers
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from data_pipelines import radiometry, rasters, transforms
from data_pipelines.errors import UserError
from data_pipelines.georeference import Georeference
from sm3det_jax.config import ConfigDict

SCORE = 0.3  # of classes whose threshold is not given
MIDDLE = 1024  # px a side that are looked at to tell a task
AUTO = 'auto'  # instead of a task: the one that an image's file decides
# keys of a task that say nothing of how its images become the backbone's
OWN = ('kind', 'dataset', 'classes', 'ratio', 'train', 'test', 'head', 'max_objects')


class UndecidedError(UserError):
  """An image that several tasks fit alike."""


class Asked:
  """What of a model's tasks a prediction is asked for.

  Args:
    config: of the model.
    task: a name, several ('sar,rgb', or a sequence), or 'auto'.
    score_threshold: one number, or {class: number}; other classes then have `SCORE`.

  Attributes:
    several: whether results are by task.
    thresholds: {task: the score [classes] from which a detection counts}.

  Raises:
    UserError: a task or class that the model lacks; what is no score.
  """

  def __init__(
    self,
    config: ConfigDict,
    task: str | Sequence[str],
    score_threshold: float | Mapping[str, float] = SCORE,
  ):
    self._config, self.several = config, not isinstance(task, str) or ',' in task
    self._names = names(task, config)
    tasks = _with_objects(config) if self._names == (AUTO,) else self._names
    self.thresholds = thresholds(score_threshold, {t: config.tasks[t].classes for t in tasks})

  def tasks_of(self, raster: rasters.Raster, place: Georeference | None) -> tuple[str, ...]:
    """The tasks that look at an image.

    Raises:
      UserError: it has bands that one of them cannot use; as `decide`.
    """
    if self._names == (AUTO,):
      return (decide(raster, place, self._config),)
    check_bands(raster, self._names, self._config)
    return self._names


def check_bands(raster: rasters.Raster, tasks: Iterable[str], config: ConfigDict) -> None:
  """Raises UserError if a task cannot use the raster's bands."""
  one = np.empty((1, 1, raster.bands))
  for task in tasks:
    transforms.as_input(one, config.tasks[task], raster.name)  # or what is wrong


def names(task: str | Sequence[str], config: ConfigDict) -> tuple[str, ...]:
  """The tasks in 'sar,rgb' or a sequence of names; ('auto',) for 'auto'.

  Raises:
    UserError: no name, or none of the model's.
  """
  parts = task.split(',') if isinstance(task, str) else task
  found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
  if found == (AUTO,) and AUTO not in config.tasks:
    return found
  known = _with_objects(config)
  for name in found or ('',):
    if name not in known:
      raise UserError(f'unknown task {name!r}; the model has {", ".join(known)}')
  return found


def _with_objects(config):
  return [name for name, c in config.tasks.items() if c.kind != 'image']


def of_one_pass(names: Iterable[str], config: ConfigDict) -> list[tuple[str, ...]]:
  """Tasks grouped by what the backbone makes of an image: each group is one pass of it.

  That are tasks of one size, bands, normalisation and windows, where the backbone has no parameters
  of a task's own.
  """
  apart = config.backbone.stems == 'per_task' or config.backbone.get('adapters', False)
  groups = {}
  for name in names:
    c = config.tasks[name]
    read = {k: v for k, v in c.to_dict().items() if k not in OWN}
    tile = c.test.tile.size, c.test.tile.overlap
    key = name if apart else json.dumps([read, tile], sort_keys=True)
    groups.setdefault(key, []).append(name)
  return [tuple(group) for group in groups.values()]


def decide(raster: rasters.Raster, place: Georeference | None, config: ConfigDict) -> str:
  """The one task that an image's bands, type of pixels and georeference leave.

  Tasks of as many bands as the image has go before those that one band is repeated for. Complex
  pixels, and ground control points instead of an affine transform, are radar's: tasks whose name or
  data set says `sar` go before others then. Those whose expected range is another than that of the
  pixels go last.

  Raises:
    UndecidedError: several tasks are left.
    UserError: none is.
  """
  among = {name: config.tasks[name] for name in _with_objects(config)}
  fit = {n: c for n, c in among.items() if _takes(raster, n, config)}
  if not fit:
    bands = ', '.join(f'{name} {c.bands}' for name, c in among.items())
    raise UserError(f'{raster.name} has {raster.bands} bands; the tasks have {bands}')
  fit = {n: c for n, c in fit.items() if c.bands == raster.bands} or fit
  if raster.header.stored.startswith('complex') or (place is not None and place.transform is None):
    fit = {n: c for n, c in fit.items() if 'sar' in f'{n} {c.dataset}'.lower()} or fit
  if len(fit) > 1:
    pixels = _middle(raster)
    fit = {n: c for n, c in fit.items() if pixels is None or _of_range(raster, pixels, n, c)} or fit
  if len(fit) > 1:
    raise UndecidedError(
      f'{raster.name}: bands, type and georeference fit the tasks {", ".join(fit)} alike: name one'
    )
  return next(iter(fit))


def _takes(raster, task, config):
  try:
    check_bands(raster, [task], config)
    return True
  except UserError:
    return False


def _middle(raster):
  """Pixels of its middle; None if none has data."""
  (x1, x2), (y1, y2) = (
    (max(0, (n - MIDDLE) // 2), (n + min(n, MIDDLE)) // 2) for n in (raster.width, raster.height)
  )
  return raster.read(x1, y1, x2, y2)


def _of_range(raster, pixels, task, c):
  """Whether a task can expect these pixels."""
  if pixels.dtype == np.uint8 and c.input.range == 'as_is':
    return max(c.mean) <= 255
  return radiometry.mismatch(transforms.as_input(pixels, c, raster.name), task, c) is None


def parse_threshold(text: str) -> float | dict[str, float]:
  """'0.3', or 'ship=0.5,plane=0.3'.

  Raises:
    UserError: neither.
  """
  try:
    if '=' not in text:
      return float(text)
    pairs = [part.rpartition('=') for part in text.split(',') if part.strip()]
    return {name.strip(): float(score) for name, _, score in pairs}
  except ValueError:
    raise UserError(
      f'score_threshold={text}: expected a number, such as 0.3, or some of classes, such as '
      'ship=0.5,plane=0.3'
    ) from None


def thresholds(
  asked: float | Mapping[str, float], classes: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
  """{task: the score [classes] from which a detection counts}.

  Args:
    asked: one for all, or some of classes; the others have `SCORE`.
    classes: by task.

  Raises:
    UserError: what is no score; a class that no task has.
  """
  of_class, rest = (dict(asked), SCORE) if isinstance(asked, Mapping) else ({}, asked)
  for score in (*of_class.values(), rest):
    if not (isinstance(score, numbers.Real) and 0 <= score <= 1):
      raise UserError(f'score_threshold={score}: scores are between 0 and 1')
  known = list(dict.fromkeys(c for some in classes.values() for c in some))
  for name in of_class:
    if name not in known:
      near = difflib.get_close_matches(name, known, 3) or known
      raise UserError(f'score_threshold: no class {name!r}; near it: {", ".join(near)}')
  return {t: np.array([of_class.get(c, rest) for c in some]) for t, some in classes.items()}


def device(asked: str | int) -> jax.Device:
  """The device that 'cpu', 'gpu', 'tpu', 'cuda:1' or an index means.

  Raises:
    UserError: there is none such; those that there are, are named.
  """
  text = str(asked).lower()
  kind, _, number = text.rpartition(':') if text.isdecimal() else text.partition(':')
  found = _devices(kind or None)
  if not (number or '0').isdecimal() or int(number or 0) >= len(found):
    here = dict.fromkeys(kind for kind in (jax.default_backend(), 'cpu') if _devices(kind))
    names = [f'{kind}:{i}' for kind in here for i in range(len(_devices(kind)))]
    raise UserError(f'device {asked!r}: expected one of {", ".join(names)}')
  return found[int(number or 0)]


def _devices(kind):
  try:
    return jax.local_devices(backend=kind)
  except RuntimeError:  # no such platform
    return []
