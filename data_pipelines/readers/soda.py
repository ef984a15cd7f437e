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
  index = files.Listing(files.find(source, images, f'{split} images'), source, skipped)
  found = []
  for name, path in files.walk(folder, skipped, source):
    if name.lower().endswith('.json'):
      try:
        found.append((path, *_load(path, index, skipped)))
      except BadEntry as error:
        skipped.take(error)
  ids = {image: id for id, image in files.named((n, i) for _, _, n, i in found).items()}
  for path, content, _, image in found:
    names = {
      c['id']: str(c['name'])
      for c in content['categories']
      if isinstance(c, dict) and isinstance(c.get('id'), int | str) and 'name' in c
    }
    rows = []
    for number, a in enumerate(content['annotations']):
      place = f'{path}: annotations[{number}]'
      try:
        rows.append((names[a['category_id']], quadrilateral(a['poly'], skipped, place), 0))
      except (KeyError, TypeError, ValueError, IndexError):
        skipped.bad('annotation without a poly or a known category_id', place)
    declared = declared_size(content['images'].get('height'), content['images'].get('width'))
    yield oriented(ids[image], image, rows, labels=path, declared=declared)


def _load(path, index, skipped):
  """(content, name and path of its image)."""
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
  return content, *index.find(name, str(path))
