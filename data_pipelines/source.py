"""Random access to the windows of one split of a prepared data set."""

import functools
import hashlib
import io
import json
import logging
import pathlib
import re

import numpy as np
from etils import epath

from data_pipelines import images, quarantine, tiling
from data_pipelines import objects as objects_lib
from data_pipelines.batch import TAKEN, Array
from data_pipelines.errors import UserError

logger = logging.getLogger(__name__)

TOUCHED = 1e-6  # share of a region to ignore, from which on a window has it
PER_IMAGE = ('ids', 'sizes', 'starts')  # of an index; its other arrays have a row an object


class Sample(dict):
  """What a `Source` yields; what it has per object can be asked for by its own name, too."""

  def __missing__(self, key):
    return self['objects'][key]


class Source:
  """A sequence of samples: each image, or each window of each image.

  Windows are listed at once from the index; no pixel is read before an item is. It pickles as its
  arguments, so a worker process opens the files anew.

  A sample is a dict: `image` [H, W, C] in the file's own type; `objects` (see
  `data_pipelines.objects`), their boxes and polygons in window pixels, their labels an index in
  `classes`; `id` of the image; `offset` (x, y) of the window in it; `full_size` (height, width) of
  the image.

  Images in the data set's quarantine (`data_pipelines.quarantine`) are not there. A set of tiles
  (`data_pipelines.tiles`) has its own windows and knows whether they are stretched to 8 bits.

  Args:
    data_root: folder of the prepared data sets.
    dataset: its name.
    split: 'train', 'test', ...
    tile: `size` (0: whole images), `overlap`, `keep` (`data_pipelines.tiling`); dict or ConfigDict.

  Attributes:
    classes: class names in label order.
    box: 'hbb', 'obb', or 'image' for a data set without objects.
    extra: {name: Array} of what it has per object beside its boxes, a row of each.
    num_objects: int64 [len], objects of each item, regions to ignore not among them.
    fingerprint: hash of data set, version, split, contents, quarantine and tiling.

  Raises:
    FileNotFoundError: no such data set.
    UserError: no such split, an index whose arrays do not fit together, a quarantine that leaves
      nothing or is none, or a tiling that is none or of a set that has its own.
  """

  def __init__(self, data_root, dataset: str, split: str, tile=None):
    self._arguments = (str(data_root), dataset, split, dict(tile) if tile else None)
    self._folder = dataset_folder(data_root, dataset)
    metadata = json.loads((self._folder / 'metadata.json').read_text())
    self.classes, self.box = tuple(metadata['classes']), metadata['box']
    if split not in metadata['fingerprints']:
      raise UserError(
        f'{self._folder} has no split {split!r}; it has {", ".join(metadata["fingerprints"])}: '
        'name one of these by the `split` of the task, or by --split where a verb has it'
      )
    self._index = dict(np.load(io.BytesIO((self._folder / f'{split}_index.npz').read_bytes())))
    self._all = {name: a for name, a in self._index.items() if name not in PER_IMAGE}
    for name, array in self._all.items():
      if name in TAKEN:
        raise UserError(
          f'{self._folder}/{split}_index.npz: {name!r} is an array of batches; rename it'
        )
      if len(array) != self._index['starts'][-1]:
        raise UserError(
          f'{self._folder}/{split}_index.npz: {name!r} has {len(array)} rows, but there are '
          f'{self._index["starts"][-1]} objects; write a row an object, or prepare the set anew'
        )
    self._leave_out(split)
    self._all = {name: self._index[name] for name in self._all}
    if 'difficult' in self._all:
      self._all['difficult'] = self._all['difficult'] > 0
    self.extra = {
      name: Array(a.shape[1:], a.dtype)
      for name, a in self._all.items()
      if name not in objects_lib.OWN
    }
    tile = dict(size=0, overlap=0, keep=0.7) | dict(tile or {})
    self._side, self._stretch = metadata.get('block', images.BLOCK), metadata.get('stretch8', False)
    if 'block' in metadata:
      self._list_tiles(split, tile['size'])
    else:
      self._list_windows(**tile)
    key = [
      dataset,
      self._folder.name,
      split,
      len(self._index['ids']),
      metadata['fingerprints'][split],
    ]
    tiling_key = [tile['size'], tile['overlap'], tile['keep']] if tile['size'] else [0]
    key += tiling_key + [self._out] * bool(self._out)
    self.fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]

  def _leave_out(self, split):
    """Takes the images in quarantine out of the index; `_record` says where the others lie."""
    file = self._folder.parent / quarantine.NAME
    named = quarantine.read(file).get(split, set()) if file.exists() else set()
    ids = [str(id) for id in self._index['ids']]
    self._out = sorted(named & set(ids))
    self._record = np.array([k for k, id in enumerate(ids) if id not in named], int)
    if strangers := named - set(ids):
      text = '%s: %d lines name no image of split %r, such as %r'
      logger.warning(text, file, len(strangers), split, min(strangers))
    if not self._out:
      return
    if not len(self._record):
      raise UserError(f'{file} leaves no image of split {split!r}; take lines out of it')
    logger.info('%s: %d images of split %r left out', file, len(self._out), split)
    counts, kept = np.diff(self._index['starts']), np.isin(np.arange(len(ids)), self._record)
    rows = np.repeat(kept, counts)
    self._index = {
      name: a[kept] if name in PER_IMAGE else a[rows]
      for name, a in self._index.items()
      if name != 'starts'
    } | {'starts': np.cumsum(np.append(0, counts[kept]))}

  def _list_windows(self, size, overlap, keep):
    index, image, windows, rows = self._index, [], [], []
    valid = objects_lib.valid(self._all)
    least = np.where(valid, keep, TOUCHED)
    for i, (height, width) in enumerate(index['sizes'].tolist()):
      found = tiling.windows(height, width, size, overlap)
      objects = np.arange(index['starts'][i], index['starts'][i + 1])
      if size and len(objects):
        kept = tiling.kept_fraction(index['polygons'][objects], found) >= least[objects]
        rows.extend(objects[k] for k in kept)
      else:
        rows.extend([objects] * len(found))
      image.append(np.full(len(found), i))
      windows.append(found)
    self._image = np.concatenate(image)
    self._window = np.concatenate(windows)
    self._rows = np.concatenate(rows)
    self._starts = np.cumsum([0, *map(len, rows)])
    self.num_objects = np.diff(np.cumsum([0, *valid[self._rows]])[self._starts])

  def _list_tiles(self, split, size):
    if size:
      raise UserError(
        f'{self._folder} is a set of tiles: tile.size={size} of the task cuts none, set 0; '
        '`sm3det prepare` has --tile and --stride'
      )
    found = np.load(io.BytesIO((self._folder / f'{split}_tiles.npz').read_bytes()))
    counts = np.diff(found['starts'])
    kept = np.isin(np.arange(len(counts)), self._record)
    self._window = found['windows'][np.repeat(kept, counts)]
    self._image = np.repeat(np.arange(len(self._record)), counts[kept])
    self._rows, self._starts = np.zeros(0, int), np.zeros(len(self._image) + 1, int)
    self.num_objects = np.zeros(len(self._image), np.int64)

  def __len__(self):
    return len(self._image)

  def __getitem__(self, i) -> Sample:
    i = range(len(self))[i]
    k, (x1, y1, x2, y2) = self._image[i], self._window[i].tolist()
    rows = self._rows[self._starts[i] : self._starts[i + 1]]
    height, width = self._index['sizes'][k].tolist()
    return Sample(
      image=self._in_8_bits(self._pixels(int(k), x1, y1, x2, y2)),
      objects=objects_lib.moved(objects_lib.take(self._all, rows), -x1, -y1),
      id=str(self._index['ids'][k]),
      offset=(x1, y1),
      full_size=(height, width),
    )

  def truth(self) -> list[dict]:
    """Every whole image without its pixels: `id`, `full_size`, and `boxes`, `labels`, ..."""
    starts = self._index['starts']
    return [
      objects_lib.take(self._all, slice(starts[k], starts[k + 1]))
      | dict(id=str(self._index['ids'][k]), full_size=tuple(self._index['sizes'][k].tolist()))
      for k in range(len(starts) - 1)
    ]

  def _in_8_bits(self, pixels):
    return images.stretch8(pixels) if self._stretch and pixels.dtype != np.uint8 else pixels

  def _pixels(self, k, x1, y1, x2, y2):
    record = self._records[int(self._record[k])]
    bands, name = int(record['bands']), f'{self._folder}, image {self._index["ids"][k]}'
    if record['first_block'] < 0:
      return images.decode(record['image'], bands, name)[y1:y2, x1:x2]
    out = None
    for b, (bx1, by1, bx2, by2) in enumerate(
      images.blocks(record['height'], record['width'], self._side).tolist()
    ):
      left, top, right, bottom = max(x1, bx1), max(y1, by1), min(x2, bx2), min(y2, by2)
      if left >= right or top >= bottom:
        continue
      block = images.decode(self._blocks[int(record['first_block']) + b]['image'], bands, name)
      if out is None:
        out = np.empty((y2 - y1, x2 - x1, bands), block.dtype)
      out[top - y1 : bottom - y1, left - x1 : right - x1] = block[
        top - by1 : bottom - by1, left - bx1 : right - bx1
      ]
    return out

  @functools.cached_property
  def _records(self):
    return self._open(self._arguments[2])

  @functools.cached_property
  def _blocks(self):
    return self._open(f'{self._arguments[2]}_blocks')

  def _open(self, split):
    import tensorflow_datasets as tfds  # lazily: half a second

    return tfds.builder_from_directory(self._folder).as_data_source(split=split)

  def __reduce__(self):
    return Source, self._arguments


def dataset_folder(data_root, dataset: str) -> epath.Path:
  """Folder of the newest version of a prepared data set.

  Raises:
    FileNotFoundError: names what is there.
  """
  root = epath.Path(data_root)
  versions = _versions(root / dataset)
  if not versions:
    there = sorted(p.name for p in root.iterdir() if _versions(p)) if root.is_dir() else []
    raise FileNotFoundError(
      f'no prepared data set {dataset!r} in {pathlib.Path(data_root).absolute()} '
      f'(there: {", ".join(there) or "nothing"}); make it with `sm3det prepare`'
    )
  return versions[-1]


def prepared(data_root, dataset: str) -> bool:
  """Whether a root has a data set of this name."""
  return bool(_versions(epath.Path(data_root) / dataset))


def _versions(folder):
  """Its versions, the newest last. No `glob`: brackets in the user's names would be a pattern."""
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted(p for p in found if re.fullmatch(r'\d+\.\d+\.\d+', p.name))
