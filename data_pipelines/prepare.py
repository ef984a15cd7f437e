"""Data sets in their own formats -> prepared data sets that training reads."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines import objects as objects_lib
from data_pipelines.builders import decisions
from data_pipelines.builders import scan as scan_lib
from data_pipelines.builders.decisions import Decisions
from data_pipelines.errors import UserError
from data_pipelines.images.statistics import Statistics
from data_pipelines.raw import Collected, collect

SHOWN = (0.5, 50.0, 99.5)  # percentiles in a report
BANDS = 8  # in a report at most

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Report:
  """What was prepared.

  Attributes:
    name, folder, box, classes: of the data set.
    images: {split: images}.
    empty: {split: images without objects}.
    objects: {split: objects of each class, in label order}.
    skipped: {reason: images or objects left out or mended}.
    places: {reason: its first places}.
    notes: what was decided for the whole data set, and on what evidence.
    fingerprints: {split: hash}.
    pixels: {split: how its values are distributed (`images.statistics.Statistics.summary`)}.
    note: what else there is to say.
  """

  name: str
  folder: str
  box: str
  classes: tuple[str, ...]
  images: dict[str, int]
  empty: dict[str, int]
  objects: dict[str, list[int]]
  skipped: dict[str, int]
  places: dict[str, list[str]]
  notes: list[str]
  fingerprints: dict[str, str]
  pixels: dict[str, dict]
  note: str = ''

  def table(self) -> str:
    """The report as text."""
    splits = list(self.images)
    rows = [[f'{self.name} ({self.box})', *splits], ['images', *self.images.values()]]
    rows.append(['  without objects', *self.empty.values()])
    rows.append(['objects', *(sum(self.objects[s]) for s in splits)])
    rows += [[f'  {c}', *(self.objects[s][k] for s in splits)] for k, c in enumerate(self.classes)]
    rows.append(['fingerprint', *(self.fingerprints[s] for s in splits)])
    lines = [columns(rows), '', *_values(self.pixels)]
    if self.skipped:
      lines += ['', 'left out or mended']
    for reason, count in self.skipped.items():
      lines += [f'  {count:,} {reason}', *(f'      {place}' for place in self.places[reason])]
    lines += [*self.notes, f'in {self.folder}', *([self.note] if self.note else [])]
    return '\n'.join(lines)

  def with_note(self, note: str) -> 'Report':
    return dataclasses.replace(self, note=note)


def _values(pixels):
  """Lines on the values of each band of the first split, as a task's mean and std want them."""
  split, found = next(iter(pixels.items()))
  rows = [[f'{found["dtype"]} values of {split}', 'mean', 'std', *map('{:g} %'.format, SHOWN)]]
  for k, table in enumerate(found['percentiles'][:BANDS]):
    shown = [table[found['levels'].index(level)] for level in SHOWN] if table else []
    numbers = [found['mean'][k], found['std'][k], *shown] if table else []
    rows.append([f'  band {k + 1}', *(f'{v:.4g}' for v in numbers)])
  more = len(found['percentiles']) - BANDS
  return [columns(rows), *([f'  (and {more} bands more, in metadata.json)'] * (more > 0))]


def _counts(entries, classes):
  """Objects of each class; regions to ignore are none."""
  labels = [e.objects['labels'][objects_lib.valid(e.objects)] for e in entries if e.objects]
  return np.bincount(np.concatenate([np.zeros(0, int), *labels]), minlength=classes).tolist()


def columns(rows: Sequence[Sequence]) -> str:
  """Rows as text: the first column to the left, the others to the right."""
  rows = [[f'{c:,}' if isinstance(c, int) else str(c) for c in row] for row in rows]
  width = max(len(row[0]) for row in rows)
  others = max(len(c) for row in rows for c in row[1:])
  return '\n'.join(
    ' '.join([row[0].ljust(width)] + [c.rjust(others) for c in row[1:]]).rstrip() for row in rows
  )


def prepare(
  dataset: str | Sequence[str], source, data_dir, *, how: Decisions = decisions.AUTO, **arguments
) -> Report:
  """Writes one prepared data set, from one source or several.

  An older data set of the same name is replaced. Nothing is written before every image and label
  has been read.

  Args:
    dataset, source, how, **arguments: as for `collect`.
    data_dir: root of the prepared data sets.

  Raises:
    as `collect`, and UserError: a class nobody knows; no images or no objects in a split.
  """
  c = collect(dataset, source, how=how, **arguments)
  count_unmatched(c, arguments.get('ignore', ()), arguments.get('aliases') or {})
  pixels = {split: Statistics() for split in c.annotations}
  entries = {
    split: list(scan_lib.scan(listed, c.box, c.label, c.skipped, pixels[split], how))
    for split, listed in c.annotations.items()
  }
  return _write(c, entries, {split: s.summary() for split, s in pixels.items()}, data_dir)


def count_unmatched(c: Collected, ignore: Sequence[str], aliases: Mapping[str, str]) -> None:
  """Counts what the user says of class names that no object has.

  Args:
    c: what `collect` found, with its `skipped`.
    ignore, aliases: as given to `collect`.
  """
  names = {name for listed in c.annotations.values() for a in listed for name in a.names}
  for spelling in sorted(aliases.keys() - names):
    c.skipped.add('spelling of --aliases that never occurs', spelling)
  for name in sorted(set(ignore) - names - {aliases.get(n) for n in names}):
    c.skipped.add('class of --ignore that never occurs', name)


def _write(c, entries, pixels, data_dir):
  from data_pipelines.builders import detection  # lazily: it imports TFDS

  objects = {split: _counts(listed, len(c.classes)) for split, listed in entries.items()}
  for split, listed in entries.items():
    if not listed or not (sum(objects[split]) or c.box == 'image'):
      what = 'objects' if listed else 'images'
      left_out = c.skipped.summary() or 'nothing was left out'
      raise UserError(f'{c.name}: split {split!r} has no {what}; {left_out}')
  for k, name in enumerate(c.classes if c.asked else ()):
    if not sum(counts[k] for counts in objects.values()):
      c.skipped.add('class of --classes that never occurs', name)
  folder = detection.build(c.name, c.classes, c.box, entries, pixels, data_dir)
  return Report(
    name=c.name,
    folder=str(folder),
    box=c.box,
    classes=c.classes,
    images={s: len(listed) for s, listed in entries.items()},
    empty={
      s: sum(not objects_lib.count(e.objects) for e in listed) for s, listed in entries.items()
    },
    objects=objects,
    skipped=dict(sorted(c.skipped.counts.items())),
    places=c.skipped.places,
    notes=c.skipped.notes,
    fingerprints={s: detection.fingerprint(listed) for s, listed in entries.items()},
    pixels=pixels,
  )
