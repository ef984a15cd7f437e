"""The tags of a TIFF file, classic or BigTIFF: what decides how its pixels are to be read.

The same layout holds the EXIF data of other formats.
"""

import dataclasses
import struct

from data_pipelines.errors import UserError

MAGIC = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
# the tags used, by number
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ORIENTATION = (
  254, 256, 257, 258, 259, 262, 273, 274,
)  # fmt: skip
BANDS, ROWS, COUNTS, PLANAR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = (
  277, 278, 279, 284, 322, 323, 324, 325,
)  # fmt: skip
EXTRA, SAMPLE_FORMAT, NODATA = 338, 339, 42113
_USED = {
  SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ORIENTATION, BANDS, ROWS, COUNTS,
  PLANAR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, EXTRA, SAMPLE_FORMAT, NODATA,
}  # fmt: skip
_TYPES = {1: 'B', 3: 'H', 4: 'I', 13: 'I', 16: 'Q'}  # of numbers; of text: 2
MOST = 4096  # bands; GDAL's time grows with their square
TILE = 4096  # px, a tile's side at most, if that is longer than the image's
_ALPHA = (1, 2)  # values of ExtraSamples
WHITE_IS_ZERO, PALETTE, SEPARATED = 0, 3, 5  # values of PhotometricInterpretation
DEFLATE = (8, 32946)  # values of Compression
CONVERTED = (6, 8, 9, 10, 32844, 32845)  # YCbCr, Lab, LogLuv: decoded as RGB


@dataclasses.dataclass(frozen=True)
class Page:
  """One full-resolution directory of a file.

  Attributes:
    number: among all directories, from 1 on.
    height, width: in pixels.
    samples: as stored, alpha included.
    alpha: which of them are alpha.
    bits: of a sample; 2 * 16 of a complex one.
    stored: its type: the name of numpy's, or 'complex_int16'.
    photometric: PhotometricInterpretation.
    orientation: 1 to 8, as in EXIF.
    nodata: the value that says that there is none.
    compression: Compression.
    chunks: (offset, bytes in the file, bytes when unpacked) of each strip or tile.
  """

  number: int
  height: int
  width: int
  samples: int
  alpha: tuple[int, ...]
  bits: int
  stored: str
  photometric: int
  orientation: int
  nodata: float | None
  compression: int
  chunks: tuple[tuple[int, int, int], ...] = dataclasses.field(compare=False, repr=False)

  @property
  def bands(self) -> int:
    """Of the pixels: without alpha, a palette being three."""
    return 3 if self.photometric == PALETTE else self.samples - len(self.alpha)

  @property
  def white(self) -> int | None:
    """The sample that 0 becomes where 0 is white."""
    inverted = self.photometric == WHITE_IS_ZERO and self.stored.startswith('uint')
    return (1 << self.bits) - 1 if inverted else None


def pages(data) -> tuple[list[Page], int]:
  """The pages whose bands make up the image, and how many others of another size there are.

  Reduced copies and masks are none.

  Args:
    data: the file, as any buffer that can be sliced.

  Raises:
    UserError: the file ends early or its directories make no sense.
  """
  try:
    found = [_page(k, tags) for k, tags in enumerate(directories(data), 1) if not _reduced(tags)]
  except (struct.error, OverflowError, KeyError, IndexError, ZeroDivisionError):
    raise UserError('truncated or broken TIFF directory') from None
  if not found:
    raise UserError('TIFF without an image')
  like = [dataclasses.replace(p, number=0) for p in found]
  fitting = found if all(p == like[0] for p in like) else found[:1]
  return fitting, len(found) - len(fitting)


def directories(data) -> list[dict[int, tuple]]:
  """The used tags {number: values} of every directory.

  Raises:
    struct.error: the file ends early.
  """
  order = '<' if data[:2] == b'II' else '>'
  (version,) = struct.unpack_from(order + 'H', data, 2)
  big = version == 43
  start, number, word, step = (8, 'Q', 'Q', 20) if big else (4, 'H', 'I', 12)
  (position,) = struct.unpack_from(order + word, data, start)
  found, seen = [], set()
  while position and position not in seen:
    seen.add(position)
    (count,) = struct.unpack_from(order + number, data, position)
    first = position + struct.calcsize('=' + number)
    (position,) = struct.unpack_from(order + word, data, first + step * count)
    tags = (_tag(data, order, first + step * i, word) for i in range(count))
    found.append({tag: values for tag, values in tags if tag in _USED})
  return found


def _tag(data, order, position, word):
  tag, kind, count = struct.unpack_from(order + 'HH' + word, data, position)
  kinds = {2: 's'} if tag == NODATA else _TYPES
  if tag not in _USED or kind not in kinds:
    return None, ()
  form = f'{order}{count}{kinds[kind]}'
  size, at = struct.calcsize(form), position + 4 + struct.calcsize('=' + word)
  if size > struct.calcsize('=' + word):
    (at,) = struct.unpack_from(order + word, data, at)
  return tag, struct.unpack_from(form, data, at)


def _reduced(tags):
  return bool(tags.get(SUBFILE, (0,))[0] & 5)  # a reduced copy or a mask


def _page(number, tags):
  height, width, samples = tags[HEIGHT][0], tags[WIDTH][0], tags.get(BANDS, (1,))[0]
  bits, kind = tags.get(BITS, (1,)), tags.get(SAMPLE_FORMAT, (1,))
  photometric = tags.get(PHOTOMETRIC, (1,))[0]
  if len(set(bits)) > 1 or len(set(kind)) > 1:
    raise UserError(f'TIFF whose bands are of different types ({bits} bits)')
  if not height or not width or not samples:
    raise UserError('TIFF without pixels')
  if samples > MOST:
    raise UserError(f'TIFF of over {MOST} bands ({width} x {height} px of {samples})')
  extra = tags.get(EXTRA, ())
  alpha = tuple(samples - len(extra) + k for k, kind in enumerate(extra) if kind in _ALPHA)
  return Page(
    number=number,
    height=height,
    width=width,
    samples=samples,
    alpha=alpha if len(alpha) < samples else (),
    bits=bits[0],
    stored=_stored(kind[0], bits[0]),
    photometric=photometric,
    orientation=tags.get(ORIENTATION, (1,))[0],
    nodata=_nodata(tags),
    compression=tags.get(COMPRESSION, (1,))[0],
    chunks=_chunks(tags, height, width, samples, bits[0]),
  )


def _chunks(tags, height, width, samples, bits):
  """(offset, bytes in the file, bytes when unpacked) of each strip or tile."""
  separate = tags.get(PLANAR, (1,))[0] == 2
  tiled = TILE_OFFSETS in tags
  across, down = width, min(tags.get(ROWS, (height,))[0], height)
  if tiled:
    across, down = tags[TILE_WIDTH][0], tags[TILE_HEIGHT][0]
    if across > max(width, TILE) or down > max(height, TILE):
      raise UserError(f'broken TIFF directory (tiles of {across} x {down} px)')
  offsets = tags.get(TILE_OFFSETS if tiled else OFFSETS, ())
  rows = -(-height // down)
  need = rows * -(-width // across) * (samples if separate else 1)
  if len(offsets) < need:
    raise UserError(
      f'broken TIFF directory ({width} x {height} px need {need} strips or tiles, '
      f'there are {len(offsets)})'
    )
  row = -(-across * (1 if separate else samples) * bits // 8)
  last = down if tiled else height - (rows - 1) * down
  sizes = (row * (last if k % rows == rows - 1 else down) for k in range(need))
  counts = tags.get(TILE_COUNTS if tiled else COUNTS, ())
  return tuple(zip(offsets, counts, sizes, strict=False))


def _stored(kind, bits):
  """Name of the type of a sample, by the standard's SampleFormat and its bits."""
  if kind in (1, 4) and bits <= 16:
    return 'uint8' if bits <= 8 else 'uint16'
  names = {1: 'uint', 2: 'int', 3: 'float', 4: 'uint', 5: 'complex_int', 6: 'complex'}
  if kind not in names:
    raise UserError(f'TIFF of sample format {kind}')
  return f'{names[kind]}{bits // 2 if kind == 5 else bits}'


def _nodata(tags):
  try:
    return float(tags[NODATA][0].split(b'\0')[0])
  except (KeyError, IndexError, ValueError):
    return None


def orientation(exif: bytes) -> int:
  """1 to 8, of EXIF data; 1 for what makes no sense."""
  try:
    found = directories(exif)[0][ORIENTATION][0] if exif[:4] in MAGIC else 1
  except (struct.error, OverflowError, KeyError, IndexError):
    return 1
  return found if 1 <= found <= 8 else 1
