"""What is decided for a whole data set at once: units, coordinates, the size that labels are of.

Each has an option that says it; otherwise the files' own evidence does, and what was taken is noted
in the report of `prepare`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import images as image_lib
from data_pipelines.errors import UserError
from data_pipelines.readers import Annotation, Skipped

CHOICES = {
  'angle': ('auto', 'degree', 'radian'),
  'turn': ('clockwise', 'counterclockwise'),
  'coordinates': ('auto', 'pixels', 'shares'),
  'sizes': ('check', 'ignore'),
  'exif': ('auto', 'stored', 'shown'),
}


@dataclasses.dataclass(frozen=True)
class Decisions:
  """The user's word on a data set.

  Attributes:
    angle: unit of the angles that the files give as numbers.
    turn: which way they grow, on the screen.
    coordinates: 'pixels', or 'shares' of the image's width and height.
    sizes: 'ignore' takes images whose size is not the one that their labels declare.
    exif: which view of an image with an EXIF orientation its labels are of, the pixels as they are
      'stored' or as they are 'shown'; 'auto' asks the declared size, and leaves out what it does
      not tell.

  Raises:
    UserError: not one of `CHOICES`.
  """

  angle: str = 'auto'
  turn: str = 'clockwise'
  coordinates: str = 'auto'
  sizes: str = 'check'
  exif: str = 'auto'

  def __post_init__(self):
    for name, choices in CHOICES.items():
      if (value := getattr(self, name)) not in choices:
        raise UserError(f'--{name}={value}: expected {", ".join(choices)}')


AUTO = Decisions()


def note_units(units: Mapping[str, str], skipped: Skipped) -> None:
  """Notes where the sources of a data set have angles in different units.

  Args:
    units: {source: 'degree' or 'radian'} of those that have angles.
    skipped: gets the note.
  """
  if len(set(units.values())) > 1:
    each = ', '.join(f'{source} in {unit}s' for source, unit in units.items())
    skipped.note(f'angles differ between sources, and each is read in its own unit: {each}')


def in_pixels(
  annotations: Mapping[str, Sequence[Annotation]], usual: str, how: Decisions, skipped: Skipped
) -> dict[str, list[Annotation]]:
  """All splits with their coordinates in pixels.

  Args:
    annotations: {split: as the readers give them}.
    usual: what the format means, 'pixels' or 'shares'; evidence against it has to be plain: no
      coordinate beyond 1.5, or most of them beyond 2.
    how: its `coordinates` decide where they say something.
    skipped: gets the evidence, and images that do not decode.
  """
  found = [np.abs(a.polygons).ravel() for listed in annotations.values() for a in listed]
  found = np.concatenate([np.zeros(0), *found])
  found = found[np.isfinite(found)]
  unit = how.coordinates
  if unit == 'auto':
    unit = usual
    if usual == 'pixels' and found.size and found.max() <= 1.5:  # a box may leave its image
      unit = 'shares'
    elif usual == 'shares' and found.size and np.median(found) > 2:
      unit = 'pixels'
    if unit != usual:
      skipped.note(
        f'coordinates are read as {unit}: they reach {found.max():.4g}, half of them are beyond '
        f'{np.median(found):.4g} (--coordinates says it)'
      )
  if unit == 'pixels':
    return {split: list(listed) for split, listed in annotations.items()}
  return {
    split: [b for a in listed if (b := _scaled(a, how, skipped))]
    for split, listed in annotations.items()
  }


def _scaled(a, how, skipped):
  try:
    header = image_lib.header(a.image)
  except (image_lib.ImageError, OSError):
    skipped.bad('image does not decode', a.image)
    return None
  size = header.height, header.width
  height, width = _view(a, size, header.orientation, how) or size
  return with_polygons(a, a.polygons * np.tile([width, height], 4).astype(np.float32))


def _view(a, size, orientation, how):
  """(height, width) of the view that EXIF turns, if the labels are of that; else None."""
  shown = size[::-1] if orientation >= 5 else size
  is_shown = how.exif == 'shown' or (how.exif == 'auto' and a.declared == shown != size)
  return shown if orientation != 1 and is_shown else None


def with_polygons(a: Annotation, polygons: np.ndarray) -> Annotation:
  """The annotation with other corners [n, 8], and boxes of its kind around them."""
  around = box_lib.polygon_to_hbb if a.boxes.shape[1] == 4 else box_lib.polygon_to_obb
  polygons = polygons.astype(np.float32)
  return dataclasses.replace(a, polygons=polygons, boxes=around(polygons))


def in_stored_view(
  a: Annotation, size: tuple[int, int], orientation: int, how: Decisions, skipped: Skipped
) -> Annotation | None:
  """The annotation in the pixels of the image as it is stored; None, counted, if it is of others.

  Args:
    a: as the reader gives it.
    size: (height, width) of the stored pixels.
    orientation: EXIF's, 1..8.
    how: the user's word.
    skipped: counts what is mended or left out.
  """
  shown = size[::-1] if orientation >= 5 else size
  if orientation != 1 and len(a.names):
    if _view(a, size, orientation, how):
      skipped.add('labels of the view that EXIF turns (mended)', a.image)
      return _turned_back(a, size, orientation)
    if how.exif == 'auto' and (shown == size or a.declared is None):
      why = f'EXIF orientation {orientation} is not applied: labels may belong to the turned image'
      skipped.bad(f'{why} (--exif=stored or shown says it)', a.image)
      return None
  if a.declared in (None, size) or how.sizes == 'ignore' or (a.declared == shown and not a.names):
    return a
  sizes = [f'{width} x {height}' for height, width in (a.declared, size)]
  why = "size differs from the label file's (--sizes=ignore takes it)"
  skipped.bad(why, f'{a.labels} [{a.id}]', f'declared {sizes[0]}, the image is {sizes[1]}')
  return None


def _turned_back(a, size, orientation):
  """From the view that is shown to the stored one; inverse of EXIF's eight turns and mirrors."""
  last = 0 if a.boxes.shape[1] == 4 else 1  # oriented boxes count from the pixels' centres
  height, width = size[0] - last, size[1] - last
  x, y = np.moveaxis(a.polygons.reshape(-1, 4, 2), -1, 0)
  x, y = {
    1: (x, y), 2: (width - x, y), 3: (width - x, height - y), 4: (x, height - y),
    5: (y, x), 6: (y, height - x), 7: (width - y, height - x), 8: (width - y, x),
  }[orientation]  # fmt: skip
  turned = with_polygons(a, np.stack([x, y], -1).reshape(-1, 8))
  return dataclasses.replace(turned, declared=size)
