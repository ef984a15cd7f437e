"""Data sets in their own formats, read: where the files lie, what their labels say."""

import collections
import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.builders import decisions, layouts
from data_pipelines.builders import presets as preset_lib
from data_pipelines.builders import scan as scan_lib
from data_pipelines.builders.decisions import Decisions
from data_pipelines.builders.presets import FORMATS
from data_pipelines.errors import UserError
from data_pipelines.readers import Annotation, Skipped, texts

UNTAKEN = 'list or folder of a split that nothing takes (--splits=NAME=LABELS:IMAGES does)'

logger = logging.getLogger(__name__)


class Collected(NamedTuple):
  """What the readers found in the sources of one data set; no pixel is read yet.

  Attributes:
    name, box, classes: of the data set, as asked for or found.
    label: class name, file -> label, None for a class to leave out (`scan.labeller`).
    annotations: {split: an annotation an image}.
    skipped: what was left out or mended so far.
    asked: the user named the classes.
  """

  name: str
  box: str
  classes: tuple[str, ...]
  label: Callable[[str, pathlib.Path], int | None]
  annotations: dict[str, list[Annotation]]
  skipped: Skipped
  asked: bool = False


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
  how: Decisions = decisions.AUTO,
  skipped: Skipped | None = None,
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
    how: what the user says of the whole data set.
    skipped: counts what is left out or mended, and says how strict to be.

  Raises:
    FileNotFoundError: a source without any layout that is known; lists what was looked for.
    UserError: an unknown data set; two images of one name; a subset that takes nothing.
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
  skipped = skipped or Skipped()
  parts, kind = _read(name, datasets, sources, presets, given, how, skipped)
  ignore = {*ignore, *(n for p in presets for n in p.ignore)}
  aliases = {k: v for p in presets for k, v in p.aliases} | dict(aliases or {})
  listed = {s: _unique(found, subset) for s, found in parts.items()}
  _check_subset(parts, listed, subset, skipped)
  _leave_out(listed, quarantine or {}, skipped)
  listed = {s: [_named(a, ignore, skipped) for a in part] for s, part in listed.items()}
  listed = _with_ignored(listed)
  box = box or kind
  asked, classes = bool(classes), tuple(classes) or presets[0].classes
  classes = classes or _names(listed, ignore, aliases, skipped)
  classes = () if box == 'image' else classes
  label = scan_lib.labeller(classes, ignore, aliases)
  return Collected(name, box, classes, label, listed, skipped, asked)


def _read(name, datasets, sources, presets, given, how, skipped):
  """({split: [(folder for names, annotations)]}, kind of the first source's boxes)."""
  found, kinds, units = collections.defaultdict(list), [], {}
  for key, preset, folder, wanted in zip(datasets, presets, sources, given, strict=True):
    places = layouts.locate(key, preset, folder, wanted)
    for place in [] if wanted else layouts.untaken(preset, folder, places):
      skipped.add(UNTAKEN, place, level=logging.DEBUG)  # once, in the report
    listed = [(split, *place) for split, several in places.items() for place in several]
    parts, row, options = {}, None, {}
    for split, form, labels, images in listed:
      row = FORMATS[form]
      logger.info('%s: reading %s from %s and %s as %s', name, split, folder / labels, images, form)
      kinds.append(row.box)
      if form not in options:  # decided once, by the files of all splits
        options[form] = _options(form, row, folder, listed, how, skipped)
      read = row.read(folder, split, labels=labels, images=images, skipped=skipped, **options[form])
      parts[split, len(parts)] = list(read)
    parts = decisions.in_pixels(parts, row.coordinates, how, skipped)
    if any(a.boxes.shape[1] == 5 and a.boxes[:, 4].any() for p in parts.values() for a in p):
      units |= {f'{folder} ({form})': o['angle'] for form, o in options.items() if 'angle' in o}
    for (split, k), annotations in parts.items():
      several = len(places[split]) > 1
      found[split].append((folder / listed[k][3] if several else folder, annotations))
  decisions.note_units(units, skipped)
  return found, kinds[0]


def _options(form, row, folder, listed, how, skipped):
  """Arguments of a reader; what the files themselves decide is decided by all splits together."""
  options = dict(row.options)
  for key, usual in (('angle', 'auto'), ('turn', 'clockwise')):
    if (value := getattr(how, key)) != usual:
      if 'angle' not in options:
        raise UserError(f'--{key}={value}: the angles of {form}, if it has any, have one reading')
      options[key] = value
  if row.decide:
    same = [(folder, labels) for _, other, labels, _ in listed if other == form]
    options = row.decide(same, options, skipped)
  return options


def _check_subset(parts, listed, subset, skipped):
  if subset and not any(listed.values()):
    ids = [a.id for found in parts.values() for _, annotations in found for a in annotations]
    raise UserError(f'the subset has none of the {len(ids)} images, such as {", ".join(ids[:3])}')
  if isinstance(subset, texts.Names):
    subset.finish(skipped)


def _leave_out(listed, quarantine, skipped):
  for split, out in quarantine.items():
    there = {a.id for a in listed.get(split, ())}
    skipped.add('image in quarantine', f'split {split!r}', len(out & there), logging.INFO)
    for id in sorted(out - there):
      skipped.add('line of the quarantine that names no image', f'{id!r} of split {split!r}')
    if out & there:
      listed[split] = [a for a in listed[split] if a.id not in out]


def _named(a, ignore, skipped):
  """An annotation with its class names without white space around them, less those without any."""
  names = tuple(name.strip() for name in a.names)
  keep = np.array([bool(name) or '' in ignore for name in names], bool)
  if keep.all():
    return a if names == a.names else dataclasses.replace(a, names=names)
  skipped.bad('object without a class name', a.labels or a.image, f'{(~keep).sum()} without a name')
  part = {k: getattr(a, k)[keep] for k in ('boxes', 'polygons', 'difficult')}
  extra = {k: np.asarray(v)[keep] for k, v in a.extra.items()}
  names = tuple(name for name, kept in zip(names, keep, strict=True) if kept)
  return dataclasses.replace(a, names=names, extra=extra, **part)


def _with_ignored(listed):
  """Gives every image of a set in which some have ignored regions the array that says so."""
  if not any('ignored' in a.extra for part in listed.values() for a in part):
    return listed
  none = lambda a: {'ignored': np.zeros(len(a.names), bool)}
  return {
    split: [dataclasses.replace(a, extra=none(a) | dict(a.extra)) for a in part]
    for split, part in listed.items()
  }


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


def _names(listed, ignore, aliases, skipped):
  found = {aliases.get(n, n) for part in listed.values() for a in part for n in a.names}
  classes = tuple(sorted(found - set(ignore)))
  skipped.note(f'classes are those found in the data, sorted: {", ".join(classes)} (--classes)')
  return classes
