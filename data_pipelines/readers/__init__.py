"""Readers of the data sets' own formats: one module a format, each with

    read(source: pathlib.Path, split: str, *, labels, images, skipped, ...) -> Iterator[Annotation]

`labels` and `images` are paths relative to `source`. A reader says what the files say: boxes of any
size, anywhere. What is too small, outside the image or of an unknown class is decided in one place,
`data_pipelines.builders.scan`.
"""

import collections
import dataclasses
import logging
import pathlib

import numpy as np

logger = logging.getLogger(__name__)

SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp')


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
  """One image and its objects, in pixels of that image.

  Attributes:
    id: unique in its split; the file name without its suffix.
    image: the image's file.
    names: class name of each object, as the file spells it.
    boxes: float32 [n, 4] x1, y1, x2, y2 or [n, 5] cx, cy, w, h, theta (radians, le90).
    polygons: float32 [n, 8]; the file's quadrilateral, or the corners of the box.
    difficult: int8 [n]; 0, or whatever the file says (COCO's `iscrowd` and `ignore` are 1).
    labels: the file that the objects come from, for messages.
    crop: x1, y1, x2, y2 of the part of the image file that is the image (DroneVehicle's border).
  """

  id: str
  image: pathlib.Path
  names: tuple[str, ...]
  boxes: np.ndarray
  polygons: np.ndarray
  difficult: np.ndarray
  labels: pathlib.Path | None = None
  crop: tuple[int, int, int, int] | None = None


class Skipped:
  """Counts what was left out or mended, by reason, and logs each (file, reason) once.

  Attributes:
    counts: collections.Counter {reason: objects or images}.
  """

  def __init__(self):
    self.counts = collections.Counter()
    self._logged = set()

  def add(self, reason: str, file, count: int = 1) -> None:
    """Adds `count` to `reason`; nothing happens for a count of 0."""
    if not count:
      return
    self.counts[reason] += int(count)
    if (reason, str(file)) not in self._logged:
      self._logged.add((reason, str(file)))
      logger.warning('%s: %s%s', file, reason, f' ({count})' if count > 1 else '')


def find(source: pathlib.Path, relative: str | None, what: str) -> pathlib.Path:
  """Path of `relative` below `source`.

  Raises:
    FileNotFoundError: it is not there; names what was looked for.
  """
  path = pathlib.Path(source) / (relative or '')
  if not path.exists():
    raise FileNotFoundError(f'{path} ({what}) does not exist')
  return path


def image_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """{file name without suffix: path} of the images directly in `folder`."""
  files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
  return {p.stem: p for p in files}
