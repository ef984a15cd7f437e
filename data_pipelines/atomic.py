"""Files that are there whole or not at all."""

import os
import pathlib


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Replaces a file's content, so that a reader sees the old or the new one, never a part."""
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  os.replace(temporary, path)
