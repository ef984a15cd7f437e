"""Files that are there whole or not at all, and whether they can be, before the work."""

import os
import pathlib
import tempfile

from data_pipelines import errors
from data_pipelines.errors import UserError


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Replaces a file's content, so that a reader sees the old or the new one, never a part."""
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  os.replace(temporary, path)


def probe(folder: pathlib.Path) -> None:
  """Makes a folder if absent, and a file in it for a moment: what cannot be is told at once.

  Raises:
    OSError: the folder cannot be made.
    UserError: no file can be made in it.
  """
  folder.mkdir(parents=True, exist_ok=True)
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:  # its file's name would say nothing
    reason = errors.line(OSError(error.errno, error.strerror))
    raise UserError(f'{folder}: no file can be made in this folder: {reason}') from None
