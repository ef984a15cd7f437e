"""Where the files of a data set lie: the layouts that are known, looked for below a source."""

import pathlib
import re
from collections.abc import Iterator, Mapping

from data_pipelines.builders.presets import FORMATS, Preset
from data_pipelines.readers import files, texts

Places = dict[str, list[tuple[str, str, str]]]  # {split: [(format, labels, images)]}
INSTEAD = {'trainval': 'train', 'train': 'trainval', 'val': 'trainval'}  # either of two
OF_A_CLASS = re.compile(
  '.+_(train|val|trainval|test)'
)  # VOC's lists of a class, beside the splits'


def locate(
  dataset: str, preset: Preset, source: pathlib.Path, splits: Mapping[str, str] | None = None
) -> Places:
  """{split: [(format, labels, images)]} of a source.

  Args:
    dataset: for messages.
    preset: its layouts.
    source: its folder.
    splits: {split: 'LABELS:IMAGES'} as the user says them; {} looks for the preset's layouts. A
      layout that is one folder for all splits is taken as the training split, unless VOC's
      `ImageSets/Main/<split>.txt` divides it and the format's reader honours such lists.

  Raises:
    FileNotFoundError: nothing is there; lists what was looked for.
  """
  if not source.is_dir():
    raise FileNotFoundError(f'{dataset}: the source {source} is not a folder')
  if splits:
    form = preset.layouts[0][0]
    return {s: [(form, *_two(place))] for s, place in splits.items()}
  lists = {raw for split, raw in preset.splits if texts.list_of(source, split)}
  found = {}
  for split, raw in preset.splits:
    if split in found or INSTEAD.get(split) in found:
      continue
    for form, *place in preset.layouts:
      shared = not any('{raw}' in p for p in place)
      divided = lists and FORMATS[form].lists
      if shared and (raw not in lists if divided else raw.lower() != 'train'):
        continue
      there = _there(source, _of(place, raw))
      if there:
        found[split] = [(form, *p) for p in there]
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


def _there(source, place):
  """The (labels, images) of a layout that are there; `{part}` stands for any folder."""
  above, part, _ = place[0].partition('{part}')
  names = ['']
  if part:
    names = sorted(p.name for p in (source / above).iterdir()) if (source / above).is_dir() else []
  places = [tuple(p.replace('{part}', name) for p in place) for name in names]
  return [(l, i) for l, i in places if (source / l).exists() and (source / i).is_dir()]


def _two(place):
  if not isinstance(place, str):
    return tuple(place)
  labels, _, images = place.partition(':')
  return labels, images


def untaken(preset: Preset, source: pathlib.Path, places: Places) -> list[str]:
  """Folders and lists of splits that are there, but that no split of `places` takes.

  `trainval` is none where both of its parts are taken, nor is a part of a `trainval` that is.

  Args:
    preset: its layouts.
    source: its folder.
    places: what `locate` has found there.
  """
  taken = {place[1:] for several in places.values() for place in several}
  found = {}
  for _, *layout in preset.layouts:
    there = {name: set(_there(source, _of(layout, name))) for name in _names(source, layout)}
    if any(place & taken for place in there.values()):  # this layout is the set's
      which = 0 if '{raw}' in layout[0] else 1
      found |= {pair[which]: name for name, place in there.items() for pair in place - taken}
  lists = any(FORMATS[form].lists for several in places.values() for form, *_ in several)
  for folder in texts.LISTS:
    for path in sorted((source / folder).glob('*.txt')) if (source / folder).is_dir() else ():
      if not (OF_A_CLASS.fullmatch(path.stem) or (lists and path.stem in places)):
        found[f'{folder}/{path.name}'] = path.stem
  held = ['trainval'] if {'train', 'val'} <= places.keys() else []
  held += ['train', 'val'] if 'trainval' in places else []
  return [str(source / place) for place, name in found.items() if name.lower() not in held]


def _names(source, layout) -> Iterator[str]:
  """What `{raw}` of a layout may stand for in a source."""
  place = next((p for p in layout if '{raw}' in p), None)
  if place is None:
    return
  parts = place.split('/')
  k = next(k for k, part in enumerate(parts) if '{raw}' in part)
  before, *_, after = parts[k].split('{raw}')
  folder = source.joinpath(*parts[:k])
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    name = path.name[len(before) : len(path.name) - len(after)]
    if name and not files.hidden(path.name) and path.name == parts[k].replace('{raw}', name):
      yield name


def _of(layout, raw):
  return [p.format(raw=raw, part='{part}') for p in layout]
