"""What `predict` has found so far, in files that outlive an interruption."""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterable

import jax
import numpy as np

logger = logging.getLogger(__name__)


class Lines:
  """A file whose first line is the key, each other one an entry; what is added is on the disk.

  A context manager.

  Args:
    path: of the file; its folder exists.
    key: of all that the entries depend on (`key`).
    resume: take over what the file has, if its key is this one; otherwise it starts anew.

  Attributes:
    old: the entries that the file had.
  """

  def __init__(self, path: pathlib.Path, key: str, resume: bool):
    self.path, self.old = path, []
    good = self._load(key) if resume and path.exists() else 0
    self._file = open(path, 'r+b' if good else 'wb')
    self._file.truncate(good)  # a torn last line goes
    self._file.seek(good)
    if not good:
      self._append([{'key': key}])

  def _load(self, key):
    """Reads the entries; how many bytes of the file are whole lines."""
    good = 0
    for line in self.path.read_bytes().splitlines(keepends=True):
      try:
        entry = json.loads(line)
      except ValueError:
        break
      if not line.endswith(b'\n'):
        break
      if not good and entry != {'key': key}:
        logger.warning('%s is of another file, model or setting: all is done anew', self.path)
        return 0
      if good:
        self.old.append(entry)
      good += len(line)
    return good

  def _append(self, entries: Iterable) -> None:
    self._file.write(b''.join(json.dumps(entry).encode() + b'\n' for entry in entries))
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Ends the writing; the file stays."""
    self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class Journal(Lines):
  """The detections of windows that are done; arguments as of `Lines`.

  Attributes:
    rows: {window: its row} that the file had.
  """

  def __init__(self, path: pathlib.Path, key: str, resume: bool):
    super().__init__(path, key, resume)
    self.rows = {row['window']: row for row in map(_row, self.old)}

  def add(self, rows: list[dict]) -> None:
    """Appends the rows of finished windows."""
    self._append(
      {'window': row['window'], 'sides': row['boxes'].shape[1]}
      | {k: row[k].tolist() for k in ('boxes', 'scores', 'labels')}
      for row in rows
    )


def _row(entry):
  return {
    'window': tuple(entry['window']),
    'boxes': np.array(entry['boxes'], np.float64).reshape(-1, entry['sides']),
    'scores': np.array(entry['scores'], np.float64),
    'labels': np.array(entry['labels'], int),
  }


class Done(Lines):
  """The images of a command that are done; arguments as of `Lines`."""

  def __init__(self, path: pathlib.Path, key: str, resume: bool):
    super().__init__(path, key, resume)
    self._known = set(map(tuple, self.old))

  def __contains__(self, path: pathlib.Path) -> bool:
    """Whether an image is done, as it is now."""
    return _stamp(path) in self._known

  def add(self, path: pathlib.Path) -> None:
    """Notes that the results of an image are written."""
    self._append([_stamp(path)])


def _stamp(path):
  status = os.stat(path)
  return os.path.abspath(path), status.st_size, status.st_mtime_ns


def key(*parts) -> str:
  """What detections depend on, as a short text; parts are bytes, or have a `repr` that says all."""
  digest = hashlib.blake2b(digest_size=16)
  for part in parts:
    digest.update(part if isinstance(part, bytes) else repr(part).encode())
  return digest.hexdigest()


def beginning(path: str | os.PathLike) -> bytes:
  """What stands for a file in a `key`: its size, time and beginning, not its name."""
  status = os.stat(path)
  with open(path, 'rb') as file:
    return f'{status.st_size} {status.st_mtime_ns}'.encode() + file.read(2**16)


def fingerprint(variables: dict) -> bytes:
  """Of a model's variables, all of their values."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    value = np.ascontiguousarray(jax.device_get(leaf))
    digest.update(f'{jax.tree_util.keystr(path)} {value.dtype} {value.shape}'.encode())
    digest.update(value.view(np.uint8) if value.ndim else value.tobytes())
  return digest.digest()
