"""Where the results of images go: their tree below the folder of results."""

import os
import pathlib
from collections.abc import Sequence

from data_pipelines.errors import UserError
from data_pipelines.readers import files


def of_images(images: Sequence[str | os.PathLike]) -> list[tuple[pathlib.Path, str]]:
  """(path, name of its results) of every file: its path below the folder that all have in common.

  Pictures that `predict` has made are no images.
  """
  paths, folders = {}, []
  for path in map(pathlib.Path, images):
    inside = path.is_dir()
    found = files.image_files(path).values() if inside else [path]
    folders.append(_whole(path if inside else path.parent))
    paths |= {_whole(p): p for p in found if not (inside and _is_result(p))}
  if not paths:
    raise UserError(f'no image among {", ".join(map(str, images))}')
  common = os.path.commonpath(folders)
  names = files.named((whole.relative_to(common).as_posix(), path) for whole, path in paths.items())
  return [(path, name) for name, path in names.items()]


def _whole(path):
  """The absolute path without `..`, which would lead out of the folder of results."""
  return pathlib.Path(os.path.abspath(path))


def _is_result(path):
  other = path.with_suffix('.json')
  return path.name.endswith('_detections.png') and other.is_file()
