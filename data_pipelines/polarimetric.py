"""Complex rasters as channels: real and imaginary part of each band, in the file's own precision.

`data_pipelines.rasters` reads complex numbers as amplitudes, which are what the eye sees; radar
images that keep their phase are read here. A .npy file is complex [H, W, n] or has its channels
already; a TIFF likewise (GDAL's CInt16 becomes int16, its CFloat32 float32).
"""

import pathlib

import numpy as np

from data_pipelines import images, rasters
from data_pipelines.errors import UserError
from data_pipelines.images import decoders

KEPT = {'complex_int16': 'int16', 'complex64': 'float32', 'int16': 'int16', 'float32': 'float32'}


class Channels:
  """An open raster of real channels; `read` as `rasters.Raster` has it, nothing is filled.

  Attributes:
    height, width, bands, dtype: of what `read` gives; bands re, im, re, im, ..
  """

  def __init__(self, header, stored, close=lambda: None):
    self.height, self.width = header.height, header.width
    self.dtype = np.dtype(KEPT[header.stored])
    self.bands = header.bands * (2 if header.stored.startswith('complex') else 1)
    self._stored, self._close = stored, close

  def read(self, x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    """Channels [y2 - y1, x2 - x1, bands] of a window inside the raster."""
    pixels = np.ascontiguousarray(self._stored(x1, y1, x2, y2))
    pixels = pixels.view(pixels.real.dtype) if pixels.dtype.kind == 'c' else pixels
    return pixels.astype(self.dtype, copy=False)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._close()


def open_channels(path: pathlib.Path) -> Channels:
  """Opens a .npy file or a TIFF.

  Raises:
    FileNotFoundError: no such file.
    ImageError: it is none, is truncated, or of another type of number.
  """
  header = images.header(path)
  if header.stored not in KEPT or header.form not in ('npy', 'TIFF'):
    raise images.ImageError(
      f'{path}: {header.form} of {header.stored}; complex radar images are .npy or TIFF files of '
      f'{", ".join(KEPT)}'
    )
  if header.form == 'npy':
    try:
      array = decoders.mapped(path)
    except UserError as error:
      raise images.ImageError(f'{path}: {error}') from error
    return Channels(header, lambda x1, y1, x2, y2: array[y1:y2, x1:x2])
  files = rasters.samples(path)
  part = lambda x1, y1, x2, y2: _read(files, path, (x1, y1, x2, y2))
  return Channels(header, part, files.close)


def _read(files, path, window):
  x1, y1, x2, y2 = window
  try:
    return files.read(0, window, (y2 - y1, x2 - x1))[0]
  except UserError as error:
    raise images.ImageError(f'{path}: {error}') from error
