"""A data set as its labels say -> the same data set in another format."""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import objects as objects_lib
from data_pipelines.angles import CONVENTIONS
from data_pipelines.builders import decisions
from data_pipelines.builders.decisions import Decisions
from data_pipelines.dataset import files
from data_pipelines.errors import UserError
from data_pipelines.images import ImageError
from data_pipelines.prepare import columns
from data_pipelines.raw import Collected
from data_pipelines.readers import Annotation, Skipped
from data_pipelines.writers import Labelled
from data_pipelines.writers import formats as format_lib

NEAR = 0.05  # px within which corners give back their box
OFF = 0.5  # px that a corner may lie beside its rectangle's, as in files of whole pixels
OF_OBJECTS = ('names', 'boxes', 'polygons', 'difficult', 'ignored')


@dataclasses.dataclass(frozen=True)
class Report:
  """What was written.

  Attributes:
    folder, form, classes: of the new data set.
    images: {split: images}.
    objects: {split: {class: objects}}.
    skipped: {reason: images or objects left out, mended, or written with less than they said}.
    places: {reason: its first places}.
    notes: what was decided for the whole data set, and on what evidence.
  """

  folder: str
  form: str
  classes: tuple[str, ...]
  images: dict[str, int]
  objects: dict[str, Mapping[str, int]]
  skipped: dict[str, int]
  places: dict[str, list[str]]
  notes: list[str]

  def table(self) -> str:
    """The report as text."""
    splits = list(self.images)
    rows = [[self.form, *splits], ['images', *self.images.values()]]
    rows.append(['objects', *(sum(self.objects[s].values()) for s in splits)])
    rows += [[f'  {c}', *(self.objects[s].get(c, 0) for s in splits)] for c in self.classes]
    lines = [columns(rows)]
    if self.skipped:
      lines += ['', 'left out or changed']
    for reason, count in self.skipped.items():
      lines += [f'  {count:,} {reason}', *(f'      {place}' for place in self.places[reason])]
    return '\n'.join([*lines, *self.notes, f'in {self.folder}'])


def convert(
  c: Collected,
  to: str,
  out,
  *,
  images: str = 'copy',
  convention: str | None = None,
  how: Decisions = decisions.AUTO,
  notes: Mapping[str, str] | None = None,
) -> Report:
  """Writes a data set in another format; the sources stay as they are.

  Args:
    c: what `prepare.collect` found.
    to: a format of `writers.formats.TARGETS`.
    out: new or empty folder.
    images: 'copy', 'link' (hard links) or 'none'.
    convention: of a format that has angles, see `data_pipelines.angles`; by default le90.
    how: the user's word on views and sizes of the images.
    notes: {file name: text} of further files.

  Raises:
    UserError: what `save` refuses.
  """

  def stream(a, folder, c):
    file = files.place(a, folder, images)
    yield Labelled(a.id, file, *files.size(a), **objects(a, c))

  return save(c, to, out, stream, convention=convention, how=how, notes=notes)


def save(
  c: Collected,
  to: str,
  out,
  stream: Callable[[Annotation, pathlib.Path, Collected], Iterator[Labelled]],
  *,
  convention: str | None = None,
  how: Decisions = decisions.AUTO,
  notes: Mapping[str, str] | None = None,
) -> Report:
  """Writes what `stream` makes of each annotation.

  Args:
    c, to, out, convention, how: as for `convert`.
    stream: annotation, folder of its split's images, `c` with the classes as they are written ->
      images there, with their objects.
    notes: {file name: text} of further files.

  Raises:
    UserError: a format or convention that is unknown or cannot hold the boxes; a folder that is
      not empty; a split without images; a format of one folder for all splits, but an id in two.
  """
  row = format_lib.find(to)
  c = _named(_checked(c, to, row, convention), row)
  options = dict(row.options) | ({'convention': convention} if convention else {})
  counts = {split: collections.Counter() for split in c.annotations}
  numbers = dict.fromkeys(c.annotations, 0)
  with files.new_folder(out) as folder:
    for split, annotations in c.annotations.items():
      place = folder / row.images.format(split=split)
      place.mkdir(parents=True, exist_ok=True)

      def found(split=split, annotations=annotations, place=place):
        for a in annotations:
          for image in _readable(a, lambda a: stream(a, place, c), how, c.skipped):
            image = _fit(image, a.labels or a.image, row, c.skipped)
            counts[split].update(np.asarray(image.names, object)[~image.ignored])
            numbers[split] += 1
            yield image

      row.write(folder, split, found(), c.classes, **options)
      if not numbers[split]:
        left = c.skipped.summary() or 'nothing was left out'
        raise UserError(f'{c.name}: split {split!r} has no images; {left}')
    for name, text in (notes or {}).items():
      (folder / name).write_text(text, encoding='utf-8')
  skipped = dict(sorted(c.skipped.counts.items()))
  return Report(
    str(out), to, c.classes, numbers, counts, skipped, c.skipped.places, c.skipped.notes
  )


def objects(a: Annotation, c: Collected) -> dict[str, np.ndarray]:
  """What is to be written of an annotation, as `Labelled` calls it; the rest is counted.

  Names are the classes', boxes of the kind that `c.box` says.
  """
  where = a.labels or a.image
  labels = [c.label(name, where) for name in a.names]
  for name in {n for n, k in zip(a.names, labels, strict=True) if k is None}:
    reason = f'object of the ignored class {name!r}'
    c.skipped.add(reason, where, a.names.count(name), logging.INFO)
  for name in set(a.extra) - {'ignored'}:
    c.skipped.add(f'array {name!r} of objects, which no format has', where, len(a.names))
  found = dict(
    names=np.array([None if k is None else c.classes[k] for k in labels], object),
    boxes=np.asarray(a.boxes, np.float32),
    polygons=np.asarray(a.polygons, np.float32),
    difficult=np.asarray(a.difficult, np.int8),
    ignored=np.asarray(a.extra.get('ignored', np.zeros(len(a.names))), bool),
  )
  found = objects_lib.take(found, [k is not None for k in labels])
  finite = np.isfinite(found['boxes']).all(1) & np.isfinite(found['polygons']).all(1)
  named = np.array([bool(n.strip()) for n in found['names']], bool)
  c.skipped.bad('box not finite', where, count=(~finite).sum())
  c.skipped.bad('object without a class name', where, count=(finite & ~named).sum())
  found = objects_lib.take(found, finite & named)
  if c.box == 'hbb' and found['boxes'].shape[1] == 5:
    reason = 'oriented box, written as its enclosing box'
    c.skipped.add(reason, where, objects_lib.count(found), logging.INFO)
    found['boxes'] = box_lib.polygon_to_hbb(found['polygons'])
  if found['boxes'].shape[1] == 4:
    found['polygons'] = box_lib.to_polygon(found['boxes']).astype(np.float32)
  return found


def _checked(c, to, row, convention):
  if c.box == 'image':
    raise UserError(f'box={c.box}: there are no objects to write')
  if c.box == 'obb' and 5 not in row.boxes:
    others = ', '.join(name for name, r in format_lib.TARGETS.items() if 5 in r.boxes)
    raise UserError(
      f'--to={to} has horizontal boxes, the source oriented ones: --box=hbb takes the boxes that '
      f'enclose them; oriented are {others}'
    )
  if convention and not row.angle:
    raise UserError(f'--convention={convention}: {to} has no angles')
  if convention and convention not in CONVENTIONS:
    raise UserError(f'--convention={convention}: expected one of {", ".join(CONVENTIONS)}')
  if '{split}' not in row.images:
    first = {}
    for split, annotations in c.annotations.items():
      for a in annotations:
        if (other := first.setdefault(a.id, split)) != split:
          raise UserError(
            f'{to} has one folder for all splits, but {other} and {split} have an image {a.id} '
            'each; convert them one by one with --splits'
          )
  return c


def _named(c, row):
  """With class names that the format can write."""
  if row.words:
    return c
  classes = tuple('-'.join(n.split()) for n in c.classes)
  if len(set(classes)) < len(set(c.classes)):
    raise UserError(f'classes that differ only in white space: {", ".join(c.classes)}')
  for old, new in zip(c.classes, classes, strict=True):
    if old != new:
      c.skipped.add(f'class {old!r}, written as {new!r}', c.name)
  return c._replace(classes=classes)


def _readable(a, stream, how, skipped):
  try:
    size, orientation = files.header(a.image)
    if a := decisions.in_stored_view(a, size, orientation, how, skipped):
      yield from stream(a)
  except ImageError as error:
    skipped.bad('image does not decode', error)


def _fit(image: Labelled, where, row, skipped: Skipped) -> Labelled:
  """As the format holds it; what it cannot say is counted."""
  if image.ignored.any() and not row.regions:
    reason = 'region in which nothing counts (iscrowd), which the format lacks: left out'
    skipped.add(reason, where, image.ignored.sum())
    kept = ~image.ignored
    image = image._replace(**{name: getattr(image, name)[kept] for name in OF_OBJECTS})
  boxes, polygons = image.boxes, image.polygons
  if boxes.shape[1] not in row.boxes:  # horizontal, where oriented are asked for
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    boxes = box_lib.le90(np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0 * x1], -1))
  elif boxes.shape[1] == 5 and row.quadrilateral:
    other = _apart(box_lib.polygon_to_obb(polygons), box_lib.to_polygon(boxes)) > NEAR
    reason = "corners that are rounded or others than the box's, written as the box's"
    skipped.add(reason, where, other.sum())
    polygons = np.where(other[:, None], box_lib.to_polygon(boxes).astype(np.float32), polygons)
  elif boxes.shape[1] == 5:
    other = _apart(boxes, polygons) > OFF
    skipped.add('quadrilateral, written as its minimum-area rectangle', where, other.sum())
  flags = image.difficult * ~image.ignored
  if row.difficult == 'lost':
    skipped.add('flag difficult, which the format lacks', where, (flags != 0).sum())
  elif row.difficult == 'private':
    reason = "flag difficult, written as a key 'difficult' that other tools do not look at"
    skipped.add(reason, where, (flags != 0).sum(), logging.INFO)
  elif row.difficult == 'as 0 or 1':
    skipped.add('flag difficult above 1, written as 1', where, (flags > 1).sum())
  if row.inside:
    x1, y1, x2, y2 = box_lib.polygon_to_hbb(polygons).T
    beyond = (x1 < 0) | (y1 < 0) | (x2 > image.width) | (y2 > image.height)
    skipped.add('box beyond the image (Ultralytics refuses its file)', where, beyond.sum())
  return image._replace(boxes=boxes, polygons=polygons)


def _apart(boxes, polygons):
  """How far the farthest corner of each polygon is from the box's nearest; px, [n]."""
  ours = box_lib.to_polygon(boxes).reshape(-1, 1, 4, 2)
  theirs = polygons.astype(np.float64).reshape(-1, 4, 1, 2)
  return np.linalg.norm(ours - theirs, axis=-1).min(2).max(1, initial=0)
