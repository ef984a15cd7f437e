"""What `predict` has found in a scene so far, in a file that outlives an interruption."""

import hashlib
import json
import logging
import os
import pathlib

import jax
import numpy as np

logger = logging.getLogger(__name__)


class Journal:
  """The detections of windows that are done; a context manager.

  The file's first line is the key, each other one a window, on the disk when `add` returns.

  Args:
    path: of the file; its folder exists.
    key: of all that the detections depend on (`key`).
    resume: take over what the file has, if its key is this one; otherwise it starts anew.

  Attributes:
    rows: {window: its row} of the file.
  """

  def __init__(self, path: pathlib.Path, key: str, resume: bool):
    self._path, self.rows = path, {}
    good = self._load(key) if resume and path.exists() else 0
    self._file = open(path, 'r+b' if good else 'wb')
    self._file.truncate(good)  # a torn last line goes
    self._file.seek(good)
    if not good:
      self._write([{'key': key}])

  def _load(self, key):
    """Reads the rows; how many bytes of the file are whole lines."""
    good = 0
    for line in self._path.read_bytes().splitlines(keepends=True):
      try:
        row = json.loads(line)
      except ValueError:
        break
      if not line.endswith(b'\n'):
        break
      if not good and row != {'key': key}:
        logger.warning(
          '%s is of another file, model or setting: all windows are done anew', self._path
        )
        return 0
      good += len(line)
      if 'window' in row:
        place = tuple(row['window'])
        boxes = np.array(row['boxes'], np.float64).reshape(-1, row['sides'])
        labels = np.array(row['labels'], int)
        scores = np.array(row['scores'], np.float64)
        self.rows[place] = {'window': place, 'boxes': boxes, 'scores': scores, 'labels': labels}
    return good

  def add(self, rows: list[dict]) -> None:
    """Appends the rows of finished windows."""
    self._write(
      {'window': row['window'], 'sides': row['boxes'].shape[1]}
      | {k: row[k].tolist() for k in ('boxes', 'scores', 'labels')}
      for row in rows
    )

  def _write(self, lines):
    self._file.write(b''.join(json.dumps(line).encode() + b'\n' for line in lines))
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Ends the writing; the file stays."""
    self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def key(path: str | os.PathLike, *parts) -> str:
  """What detections in a file depend on, as a short text.

  Args:
    path: of the file; its size, time and beginning count, not its name.
    parts: anything whose `repr` says all of it, or bytes.
  """
  status = os.stat(path)
  digest = hashlib.blake2b(f'{status.st_size} {status.st_mtime_ns}'.encode(), digest_size=16)
  with open(path, 'rb') as file:
    digest.update(file.read(2**16))
  for part in parts:
    digest.update(part if isinstance(part, bytes) else repr(part).encode())
  return digest.hexdigest()


def fingerprint(variables: dict) -> bytes:
  """Of a model's variables, all of their values."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    value = np.ascontiguousarray(jax.device_get(leaf))
    digest.update(f'{jax.tree_util.keystr(path)} {value.dtype} {value.shape}'.encode())
    digest.update(value.view(np.uint8) if value.ndim else value.tobytes())
  return digest.digest()
