"""Texts in whatever encoding, json, and lists of images by their names."""

import codecs
import collections
import json
import operator
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from data_pipelines.readers.files import is_image, key
from data_pipelines.readers.skipped import BadEntry, Skipped

MARKS = (  # the longer first: UTF-32's begins with UTF-16's
  (codecs.BOM_UTF8, 'utf-8-sig'),
  (codecs.BOM_UTF32_LE, 'utf-32'),
  (codecs.BOM_UTF32_BE, 'utf-32'),
  (codecs.BOM_UTF16_LE, 'utf-16'),
  (codecs.BOM_UTF16_BE, 'utf-16'),
)
LISTS = ('ImageSets/Main', 'ImageSets', 'Main')  # folders of lists of names


def read(path: pathlib.Path, skipped: Skipped) -> str:
  """A text file by its byte order mark, else in `skipped.encoding`.

  Raises:
    as `content`, and BadEntry: in another encoding; names it where a BOM does not.
  """
  return decoded(content(path), path, skipped.encoding)


def content(path: pathlib.Path) -> bytes:
  """The bytes of a file.

  Raises:
    FileNotFoundError, IsADirectoryError: it is none.
    BadEntry: it cannot be read, for lack of rights and the like.
  """
  try:
    return path.read_bytes()
  except (FileNotFoundError, IsADirectoryError):
    raise
  except OSError as error:
    why = f'file cannot be read ({error.strerror})'
    raise BadEntry('file that cannot be read', path, why) from None


def decoded(data: bytes, path: pathlib.Path, encoding: str) -> str:
  """The text of a file's bytes, see `read`; raises what that raises."""
  encoding = next((name for mark, name in MARKS if data.startswith(mark)), encoding)
  try:
    return data.decode(encoding)
  except UnicodeDecodeError as error:
    at = f'byte {data[error.start]:#04x} at {error.start}'
    why = f'text is not in {encoding.upper()} ({at}); --encoding=gbk, latin-1, .. says what it is'
    raise BadEntry('text in another encoding', path, why) from None
  except (LookupError, UnicodeError):
    raise BadEntry('text in another encoding', path, f'{encoding!r} is no encoding') from None


def lines(path: pathlib.Path, skipped: Skipped) -> list[str]:
  """The lines of a list of names that are not empty, without the white space around them."""
  return [line.strip() for line in read(path, skipped).splitlines() if line.strip()]


def json_of(path: pathlib.Path, skipped: Skipped) -> Any:
  """What a json file holds.

  Raises:
    BadEntry: it is none.
  """
  text = read(path, skipped)
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
    why = f'not json ({type(error).__name__}: {error})'
    raise BadEntry('file that is not json', path, why) from None


class Names:
  """A list of images by their names, with or without folders and suffix.

  Called with an id, it says whether the image is listed. Folders count as far as both have them,
  and so do suffixes: an id has one where the name alone would be of two images.
  """

  def __init__(self, path: pathlib.Path, names: Iterable[str]):
    self._path, self._seen, self._names = path, set(), collections.defaultdict(dict)
    for name in names:
      above, last, suffix = _parts(name)
      self._names[last][name] = above, suffix

  def __call__(self, id: str) -> bool:
    above, last, suffix = _parts(id)
    found = [
      name
      for name, (folders, other) in self._names.get(last, {}).items()
      if all(map(operator.eq, above, folders)) and (not suffix or not other or suffix == other)
    ]
    self._seen.update(found)
    return bool(found)

  def finish(self, skipped: Skipped) -> None:
    """Counts the names that no image had."""
    for name in sorted({n for listed in self._names.values() for n in listed} - self._seen):
      skipped.add('name in a list without an image', f'{self._path}: {name}')


def listed(source: pathlib.Path, split: str, skipped: Skipped) -> Names | None:
  """The images of a split by VOC's `ImageSets/Main/<split>.txt`, or None without such a list.

  A name a line; those that no image has are counted by the reader.
  """
  path = list_of(source, split)
  return Names(path, lines(path, skipped)) if path else None


def list_of(source: pathlib.Path, split: str) -> pathlib.Path | None:
  """The file of a split's list of images, where there is one."""
  places = (pathlib.Path(source) / folder / f'{split}.txt' for folder in LISTS)
  return next((p for p in places if p.is_file()), None)


def _parts(name):
  """(folders from the last to the first, name without suffix, suffix of an image or '')."""
  *above, last = key(name).replace('\\', '/').split('/')
  whole = re.sub(r'~\d+$', '', name)  # as `files.named` tells A.png and a.png apart
  if whole != name and is_image(whole):
    return _parts(whole)
  suffix = pathlib.PurePath(name).suffix.casefold() if is_image(name) else ''
  return [part for part in reversed(above) if part not in ('', '.')], last, suffix
