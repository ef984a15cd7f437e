"""`sm3det prepare --dataset=tiles`: images of any size -> tiles of one sensor to pre-train on.

    sm3det prepare --dataset=tiles --modality=opt --source=DIR --data_root=data

Tiles overlap, pixels are stored once: an image becomes blocks of two strides, and a list of windows
says which of them count. So a tile at its stride reads just the four blocks that it lies in. Images
of 16 bits stay as they are, and those of an 8-bit modality are stretched (`images.stretch8`) tile
by tile as they are read: the range is a tile's own, and tiles overlap.
"""

import argparse
import dataclasses
import logging
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from data_pipelines import images, polarimetric, rasters, tiling
from data_pipelines.builders.scan import Entry
from data_pipelines.errors import UserError
from data_pipelines.images import statistics
from data_pipelines.modalities import BANDS
from data_pipelines.prepare import Report
from data_pipelines.readers import Skipped, files

COMPLEX = ('sar_l1',)  # real and imaginary parts, of 16 bits or more; the others are of 8 bits

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cut:
  """How tiles are cut: side and step in px, and which share of one may be black (no data)."""

  size: int = 192
  stride: int = 64
  black: float = 0.3

  def __post_init__(self):
    if not 0 < self.stride <= self.size:
      raise UserError(f'--stride={self.stride}: expected 1 to --tile={self.size}')
    if not 0 <= self.black <= 1:
      raise UserError(f'--black={self.black:g}: expected a share, from 0 to 1')

  @property
  def block(self) -> int:
    """Side of the blocks that images are stored in."""
    return 2 * self.stride


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that `--dataset=tiles` alone takes."""
  usual, add = Cut(), parser.add_argument
  of_tiles = 'of --dataset=tiles: '
  add('--modality', choices=BANDS, help=f'{of_tiles}the sensor; {_bands_told()}')
  add('--tile', type=int, help=f'{of_tiles}side, px (default {usual.size})')
  add('--stride', type=int, help=f'{of_tiles}step, px (default {usual.stride})')
  what = f'{of_tiles}share of a tile that may be black (default {usual.black:g})'
  add('--black', type=float, help=what)


def check_unused(args: argparse.Namespace) -> None:
  """Refuses the options of `add_arguments` for another data set.

  Raises:
    UserError: one is given.
  """
  for name in ('modality', 'tile', 'stride', 'black'):
    if getattr(args, name) is not None:
      raise UserError(f'--{name}: only --dataset=tiles takes it; leave it away')


def cut_of(args: argparse.Namespace) -> Cut:
  """What `add_arguments` have been given."""
  given = {'size': args.tile, 'stride': args.stride, 'black': args.black}
  return Cut(**{key: value for key, value in given.items() if value is not None})


def prepare(
  modality: str | None,
  source,
  data_dir,
  *,
  name: str | None = None,
  splits: Mapping[str, str] | None = None,
  cut: Cut | None = None,
  skipped: Skipped | None = None,
) -> Report:
  """Writes one set of tiles; an older one of the same name is replaced.

  Args:
    modality: a key of `BANDS`.
    source: folder of the images, looked through with its subfolders.
    data_dir: root of the prepared data sets.
    name: of the data set, by default 'tiles_<modality>'.
    splits: {split: folder below the source}; by default all is 'train'.
    cut: how tiles are cut.
    skipped: counts what is left out, and says how strict to be.

  Raises:
    FileNotFoundError: no such folder.
    UserError: an unknown modality; a split without tiles; a name that is none.
    BadEntry: an image or tile that cannot be used, if strict.
  """
  from data_pipelines.builders import detection  # lazily: it imports TFDS

  if modality not in BANDS:
    given = 'missing' if modality is None else repr(modality)
    raise UserError(f'--modality is {given}: expected {_bands_told()}')
  name, cut, skipped = name or f'tiles_{modality}', cut or Cut(), skipped or Skipped()
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise UserError(f'name={name!r}: expected a lower-case identifier such as my_tiles')
  entries, pixels = {}, {}
  for split, place in (splits or {'train': '.'}).items():
    folder, values = (
      files.find(source, place, f'images of split {split!r}'),
      statistics.Statistics(),
    )
    entries[split] = list(_scan(folder, source, modality, cut, skipped, values))
    if not entries[split]:
      left_out = skipped.summary() or f'{folder} has no image'
      raise UserError(f'{name}: modality {modality!r} has no tile in split {split!r}; {left_out}')
    pixels[split] = values.summary()
    count = sum(len(e.tiles) for e in entries[split])
    skipped.note(f'{split}: {count:,} tiles of {cut.size} px, each {cut.stride} px from the next')
  if modality in COMPLEX:
    skipped.note(_power_told(modality, pixels))
  more = {'block': cut.block, 'stretch8': modality not in COMPLEX, 'modality': modality}
  pieces = lambda entry, side: _blocks(entry, side, modality)
  folder = detection.build(name, (), 'image', entries, pixels, data_dir, more, pieces)
  return Report(
    name=name,
    folder=str(folder),
    box='image',
    classes=(),
    images={split: len(listed) for split, listed in entries.items()},
    empty={split: len(listed) for split, listed in entries.items()},
    objects={split: [] for split in entries},
    skipped=dict(sorted(skipped.counts.items())),
    places=skipped.places,
    notes=skipped.notes,
    fingerprints={split: detection.fingerprint(listed) for split, listed in entries.items()},
    pixels=pixels,
  )


def _bands_told():
  return ', '.join(f'{name} ({bands} bands)' for name, bands in BANDS.items())


def _power_told(modality, pixels):
  """Complex values are trained on as they are: what their power is, and what makes it one."""
  found = next(iter(pixels.values()))
  power = sum(m**2 + s**2 for m, s in zip(found['mean'], found['std'], strict=True))
  told = f'mean power of all channels {power:.4g}'
  if 0.1 < power < 10:
    return told
  std = ','.join([str(float(f'{np.sqrt(power):.3g}'))] * BANDS[modality])
  return f'{told}; a model wants about 1: train with --config.tasks.{modality}.std=({std})'


def _open(path, modality) -> polarimetric.Channels | rasters.Raster:
  return (polarimetric.open_channels if modality in COMPLEX else rasters.open_raster)(path)


def _read(raster, window) -> np.ndarray:
  """A window's pixels, 0 where there are no data."""
  if isinstance(raster, polarimetric.Channels):
    return raster.read(*window)
  pixels = raster.read(*window, fill=0)
  if pixels is None:
    x1, y1, x2, y2 = window
    return np.zeros((y2 - y1, x2 - x1, raster.bands), raster.dtype)
  return pixels


def _blocks(entry, side, modality) -> Iterator[np.ndarray]:
  """The pixels of an image's blocks, in order; the file is read by rows of them."""
  with _open(entry.image, modality) as raster:
    for y in range(0, entry.height, side):
      rows = _read(raster, (0, y, entry.width, min(y + side, entry.height)))
      for x in range(0, entry.width, side):
        yield _finite(rows[:, x : x + side])


def _finite(pixels):
  """Without NaN and infinities, of which no tile has any."""
  return np.nan_to_num(pixels, posinf=0, neginf=0) if pixels.dtype.kind == 'f' else pixels


def _scan(folder, source, modality, cut, skipped, values) -> Iterator[Entry]:
  """Yields an entry for each image that has tiles; counts the others and the tiles left out."""
  for id, path in files.image_files(folder, skipped, pathlib.Path(source)).items():
    try:
      entry = _looked_at(id, path, modality, cut, skipped, values)
    except images.ImageError as error:
      reason, *detail = str(error).removeprefix(f'{path}: ').split(' (', 1)
      skipped.bad(f'image {reason}', ' ('.join([str(path), *detail]))
      continue
    if entry is not None and len(entry.tiles):
      yield entry


def _looked_at(id, path, modality, cut, skipped, values) -> Entry | None:
  with _open(path, modality) as raster:
    if raster.bands != BANDS[modality]:
      asked = f'{modality} has {BANDS[modality]}'
      skipped.bad('image of another number of bands', path, f'{raster.bands} bands, {asked}')
      return None
    if min(raster.height, raster.width) < cut.size:
      size = f'{raster.width} x {raster.height} px, a tile has {cut.size}'
      skipped.bad('image smaller than a tile', path, size)
      return None
    kept = []
    for window, pixels, black in _tiles(raster, cut):
      reason = _unusable(pixels, black, modality, cut)
      if reason:
        skipped.bad(reason, f'{path} at x={window[0]}, y={window[1]}')
        continue
      kept.append(window)
      eight = modality not in COMPLEX and pixels.dtype != np.uint8
      values.add(statistics.count(images.stretch8(pixels) if eight else pixels))
    for remark, count in getattr(raster, 'remarks', {}).items():
      skipped.add(remark, path, count)
    facts = dict(height=raster.height, width=raster.width, bands=raster.bands)
    return Entry(
      id=id, image=path, crop=None, **facts, as_is=False, checksum=_checksum(path), objects={},
      dtype=raster.dtype.name, tiles=np.array(kept, np.int32).reshape(-1, 4),
    )  # fmt: skip


def _tiles(raster, cut) -> Iterator[tuple[tuple[int, ...], np.ndarray, float]]:
  """(window, pixels, share that is black) of every tile; a row of tiles is read at once."""
  listed = tiling.windows(raster.height, raster.width, cut.size, cut.size - cut.stride).tolist()
  top = None
  for x1, y1, x2, y2 in listed:
    if y1 != top:
      top, rows = y1, _read(raster, (0, y1, raster.width, y2))
      black = np.append(0, (rows == 0).all(-1).sum(0)).cumsum()
    yield (x1, y1, x2, y2), rows[:, x1:x2], (black[x2] - black[x1]) / cut.size**2


def _unusable(pixels, black, modality, cut) -> str | None:
  """Why a tile is left out."""
  if pixels.dtype.kind == 'f' and not np.isfinite(pixels).all():
    return f'tile of {modality} with values that are not finite'
  if black > cut.black:
    return f'tile with over {cut.black:.0%} black'
  return 'constant tile' if pixels.min() == pixels.max() else None


def _checksum(path) -> int:
  found = 0
  with open(path, 'rb') as file:
    while part := file.read(2**22):
      found = zlib.crc32(part, found)
  return found
