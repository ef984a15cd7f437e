"""Files of a data set: which are images, what each is called, which label file belongs to which.

An image is its path below the folder of images, never its stem alone: `site_a/0001` and
`site_b/0001` are two. The suffix is left out where that leaves the name unique. Hidden files and
what desktops leave behind are no part of a data set. A link is followed as long as it stays below
the source; beyond it only by `follow_links`.
"""

import collections
import logging
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from data_pipelines.errors import UserError
from data_pipelines.images import SUFFIXES
from data_pipelines.readers.skipped import BadEntry, Skipped

T = TypeVar('T')
LEFT_BEHIND = ('thumbs.db', 'desktop.ini', '__macosx', '@eadir', '$recycle.bin')


def find(source: pathlib.Path, relative: str, what: str) -> pathlib.Path:
  """Path of `relative` below `source`.

  Raises:
    FileNotFoundError: it is not there; names what was looked for.
  """
  path = pathlib.Path(source) / relative
  if not path.exists():
    raise FileNotFoundError(f'{path} ({what}) does not exist')
  return path


def hidden(name: str) -> bool:
  """Whether a file or folder of this name is none of the data set's: `._a.png`, `Thumbs.db`."""
  return name.startswith('.') or name.lower() in LEFT_BEHIND


def walk(
  folder: pathlib.Path, skipped: Skipped, root: pathlib.Path | None = None
) -> Iterator[tuple[str, pathlib.Path]]:
  """Yields (path below the folder with '/', path) of every file, by name; links as said above.

  Args:
    folder: where to begin.
    skipped: where links are counted.
    root: links may lead anywhere below it, or below `folder`.
  """
  inside = [pathlib.Path(f).resolve() for f in (folder, root) if f is not None]
  if root is not None:
    note_link(pathlib.Path(folder), pathlib.Path(root), skipped)

  def visit(folder, prefix, above):
    for name in sorted(os.listdir(folder)):
      path = folder / name
      if hidden(name) or (path.is_symlink() and not _follows(path, inside, skipped)):
        continue
      if path.is_file():
        yield prefix + name, path
      elif path.is_dir():
        if (real := path.resolve()) in above:
          skipped.add('link that leads in a circle', path)
        else:
          yield from visit(path, f'{prefix}{name}/', above | {real})

  yield from visit(pathlib.Path(folder), '', {inside[0]})


def note_link(path: pathlib.Path, root: pathlib.Path, skipped: Skipped) -> None:
  """Notes where a folder or file that is named leads out of the source by a link: it is followed.

  Args:
    path: of labels or images, as they were asked for.
    root: the source.
    skipped: gets the note.
  """
  real = path.resolve()
  if path.absolute().is_relative_to(root.absolute()) and not real.is_relative_to(root.resolve()):
    skipped.note(f'{path} leads out of the source to {real}: followed, since it is named')


def _follows(path, inside, skipped):
  """Whether to follow a link; counts what becomes of it."""
  try:
    real = path.resolve(strict=True)
  except (OSError, RuntimeError):
    skipped.bad('broken link', path)
    return False
  if not skipped.follow_links and not any(real.is_relative_to(folder) for folder in inside):
    skipped.bad('link that leads out of the source (--follow_links takes it)', path)
    return False
  skipped.add('link (followed)', path, level=logging.INFO)
  return True


def image_files(
  folder: pathlib.Path, skipped: Skipped | None = None, root: pathlib.Path | None = None
) -> dict[str, pathlib.Path]:
  """{id: path} of all images below a folder, by name."""
  found = [(n, p) for n, p in walk(folder, skipped or Skipped(), root) if is_image(n)]
  return named(found)


def is_image(name: str) -> bool:
  """Whether a name has the suffix of an image."""
  return name.lower().endswith(SUFFIXES)


def named(files: Iterable[tuple[str, pathlib.Path]]) -> dict[str, pathlib.Path]:
  """(relative name, path) of images -> {id: path}, the ids different in upper and lower case, too.

  The id is the name without its suffix, or with it where two would be the same, forms of Unicode
  aside; with a number where even that is not enough. What no UTF-8 is, is spelt out: `\\xb8`.
  """
  files = list(files)
  alike = lambda name: unicodedata.normalize('NFC', name).casefold()
  count = collections.Counter(alike(bare(name)) for name, _ in files)
  count.update(alike(name) for name, _ in files if count[alike(bare(name))] > 1)
  ids, taken = {}, set()
  for name, path in files:
    free = bare(name) if count[alike(bare(name))] == 1 else name
    number = 1
    while alike(free) in taken:
      number += 1
      free = f'{name}~{number}'
    taken.add(alike(free))
    ids[printable(free)] = path
  return ids


def bare(name: str) -> str:
  """A name without the suffix of an image: `tile_0.5` and `tile_0.5.png` are `tile_0.5`."""
  return name[: -len(pathlib.PurePosixPath(name).suffix)] if is_image(name) else name


def key(name: str) -> str:
  """What names are compared by: without an image's suffix, in one form of Unicode."""
  return unicodedata.normalize('NFC', bare(name))


def printable(name: str) -> str:
  """A file's name as text that any encoding takes."""
  return os.fsencode(name).decode('utf-8', 'backslashreplace')


def pairs(
  labels: pathlib.Path,
  images: pathlib.Path,
  suffix: str,
  skipped: Skipped,
  instead: Callable[[str], str] = str,
  root: pathlib.Path | None = None,
) -> Iterator[tuple[str, pathlib.Path, pathlib.Path | None]]:
  """Yields (id, image, its label file or None) by their paths below the two folders, in order.

  Counted are label files without an image: once, since a folder of labels may serve several splits;
  and left out too what one name means twice: `a.txt` beside `a.jpg` and `a.png`.

  Args:
    labels, images: the folders.
    suffix: of the label files, with its dot.
    skipped: where label files without an image are counted.
    instead: image name without suffix -> name of another label file that will do.
    root: links may lead anywhere below it.
  """
  files = collections.defaultdict(list)
  for name, path in walk(labels, skipped, root):
    if name.lower().endswith(suffix):
      files[unicodedata.normalize('NFC', name[: -len(suffix)])].append(path)
  listed = image_files(images, skipped, root)
  keys = [key(path.relative_to(images).as_posix()) for path in listed.values()]
  count, used = collections.Counter(keys), set()
  for (id, image), name in zip(listed.items(), keys, strict=True):
    own = name if name in files else instead(name)
    used.add(own)
    found = files.get(own, [])
    if len(found) > 1 or (found and count[name] > 1):
      skipped.bad('label file and image do not pair: one name means two files', image)
    else:
      yield id, image, found[0] if found else None
  if lost := sorted(str(p) for name in files.keys() - used for p in files[name]):
    more = f', ..., {lost[-1]}' if len(lost) > 1 else ''
    skipped.add('label file without an image', lost[0] + more, len(lost))


def labelled(
  source: pathlib.Path,
  split: str,
  labels: str,
  images: str,
  suffix: str,
  read: Callable[[pathlib.Path, pathlib.Path], T],
  skipped: Skipped,
  wanted: Callable[[str], bool] = lambda id: True,
  instead: Callable[[str], str] = str,
) -> Iterator[tuple[str, pathlib.Path, pathlib.Path, T]]:
  """Yields (id, image, its label file, `read` of both) of the images whose label file is good.

  Counted and left out: an image without a label file, and what `read` refuses by a BadEntry.

  Args:
    source, split, labels, images, skipped: as the readers have them, both folders below the source.
    suffix, instead: as `pairs` has them.
    read: label file, image -> what it says.
    wanted: id -> whether to look at the image at all.
  """
  folder = find(source, labels, f'{split} labels')
  pictures = find(source, images, f'{split} images')
  for id, image, file in pairs(folder, pictures, suffix, skipped, instead, source):
    if not wanted(id):
      continue
    try:
      if not file:
        raise BadEntry('image without a label file', image)
      content = read(file, image)
    except BadEntry as error:
      skipped.take(error)
    else:
      yield id, image, file, content


class Listing:
  """Finds the images that label files name, in the ways in which copies of data sets differ.

  Args:
    folder: of the images.
    root: links may lead anywhere below it.
    skipped: where what is found under another name is counted.
  """

  def __init__(self, folder: pathlib.Path, root: pathlib.Path, skipped: Skipped):
    self.folder, self.skipped = folder, skipped
    self.files = {n: p for n, p in walk(folder, skipped, root) if is_image(n)}
    self.keys = collections.defaultdict(list)
    for name in self.files:
      self.keys[key(name).casefold()].append(name)

  def find(self, name: str, place: str) -> tuple[str, pathlib.Path]:
    """(name below the folder, path) of a file.

    Raises:
      BadEntry: it is not there, lies outside of the folder, or could be several.
    """
    for spelling in dict.fromkeys((name, name.replace('\\', '/'))):  # of Windows, or in a name
      relative = self._inside(spelling, place)
      if relative in self.files:
        return relative, self.files[relative]
      parts = relative.split('/')
      for k in range(len(parts)):
        rest = '/'.join(parts[k:])
        found = [rest] if rest in self.files else self.keys.get(key(rest).casefold(), [])
        if len(found) > 1:
          raise BadEntry('image file that could be several', place, f'{name!r:.80}: {found}')
        if found:
          self.skipped.add(f'image file under another {_difference(rest, found[0], k)}', place)
          return found[0], self.files[found[0]]
    raise BadEntry('image file missing', place, f'no image {name!r:.80} in {self.folder}')

  def _inside(self, name, place):
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or '..' in path.parts:
      whole = os.path.normpath(self.folder.absolute() / path)
      if not pathlib.Path(whole).is_relative_to(self.folder.absolute()):
        raise BadEntry(
          'image outside of the source', place, f'{name!r:.80} is outside of the source'
        )
      return pathlib.Path(whole).relative_to(self.folder.absolute()).as_posix()
    return path.as_posix()


def named_by(
  source: pathlib.Path, split: str, images: str, entries: Iterable[tuple[str, str, T]], skipped
) -> list[tuple[str, pathlib.Path, T]]:
  """(id, image, entry) of the images that a label file names and that are there.

  Args:
    source, split, images, skipped: as the readers have them.
    entries: (name, place in the label file, entry) each.

  Raises:
    UserError: two entries are of one image.
  """
  listing = Listing(find(source, images, f'{split} images'), source, skipped)
  find_one = lambda name, place, entry: (*listing.find(name, place), place, entry)
  found, taken = skipped.usable(find_one, entries), {}
  for name, path, place, _ in found:
    if taken.setdefault(path, place) != place:
      raise UserError(f'{place}: two images have the name {name}; the other: {taken[path]}')
  ids = {path: id for id, path in named((name, path) for name, path, *_ in found).items()}
  return [(ids[path], path, entry) for _, path, _, entry in found]


def _difference(asked, found, leading):
  if leading:
    return 'folder (mended)'
  same = bare(asked) == bare(found)
  return 'suffix (mended)' if same else 'spelling: case or form of Unicode (mended)'
