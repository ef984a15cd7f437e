"""Writers of the data sets' own formats: one module a format, twins of `data_pipelines.readers`.

    write(folder: pathlib.Path, split: str, images: Iterator[Labelled], classes, ...) -> None

writes the label files of one split below `folder`, where `sm3det prepare` finds them by itself.
Image files are put there by whoever makes the `Labelled`s. Numbers have all digits of float32.
"""

import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from data_pipelines.errors import UserError


class Labelled(NamedTuple):
  """One image and its objects, as a writer needs them.

  Attributes:
    id: path of the image below the folder of its split, POSIX, without suffix.
    file: the same with suffix.
    height, width: px.
    names: class name of each object, [n] of strings.
    boxes: float32 [n, 4] x1, y1, x2, y2 or [n, 5] cx, cy, w, h, theta (radians, le90).
    polygons: float32 [n, 8]; the quadrilateral, or the corners of the box.
    difficult: int8 [n].
    ignored: bool [n]; regions in which nothing counts (COCO's `iscrowd`).
  """

  id: str
  file: str
  height: int
  width: int
  names: Sequence[str]
  boxes: np.ndarray
  polygons: np.ndarray
  difficult: np.ndarray
  ignored: np.ndarray


def number(value) -> str:
  """The shortest decimal that is this float32 again."""
  return np.format_float_positional(np.float32(value), trim='-')


def each(
  folder: pathlib.Path, suffix: str, images: Iterator[Labelled], text: Callable[[Labelled], str]
) -> list[str]:
  """Writes `<id><suffix>` of every image, and returns their ids."""
  folder.mkdir(parents=True, exist_ok=True)
  done = []
  for image in images:
    path = folder / f'{image.id}{suffix}'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(image), encoding='utf-8')
    done.append(image.id)
  return done


def xml(image: Labelled, places: Iterable[dict[str, dict[str, str]]]) -> str:
  """VOC's `<annotation>`.

  Args:
    image: its names and flags.
    places: {element: {child: text}} of each object, such as {'bndbox': {'xmin': '3', ...}}.

  Raises:
    UserError: a class name that XML cannot hold.
  """
  root = ElementTree.Element('annotation')
  name = pathlib.PurePosixPath(image.file).name
  _add(root, filename=name.encode('utf-8', 'replace').decode())
  size = ElementTree.SubElement(root, 'size')
  _add(size, width=str(image.width), height=str(image.height))
  for name, difficult, place in zip(image.names, image.difficult, places, strict=True):
    if re.search(r'[\x00-\x1f\ud800-\udfff\ufffe\uffff]', name):
      raise UserError(f'class {name!r} of {image.file} cannot stand in XML; rename it by --aliases')
    element = ElementTree.SubElement(root, 'object')
    _add(element, name=name, difficult=str(difficult))
    for key, children in place.items():
      _add(ElementTree.SubElement(element, key), **children)
  ElementTree.indent(root)
  return ElementTree.tostring(root, encoding='unicode') + '\n'


def _add(element, **texts):
  for key, text in texts.items():
    ElementTree.SubElement(element, key).text = text
