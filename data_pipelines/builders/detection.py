"""The TFDS builder of every prepared data set: array_record files, no TensorFlow.

A record of split `train` is one image:

| feature | |
|---|---|
| id | file name without suffix |
| height, width, bands | of the image |
| boxes [n, 4 or 5], polygons [n, 8], labels [n], difficult [n], any other | its objects |
| image | encoded bytes (`images.encode`, or a PNG or JPEG as it was), empty for a large image |
| first_block | index of its first block in split `train_blocks`, -1 for an image stored whole |

A record of `train_blocks` has `image` alone: blocks of 512 px, row by row (`images.blocks`).
A set of tiles (`data_pipelines.tiles`) has blocks of another side, which `metadata.json` names, of
all its images; `<split>_tiles.npz` lists the `windows` [n, 4] that count, those of image i being
starts[i] : starts[i + 1].
The annotations of a split lie once more in `<split>_index.npz`, so that windows can be listed
without reading the pixels: `ids`, `sizes` and `starts` of the images; every other array there has a
row an object, those of image i being starts[i] : starts[i + 1].
`metadata.json` has classes, kind of box, fingerprints, and `pixels`: how the values of each split
are distributed (`images.statistics`).
"""

import contextlib
import hashlib
import io
import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import images
from data_pipelines import objects as objects_lib
from data_pipelines.batch import TAKEN
from data_pipelines.builders.scan import Entry
from data_pipelines.errors import UserError
from data_pipelines.source import PER_IMAGE

logger = logging.getLogger(__name__)

VERSION = '1.0.0'
# what nothing of an object's own may be called
RESERVED = ('id', 'height', 'width', 'bands', 'image', 'first_block', *PER_IMAGE, *TAKEN)


class DetectionBuilder(tfds.core.GeneratorBasedBuilder):
  """Images with horizontal or oriented boxes, or without objects.

  Args:
    name: of the data set, a lower-case identifier.
    classes: class names in label order.
    box: 'hbb', 'obb' or 'image'.
    entries: {split: entries}, all with the same arrays of objects.
    pixels: {split: how its values are distributed}, for the metadata.
    data_dir: root of the prepared data sets.
    metadata: more of it.
    pieces: (entry, side of its blocks) -> their pixels in order; by default those of `images.read`.
  """

  VERSION = tfds.core.Version(VERSION)
  code_path = None  # nothing is downloaded: TFDS need not look for checksums beside this module

  def __init__(
    self,
    name: str,
    classes,
    box: str,
    entries: dict[str, list[Entry]],
    pixels: dict[str, dict],
    data_dir,
    metadata: dict | None = None,
    pieces: Callable[[Entry, int], Iterator[np.ndarray]] | None = None,
  ):
    self.name, self._values, self._more = name, pixels, metadata or {}
    self._pieces, self._side = pieces or _pieces, self._more.get('block', images.BLOCK)
    self._classes, self._box, self._entries = tuple(classes), box, entries
    self._none = no_objects([e for listed in entries.values() for e in listed])
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self):
    f = tfds.features
    encoded = f.Tensor(shape=(), dtype=np.object_)
    number = f.Scalar(dtype=np.int32)
    features = dict(
      id=f.Text(),
      height=number,
      width=number,
      bands=number,
      image=encoded,
      first_block=number,
    )
    features |= {
      name: f.Tensor(shape=(None, *a.shape[1:]), dtype=a.dtype) for name, a in self._none.items()
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{self.name}: kind {self._box}',
      features=f.FeaturesDict(features),
      disable_shuffling=True,  # a large image names its blocks by their index
      metadata=tfds.core.MetadataDict(
        classes=list(self._classes),
        box=self._box,
        fingerprints={split: fingerprint(e) for split, e in self._entries.items()},
        pixels=self._values,
        **self._more,
      ),
    )

  def _split_generators(self, dl_manager):
    splits = {}
    for split, entries in self._entries.items():
      # here, so that it appears in the data set's folder together with the records
      _save(self.data_path / f'{split}_index.npz', index(entries, self._none))
      if any(e.tiles is not None for e in entries):
        _save(self.data_path / f'{split}_tiles.npz', tiles(entries))
      splits[split] = self._generate_examples(entries)
      if any(e.large for e in entries):
        splits[f'{split}_blocks'] = self._blocks(entries)
    return splits

  def _generate_examples(self, entries):
    firsts = first_blocks(entries, self._side)
    for i, (entry, first) in enumerate(zip(entries, firsts, strict=True)):
      yield i, self._record(_encoded(entry), first, entry)

  def _blocks(self, entries):
    index = 0
    for entry in entries:
      if entry.large:
        for pixels in self._pieces(entry, self._side):
          yield index, self._record(images.encode(pixels, packed=entry.tiles is None))
          index += 1

  def _record(self, image, first_block=-1, entry=None):
    fields = dict(id='', height=0, width=0, bands=0)  # of a block
    if entry:
      fields = {key: getattr(entry, key) for key in fields}
    objects = entry.objects if entry else self._none
    return fields | objects | dict(image=image, first_block=first_block)


def build(
  name: str,
  classes,
  box: str,
  entries: dict[str, list[Entry]],
  pixels: dict[str, dict],
  data_dir,
  metadata: dict | None = None,
  pieces: Callable[[Entry, int], Iterator[np.ndarray]] | None = None,
) -> epath.Path:
  """Writes the data set, as `DetectionBuilder` is told to, and returns its folder.

  An older one of the same name is replaced at the very end, and stays where writing fails. What a
  killed run has left is never taken up: TFDS would give it back in place of the new one.
  """
  root = epath.Path(data_dir)
  for left in root.glob(f'.{name}.*incomplete'):
    logger.warning('%s: of a run that goes on, or was killed: then remove it', left)
  staging, final = root / f'.{name}.{uuid.uuid4().hex[:8]}.incomplete', root / name / VERSION
  tfds.disable_progress_bar()
  try:
    builder = DetectionBuilder(name, classes, box, entries, pixels, staging, metadata, pieces)
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as unused:
      builder.download_and_prepare(download_dir=unused)
    if final.exists():
      final.rmtree()
    final.parent.mkdir(parents=True, exist_ok=True)
    return epath.Path(builder.data_path).rename(final)
  finally:
    if staging.exists():
      staging.rmtree()


def no_objects(entries: list[Entry]) -> dict[str, np.ndarray]:
  """The arrays of objects that all entries have, with no rows; {} where they have none.

  Raises:
    UserError: a name that is taken; an image whose arrays have other names, types or shapes than
      the others'.
  """
  like = objects_lib.take(entries[0].objects, slice(0)) if entries else {}
  if taken := set(like) & set(RESERVED):
    raise UserError(f'{entries[0].image}: {sorted(taken)} are names of other things; rename them')
  rows = {name: (a.shape, a.dtype) for name, a in like.items()}
  for e in entries:
    found = {name: ((0, *a.shape[1:]), a.dtype) for name, a in e.objects.items()}
    if found != rows or len({len(a) for a in e.objects.values()}) > 1:
      shapes = {name: (a.shape, str(a.dtype)) for name, a in e.objects.items()}
      raise UserError(
        f'{e.image}: arrays of its objects {shapes}, those of {entries[0].image} without rows '
        f'{rows}: a reader gives every image the same names, types and shapes, a row an object'
      )
  return like


def index(entries: list[Entry], like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Annotations of a split as flat arrays; image i has the rows starts[i] : starts[i + 1].

  Args:
    entries: of the split.
    like: `no_objects` of the data set.
  """
  rows = {n: np.concatenate([a, *(e.objects[n] for e in entries)]) for n, a in like.items()}
  return rows | dict(
    ids=np.array([e.id for e in entries]),
    sizes=np.array([(e.height, e.width) for e in entries], np.int32).reshape(-1, 2),
    starts=np.cumsum([0] + [objects_lib.count(e.objects) for e in entries]),
  )


def fingerprint(entries: list[Entry]) -> str:
  """Hash of the files' contents and annotations, the same on every machine."""
  h = hashlib.sha256()
  for e in entries:
    h.update(json.dumps([e.id, e.height, e.width, e.bands, e.checksum, e.crop]).encode())
    for name in objects_lib.OWN if e.objects else ():
      h.update(e.objects[name].tobytes())
    for name in sorted(e.objects.keys() - set(objects_lib.OWN)):
      h.update(name.encode() + e.objects[name].tobytes())
    if e.tiles is not None:
      h.update(e.tiles.astype('<i4').tobytes())
  return h.hexdigest()[:16]


def tiles(entries: list[Entry]) -> dict[str, np.ndarray]:
  """The windows that count of all images; image i has the rows starts[i] : starts[i + 1]."""
  return {
    'windows': np.concatenate([e.tiles for e in entries]).astype(np.int32),
    'starts': np.cumsum([0] + [len(e.tiles) for e in entries]),
  }


def first_blocks(entries: list[Entry], side: int = images.BLOCK) -> Iterator[int]:
  """Index of each image's first block, -1 for images stored whole."""
  index = 0
  for e in entries:
    yield index if e.large else -1
    if e.large:
      index += len(images.blocks(e.height, e.width, side))


def _pixels(entry):
  pixels = images.read(entry.image)
  if entry.crop:
    x1, y1, x2, y2 = entry.crop
    pixels = pixels[y1:y2, x1:x2]
  return pixels


def _pieces(entry, side):
  pixels = _pixels(entry)
  for x1, y1, x2, y2 in images.blocks(entry.height, entry.width, side):
    yield pixels[y1:y2, x1:x2]


def _save(path, arrays):
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  path.write_bytes(buffer.getvalue())


def _encoded(entry):
  if entry.large:
    return b''
  return entry.image.read_bytes() if entry.as_is else images.encode(_pixels(entry))
