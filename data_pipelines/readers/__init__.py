"""Readers of the data sets' own formats: one module a format, each with

    read(source: pathlib.Path, split: str, *, labels, images, skipped, ...) -> Iterator[Annotation]

`labels` and `images` are paths relative to `source`. A reader says what the files say: boxes of any
size, anywhere; an entry that it cannot use is left out through `skipped`. What is too small,
outside the image or of an unknown class is decided in one place, `data_pipelines.builders.scan`.
"""

from data_pipelines.readers.annotation import Annotation, horizontal, oriented, rectangles
from data_pipelines.readers.files import SUFFIXES, find, image_files, pairs
from data_pipelines.readers.skipped import BadEntry, Skipped

__all__ = [
  'SUFFIXES',
  'Annotation',
  'BadEntry',
  'Skipped',
  'find',
  'horizontal',
  'image_files',
  'oriented',
  'pairs',
  'rectangles',
]
