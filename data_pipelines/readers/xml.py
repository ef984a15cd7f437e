"""XML label files, a file an image: what VOC and its kin have in common."""

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml
from defusedxml import ElementTree

from data_pipelines.readers import files, texts
from data_pipelines.readers.annotation import declared_size, difficulty
from data_pipelines.readers.skipped import BadEntry, Skipped

CORNERS = ('x1', 'y1', 'x2', 'y2', 'x3', 'y3', 'x4', 'y4')  # what the formats call a polygon
DECLARATION = re.compile(r'\s*<\?xml[^>]*?(?:encoding\s*=\s*["\']([\w.-]+)["\'])?\s*\?>')

ROOTS = ('annotation', 'annotations', 'hrsc_image')
SIZES = (('size/height', 'size/width'), ('Img_SizeHeight', 'Img_SizeWidth'))  # VOC's, HRSC2016's
WIDE = ('utf-16', 'utf-32', 'utf16', 'ucs')  # whose declaration is no text of single bytes


def parse(path: pathlib.Path, skipped: Skipped) -> Element:
  """The root of an XML file, in the encoding that it declares, else in `skipped.encoding`.

  A declaration that is wrong is no obstacle, but counted: some programs write UTF-8 and call it
  UTF-16, others write what `--encoding` says and call it UTF-8.

  Raises:
    BadEntry: not to be read, not XML, or in another encoding.
  """
  data = texts.content(path)
  declared = DECLARATION.match(data[:200].decode('latin-1'))
  content = _decoded(data, path, declared and declared[1], skipped)
  try:  # without the declaration: the parser knows few encodings
    return ElementTree.fromstring(DECLARATION.sub('', content.lstrip('\ufeff'), count=1))
  except (ParseError, defusedxml.DefusedXmlException) as error:
    raise BadEntry('label file is not XML', path, f'label file is not XML ({error})') from None


def _decoded(data, path, declared, skipped):
  if not declared:
    return texts.decoded(data, path, skipped.encoding)
  wrong = None
  if not declared.lower().startswith(WIDE):
    try:
      return texts.decoded(data, path, declared)
    except BadEntry as error:
      wrong = error
  try:
    content = texts.decoded(data, path, skipped.encoding)
  except BadEntry as error:
    raise wrong or error from None
  skipped.add(f'text that is not in {declared.upper()} as its declaration says (mended)', path)
  return content


def label_files(
  source: pathlib.Path,
  split: str,
  labels: str,
  images: str,
  skipped: Skipped,
  wanted: texts.Names | None = None,
  tag: str = 'object',
) -> Iterator[tuple[dict[str, Any], list[Element]]]:
  """Yields (id, image, labels and declared size as `Annotation` calls them; its objects).

  Counted and left out: an image without a label file, what is not XML, XML of something else.

  Args:
    source: folder of the data set.
    split: only names the split in messages.
    labels, images: folders below it.
    skipped: where what is left out is counted.
    wanted: the images to look at; None takes all.
    tag: of the objects.

  Raises:
    FileNotFoundError: a folder is not there.
  """

  def read_one(file, image):
    root = parse(file, skipped)
    if not _has_sign(root, tag):
      why = f'<{root.tag}> is no label file of this format'
      raise BadEntry('label file without any known element', file, why)
    return root

  asked = {'wanted': wanted} if wanted else {}
  found = files.labelled(source, split, labels, images, '.xml', read_one, skipped, **asked)
  for id, image, file, root in found:
    size = next(filter(None, (declared_size(*map(root.findtext, keys)) for keys in SIZES)), None)
    fields = dict(id=id, image=image, labels=file, declared=size)
    yield fields, list(root.iter(tag))
  if wanted:
    wanted.finish(skipped)


def _has_sign(root, tag):
  """Whether this is a label file at all, so that one without objects says that there are none."""
  known = root.tag.casefold() in ROOTS or root.find('size') is not None
  return known or next(root.iter(tag), None) is not None


def rows(
  objects: Sequence[Element],
  path: pathlib.Path,
  skipped: Skipped,
  box: Callable[[Element, str], Any],
  name: str | None = 'name',
) -> list[tuple[str, Any, int]]:
  """[(class name, `box` of the element, difficult)]; entries that are bad are left out.

  Args:
    objects: their elements.
    path: of the file, for messages.
    skipped: where they are counted.
    box: element, place -> coordinates; raises BadEntry where it has none.
    name: where an element has its class; None calls all 'ship'.
  """

  def row(element, place):
    of = (element.findtext(name) or '').strip() if name else 'ship'
    return of, box(element, place), _difficult(element, place)

  return skipped.usable(row, ((e, f'{path}: object {k}') for k, e in enumerate(objects, 1)))


def _difficult(element, place):
  text = element.findtext('difficult')
  try:
    return difficulty(text)
  except ValueError:
    raise BadEntry('difficult that is no flag', place, f'difficult is {text!r}') from None


def numbers(element: Element, keys: Sequence[str], place: str) -> list[float]:
  """The numbers in the children `keys` of an element.

  Raises:
    BadEntry: one is missing or not a number.
  """
  texts = [element.findtext(key) for key in keys]
  try:
    return [float(text) for text in texts]
  except (TypeError, ValueError):
    found = ', '.join(f'{k}={t!r}' for k, t in zip(keys, texts, strict=True))
    reason = f'<{element.tag}> without its numbers'
    raise BadEntry(reason, place, f'<{element.tag}> needs numbers, has {found}') from None
