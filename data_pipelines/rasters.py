"""Rasters of any size, whose windows are read as they are needed.

A window's pixels are what `data_pipelines.images` makes of a file that holds just them: the same
types and bands, palettes, alpha, white-is-zero. So pixels without data become the mean of the
band's other pixels in the window: it costs no pass over the scene, and a scene put together from
tiles gives what the tiles give.

TIFF, JPEG 2000 and .npy files are read by windows; the other formats, which have no windows, are
unpacked by who reads first, and lie in memory from then on, as arrays do. The limits of `images`
hold for what is unpacked at once: a strip or a tile.
"""

import os
import pathlib
import threading
from collections.abc import Callable

import numpy as np

from data_pipelines import images
from data_pipelines.errors import UserError
from data_pipelines.images import decoders, headers, tiff

STRIP = 512  # rows read at once where fewer are wanted, if blocks are not higher
CACHE = 2**27  # bytes, GDAL's unpacked blocks of all files together
CHUNK = 2**28  # bytes, a strip or tile of a TIFF at most, unpacked; it is read as a whole
EMPTY = 'parts without any data (nothing is found there)'
SIDE = 2048  # px, longest side of an overview


class Raster:
  """An open raster; `read` may be called by several threads.

  Attributes:
    name: for messages.
    header: what the file says.
    height, width, bands, dtype: of what `read` gives; dtype is uint8, uint16, int16 or float32.
    remarks: {what is to be said of it: how often}; what `read` finds comes in as it is found.
  """

  def __init__(self, name: str, header: headers.Header, stored: Callable, close: Callable):
    self.name, self.header = name, header
    self.height, self.width, self.bands = header.height, header.width, header.bands
    self.dtype, self.remarks = header.dtype, images.remarks_of(header)
    self._stored, self._close = stored, close

  def read(
    self, x1: int, y1: int, x2: int, y2: int, fill: float | None = None
  ) -> np.ndarray | None:
    """Pixels [y2 - y1, x2 - x1, bands] of a window inside the raster.

    Args:
      x1, y1, x2, y2: corners of the window.
      fill: value of pixels without data; None: the mean of the band's others there.

    Returns:
      The pixels; None if none of them has data.

    Raises:
      ImageError: what is stored there does not decode.
    """
    return self._part((x1, y1, x2, y2), (y2 - y1, x2 - x1), fill)

  def overview(self, side: int = SIDE) -> tuple[np.ndarray, float]:
    """The whole in at most `side` px a side, and how many of its pixels one of the raster is."""
    scale = min(1.0, side / max(self.height, self.width))
    shape = tuple(max(1, round(length * scale)) for length in (self.height, self.width))
    pixels = self._part((0, 0, self.width, self.height), shape)
    return np.zeros((*shape, self.bands), self.dtype) if pixels is None else pixels, scale

  def close(self) -> None:
    """Ends all reading."""
    self._close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _part(self, window, shape, fill=None):
    try:
      pixels, missing = images.as_read(self.header, *self._stored(window, shape))
    except images.ImageError:  # of the whole file, which names it
      raise
    except UserError as error:
      raise images.ImageError(f'{self.name}: {error}') from error
    if missing is None or not missing.any():
      return pixels
    nothing = missing.all()
    # windows overlap: how many there are is not known
    if nothing:
      self.remarks[EMPTY] = 1
      return None
    if fill is None:
      self.remarks[images.NO_DATA] = 1
      return images.filled(pixels, missing)
    self.remarks[f'pixels without data (became {fill:g})'] = 1
    return np.where(missing, pixels.dtype.type(fill), pixels)


def open_raster(source) -> Raster:
  """Opens an image file or wraps an array.

  Args:
    source: path, or array [height, width] or [height, width, bands].

  Raises:
    FileNotFoundError: no such file.
    ImageError: truncated, not an image, of a type that is not supported, beyond the limits; what is
      unpacked as a whole may say so when it is read.
  """
  if not isinstance(source, (str, os.PathLike)):
    header, array = images.checked(source)
    return _of_array('the image', header, lambda: array)
  path = pathlib.Path(source)
  header = images.header(path)
  try:
    if header.form == 'TIFF':
      return Raster(str(path), header, *_tiff(path, header))
    if header.form == 'JPEG 2000':
      files = _Files(path, decoders.DRIVERS[header.form], ('',))
      part = lambda window, shape: (files.read(0, window, shape)[0][..., : header.bands], None)
      return Raster(str(path), header, part, files.close)
    if header.form == 'npy':
      array = decoders.mapped(path)
      return _of_array(str(path), header, lambda: array)
  except UserError as error:
    raise images.ImageError(f'{path}: {error}') from error
  raster = _of_array(str(path), header, lambda: pixels())
  lock, kept = threading.Lock(), []

  def pixels():
    with lock:
      if not kept:
        loaded = images.load(path)
        kept.append(loaded.pixels)
        raster.remarks |= loaded.remarks
      return kept[0]

  return raster


def samples(path: pathlib.Path) -> '_Files':
  """The samples of a TIFF's first page, as they are stored: `read(0, window, shape)`, `close`."""
  return _Files(path, 'GTiff', ('',))


def _of_array(name, header, get):
  """A raster of the array [height, width, bands] that `get` gives."""

  def part(window, shape):
    array = get()
    x1, y1, x2, y2 = window
    rows, columns = (
      np.linspace(a, b, n, endpoint=False, dtype=int)
      for a, b, n in ((y1, y2, shape[0]), (x1, x2, shape[1]))
    )
    if shape == (y2 - y1, x2 - x1):
      return (array[y1:y2, x1:x2],)
    return (array[rows[:, None], columns],)

  return Raster(name, header, part, lambda: None)


class _Files:
  """GDAL's readers of the images in one file: every thread has its own, as GDAL demands."""

  def __init__(self, path, driver, prefixes):
    self._path, self._driver, self._prefixes = os.path.abspath(path), driver, prefixes
    self._local, self._open, self._lock = threading.local(), [], threading.Lock()

  def read(self, k, window, shape):
    """(samples [*shape, n] of image k as stored, nearest ones where that is less; its palette)."""
    import rasterio
    from rasterio.windows import Window

    x1, y1, x2, y2 = window
    try:
      with _environment():
        dataset = self.dataset(k)
        strips = []
        for top, bottom, rows in _strips(y1, y2, shape[0], dataset.block_shapes[0][0]):
          samples = dataset.read(
            window=Window(x1, top, x2 - x1, bottom - top),
            out_shape=(dataset.count, bottom - top, shape[1]),
          )
          strips.append(_bands_last(samples)[rows])
        samples = strips[0] if len(strips) == 1 else np.concatenate(strips)
        return samples, decoders.colours(dataset)
    except rasterio.errors.RasterioError as error:
      raise decoders.broken(error, self._path) from None

  def dataset(self, k):
    """This thread's reader of image k."""
    readers = self._local.__dict__
    if k not in readers:
      readers[k] = decoders.reader()(self._prefixes[k] + self._path, self._driver)
      with self._lock:
        self._open.append(readers[k])
    return readers[k]

  def close(self):
    with self._lock:
      while self._open:
        self._open.pop().close()


def _strips(y1, y2, count, block):
  """(y1, y2, which of these rows are wanted) of the parts that `count` nearest rows are read in.

  Bands are read one after the other: of rows of blocks that are kept, each is unpacked once.
  """
  if count == y2 - y1:
    return [(y1, y2, slice(None))]
  wanted = y1 + ((np.arange(count) + 0.5) * ((y2 - y1) / count)).astype(int)
  step = max(block, STRIP // block * block)
  parts = np.split(wanted, np.flatnonzero(np.diff(wanted // step)) + 1)
  return [(int(rows[0]), int(rows[-1]) + 1, rows - rows[0]) for rows in parts]


def _bands_last(samples):
  """[n, h, w] -> [h, w, n]; band by band, as numpy's own copy takes ten times as long."""
  result = np.empty((*samples.shape[1:], len(samples)), samples.dtype)
  for k, band in enumerate(samples):
    result[..., k] = band
  return result


def _environment():
  import rasterio  # lazily, as in decoders

  # neither the neighbours of a file nor what GDAL would write beside it count
  return rasterio.Env(
    GDAL_NUM_THREADS='1',
    GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR',
    GDAL_PAM_ENABLED='NO',
    GDAL_CACHEMAX=CACHE,
  )


def _tiff(path, header):
  pages, length = header.pages, path.stat().st_size
  for page in pages:
    _check(page, length)
  alone = len(pages) == 1
  prefixes = [decoders.prefix(page, alone) for page in pages]
  files, seen = _Files(path, 'GTiff', prefixes), [set() for _ in pages]

  def of_page(k, window, shape):
    samples, colours = files.read(k, window, shape)
    if pages[k].compression in tiff.DEFLATE:
      decoders.check_deflate(_chunks(path, pages[k], files.dataset(k), window, seen[k]))
    return decoders.of_page(samples, colours, pages[k])

  def part(window, shape):
    parts = [of_page(k, window, shape) for k in range(len(pages))]
    samples, missing = zip(*parts, strict=True)
    if alone:
      return parts[0]
    return np.concatenate(samples, -1), None if missing[0] is None else np.concatenate(missing, -1)

  return part, files.close


def _check(page, length):
  """Tells at once what would be found after an hour: strips and tiles beyond the file's end."""
  for at, count, size in page.chunks:
    if at + (min(count, size) if page.compression == 1 else count) > length:
      raise UserError('truncated')
  largest = max(size for _, _, size in page.chunks)
  if page.compression != 1 and largest > CHUNK:
    raise UserError(
      f'over the limits (strips or tiles of {largest / 2**20:,.0f} MiB, which are read as a whole; '
      f'at most {CHUNK / 2**20:,.0f}): write it in tiles, as gdal_translate -co TILED=YES does'
    )


def _chunks(path, page, dataset, window, seen):
  """(packed bytes, bytes when unpacked) of the strips or tiles of a window, each only once."""
  x1, y1, x2, y2 = window
  down, across = dataset.block_shapes[0]
  columns, rows = -(-page.width // across), -(-page.height // down)
  of_plane = [
    row * columns + column
    for row in range(y1 // down, -(-y2 // down))
    for column in range(x1 // across, -(-x2 // across))
  ]
  planes = len(page.chunks) // (rows * columns)
  wanted = {plane * rows * columns + k for plane in range(planes) for k in of_plane} - seen
  seen |= wanted
  with open(path, 'rb') as file:
    for at, count, size in (page.chunks[k] for k in sorted(wanted)):
      file.seek(at)
      yield file.read(count), size
