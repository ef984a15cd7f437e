"""SODA-A json: a file an image, with `images`, `categories` and `annotations` of eight `poly`."""

import pathlib
from collections.abc import Iterator

from data_pipelines.readers import files, texts
from data_pipelines.readers.annotation import Annotation, declared_size, oriented, quadrilateral
from data_pipelines.readers.skipped import BadEntry, Skipped


def read(
  source: pathlib.Path, split: str, *, labels: str, images: str, skipped: Skipped
) -> Iterator[Annotation]:
  """Yields an annotation a json file, of the image that it names.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels, images: folders below it; that of the images may serve several splits.
    skipped: where what is left out is counted.

  Raises:
    FileNotFoundError: a folder is not there.
  """
  folder = files.find(source, labels, f'{split} labels')
  listed = ((p, skipped) for n, p in files.walk(folder, skipped, source) if _is_json(n))
  loaded = skipped.usable(_load, listed)
  for id, image, (path, content) in files.named_by(source, split, images, loaded, skipped):
    names = {
      c['id']: str(c['name'])
      for c in content['categories']
      if isinstance(c, dict) and isinstance(c.get('id'), int | str) and 'name' in c
    }
    objects = enumerate(content['annotations'])
    entries = ((a, f'{path}: annotations[{k}]', names, skipped) for k, a in objects)
    declared = declared_size(content['images'].get('height'), content['images'].get('width'))
    yield oriented(id, image, skipped.usable(_row, entries), labels=path, declared=declared)


def _is_json(name):
  return name.lower().endswith('.json')


def _row(annotation, place, names, skipped):
  try:
    name, points = names[annotation['category_id']], annotation['poly']
    return name, quadrilateral(points, skipped, place), 0
  except (KeyError, TypeError, ValueError, IndexError):
    raise BadEntry('annotation without a poly or a known category_id', place) from None


def _load(path, skipped):
  """(name of its image, place, (path, content)) of a label file."""
  try:
    content = texts.json_of(path, skipped)
    if isinstance(content['images'], list):
      content['images'] = content['images'][0]
    good = isinstance(content['annotations'], list) and isinstance(content['categories'], list)
    name = content['images']['file_name']
  except (KeyError, TypeError, IndexError):
    raise BadEntry('label file is not SODA json', path) from None
  if not good or not isinstance(name, str):
    raise BadEntry('label file is not SODA json', path)
  return name, str(path), (path, content)
