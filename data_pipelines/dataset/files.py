"""Folders and image files that `sm3det dataset` makes; it changes none that were there before."""

import contextlib
import errno
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines import images as image_lib
from data_pipelines.errors import UserError
from data_pipelines.readers import Annotation

MODES = ('copy', 'link', 'none')


def check_out(out, inputs: Iterable) -> pathlib.Path:
  """The folder to write to, which must not lie in what is read.

  Raises:
    UserError: it does.
  """
  out = pathlib.Path(out)
  for folder in map(pathlib.Path, inputs):
    if out.resolve().is_relative_to(folder.resolve()):
      raise UserError(
        f'--out={out} lies in {folder}, where nothing is written; name another folder'
      )
  return out


@contextlib.contextmanager
def new_folder(out) -> Iterator[pathlib.Path]:
  """A folder to write to, which becomes `out` when all is written; removed after an error.

  Raises:
    UserError: `out` is not empty, or an interrupted run left its folder.
  """
  out = pathlib.Path(out).absolute()
  if out.is_dir() and any(out.iterdir()):
    raise UserError(f'{out} is not empty; name a new folder, nothing is overwritten')
  if out.exists() and not out.is_dir():
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
  part = out.with_name(f'{out.name}.partial')
  try:
    part.mkdir(parents=True)
  except FileExistsError:
    raise UserError(
      f'{part} is there, of a run that goes on or was interrupted; remove it, or take another --out'
    ) from None
  try:
    yield part
    os.replace(part, out)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise


@contextlib.contextmanager
def _reading(path):
  """An image that the system does not read is as one that does not decode: left out, not fatal."""
  try:
    yield
  except OSError as error:
    raise image_lib.ImageError(f'{path}: unreadable ({error.strerror})') from None


def header(path: pathlib.Path) -> tuple[tuple[int, int], int]:
  """((height, width), EXIF orientation) of an image file.

  Raises:
    ImageError: it does not read.
  """
  with _reading(path):
    found = image_lib.header(path)
  return (found.height, found.width), found.orientation


def size(a: Annotation) -> tuple[int, int]:
  """(height, width) of an annotation's image, in px."""
  if not a.crop:
    return header(a.image)[0]
  x1, y1, x2, y2 = a.crop
  return y2 - y1, x2 - x1


def read(a: Annotation) -> np.ndarray:
  """Pixels [height, width, bands] of an annotation's image.

  Raises:
    ImageError: it does not read.
  """
  with _reading(a.image):
    pixels = image_lib.read(a.image)
  x1, y1, x2, y2 = a.crop or (0, 0, pixels.shape[1], pixels.shape[0])
  return pixels[y1:y2, x1:x2]


def place(a: Annotation, folder: pathlib.Path, mode: str) -> str:
  """Puts the image below `folder` by its id, and returns its path there.

  Args:
    a: the annotation. Of an image with a border the inner part is written, of one with an EXIF
      orientation the pixels that the labels are of; both as new files.
    folder: of the images of its split.
    mode: 'copy', 'link' (a hard link: one file under two names) or 'none'.

  Raises:
    ImageError: it does not decode; with 'none' that is not asked.
    UserError: a link to another disk, or an id that leaves the folder.
  """
  path = inside(folder, f'{a.id}{a.image.suffix}')
  if mode != 'none':
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = read(a)  # also of what is copied: `prepare` takes no image that does not decode
    if a.crop or header(a.image)[1] != 1:
      path = write(inside(folder, a.id), pixels)
    elif mode == 'copy':
      shutil.copyfile(a.image, path)
    else:
      _link(a.image, path)
  return path.relative_to(folder).as_posix()


def _link(image, path):
  try:
    os.link(image.resolve(), path)
  except OSError as error:
    if error.errno != errno.EXDEV:
      raise
    raise UserError(f'{image} lies on another disk than {path}; take --images=copy') from None


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """`folder / name`.

  Raises:
    UserError: it lies elsewhere.
  """
  pure = pathlib.PurePosixPath(name)
  if pure.is_absolute() or '..' in pure.parts:
    raise UserError(f'image {name}: a name that leads out of its folder cannot be written')
  return folder / name


def write(stem: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
  """Writes pixels [height, width, bands] without loss: `<stem>.png`, or `.tif` if PNG cannot."""
  stem.parent.mkdir(parents=True, exist_ok=True)
  if pixels.dtype in (np.uint8, np.uint16) and pixels.shape[2] in (1, 3):
    path = stem.with_name(f'{stem.name}.png')
    path.write_bytes(image_lib.encode(np.ascontiguousarray(pixels)))
    return path
  import rasterio  # lazily: it takes a while

  path = stem.with_name(f'{stem.name}.tif')
  height, width, bands = pixels.shape
  form = dict(driver='GTiff', height=height, width=width, count=bands, dtype=pixels.dtype.name)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
    with rasterio.open(path, 'w', compress='deflate', **form) as file:
      file.write(np.moveaxis(pixels, -1, 0))
  return path
