"""Pixels of a whole file in memory, by the library that has them exactly.

OpenCV decodes the 8-bit formats, which are what training reads all day; rasterio (GDAL) whatever
has types, planes and bands. The files are given to both as bytes: neither their names nor what lies
beside them (GDAL's .aux.xml, .ovr and world files) counts, and nothing is written.
"""

import functools
import io
import logging
import math
import pathlib
import struct
import zlib

import cv2
import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.images import headers, tiff
from data_pipelines.images.headers import Header

DRIVERS = {'TIFF': 'GTiff', 'JPEG 2000': 'JP2OpenJPEG', 'WebP': 'WEBP'}  # where GDAL's name differs
OPENCV_SIDE, OPENCV_PIXELS = 2**20, 2**30  # what OpenCV refuses beyond
_RAW = 'GTIFF_RAW:'  # GDAL: samples as stored, no conversion to RGB

# what it says of a broken file comes as an ImageError
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def stored(data: bytes, header: Header) -> tuple[np.ndarray, np.ndarray | None]:
  """Samples [height, width, bands] as the file has them, alpha left out, and where there are none.

  Args:
    data: the whole file.
    header: its own.

  Returns:
    (samples; where they have the value of no data, of the same shape, or None for nowhere).

  Raises:
    UserError: truncated, broken, or packed as nobody here can unpack.
  """
  if not _complete(data, header):
    raise UserError('truncated')
  side, size = max(header.height, header.width), header.height * header.width
  if header.form == 'TIFF':
    return _tiff(data, header)
  if header.form == 'npy':
    return _npy(data), None
  of_os2 = header.form == 'BMP' and data[14] == 12 and data[24] == 24  # OpenCV gets these wrong
  if header.form == 'JPEG 2000' or of_os2 or side > OPENCV_SIDE or size > OPENCV_PIXELS:
    return _raster(data, header), None
  return _opencv(data, header), None


def _opencv(data, header):
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  except cv2.error:
    image = None
  if image is None:
    raise UserError('does not decode')
  image = image[..., None] if image.ndim == 2 else image
  if header.bands == 1:  # grey with alpha comes as four bands
    return image[..., :1]
  if image.shape[2] == 1:
    return np.repeat(image, 3, 2)
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB)


def _npy(data):
  try:
    image = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
  except ValueError:
    raise UserError('truncated') from None
  return image[..., None] if image.ndim == 2 else image


def _tiff(data, header):
  """Bands of all pages; palettes are looked up, white is made the largest value."""
  parts = [_page(data, page, alone=len(header.pages) == 1) for page in header.pages]
  samples, missing = zip(*parts, strict=True)
  if len(parts) == 1:
    return parts[0]
  return np.concatenate(samples, -1), None if missing[0] is None else np.concatenate(missing, -1)


def _page(data, page, alone):
  if page.compression in tiff.DEFLATE:
    check_deflate((data[at : at + count], size) for at, count, size in page.chunks)
  return of_page(*_gdal(data, 'GTiff', prefix(page, alone)), page)


def prefix(page: tiff.Page, alone: bool) -> str:
  """What comes before a file's name so that GDAL opens this page of it, its samples as stored."""
  first = alone and page.number == 1
  if page.photometric == tiff.SEPARATED:
    if not first:
      raise UserError('TIFF with several pages of separated colours (CMYK)')
    return _RAW
  return '' if first else f'GTIFF_DIR:{page.number}:'


def of_page(samples, colours, page: tiff.Page):
  """GDAL's samples [height, width, n], of a part too, as `stored` gives those of the whole."""
  if samples.shape[2] != page.samples and page.photometric not in tiff.CONVERTED:
    raise UserError(f'TIFF of photometric interpretation {page.photometric}')
  keep = [k for k in range(page.samples) if k not in page.alpha]
  samples = samples if len(keep) == samples.shape[2] else samples[..., keep]
  missing = _equal(samples, page.nodata)
  if page.photometric == tiff.PALETTE:
    return look_up(samples, colours), None if missing is None else np.repeat(missing, 3, 2)
  return samples if page.white is None else samples.dtype.type(page.white) - samples, missing


def _equal(samples, value):
  """Where samples have a value; None where none can."""
  if value is None or math.isnan(value):
    return None
  if samples.dtype.kind in 'ui':
    whole = value.is_integer() and np.iinfo(samples.dtype).min <= value
    return samples == int(value) if whole and value <= np.iinfo(samples.dtype).max else None
  with np.errstate(over='ignore'):
    return samples == samples.dtype.type(value)


def mapped(path: pathlib.Path) -> np.ndarray:
  """The array [height, width, bands] of a .npy file, read as it is needed.

  Raises:
    UserError: truncated.
  """
  try:
    array = np.load(path, mmap_mode='r', allow_pickle=False)
  except ValueError:
    raise UserError('truncated') from None
  return array[..., None] if array.ndim == 2 else array


def check_deflate(chunks) -> None:
  """Refuses strips and tiles that unpack to more than they hold: GDAL's come out as garbage.

  (libdeflate, which unpacks for it, leaves what does not fit unwritten, and libtiff takes that.)

  Args:
    chunks: (packed bytes, bytes when unpacked) of each.
  """
  for packed, size in chunks:
    try:
      unpacked = zlib.decompressobj().decompress(packed, size + 1)
    except zlib.error:
      continue  # GDAL says so too
    if len(unpacked) > size:
      raise UserError(f'a strip or tile of the TIFF unpacks to more than its {size} bytes')


def _raster(data, header):
  image, table = _gdal(data, DRIVERS.get(header.form, header.form))
  return (image if table is None else look_up(image, table))[..., : header.bands]


def look_up(image, colours):
  """A palette's colours [height, width, 3] of the samples [height, width, 1]."""
  if colours is None:
    raise UserError('a palette without colours')
  table = np.zeros((max(colours) + 1, 3), np.uint8)
  for k, colour in colours.items():
    table[k] = colour[:3]
  if image.max() >= len(table):
    raise UserError(f'a pixel of colour {image.max()} (the palette has {len(table)})')
  return table[image[..., 0]]


def _gdal(data, driver, before=''):
  """(samples [height, width, bands], {value: colour} of a palette or None)."""
  import rasterio  # lazily: a third of a second, and a training reads none of it

  # one thread: samples are loaded in parallel, and GDAL's own threads write to the screen
  env, opener = rasterio.Env(GDAL_NUM_THREADS='1'), reader()
  try:
    with env, rasterio.MemoryFile(data) as file, opener(before + file.name, driver) as dataset:
      return np.ascontiguousarray(np.moveaxis(dataset.read(), 0, -1)), colours(dataset)
  except rasterio.errors.RasterioError as error:
    raise broken(error, file.name) from None


def colours(dataset) -> dict[int, tuple] | None:
  """{value: colour} of a palette; None for a dataset without one."""
  try:
    return dataset.colormap(1)
  except ValueError:
    return None


def broken(error, name: str) -> UserError:
  """GDAL's error about the file `name`, in few words."""
  text = str(error.__cause__ or error).split(name)[-1].split(': ')[-1].strip("'. ")
  return UserError(f'does not decode (GDAL: {text})')


@functools.cache
def reader():
  """rasterio's DatasetReader, which says nothing of where on Earth a file does not lie."""
  from rasterio.io import DatasetReader

  class Reader(DatasetReader):
    def read_transform(self):  # rasterio's warns where a file lies nowhere on Earth
      return 0.0, 1.0, 0.0, 0.0, 0.0, 1.0

  logging.getLogger('rasterio').setLevel(logging.CRITICAL)  # what it says comes as an ImageError
  return Reader


def _complete(data, header):
  """False for a file that ends early, where its format says so; other decoders find out."""
  if header.form == 'PNG':
    return any(kind == b'IEND' for kind, *_ in headers.png_chunks(data))
  if header.form == 'JPEG':
    return any(marker == 0xD9 for marker, *_ in headers.jpeg_segments(data))
  if header.form == 'WebP':
    return struct.unpack_from('<I', data, 4)[0] + 8 <= len(data)
  return True
