"""TIFF files of any band count: OpenCV silently drops bands and pages of many of them.

Strips and tiles, chunky and planar, uint8 and uint16, either byte order; uncompressed, LZW, Deflate
and PackBits, with or without the horizontal predictor. Pages of one band and size are bands. (TIFF
revision 6.0; Deflate from Adobe's supplement 1.)
"""

import struct
import zlib

import numpy as np

from data_pipelines.errors import UserError

# the tags used, by number
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, OFFSETS, BANDS, ROWS, COUNTS, PLANAR, PREDICTOR = (
  254, 256, 257, 258, 259, 273, 277, 278, 279, 284, 317,
)  # fmt: skip
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, SAMPLE_FORMAT = 322, 323, 324, 325, 339
MAGIC = (b'II*\0', b'MM\0*')
_TYPES = {1: 'B', 3: 'H', 4: 'I'}


def pages(data: bytes) -> list[dict[int, tuple]]:
  """The tags {number: values} of each full-resolution page.

  Raises:
    UserError: the file ends early or its directory makes no sense.
  """
  order = '<' if data[:2] == b'II' else '>'
  found, seen = [], set()
  try:
    (position,) = struct.unpack_from(order + 'I', data, 4)
    while position and position not in seen:
      seen.add(position)
      (count,) = struct.unpack_from(order + 'H', data, position)
      tags = dict(_tag(data, order, position + 2 + 12 * i) for i in range(count))
      (position,) = struct.unpack_from(order + 'I', data, position + 2 + 12 * count)
      if not tags.get(SUBFILE, (0,))[0] & 5:  # neither a reduced copy nor a mask
        found.append(tags | {'order': order})
    shapes = {(p[HEIGHT][0], p[WIDTH][0], p.get(BANDS, (1,))[0]) for p in found}
  except (struct.error, KeyError) as e:
    raise UserError('truncated or broken TIFF directory') from e
  if not found:
    raise UserError('no image in the TIFF')
  return found if len(shapes) == 1 else found[:1]


def bands(found: list[dict]) -> int:
  """Bands of the image that `pages` found."""
  return found[0].get(BANDS, (1,))[0] * len(found)


def decode(data: bytes, found: list[dict]) -> np.ndarray:
  """Pixels [height, width, bands] of the pages.

  Raises:
    UserError: a compression or pixel type that is not supported, or missing data.
  """
  return np.concatenate([_page(data, tags) for tags in found], -1)


def _tag(data, order, position):
  number, kind, count = struct.unpack_from(order + 'HHI', data, position)
  if kind not in _TYPES:
    return number, ()
  form = f'{order}{count}{_TYPES[kind]}'
  at = position + 8
  if struct.calcsize(form) > 4:
    (at,) = struct.unpack_from(order + 'I', data, at)
  return number, struct.unpack_from(form, data, at)


def _page(data, tags):
  height, width, samples = tags[HEIGHT][0], tags[WIDTH][0], tags.get(BANDS, (1,))[0]
  depth, kind = tags.get(BITS, (1,))[0], tags.get(SAMPLE_FORMAT, (1,))[0]
  if depth not in (8, 16) or kind != 1:
    raise UserError(f'TIFF of {depth}-bit pixels of sample format {kind}; expected uint8 or uint16')
  planar = tags.get(PLANAR, (1,))[0] == 2
  chunk_bands = 1 if planar else samples
  offsets = tags.get(TILE_OFFSETS) or tags.get(OFFSETS)
  counts = tags.get(TILE_COUNTS) or tags.get(COUNTS)
  if not offsets or not counts:
    raise UserError('TIFF without strips or tiles')
  tiled = TILE_OFFSETS in tags
  rows = tags[TILE_HEIGHT][0] if tiled else min(tags.get(ROWS, (height,))[0], height)
  columns = tags[TILE_WIDTH][0] if tiled else width
  out = np.zeros((height, width, samples), f'uint{depth}')
  grid = [
    (y, x, slice(b, b + chunk_bands))
    for b in range(0, samples, chunk_bands)
    for y in range(0, height, rows)
    for x in range(0, width, columns)
  ]
  for (y, x, where), offset, count in zip(grid, offsets, counts, strict=True):
    h = rows if tiled else min(rows, height - y)
    chunk = _unpack(data[offset : offset + count], tags.get(COMPRESSION, (1,))[0])
    chunk = np.frombuffer(chunk, f'{tags["order"]}u{depth // 8}', count=min(
      h * columns * chunk_bands, len(chunk) // (depth // 8)))  # fmt: skip
    if chunk.size != h * columns * chunk_bands:
      raise UserError('truncated')
    chunk = chunk.reshape(h, columns, chunk_bands)
    if tags.get(PREDICTOR, (1,))[0] == 2:
      chunk = np.cumsum(chunk, 1, dtype=out.dtype)
    target = out[y : y + h, x : x + columns, where]
    target[:] = chunk[: target.shape[0], : target.shape[1]]
  return out


def _unpack(chunk, compression):
  if compression == 1:
    return chunk
  if compression == 5:
    return _lzw(chunk)
  if compression == 32773:
    return _packbits(chunk)
  if compression in (8, 32946):
    try:
      return zlib.decompress(chunk)
    except zlib.error as e:
      raise UserError('truncated') from e
  raise UserError(f'TIFF compression {compression} with this band count; save it uncompressed')


def _packbits(chunk):
  out, i = bytearray(), 0
  while i < len(chunk):
    n = chunk[i]
    if n < 128:
      out += chunk[i + 1 : i + 2 + n]
      i += 2 + n
    elif n > 128:
      out += chunk[i + 1 : i + 2] * (257 - n)
      i += 2
    else:
      i += 1
  return bytes(out)


def _lzw(chunk):
  """LZW as section 13 of the standard has it: codes of 9 to 12 bits, 256 clears, 257 ends."""
  out, table, old = [], [], b''
  bits, held, width = 0, 0, 9
  for byte in chunk:
    bits, held = (bits << 8) | byte, held + 8
    if held < width:
      continue
    held -= width
    code, bits = bits >> held, bits & ((1 << held) - 1)
    if code == 257:
      break
    if code == 256:
      table, old, width = [bytes([i]) for i in range(256)] + [b'', b''], b'', 9
      continue
    if code > len(table) or not table or (code == len(table) and not old):
      raise UserError('broken LZW data')
    entry = table[code] if code < len(table) else old + old[:1]
    out.append(entry)
    if old:
      table.append(old + entry[:1])
    old = entry
    if len(table) >= (1 << width) - 1 and width < 12:
      width += 1
  return b''.join(out)
