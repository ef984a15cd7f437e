"""Image files and encoded bytes to arrays [height, width, bands] and back, without loss.

| format | pixels |
|---|---|
| PNG, BMP, WebP | as stored, a palette as its RGB colours; fewer than 8 bits are scaled to 8 |
| JPEG | grey, RGB; CMYK as RGB |
| TIFF, any layout and compression GDAL knows | as stored, all bands; pages of one size are bands |
| JPEG 2000, .npy | as stored |

A TIFF's palette becomes its RGB colours, its YCbCr or Lab RGB, its white-is-zero black-is-zero.
What a file calls alpha is dropped (in TIFF: ExtraSamples 1 and 2). An EXIF rotation is not applied:
labels belong to the stored pixels. uint8, int16, uint16 and float32 stay as they are; float16 and
float64 become float32, complex numbers their amplitude in float32. NaN, infinities and what a TIFF
calls no data (GDAL's tag, any type) become the mean of the band's other pixels, rounded for
integers.
A file that ends early is an error, bytes behind its end are none. What a header claims is limited
(MAX_PIXELS, BYTES, RATIO) before anything is allocated; the environment variable SM3DET_MAX_PIXELS
raises the limits.
"""

import dataclasses
import io
import math
import mmap
import os
import pathlib
import zlib

import cv2
import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.images import decoders, headers
from data_pipelines.images.headers import JPEG, PNG, Header
from data_pipelines.images.ranges import stretch as stretch
from data_pipelines.images.ranges import stretch8 as stretch8

SUFFIXES = (
  '.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.webp', '.jp2', '.j2k', '.npy',
)  # fmt: skip
BLOCK = 512  # px, side of the blocks that a large image is stored in
WHOLE = 1024  # px, the longest side of an image that is stored in one piece
MAX_PIXELS = 2**30  # height x width; the variable LIMIT raises it
BYTES = 4  # for each pixel of that limit: what an image may take when it is unpacked
RATIO, ANY_RATIO = 5000, 2**28  # unpacked / packed at most, from so many bytes on; LIMIT lifts it
LIMIT = 'SM3DET_MAX_PIXELS'
NO_DATA = "pixels without data (became the band's mean, 0 where it has none)"
_ZLIB = b'x\x01'  # zlib at its fastest, as `encode` uses it


class ImageError(UserError):
  """An image that cannot be read; the message names the file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
  """An image and what had to be done for it.

  Attributes:
    pixels: [height, width, bands] of uint8, uint16, int16 or float32.
    header: what the file says.
    remarks: {what is to be said of it: how often}.
    missing: where there are no data, of the pixels' shape; None for nowhere.
  """

  pixels: np.ndarray
  header: Header
  remarks: dict[str, int]
  missing: np.ndarray | None = None


def read(path: pathlib.Path) -> np.ndarray:
  """Pixels [height, width, bands] of an image file.

  Raises:
    FileNotFoundError: no such file.
    ImageError: as `load`.
  """
  return load(path).pixels


def load(path: pathlib.Path, data: bytes | None = None) -> Loaded:
  """Pixels of an image file, with what is to be said of them.

  Args:
    path: the file; names it in messages.
    data: its contents, where they are read already.

  Raises:
    FileNotFoundError: no such file.
    ImageError: truncated, not an image, of a type that is not supported, or beyond the limits.
  """
  data = pathlib.Path(path).read_bytes() if data is None else data
  try:
    header = headers.parse(data)
    _check(header, len(data))
    stored, missing = decoders.stored(data, header)
    if stored.shape != (header.height, header.width, header.bands):
      raise UserError(f'does not decode (its header says {_size(header)})')
    return _finished(header, stored, missing)
  except UserError as e:
    raise ImageError(f'{path}: {e}') from e
  except MemoryError:
    raise ImageError(f'{path}: does not fit into memory ({_size(header)})') from None


def decode(data: bytes, bands: int | None = None, name='image') -> np.ndarray:
  """Pixels [height, width, bands] of encoded bytes.

  Args:
    data: a whole image file, or what `encode` made.
    bands: of an image that `encode` made.
    name: for messages.

  Raises:
    ImageError: as `load`.
  """
  if bands is not None and data.startswith(_ZLIB):
    try:
      return np.load(io.BytesIO(zlib.decompress(data)), allow_pickle=False)
    except (zlib.error, ValueError) as e:
      raise ImageError(f'{name}: broken') from e
  image = load(name, data).pixels
  if bands is not None and image.shape[2] != bands:
    if bands == 3:  # grey with alpha, of a set that was prepared when that gave three bands
      return np.repeat(image, 3, 2)
    image = np.moveaxis(image[..., 0].reshape(bands, -1, image.shape[1]), 0, -1)
  return np.ascontiguousarray(image)


def encode(image: np.ndarray, packed: bool = True) -> bytes:
  """Bytes that `decode(data, bands)` turns back into exactly `image`.

  uint8 and uint16 are a PNG: one and three bands an ordinary one, any other count is stacked
  vertically into one grey PNG. int16 and float32 are a .npy file packed by zlib, as long as it was
  unless `packed`: speckle does not shrink, and is so read several times as fast.
  """
  bands = image.shape[2]
  if image.dtype in (np.int16, np.float32):
    buffer = io.BytesIO()
    np.save(buffer, image)
    return zlib.compress(buffer.getvalue(), int(packed))
  if bands == 3:
    image = image[..., ::-1]
  elif bands != 1:
    image = np.moveaxis(image, -1, 0).reshape(-1, image.shape[1])
  done, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
  if not done:
    raise ImageError(f'an image of shape {image.shape} and type {image.dtype} does not encode')
  return data.tobytes()


def stores_as_is(data: bytes, image: np.ndarray) -> bool:
  """True if the file's own bytes may go into a record: PNG or JPEG of at most WHOLE px a side."""
  return data.startswith((PNG, JPEG)) and max(image.shape[:2]) <= WHOLE


def blocks(height: int, width: int, side: int = BLOCK) -> np.ndarray:
  """Corners x1, y1, x2, y2 of the blocks of a large image, row by row; int [n, 4]."""
  y, x = np.mgrid[0:height:side, 0:width:side]
  x, y = x.ravel(), y.ravel()
  return np.stack([x, y, np.minimum(x + side, width), np.minimum(y + side, height)], -1)


def header(path: pathlib.Path) -> Header:
  """What an image file says of itself; no pixel is decoded, and of a large file little is read.

  Raises:
    FileNotFoundError: no such file.
    ImageError: not an image, a truncated header, or a type that is not supported.
  """
  with open(path, 'rb') as f:
    try:
      data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except (ValueError, OSError):  # empty, or of a kind that cannot be mapped
      data = f.read()
  try:
    return headers.parse(data)
  except UserError as e:
    raise ImageError(f'{path}: {e}') from e


def size(path: pathlib.Path) -> tuple[int, int]:
  """(height, width) of an image file, from its header alone.

  Raises:
    FileNotFoundError, ImageError: as `header`.
  """
  found = header(path)
  return found.height, found.width


def from_array(array) -> Loaded:
  """An array [height, width(, bands)] as if it had been read from a .npy file.

  Raises:
    ImageError: another shape or type.
  """
  return _finished(*checked(array))


def checked(array) -> tuple[Header, np.ndarray]:
  """The header that an array would have as a .npy file, and the array [height, width, bands].

  Raises:
    ImageError: another shape or type.
  """
  array = np.asarray(array)
  shape = (*array.shape, 1)[:3]
  if array.ndim not in (2, 3) or not array.size:
    raise ImageError(f'the image: an array of shape {array.shape}, not [height, width, bands]')
  if array.dtype.name not in headers.TYPES:
    raise ImageError(f'the image: an array of {array.dtype}; expected {", ".join(headers.TYPES)}')
  return Header('npy', *shape, array.dtype.name), array.reshape(shape)


def _check(header, packed):
  """Raises UserError where a header claims more than the limits, before anything is allocated."""
  text = os.environ.get(LIMIT, '')
  if text and not text.isdecimal():
    raise UserError(f'{LIMIT}={text}: expected a number of pixels')
  limit = int(text or MAX_PIXELS)
  pixels, unpacked = header.height * header.width, header.unpacked
  bomb = not text and unpacked > max(ANY_RATIO, RATIO * packed)
  if pixels > limit or unpacked > BYTES * limit or bomb:
    need = max(pixels, math.ceil(unpacked / BYTES))
    raise UserError(
      f'over the limits ({_size(header)} from {packed:,} bytes; at most {limit:,} px, '
      f'{BYTES * limit / 2**30:,.1f} GiB and {RATIO} times the file; '
      f'if the file is right, set the environment variable {LIMIT}={need})'
    )


def _size(header):
  gib = header.unpacked / 2**30
  return f'{header.width} x {header.height} px of {header.bands} bands, {gib:,.1f} GiB unpacked'


def _finished(header, stored, missing=None):
  """Samples as stored and where there are none -> pixels without holes."""
  pixels, missing = as_read(header, stored, missing)
  remarks = remarks_of(header)
  if missing is None or not missing.any():
    return Loaded(pixels, header, remarks)
  remarks[NO_DATA] = int(missing.any(-1).sum())
  return Loaded(filled(pixels, missing), header, remarks, missing)


def as_read(header: Header, stored, missing=None) -> tuple[np.ndarray, np.ndarray | None]:
  """Samples [h, w, bands] as stored, in the type that is read, and where they are none.

  Args:
    header: of the file.
    stored: all of its samples or a part.
    missing: where they have the value of no data.

  Returns:
    (pixels; of their shape where they have no data or are not finite, None for nowhere).
  """
  with np.errstate(over='ignore', invalid='ignore'):  # what does not fit is a hole below
    pixels = np.abs(stored) if stored.dtype.kind == 'c' else stored
    pixels = np.ascontiguousarray(pixels, header.dtype)
  if pixels.dtype.kind == 'f':
    missing = ~np.isfinite(pixels) if missing is None else missing | ~np.isfinite(pixels)
  return pixels, missing


def remarks_of(header: Header) -> dict[str, int]:
  """What is to be said of an image by its header alone."""
  remarks = {}
  if header.stored not in (header.dtype.name, 'float16'):
    kept = 'its amplitude in float32' if header.stored.startswith('complex') else 'float32'
    remarks[f'image of {header.stored} (kept as {kept})'] = 1
  if header.left:
    remarks['TIFF with pages of another size or type (only the first is kept)'] = 1
  return remarks


def filled(pixels: np.ndarray, missing: np.ndarray) -> np.ndarray:
  """A copy with the mean of each band's other pixels where there are none; 0 if all are missing."""
  pixels = pixels.copy()
  for k in range(pixels.shape[2]):
    band, holes = pixels[..., k], missing[..., k]
    mean = band[~holes].mean(dtype=np.float64) if not holes.all() else 0.0
    band[holes] = mean if band.dtype.kind == 'f' else np.rint(mean)
  return pixels
