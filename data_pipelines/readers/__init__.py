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
from collections.abc import Callable, Iterator, Mapping
from xml.etree import ElementTree

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.errors import UserError

logger = logging.getLogger(__name__)

CORNERS = ('x1', 'y1', 'x2', 'y2', 'x3', 'y3', 'x4', 'y4')  # what XML formats call a polygon
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
    extra: {name: [n, ...]} of whatever else the files say of each object; it goes with the object
      into the prepared data set and into batches. Every image has the same names, the same types
      and the same shapes but for n.
  """

  id: str
  image: pathlib.Path
  names: tuple[str, ...]
  boxes: np.ndarray
  polygons: np.ndarray
  difficult: np.ndarray
  labels: pathlib.Path | None = None
  crop: tuple[int, int, int, int] | None = None
  extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Skipped:
  """Counts what was left out or mended, by reason, and logs each (reason, file) once.

  Attributes:
    counts: collections.Counter {reason: objects or images}.
  """

  LOGGED = 20  # files a reason; the others are only counted

  def __init__(self):
    self.counts = collections.Counter()
    self._files = collections.defaultdict(set)

  def add(self, reason: str, file, count: int = 1, level: int = logging.WARNING) -> None:
    """Adds `count` to `reason`; nothing happens for a count of 0."""
    if not count:
      return
    self.counts[reason] += int(count)
    files = self._files[reason]
    if str(file) in files or len(files) > self.LOGGED:
      return
    files.add(str(file))
    if len(files) > self.LOGGED:
      logger.log(level, '%s: over %d files; the others are only counted', reason, self.LOGGED)
    else:
      logger.log(level, '%s: %s%s', file, reason, f' ({count})' if count > 1 else '')


def find(source: pathlib.Path, relative: str, what: str) -> pathlib.Path:
  """Path of `relative` below `source`.

  Raises:
    FileNotFoundError: it is not there; names what was looked for.
  """
  path = pathlib.Path(source) / relative
  if not path.exists():
    raise FileNotFoundError(f'{path} ({what}) does not exist')
  return path


def image_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """{file name without suffix: path} of the images directly in `folder`, in order."""
  return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES}


def pairs(
  labels: pathlib.Path,
  images: pathlib.Path,
  suffix: str,
  skipped: Skipped,
  instead: Callable[[str], str] = str,
) -> Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
  """Yields (image, its label file or None) by file name, images in order.

  Label files without an image are counted: once, since a folder of labels may serve several splits.

  Args:
    labels, images: the folders.
    suffix: of the label files.
    skipped: where label files without an image are counted.
    instead: image name without suffix -> name of another label file that will do.
  """
  files = {p.stem: p for p in labels.iterdir() if p.suffix.lower() == suffix}
  used = set()
  for image in sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES):
    file = files.get(image.stem, files.get(instead(image.stem)))
    used.add(file)
    yield image, file
  if lost := sorted(set(files.values()) - used):
    file = labels / (lost[0].name + (f', ..., {lost[-1].name}' if len(lost) > 1 else ''))
    skipped.add('label file without an image', file, len(lost))


def oriented(image: pathlib.Path, labels, rows: list[tuple], **fields) -> Annotation:
  """The annotation of quadrilaterals: rows of (class name, eight coordinates, difficult)."""
  names, polygons, difficult = zip(*rows, strict=True) if rows else ((), (), ())
  polygons = np.array(polygons, np.float32).reshape(-1, 8)
  return Annotation(
    id=image.stem,
    image=image,
    names=tuple(names),
    boxes=box_lib.polygon_to_obb(polygons),
    polygons=polygons,
    difficult=np.array(difficult, np.int8),
    labels=labels,
    **fields,
  )


def xml_objects(path: pathlib.Path, skipped: Skipped) -> list[ElementTree.Element] | None:
  """The `<object>` elements of a label file, or None, counted, if it is not XML."""
  try:
    return list(ElementTree.parse(path).getroot().iter('object'))
  except ElementTree.ParseError:
    skipped.add('label file is not XML', path)
    return None


def xml_files(
  source: pathlib.Path,
  split: str,
  labels: str,
  images: str,
  skipped: Skipped,
  wanted: Callable[[str], bool] = lambda stem: True,
) -> Iterator[tuple[pathlib.Path, pathlib.Path, list[ElementTree.Element]]]:
  """Yields (image, label file, its `<object>` elements); the rest is counted and left out.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels, images: folders below it.
    skipped: where images without a label file and what is not XML are counted.
    wanted: image name without suffix -> whether to look at it at all.

  Raises:
    FileNotFoundError: a folder is not there.
  """
  folder = find(source, labels, f'{split} labels')
  for image, file in pairs(folder, find(source, images, f'{split} images'), '.xml', skipped):
    if not wanted(image.stem):
      continue
    if not file:
      skipped.add('image without a label file', image)
      continue
    objects = xml_objects(file, skipped)
    if objects is not None:
      yield image, file, objects


def numbers(element: ElementTree.Element, keys, path: pathlib.Path) -> list[float]:
  """The numbers in the children `keys` of an element.

  Raises:
    UserError: one is missing or not a number; names the file.
  """
  texts = [element.findtext(key) for key in keys]
  try:
    return [float(text) for text in texts]
  except (TypeError, ValueError):
    found = dict(zip(keys, texts, strict=True))
    raise UserError(f'{path}: <{element.tag}> needs numbers {", ".join(keys)}: {found}') from None


def flag(element: ElementTree.Element, key: str) -> int:
  """An optional 0 or 1 in a child of an element."""
  text = (element.findtext(key) or '0').strip()
  return int(text) if text.isdigit() else int(text.lower() == 'true')
