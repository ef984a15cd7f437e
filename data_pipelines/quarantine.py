"""Lists of images that are left out of a data set though their files stay where they are.

A list is a text in UTF-8, a line an image: its split, a TAB and its id (its path below the folder
of images, without suffix); what stands behind another TAB is for people. Lines that begin with `#`
are comments. `sm3det doctor` writes one; `sm3det prepare --quarantine=FILE` leaves its
images out, and so does everything that opens a prepared data set beside which it lies:
`DATA_ROOT/NAME/quarantine.txt`. There it goes with the data to every machine and is honoured by
training and evaluation alike, without a key in every config.
"""

from collections.abc import Iterable
from typing import NamedTuple

from etils import epath

from data_pipelines.errors import UserError

NAME = 'quarantine.txt'
HEAD = """\
# Images to leave out, a line an image: split, TAB, image, TAB, why.
# `sm3det prepare --quarantine=FILE` leaves them out; so does a copy DATA_ROOT/NAME/quarantine.txt.
# Lines that begin with # are not in force: take the # away from those that you agree with.
"""
ESCAPES = (('\\', '\\\\'), ('\t', '\\t'), ('\n', '\\n'), ('\r', '\\r'))  # of characters in ids


class Line(NamedTuple):
  """A line of a list: an image, why it is there, and whether it is left out (or a comment)."""

  split: str
  id: str
  why: str
  out: bool = True


def read(path) -> dict[str, set[str]]:
  """{split: ids of the images to leave out} of a list.

  Raises:
    FileNotFoundError: no such file.
    UserError: a line that is none, or not a text in UTF-8.
  """
  found = {}
  try:
    text = epath.Path(path).read_bytes().decode('utf-8-sig', 'surrogateescape')
  except IsADirectoryError:
    raise UserError(f'{path}: a folder lies where the list of a quarantine is meant') from None
  for number, line in enumerate(text.split('\n'), 1):
    line = line.rstrip('\r')
    if not line.strip() or line.startswith('#'):
      continue
    split, tab, rest = line.partition('\t')
    id = rest.partition('\t')[0]
    if not (tab and split.strip() and id):
      raise UserError(f'{path}:{number}: expected a split, a TAB and an image, not {line!r}')
    found.setdefault(split.strip(), set()).add(_plain(id))
  return found


def write(path, lines: Iterable[Line]) -> None:
  """Writes a list that `read` reads."""
  text = HEAD + ''.join(
    f'{"" if line.out else "#"}{line.split}\t{_escaped(line.id)}\t{_escaped(line.why)}\n'
    for line in lines
  )
  epath.Path(path).write_bytes(text.encode('utf-8', 'surrogateescape'))


def _escaped(text):
  for plain, escape in ESCAPES:
    text = text.replace(plain, escape)
  return text


def _plain(text):
  parts = text.split('\\\\')  # first, so that no backslash of an id begins an escape
  for plain, escape in ESCAPES[1:]:
    parts = [part.replace(escape, plain) for part in parts]
  return '\\'.join(parts)
