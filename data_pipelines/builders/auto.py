"""`prepare --dataset=auto`: what a folder seems to hold, on what evidence, what would be done."""

import collections
import itertools
import pathlib
import shlex

from data_pipelines.builders import layouts, presets
from data_pipelines.errors import UserError
from data_pipelines.readers import BadEntry, Skipped, files, texts, xml

OF_A_SET = ('coco', 'coco_rotated', 'cvat')  # formats with one label file a set, not an image
LOOKED_AT = 20  # label files of a suffix
# what tells an XML format, in order: a tag that only it has
TAGS = {
  'hrsc_xml': './/HRSC_Object',
  'fair1m_xml': './/possibleresult',
  'dior_xml': './/robndbox/x_left_top',
  'rolabelimg': './/robndbox',
  'voc_rotated': './/rotated_bndbox',
  'dronevehicle_xml': './/object/polygon/x1',
  'voc': './/bndbox',
  'cvat': './image',
}


def look(source: pathlib.Path, data_root, skipped: Skipped | None = None) -> str:
  """A text that says what lies below a folder and what `prepare` would make of it.

  Args:
    source: folder of the data set.
    data_root: for the command that the text ends with.
    skipped: its encoding and its word on links are honoured.

  Raises:
    FileNotFoundError: no such folder.
    UserError: no label file that any format knows.
  """
  if not source.is_dir():
    raise FileNotFoundError(f'the source {source} is not a folder')
  skipped = skipped or Skipped()
  names = [(name, path) for name, path in files.walk(source, skipped)]
  images = collections.Counter(_above(name) for name, _ in names if files.is_image(name))
  evidence = _formats(names, skipped)
  if not evidence:
    suffixes = collections.Counter(pathlib.PurePosixPath(n).suffix or n for n, _ in names)
    found = ', '.join(f'{count} {suffix}' for suffix, count in suffixes.most_common(6))
    raise UserError(f'{source}: no label file of any known format; there are {found or "no files"}')
  lines = [f'{source}: {sum(images.values()):,} images']
  lines += [f'  {count:,} in {folder}' for folder, count in images.most_common(8)]
  lines += [f'labels: {form} ({why})' for form, why in evidence.items()]
  form = next(iter(evidence))
  for name in filter(None, (PRESETS_OF.get(form), form)):
    try:
      places, splits = layouts.locate(name, presets.find(name), source), []
    except FileNotFoundError:
      place = _place(form, names, skipped) if name == form else None
      if place is None:
        continue
      places, splits = {'train': [(form, *place)]}, [f'--splits=train={":".join(place)}']
    lines += [
      f'split {split}: labels {labels}, images {folder}'
      for split, several in places.items()
      for _, labels, folder in several
    ]
    lines += ['nothing is written yet; this would do it:']
    command = ['sm3det', 'prepare', f'--dataset={name}', f'--source={source}']
    command += [f'--data_root={data_root}', *splits]
    command += [f'--encoding={skipped.encoding}'] * (skipped.encoding != Skipped().encoding)
    command += ['--follow_links'] * skipped.follow_links
    return '\n'.join([*lines, '  ' + shlex.join(command)])
  lines += ['no layout that is known: say where they are, with --splits=train=LABELS:IMAGES']
  return '\n'.join(lines)


def _place(form, names, skipped):
  """(labels, images) of a set all whose images lie in one folder, and so its labels; else None."""
  known = [(name, path) for name, path in names if path.suffix.lower() in SNIFFERS]
  labels = [name for name, path in known[:LOOKED_AT] if _format_of(path, skipped) == form]
  images = {_above(name) for name, _ in names if files.is_image(name)}
  where = set(labels) if form in OF_A_SET else set(map(_above, labels))
  if len(where) != 1 or len(images) != 1:
    return None
  place = *where, *images
  return None if any(c in ''.join(place) for c in ':,') else place  # which `--splits` cannot say


def _above(name):
  return str(pathlib.PurePosixPath(name).parent)


def _formats(names, skipped):
  """{format: evidence}, the most frequent first."""
  votes, first, looked = collections.Counter(), {}, collections.Counter()
  suffix = lambda pair: pathlib.PurePosixPath(pair[0]).suffix.lower()
  for kind, group in itertools.groupby(sorted(names, key=suffix), suffix):
    for name, path in list(group)[:LOOKED_AT] if kind in SNIFFERS else ():
      if form := _format_of(path, skipped):
        votes[form] += 1
        first.setdefault(form, name)
      looked[kind] += 1
  of = {form: looked[pathlib.PurePosixPath(name).suffix.lower()] for form, name in first.items()}
  return {
    form: f'{n} of {of[form]} files looked at, such as {first[form]}'
    for form, n in votes.most_common()
  }


def _format_of(path, skipped):
  """The format that a file seems to have, None for one of none."""
  try:
    return SNIFFERS[path.suffix.lower()](path, skipped)
  except (BadEntry, UserError, KeyError):
    return None


def _of_xml(path, skipped):
  root = xml.parse(path, skipped)
  return next((form for form, tag in TAGS.items() if root.find(tag) is not None), None)


def _of_json(path, skipped):
  content = texts.json_of(path, skipped)
  if not isinstance(content, dict):
    return None
  if 'shapes' in content:
    return 'labelme'
  rows = content.get('annotations')
  if not isinstance(rows, list) or 'images' not in content:
    return None
  rows = [row for row in rows if isinstance(row, dict)]
  if any('poly' in row for row in rows):
    return 'soda_json'
  return 'coco_rotated' if any(map(_is_turned, rows)) else 'coco'


def _is_turned(row):
  box, attributes = row.get('bbox'), row.get('attributes')
  five = isinstance(box, list) and len(box) == 5
  return five or bool(isinstance(attributes, dict) and attributes.get('rotation'))


def _of_text(path, skipped):
  for line in texts.lines(path, skipped):
    tokens = line.split()
    numbers = [t for t in tokens if _is_number(t)]
    if line.lower().startswith(('imagesource', 'gsd')) or 8 <= len(numbers) < len(tokens):
      return 'dota_txt'
    if len(numbers) == len(tokens) and tokens[0].isdigit() and len(tokens) in (5, 9):
      return 'yolo' if len(tokens) == 5 else 'yolo_obb'
    return None


def _is_number(token):
  try:
    float(token)
  except ValueError:
    return False
  return True


# public data sets that are alone in their format, or in their layout of it
PRESETS_OF = {
  'voc': 'dior',
  'dior_xml': 'dior_r',
  'fair1m_xml': 'fair1m',
  'hrsc_xml': 'hrsc2016',
  'soda_json': 'soda_a',
  'dronevehicle_xml': 'dronevehicle',
}
SNIFFERS = {
  '.xml': _of_xml,
  '.json': _of_json,
  '.txt': _of_text,
  '.geojson': lambda path, skipped: 'geojson',
}
