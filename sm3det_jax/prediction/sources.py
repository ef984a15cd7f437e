"""What a prediction may be given: one image, or a collection that is walked through one by one."""

import glob
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from data_pipelines import rasters
from data_pipelines.errors import UserError
from data_pipelines.readers import files as image_files
from sm3det_jax.results import places

LIST = '.txt'  # the suffix of a file of paths


def images(source: Any) -> tuple[bool, int | None, Iterator]:
  """The images of a source.

  Args:
    source: one image, which is a path, an array or an open raster; or a collection: a folder (all
      images below it), a glob, a text file of paths, or anything that gives images one by one.

  Returns:
    (whether it is one image; how many they are, None if only the end says so; the images).

  Raises:
    FileNotFoundError: no such file.
    UserError: a collection without an image, or of another type.
  """
  if isinstance(source, (str, os.PathLike)):
    paths = of_paths([source])
    if paths == [pathlib.Path(source)] and not paths[0].is_dir():
      return True, 1, iter([source])
    found = [path for path, _ in places.of_images(paths)]
    return False, len(found), iter(found)
  if isinstance(source, rasters.Raster) or hasattr(source, '__array__'):
    return True, 1, iter([source])
  if not isinstance(source, Iterable) or isinstance(source, (bytes, dict)):
    refuse(source)
  count = len(source) if hasattr(source, '__len__') else None
  if count == 0:
    raise UserError('no image: the collection is empty')
  return False, count, iter(source)


def opened(image: Any) -> rasters.Raster:
  """An image, opened; a raster that is open stays as it is.

  Raises:
    as `rasters.open_raster`, and UserError: what is no image by its type.
  """
  if isinstance(image, rasters.Raster):
    return image
  if not isinstance(image, (str, os.PathLike)) and not hasattr(image, '__array__'):
    refuse(image)
  return rasters.open_raster(image)


def refuse(source: Any) -> None:
  """Raises UserError for what is no image and no collection of them by its type."""
  raise UserError(
    f'images of type {type(source).__name__}: expected a path, a glob, a folder, a text file of '
    'paths, an array, or several in a list or generator'
  )


def of_paths(given: Iterable[str | os.PathLike]) -> list[pathlib.Path]:
  """The files and folders that paths, globs and text files of paths stand for.

  Raises:
    FileNotFoundError: no such text file.
    UserError: a glob that matches no image; a text file without a path, or that is no text.
  """
  return [path for one in given for path in _of_path(one)]


def _of_path(given):
  path = pathlib.Path(given)
  if path.suffix.lower() == LIST and not path.is_dir():
    return _listed(path)
  if path.exists() or not glob.has_magic(str(given)):
    return [path]
  found = map(pathlib.Path, sorted(glob.glob(str(given), recursive=True)))
  found = [p for p in found if p.is_file() and image_files.is_image(p.name)]
  if not found:
    raise UserError(f'{given}: no image matches')
  return found


def _listed(path):
  """A path a line, from the folder of the list or, where it has no such file, the current one."""
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except UnicodeDecodeError:
    raise UserError(f'{path}: expected a text of paths, a line each, in UTF-8') from None
  named = [pathlib.Path(line.strip()) for line in lines if line.strip()]
  if not named:
    raise UserError(f'{path}: no path in it; expected one a line')
  return [there if (there := path.parent / one).exists() else one for one in named]
