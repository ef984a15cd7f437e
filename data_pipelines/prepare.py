"""Data sets in their own formats -> prepared data sets that training reads."""

import collections
import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from data_pipelines import objects as objects_lib
from data_pipelines.builders import presets as preset_lib
from data_pipelines.builders import scan as scan_lib
from data_pipelines.builders.presets import FORMATS, Preset
from data_pipelines.errors import UserError
from data_pipelines.readers import Annotation, Skipped

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
    fingerprints: {split: hash}.
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
  fingerprints: dict[str, str]
  note: str = ''

  def table(self) -> str:
    """The report as text."""
    splits = list(self.images)
    rows = [[f'{self.name} ({self.box})', *splits], ['images', *self.images.values()]]
    rows.append(['  without objects', *self.empty.values()])
    rows.append(['objects', *(sum(self.objects[s]) for s in splits)])
    rows += [[f'  {c}', *(self.objects[s][k] for s in splits)] for k, c in enumerate(self.classes)]
    rows.append(['fingerprint', *(self.fingerprints[s] for s in splits)])
    rows += [['left out or mended', '']] + [[f'  {r}', n] for r, n in self.skipped.items()]
    text = columns(rows if self.skipped else rows[:-1])
    return '\n'.join([text, f'in {self.folder}', *([self.note] if self.note else [])])

  def with_note(self, note: str) -> 'Report':
    return dataclasses.replace(self, note=note)


def columns(rows: Sequence[Sequence]) -> str:
  """Rows as text: the first column to the left, the others to the right."""
  rows = [[f'{c:,}' if isinstance(c, int) else str(c) for c in row] for row in rows]
  width = max(len(row[0]) for row in rows)
  others = max(len(c) for row in rows for c in row[1:])
  return '\n'.join(
    ' '.join([row[0].ljust(width)] + [c.rjust(others) for c in row[1:]]).rstrip() for row in rows
  )


class Collected(NamedTuple):
  """What the readers found in the sources of one data set; no pixel is read yet.

  Attributes:
    name, box, classes: of the data set, as asked for or found.
    label: class name, file -> label, None for a class to leave out (`scan.labeller`).
    annotations: {split: an annotation an image}.
    skipped: what was left out or mended so far.
  """

  name: str
  box: str
  classes: tuple[str, ...]
  label: Callable[[str, pathlib.Path], int | None]
  annotations: dict[str, list[Annotation]]
  skipped: Skipped


def collect(
  dataset: str | Sequence[str],
  source,
  *,
  name: str | None = None,
  classes: Sequence[str] = (),
  splits: Mapping | Sequence[Mapping] = (),
  box: str | None = None,
  ignore: Sequence[str] = (),
  aliases: Mapping[str, str] | None = None,
  subset: Callable[[str], bool] | None = None,
  quarantine: Mapping[str, set[str]] | None = None,
) -> Collected:
  """Reads the labels of one data set, from one source or several.

  Args:
    dataset: a data set or format of `builders.presets`, or one a source.
    source: folder, or several.
    name: of the data set, a lower-case identifier; by default `dataset`'s.
    classes: in label order; by default the preset's, else the names found in the data, sorted.
    splits: {split: 'LABELS:IMAGES'}, paths below the source, or one such dict a source; by default
      the layouts that the preset knows are looked for.
    box: 'hbb' takes the enclosing boxes of an oriented source, 'image' no objects; by default the
      first source's kind.
    ignore: class names to leave out and count, beside the preset's.
    aliases: {spelling in the files: class}, beside the preset's.
    subset: image id -> whether to take it; the others are left out, not counted.
    quarantine: {split: ids of images to leave out, counted} (`data_pipelines.quarantine`).

  Raises:
    FileNotFoundError: a source without any layout that is known; lists what was looked for.
    UserError: an unknown data set; two images of one name.
  """
  datasets = [dataset] if isinstance(dataset, str) else list(dataset)
  sources = [
    pathlib.Path(s) for s in ([source] if isinstance(source, str | pathlib.Path) else source)
  ]
  presets = [preset_lib.find(d) for d in datasets]
  name = name or datasets[0]
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise UserError(f'name={name!r}: expected a lower-case identifier such as my_ships')
  if len(sources) != len(datasets):
    raise UserError(f'{len(datasets)} data sets but {len(sources)} sources: {datasets}, {sources}')
  given = [splits] if isinstance(splits, Mapping) else list(splits)
  if len(given) > len(sources):
    raise UserError(f'--splits is given {len(given)} times, but there are {len(sources)} sources')
  given += [{}] * (len(sources) - len(given))
  skipped, found, kinds = Skipped(), collections.defaultdict(list), []
  for key, preset, folder, wanted in zip(datasets, presets, sources, given, strict=True):
    for split, (form, labels, images) in locate(key, preset, folder, wanted).items():
      row = FORMATS[form]
      logger.info('%s: reading %s from %s and %s as %s', name, split, folder / labels, images, form)
      kinds.append(row.box)
      annotations = row.read(
        folder, split, labels=labels, images=images, skipped=skipped, **row.options
      )
      found[split].append((folder, annotations))
  ignore = {*ignore, *(n for p in presets for n in p.ignore)}
  aliases = {k: v for p in presets for k, v in p.aliases} | dict(aliases or {})
  listed = {s: _unique(parts, subset) for s, parts in found.items()}
  _leave_out(listed, quarantine or {}, skipped)
  box = box or kinds[0]
  classes = tuple(classes) or presets[0].classes or _names(listed, ignore, aliases)
  classes = () if box == 'image' else classes
  label = scan_lib.labeller(classes, ignore, aliases)
  return Collected(name, box, classes, label, listed, skipped)


def prepare(dataset: str | Sequence[str], source, data_dir, **arguments) -> Report:
  """Writes one prepared data set, from one source or several.

  An older data set of the same name is replaced. Nothing is written before every image and label
  has been read.

  Args:
    dataset, source, **arguments: as for `collect`.
    data_dir: root of the prepared data sets.

  Raises:
    as `collect`, and UserError: a class nobody knows; no images or no objects in a split.
  """
  c = collect(dataset, source, **arguments)
  entries = {
    split: list(scan_lib.scan(listed, c.box, c.label, c.skipped))
    for split, listed in c.annotations.items()
  }
  return _write(c.name, c.classes, c.box, entries, data_dir, c.skipped)


def _write(name, classes, box, entries, data_dir, skipped):
  from data_pipelines.builders import detection  # lazily: it imports TFDS

  objects = {
    s: [sum(int((e.objects['labels'] == k).sum()) for e in listed) for k in range(len(classes))]
    for s, listed in entries.items()
  }
  for split, listed in entries.items():
    if not listed or not (sum(objects[split]) or box == 'image'):
      what = 'objects' if listed else 'images'
      raise UserError(f'{name}: split {split!r} has no {what}; left out: {dict(skipped.counts)}')
  folder = detection.build(name, classes, box, entries, data_dir)
  return Report(
    name=name,
    folder=str(folder),
    box=box,
    classes=classes,
    images={s: len(listed) for s, listed in entries.items()},
    empty={
      s: sum(not objects_lib.count(e.objects) for e in listed) for s, listed in entries.items()
    },
    objects=objects,
    skipped=dict(sorted(skipped.counts.items())),
    fingerprints={s: detection.fingerprint(listed) for s, listed in entries.items()},
  )


def locate(
  dataset: str, preset: Preset, source: pathlib.Path, splits: Mapping[str, str] | None = None
) -> dict[str, tuple[str, str, str]]:
  """{split: (format, labels, images)} of a source.

  Args:
    dataset: for messages.
    preset: its layouts.
    source: its folder.
    splits: {split: 'LABELS:IMAGES'} as the user says them; {} looks for the preset's layouts. A
      layout that is one folder for all splits is taken as the training split, unless VOC's
      `ImageSets/Main/<split>.txt` divides it.

  Raises:
    FileNotFoundError: nothing is there; lists what was looked for.
  """
  if not source.is_dir():
    raise FileNotFoundError(f'{dataset}: the source {source} is not a folder')
  if splits:
    form = preset.layouts[0][0]
    return {s: (form, *_two(place)) for s, place in splits.items()}
  found = {}
  for split, raw in preset.splits:
    for form, *place in preset.layouts:
      labels, images = (p.format(raw=raw) for p in place)
      shared = [labels, images] == place
      if shared and raw != 'train' and not (source / 'ImageSets/Main' / f'{raw}.txt').is_file():
        continue
      if (source / labels).exists() and (source / images).is_dir():
        found[split] = form, labels, images
        break
  if not found:
    tried = [f'{p[1]} with {p[2]}'.replace('{raw}', 'SPLIT') for p in preset.layouts]
    raise FileNotFoundError(
      f'{dataset}: {source} has none of the known layouts; looked for labels with images: '
      + '; '.join(dict.fromkeys(tried))
      + f'; SPLIT being {", ".join(raw for _, raw in preset.splits)}. '
      'Say where they are with --splits=train=LABELS:IMAGES,...'
    )
  return found


def _two(place):
  if not isinstance(place, str):
    return tuple(place)
  labels, _, images = place.partition(':')
  return labels, images


def _unique(parts, subset) -> list[Annotation]:
  """Annotations of a split from all its sources.

  An image of a later source whose id is taken gets its folder's name before it.
  """
  seen = {}
  for folder, annotations in parts:
    for a in annotations:
      if subset and not subset(a.id):
        continue
      if a.id in seen and seen[a.id][0] != folder:
        a = dataclasses.replace(a, id=f'{folder.name}/{a.id}')
      if a.id in seen:
        raise UserError(f'two images have the name {a.id}: {seen[a.id][1].image} and {a.image}')
      seen[a.id] = folder, a
  return [a for _, a in seen.values()]


def _leave_out(listed, quarantine, skipped):
  for split, out in quarantine.items():
    there = {a.id for a in listed.get(split, ())}
    skipped.add('image in quarantine', f'split {split!r}', len(out & there), logging.INFO)
    for id in sorted(out - there):
      skipped.add('line of the quarantine that names no image', f'{id!r} of split {split!r}')
    if out & there:
      listed[split] = [a for a in listed[split] if a.id not in out]


def _names(listed, ignore, aliases):
  found = {aliases.get(n, n) for part in listed.values() for a in part for n in a.names}
  classes = tuple(sorted(found - set(ignore)))
  logger.info('classes found in the data: %s', ', '.join(classes))
  return classes
