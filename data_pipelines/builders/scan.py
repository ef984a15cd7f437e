"""From annotations to records: checks every image and box once, before anything is written.

The policy for boxes, the reference's where it has one:

| box | what happens |
|---|---|
| not finite | left out, counted |
| OBB with a side under 2 px (zero area included) | left out, counted (mmrotate's loader) |
| HBB with a side under 1 px | left out, counted (mmdet's loader) |
| wholly outside the image | left out, counted (mmdet's loader) |
| partly outside the image | kept as it is, never clipped |
| self-crossing quadrilateral | kept as its minimum-area rectangle, counted |
| class in `ignore` | left out, counted |
| class that nobody knows | ValueError naming class, file and the known classes |

An image that does not decode is left out and counted; one without objects is kept. What is to be
said of its pixels (none in places, an EXIF rotation) is counted, as are images that are of another
type or number of bands than most of the set.
"""

import collections
import concurrent.futures
import dataclasses
import difflib
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import images
from data_pipelines import objects as objects_lib
from data_pipelines.builders import decisions
from data_pipelines.builders.decisions import Decisions
from data_pipelines.errors import UserError
from data_pipelines.images import statistics
from data_pipelines.readers import Annotation, Skipped

logger = logging.getLogger(__name__)

AHEAD = 32  # images that are read ahead: each has its counts of values
MIN_SIDE = {'hbb': 1.0, 'obb': 2.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
  """One image as it will be stored: what a record holds, less the pixels."""

  id: str
  image: pathlib.Path
  crop: tuple[int, int, int, int] | None
  height: int
  width: int
  bands: int
  as_is: bool  # the file's bytes are stored unchanged
  checksum: int  # crc32 of the file
  objects: dict[str, np.ndarray]  # see data_pipelines.objects; `difficult` is int8, as in the files
  dtype: str = 'uint8'  # of the pixels
  tiles: np.ndarray | None = None  # [n, 4], of a set of tiles: the windows that count

  @property
  def large(self) -> bool:
    return self.tiles is not None or max(self.height, self.width) > images.WHOLE


def scan(
  annotations: Sequence[Annotation],
  box: str,
  label: Callable[[str, pathlib.Path], int | None],
  skipped: Skipped,
  pixels: statistics.Statistics,
  how: Decisions = decisions.AUTO,
) -> Iterator[Entry]:
  """Yields an entry for each readable image.

  Args:
    annotations: from a reader.
    box: 'hbb' or 'obb'; oriented annotations give their enclosing boxes as 'hbb'. 'image' takes no
      objects at all.
    label: class name, file -> label, None for a class to leave out (`labeller`).
    skipped: where what is left out is counted.
    pixels: where the values of the images are counted.
    how: which view and size of the images the labels are of.

  Raises:
    UserError: a class nobody knows, or horizontal boxes for box='obb'.
  """
  kinds = collections.defaultdict(list)
  with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
    for number, (a, file) in enumerate(_looked_at(annotations, pool)):
      if number and not number % 5000:
        logger.info('%d images read', number)
      if isinstance(file, str):
        reason, *detail = file.split(' (', 1)
        skipped.bad(f'image {reason}', ' ('.join([str(a.image), *detail]))
        continue
      size = file['height'], file['width']
      counts = file.pop('counts')
      a = decisions.in_stored_view(a, size, file.pop('orientation'), how, skipped)
      if a is None:
        continue
      pixels.add(counts)
      for remark, count in file.pop('remarks').items():
        skipped.add(remark, a.image, count)
      kinds[file['dtype'], file['bands']].append(a.image)
      x1, y1, x2, y2 = a.crop or (0, 0, file['width'], file['height'])
      size = dict(height=y2 - y1, width=x2 - x1)
      kept = {} if box == 'image' else clean(a, **size, box=box, label=label, skipped=skipped)
      yield Entry(id=a.id, image=a.image, crop=a.crop, **file | size, objects=kept)
  _name_mixture(kinds, skipped)


def _name_mixture(kinds, skipped):
  """Counts the images that a training on the others will not take.

  Args:
    kinds: {(type, bands): their images}.
    skipped: where they are counted.
  """
  listed = [f'{dtype} in {bands} band(s) ({len(found)})' for (dtype, bands), found in kinds.items()]
  if len(listed) > 1:
    skipped.note(f'images are {", ".join(listed)}')
  types, bands = collections.Counter(), collections.Counter()
  for (dtype, count), found in kinds.items():
    types[dtype] += len(found)
    bands[count] += len(found) if count > 1 else 0  # one band is repeated for any task
  for (dtype, count), found in kinds.items():
    (most, _), (usual, _) = types.most_common(1)[0], bands.most_common(1)[0]
    for image in found:
      if dtype != most:
        skipped.add(f'image of {dtype} in a set of {most}: training takes one type', image)
      if count not in (1, usual):
        skipped.add(f'image of {count} bands in a set of {usual}: training takes one number', image)


def _looked_at(annotations, pool):
  """Yields (annotation, what `_look` finds) in order, some of them found ahead."""
  for start in range(0, len(annotations), AHEAD):
    group = annotations[start : start + AHEAD]
    yield from zip(group, pool.map(_look, group), strict=True)


def _look(a):
  """What an entry says of the image file, or why it cannot be read."""
  try:
    data = a.image.read_bytes()
    loaded = images.load(a.image, data)
  except images.ImageError as e:
    return str(e).removeprefix(f'{a.image}: ')
  except OSError as e:
    return f'unreadable ({e.strerror})'
  height, width, bands = loaded.pixels.shape
  x1, y1, x2, y2 = a.crop or (0, 0, width, height)
  missing = loaded.missing if loaded.missing is None else loaded.missing[y1:y2, x1:x2]
  return dict(
    height=height,
    width=width,
    bands=bands,
    as_is=a.crop is None and images.stores_as_is(data, loaded.pixels),
    checksum=zlib.crc32(data),
    dtype=loaded.pixels.dtype.name,
    orientation=loaded.header.orientation,
    counts=statistics.count(loaded.pixels[y1:y2, x1:x2], missing),
    remarks=loaded.remarks,
  )


def clean(a: Annotation, height: int, width: int, box: str, label, skipped) -> dict:
  """The objects that an annotation keeps under the policy above, as `Entry` has them."""
  where = a.labels or a.image
  columns = box_lib.COLUMNS[box]
  if len(a.boxes) and a.boxes.shape[1] < columns:
    raise UserError(f'{where}: horizontal boxes, but the data set is to hold oriented ones')
  boxes, polygons = np.array(a.boxes, np.float32), np.array(a.polygons, np.float32).reshape(-1, 8)
  if box == 'hbb' and boxes.shape[1] == 5:
    boxes = box_lib.polygon_to_hbb(polygons)
    polygons = box_lib.to_polygon(boxes).astype(np.float32)
  boxes = boxes.reshape(-1, columns)
  labels = [label(name, where) for name in a.names]
  keep = np.ones(len(boxes), bool)

  def drop(bad, reason, asked=False):
    bad, place = np.asarray(bad, bool) & keep, f'{where} [{a.id}]'
    if asked:
      skipped.add(reason, place, bad.sum(), logging.INFO)
    else:
      skipped.bad(reason, place, count=bad.sum())
    keep[bad] = False

  for name in sorted({n for n, k in zip(a.names, labels, strict=True) if k is None}):
    drop([n == name for n in a.names], f'object of the ignored class {name!r}', asked=True)
  drop(~(np.isfinite(boxes).all(1) & np.isfinite(polygons).all(1)), 'box not finite')
  sides = boxes[:, 2:4] - boxes[:, :2] if columns == 4 else boxes[:, 2:4]
  drop(sides.min(1, initial=np.inf) < MIN_SIDE[box], f'box with a side under {MIN_SIDE[box]:g} px')
  x1, y1, x2, y2 = box_lib.polygon_to_hbb(polygons).T
  drop((x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height), 'box outside the image')
  crossing = box_lib.self_crossing(polygons) & keep
  if crossing.any():
    polygons[crossing] = box_lib.to_polygon(boxes[crossing])
    reason = 'self-crossing quadrilateral (kept as its minimum-area rectangle)'
    skipped.add(reason, f'{where} [{a.id}]', crossing.sum())
  labels = np.array([-1 if k is None else k for k in labels], np.int32)
  difficult = np.asarray(a.difficult, np.int8)
  own = dict(boxes=boxes, polygons=polygons, labels=labels, difficult=difficult)
  return objects_lib.take(own | {k: np.asarray(v) for k, v in a.extra.items()}, keep)


def labeller(classes, ignore=(), aliases=None) -> Callable[[str, pathlib.Path], int | None]:
  """The function class name, file -> label.

  A name is looked up as it is, then through `aliases`, then without regard to case, spaces,
  hyphens and underscores ('large vehicle' is 'large-vehicle', 'feright car' is 'FERIGHT_CAR').
  """
  aliases = aliases or {}
  exact = {name: i for i, name in enumerate(classes)}
  loose = {}
  for name, i in exact.items():
    loose.setdefault(_loose(name), set()).add(i)

  def label(name, file):
    name_ = aliases.get(name, name)
    if name in ignore or name_ in ignore:
      return None
    if name_ in exact:
      return exact[name_]
    found = loose.get(_loose(name_), ())
    if len(found) == 1:
      return next(iter(found))
    near = difflib.get_close_matches(name, classes, 1)
    raise UserError(
      f'{file}: class {name!r} is not among the classes {", ".join(classes)}'
      + (f' (did you mean {near[0]!r}?)' if near else '')
      + '; add it to the classes, give it an alias, or name it in ignore'
    )

  return label


def _loose(name):
  return ''.join(c for c in name.casefold() if c not in ' -_')
