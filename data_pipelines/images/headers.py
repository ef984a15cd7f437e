"""What the first bytes of an image file say of it; no pixel is decoded.

One function, `parse`, decides by these bytes alone of which format a file is, never by its name.
"""

import ast
import dataclasses
import re
import struct

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.images import tiff

PNG, JPEG, BMP, NPY = b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff', b'BM', b'\x93NUMPY'
JP2, J2K = b'\0\0\0\x0cjP  \r\n\x87\n', b'\xff\x4f\xff\x51'
# as stored -> as read; of a complex number its amplitude
TYPES = {
  'uint8': np.uint8,
  'uint16': np.uint16,
  'int16': np.int16,
  'float16': np.float32,
  'float32': np.float32,
  'float64': np.float32,
  'complex_int16': np.float32,
  'complex64': np.float32,
  'complex128': np.float32,
}


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says of its image.

  Attributes:
    form: 'PNG', 'JPEG', 'TIFF', 'BMP', 'WebP', 'JPEG 2000' or 'npy'.
    height, width: in pixels as stored, before any EXIF rotation.
    bands: that `read` gives.
    stored: type in the file.
    orientation: EXIF's, 1 to 8; 5 to 8 exchange height and width for who obeys it.
    nodata: the value of pixels without data.
    pages: of a TIFF.
    left: pages of a TIFF of another size than the first, which are not read.
  """

  form: str
  height: int
  width: int
  bands: int
  stored: str
  orientation: int = 1
  nodata: float | None = None
  pages: tuple[tiff.Page, ...] = ()
  left: int = 0

  @property
  def dtype(self) -> np.dtype:
    """Of the pixels that `read` gives."""
    return np.dtype(TYPES[self.stored])

  @property
  def unpacked(self) -> int:
    """Bytes of all samples."""
    samples = max(self.bands, sum(page.samples for page in self.pages))
    itemsize = np.dtype(self.stored.replace('complex_int16', 'complex64')).itemsize
    return self.height * self.width * samples * itemsize


def parse(data) -> Header:
  """The header of a file.

  Args:
    data: the whole file, as any buffer that can be sliced (bytes, mmap).

  Raises:
    UserError: not an image, a truncated header, or pixels of a type that is not supported.
  """
  if not len(data):
    raise UserError('is empty')
  found = next((parser for magic, parser in _PARSERS if data[: len(magic)] == magic), None)
  if not found or (found is _webp and data[8:12] != b'WEBP'):
    raise UserError('is no PNG, JPEG, TIFF, BMP, WebP, JPEG 2000 or .npy file')
  try:
    header = found(data)
  except (struct.error, IndexError):
    raise UserError('truncated') from None
  if header.stored not in TYPES:
    raise UserError(f'{header.form} of {header.stored} pixels (expected {", ".join(TYPES)})')
  if header.height < 1 or header.width < 1:
    raise UserError(f'{header.form} of {header.width} x {header.height} px')
  return header


def _png(data):
  width, height, depth, colour = struct.unpack_from('>IIBB', data, 16)
  exif = next((data[a:b] for kind, a, b in png_chunks(data) if kind == b'eXIf'), b'')
  return Header(
    'PNG',
    height,
    width,
    1 if colour in (0, 4) else 3,
    'uint16' if depth == 16 else 'uint8',
    tiff.orientation(exif),
  )


def png_chunks(data):
  """Yields (kind, start, end) of the contents of each chunk, until one is cut off."""
  at = len(PNG)
  while at + 12 <= len(data):
    (length,) = struct.unpack_from('>I', data, at)
    if at + 12 + length > len(data):
      return
    kind = data[at + 4 : at + 8]
    yield kind, at + 8, at + 8 + length
    if kind == b'IEND':
      return
    at += 12 + length


def _jpeg(data):
  orientation = 1
  for marker, start, end in jpeg_segments(data):
    if marker == 0xE1 and data[start : start + 6] == b'Exif\0\0':
      orientation = tiff.orientation(data[start + 6 : end])
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      depth, height, width, bands = struct.unpack_from('>BHHB', data, start)
      stored = 'uint8' if depth == 8 else f'{depth}-bit'
      return Header('JPEG', height, width, 1 if bands == 1 else 3, stored, orientation)
  raise UserError('truncated')


_MARKER = re.compile(rb'\xff[^\x00\xff\xd0-\xd7]')  # between two scans, or at the end


def jpeg_segments(data):
  """Yields (marker, start, end) of the contents of each segment; the end of the image last.

  What is compressed is skipped; nothing comes after the image's end.
  """
  at = 2
  while found := _MARKER.search(data, at):
    marker, at = data[found.end() - 1], found.end()
    if marker == 0xD9:
      yield marker, at, at
      return
    if marker == 0x01 or marker == 0xD8 or at + 2 > len(data):
      continue
    (length,) = struct.unpack_from('>H', data, at)
    yield marker, at + 2, at + length
    at += length


def _bmp(data):
  (size,) = struct.unpack_from('<I', data, 14)
  if size == 12:
    (width, height, _, bits), compression = struct.unpack_from('<HHHH', data, 18), 0
    colours, width_of_one = 0, 3
  else:
    width, height, _, bits, compression = struct.unpack_from('<iiHHI', data, 18)
    (colours,), width_of_one = struct.unpack_from('<I', data, 46), 4
  if bits > 8:
    return Header('BMP', abs(height), width, 3, 'uint8')
  table = data[14 + size : 14 + size + width_of_one * (colours or 1 << bits)]
  b, g, r = (table[k::width_of_one] for k in range(3))
  return Header('BMP', abs(height), width, 1 if b == g == r else 3, 'uint8')


def _webp(data):
  kind, orientation = data[12:16], 1
  if kind == b'VP8 ':
    width, height = (n & 0x3FFF for n in struct.unpack_from('<HH', data, 26))
  elif kind == b'VP8L':
    (packed,) = struct.unpack_from('<I', data, 21)
    width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
  else:
    width, height = (int.from_bytes(data[at : at + 3], 'little') + 1 for at in (24, 27))
    at = 12
    while at + 8 <= len(data):
      (length,) = struct.unpack_from('<I', data, at + 4)
      if data[at : at + 4] == b'EXIF':
        exif = data[at + 8 : at + 8 + length]
        orientation = tiff.orientation(exif.removeprefix(b'Exif\0\0'))
      at += 8 + length + length % 2
  return Header('WebP', height, width, 3, 'uint8', orientation)


def _jpeg2000(data):
  at, alpha, colours = 0, 0, 0
  if data[: len(JP2)] == JP2:
    boxes = dict(_boxes(data, 0, len(data)))
    inner = dict(_boxes(data, *boxes.get(b'jp2h', (0, 0))))
    at = boxes[b'jp2c'][0] if b'jp2c' in boxes else len(data)
    if b'cdef' in inner:
      start, end = inner[b'cdef']
      kinds = [struct.unpack_from('>H', data, k + 2)[0] for k in range(start + 2, end, 6)]
      alpha = sum(kind in (1, 2) for kind in kinds)
    colours = b'pclr' in inner
  if data[at : at + 4] != J2K:
    raise UserError('truncated')
  x, y, x0, y0 = struct.unpack_from('>IIII', data, at + 8)
  (bands,) = struct.unpack_from('>H', data, at + 40)
  depths = {struct.unpack_from('B', data, at + 42 + 3 * k)[0] for k in range(bands)}
  depth, signed = max(d & 0x7F for d in depths) + 1, max(depths) > 0x7F
  if colours:
    raise UserError('JPEG 2000 with a palette')
  stored = f'{"int" if signed else "uint"}{8 if depth <= 8 and not signed else 16}'
  stored = stored if depth <= 16 else f'{depth}-bit'
  return Header('JPEG 2000', y - y0, x - x0, bands - alpha, stored)


def _boxes(data, at, end):
  """Yields (kind, (start, end)) of the boxes of a JPEG 2000 file."""
  while at + 8 <= end:
    length, kind = struct.unpack_from('>I4s', data, at)
    start = at + 8
    if length == 1:
      (length,) = struct.unpack_from('>Q', data, start)
      start += 8
    stop = at + length if length else end
    yield kind, (start, stop)
    at = max(stop, start)


def _npy(data):
  major = data[6]
  size, start = (struct.unpack_from('<H', data, 8)[0], 10) if major == 1 else (
    struct.unpack_from('<I', data, 8)[0], 12)  # fmt: skip
  if start + size > len(data) or size > 10_000:
    raise UserError('truncated')
  try:
    head = ast.literal_eval(bytes(data[start : start + size]).decode('latin1'))
    shape, dtype = tuple(map(int, head['shape'])), np.dtype(head['descr'])
  except (ValueError, SyntaxError, KeyError, TypeError):
    raise UserError('broken .npy header') from None
  if len(shape) not in (2, 3):
    raise UserError(f'.npy of shape {shape} (expected [height, width] or [height, width, bands])')
  height, width, bands = (*shape, 1)[:3]
  return Header('npy', height, width, bands, dtype.name)


def _tiff(data):
  found, left = tiff.pages(data)
  page = found[0]
  return Header(
    'TIFF',
    page.height,
    page.width,
    page.bands * len(found),
    'uint8' if page.photometric in (tiff.PALETTE, *tiff.CONVERTED) else page.stored,
    page.orientation if 1 <= page.orientation <= 8 else 1,
    page.nodata,
    tuple(found),
    left,
  )


_PARSERS = (
  (PNG, _png),
  (JPEG, _jpeg),
  (BMP, _bmp),
  (b'RIFF', _webp),
  (JP2, _jpeg2000),
  (J2K, _jpeg2000),
  (NPY, _npy),
  *((magic, _tiff) for magic in tiff.MAGIC),
)
