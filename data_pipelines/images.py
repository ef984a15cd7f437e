"""Image files and encoded bytes to arrays [height, width, bands] and back, without loss.

uint8 and uint16; colour in RGB order; a PNG's alpha is dropped, a TIFF keeps all its bands; an
EXIF rotation is not applied (labels belong to the stored pixels).
"""

import pathlib
import struct

import cv2
import numpy as np

from data_pipelines import tiff
from data_pipelines.errors import UserError

PNG, JPEG = b'\x89PNG\r\n\x1a\n', b'\xff\xd8'
BLOCK = 512  # px, side of the blocks that a large image is stored in
WHOLE = 1024  # px, the longest side of an image that is stored in one piece


class ImageError(ValueError):
  """An image that cannot be read; the message names the file."""


def read(path: pathlib.Path) -> np.ndarray:
  """Pixels [height, width, bands] of an image file.

  Raises:
    FileNotFoundError: no such file.
    ImageError: truncated, not an image, or neither uint8 nor uint16.
  """
  path = pathlib.Path(path)
  return decode(path.read_bytes(), name=path)


def decode(data: bytes, bands: int | None = None, name='image') -> np.ndarray:
  """Pixels [height, width, bands] of encoded bytes.

  Args:
    data: a whole PNG, JPEG, TIFF or BMP file.
    bands: of an image that `encode` made; other counts than 1 and 3 are stacked in one grey PNG.
    name: for messages.

  Raises:
    ImageError: truncated, not an image, or neither uint8 nor uint16.
  """
  try:
    image = _pixels(data)
  except ValueError as e:
    raise ImageError(f'{name}: {e}') from e
  if bands is not None and image.shape[2] != bands:
    image = np.moveaxis(image[..., 0].reshape(bands, -1, image.shape[1]), 0, -1)
  return np.ascontiguousarray(image)


def encode(image: np.ndarray) -> bytes:
  """A PNG that `decode(data, bands)` turns back into exactly `image`.

  One and three bands are an ordinary PNG; any other count is stacked vertically into one grey PNG.
  """
  bands = image.shape[2]
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


def blocks(height: int, width: int) -> np.ndarray:
  """Corners x1, y1, x2, y2 of the blocks of a large image, row by row; int [n, 4]."""
  y, x = np.mgrid[0:height:BLOCK, 0:width:BLOCK]
  x, y = x.ravel(), y.ravel()
  return np.stack([x, y, np.minimum(x + BLOCK, width), np.minimum(y + BLOCK, height)], -1)


def _pixels(data):
  if data.startswith(tiff.MAGIC):
    pages = tiff.pages(data)
    if tiff.bands(pages) not in (1, 3) or len(pages) > 1:
      return tiff.decode(data, pages)
  if not _complete(data):
    raise UserError('truncated')
  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
  if image is None:
    raise UserError('does not decode')
  if image.dtype not in (np.uint8, np.uint16):
    raise UserError(f'{image.dtype} pixels; expected uint8 or uint16')
  if image.ndim == 2:
    return image[..., None]
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB)


def _complete(data):
  """False for a PNG or JPEG that ends early (OpenCV fills what is missing with grey)."""
  if data.startswith(PNG):
    return b'IEND' in data[-64:]
  if data.startswith(JPEG):  # a thumbnail's end marker lies before the last start of scan
    return data.rfind(b'\xff\xd9') > data.rfind(b'\xff\xda') > 0
  return True


def size(path: pathlib.Path) -> tuple[int, int]:
  """(height, width) of an image file; of PNG and JPEG from the header alone.

  Raises:
    FileNotFoundError, ImageError: as `read`.
  """
  with open(path, 'rb') as f:
    head = f.read(26)
    if head.startswith(PNG):
      width, height = struct.unpack('>II', head[16:24])
      return height, width
    if head.startswith(JPEG):
      found = _jpeg_size(f)
      if found:
        return found
  return read(path).shape[:2]


def _jpeg_size(f):
  """(height, width) from the first start-of-frame segment, or None."""
  f.seek(2)
  while True:
    head = f.read(4)
    if len(head) < 4 or head[0] != 0xFF:
      return None
    if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):
      return struct.unpack('>HH', f.read(5)[1:])
    f.seek(struct.unpack('>H', head[2:])[0] - 2, 1)


def stretch(image: np.ndarray) -> np.ndarray:
  """Values between their 0.5 and 99.5 percentiles (of about 1,000 rows) as uint8 0..255."""
  values = np.nan_to_num(image.astype(np.float32))
  low, high = np.percentile(values[:: -(-len(values) // 1000)], (0.5, 99.5))
  values = (values - low) * (255 / max(high - low, 1e-12))
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)
